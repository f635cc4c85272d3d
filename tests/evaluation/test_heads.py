"""`predict` for models that give more than a tensor: each output has its columns, and no row is another sample's."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml
from places import RECIPES
from torch import Tensor
from worlds import in_world

import launcher
from launcher.api import Result
from launcher.cli.main import main
from launcher.errors import LauncherError
from launcher.evaluation.heads import shortest_numbers
from launcher.evaluation.output_files import output_file

RECIPE = RECIPES / "heads.yaml"
INPUTS = torch.linspace(-1, 1, 30).reshape(10, 3)
KIND = "{_target_: CrossEntropyLoss, _outputs_: [%s]}"
SUM = "{_target_: MSELoss, _outputs_: [%s], _targets_: [2]}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return launcher.train(RECIPE, cpu=True, run_dir=tmp_path_factory.mktemp("heads") / "run", output="quiet")


@pytest.fixture(autouse=True)
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a command goes elsewhere


def given(run: Result, form: str) -> Any:
    """What the model gives in a form for all ten rows."""
    model = run.model
    model.gives = form
    with torch.no_grad():
        return model(INPUTS)


def command(run: Result, form: str, *changes: str, to: Path) -> list[str]:
    return ["predict", str(run.folder), f"model.gives={form}", *changes, "--cpu", "--to", str(to)]


def ended(words: list[str]) -> Any:
    """The exit code of a command."""
    try:
        return main(words)
    except SystemExit as leaving:  # as one rank of several ends
        return leaving.code


def predicted(run: Result, form: str, *changes: str, to: Path) -> list[dict[str, Any]]:
    assert main(command(run, form, *changes, to=to)) == 0
    return read(to)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    return list(pyarrow.parquet.read_table(path).to_pylist())


def column(rows: list[dict[str, Any]], *names: str) -> Tensor:
    cells = [[row[name] for name in names] for row in rows]
    table = torch.tensor([[float(cell) if isinstance(cell, str) else cell for cell in row] for row in cells])
    return table if len(names) > 1 else table[:, 0]


def check_same(values: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(values, expected.to(values.dtype), rtol=1e-5, atol=1e-6)


# of a form, what its logits and its value are called
NAMES = {
    **dict.fromkeys(("tuple", "list"), ("0", "1")),
    **dict.fromkeys(("named tuple", "dataclass", "mapping"), ("logits", "value")),
    "nested": ("first.logits", "second.of.value"),
}


@pytest.mark.parametrize("form", NAMES)
def test_several_outputs_have_columns_by_the_keys_of_the_recipe(
    run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    first, second = NAMES[form]
    losses = f"loss={{kind: {KIND % first}, sum: {SUM % second}}}"
    rows = predicted(run, form, losses, to=tmp_path / "out.jsonl")
    of_first = [f"{name}.{first}" for name in ("class", "prediction", "probability", "output")]
    assert list(rows[0]) == ["index", *of_first, f"output.{second}"]
    logits, value = given(run, "tuple")
    check_same(column(rows, f"output.{first}"), logits)
    check_same(column(rows, f"output.{second}"), value)
    assert column(rows, f"prediction.{first}").tolist() == logits.argmax(1).tolist()
    assert [row[f"class.{first}"] for row in rows] == [("low", "high")[number] for number in logits.argmax(1)]
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize("picks", ["its losses", "the batch"])
def test_an_evaluation_writes_what_every_head_says(run: Result, tmp_path: Path, picks: str) -> None:
    of_losses = [f"loss={{logits: {KIND % 'logits'}, value: {SUM % 'value'}}}"]
    of_batch = ["batch={outputs: [logits, value], targets: [1, 2]}", "loss=heads.py:of_both"]
    to, changes = tmp_path / "out.jsonl", of_losses if picks == "its losses" else of_batch
    words = ["evaluate", str(run.folder), "--cpu", "--predictions", str(to), "model.gives=mapping", *changes]
    assert main(words) == 0
    rows, (logits, value) = read(to), given(run, "tuple")
    assert list(rows[0])[:5] == [
        "index",
        *(f"{name}.logits" for name in ("target", "prediction", "probability", "loss")),
    ]
    assert list(rows[0])[5:] == ["target.value", "prediction.value"]
    assert column(rows, "prediction.logits").tolist() == logits.argmax(1).tolist()
    check_same(column(rows, "prediction.value"), value)
    check_same(column(rows, "target.value"), INPUTS.sum(1))


def test_several_processes_and_tables_have_the_same(run: Result, tmp_path: Path) -> None:
    losses = f"loss={{kind: {KIND % 'logits'}, sum: {SUM % 'value'}}}"
    expected = predicted(run, "mapping", losses, to=tmp_path / "one.parquet")
    words = command(run, "mapping", losses, "device.sharding=full", to=tmp_path / "two.csv")
    assert in_world(2, main, words) == [0, 0]
    rows = read(tmp_path / "two.csv")
    assert list(rows[0])[4:] == ["output.logits_low", "output.logits_high", "output.value"]
    check_same(column(rows, "output.logits_low", "output.logits_high"), column(expected, "output.logits"))
    for name in ("index", "prediction.logits", "probability.logits", "output.value"):
        check_same(column(rows, name), column(expected, name))


@pytest.mark.parametrize(
    ("form", "left_out"),
    [
        ("one of them", "loss (float32 [])"),
        ("transformers'", "loss (float32 []), hidden_states (a tuple of 2), cache (DynamicCache)"),
        ("a table", "1 (float32 [4, 2])"),
    ],
)
def test_what_is_of_no_sample_is_left_out_and_the_only_one_is_the_output(
    run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, left_out: str
) -> None:
    rows = predicted(run, form, to=tmp_path / "out.jsonl")
    assert list(rows[0]) == ["index", "class", "prediction", "probability", "output"]
    check_same(column(rows, "output"), given(run, "tensor"))
    words = f"left out, with no row for each sample: {left_out}; batch.outputs names what is meant\n"
    assert capsys.readouterr().err.endswith(words)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("batch.outputs=[logits, hidden_states.-2]", ["output.logits", "output.hidden_states.-2"]),
        ("batch.outputs=[hidden_states]", ["output.hidden_states.0", "output.hidden_states.1"]),
        ("batch.outputs=[logits]", ["output"]),
        (
            "evaluate.metrics={own: {_ref_: 'heads.py:own', _outputs_: [hidden_states.0]}}",
            ["output.logits", "output.hidden_states.0"],
        ),
    ],
)
def test_what_the_recipe_names_is_written(run: Result, tmp_path: Path, change: str, names: list[str]) -> None:
    rows = predicted(run, "transformers'", change, "loss=model", to=tmp_path / "out.jsonl")
    assert [name for name in rows[0] if name.startswith("output")] == names


def test_names_of_classes_are_of_the_first_target_alone(run: Result, tmp_path: Path) -> None:
    largest = "{_target_: CrossEntropyLoss, _outputs_: [logits], _targets_: [3]}"
    sign = "{_target_: BCEWithLogitsLoss, _outputs_: [value]}"
    rows = predicted(run, "mapping", f"loss={{a: {largest}, b: {sign}}}", to=tmp_path / "out.csv")
    assert list(rows[0])[1:] == [
        *("prediction.logits", "probability.logits", "class.value", "prediction.value", "probability.value"),
        *("output.logits_0", "output.logits_1", "output.value"),
    ]
    assert column(rows, "prediction.value").tolist() == (given(run, "tuple")[1] > 0).long().tolist()


@pytest.mark.parametrize(
    ("form", "loss", "name"),
    [
        ("one of them", "model", "prediction"),
        ("one of them", "{_ref_: 'heads.py:own'}", "prediction"),
        (
            "mapping",
            f"{{a: {{_target_: 'heads.py:own', _outputs_: [logits]}}, b: {SUM % 'value'}}}",
            "prediction.logits",
        ),
    ],
)
def test_scores_of_classes_under_any_loss(run: Result, tmp_path: Path, form: str, loss: str, name: str) -> None:
    rows = predicted(run, form, f"loss={loss}", to=tmp_path / "out.jsonl")
    assert column(rows, name).tolist() == given(run, "tensor").argmax(1).tolist()


def test_predictions_are_of_what_the_loss_gets_of_batch_adapt_and_outputs_the_model_s(
    run: Result, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in INPUTS.tolist()))
    adapt, by_target = (f"batch.adapt={{_ref_: 'heads.py:{name}'}}" for name in ("logits_alone", "by_target"))
    for words in ([adapt], [adapt, str(tmp_path / "rows.jsonl")]):  # with targets, and without
        rows = predicted(run, "mapping", *words, to=tmp_path / "out.jsonl")
        assert column(rows, "prediction").tolist() == given(run, "tensor").argmin(1).tolist()
        check_same(column(rows, "output.logits"), given(run, "tensor"))
    assert "prediction" not in predicted(run, "mapping", by_target, to=tmp_path / "out.jsonl")[0]


# ---------------------------------------------------------------------- something for each sample


@pytest.mark.parametrize(("suffix", "size"), [("jsonl", 1), ("csv", 1), ("parquet", 2)])
def test_boxes_are_lists_of_their_samples(run: Result, tmp_path: Path, suffix: str, size: int) -> None:
    target = tmp_path / f"out.{suffix}"
    alone = "evaluate.batch_size=1"  # the first has no box, which tells of no type
    words = command(run, "boxes", alone, "loss=model", to=target)
    assert (in_world(size, main, words) if size > 1 else [main(words)]) == [0] * size
    rows = read(target)
    assert list(rows[0]) == ["index", "class.labels", "output.boxes", "output.labels", "output.sure"]
    for row, expected in zip(rows, given(run, "boxes"), strict=True):
        cells = {name: json.loads(cell) for name, cell in row.items()} if suffix == "csv" else row
        assert len(cells["output.boxes"]) == len(expected["boxes"])
        assert all(box == pytest.approx(expected["boxes"][0].tolist()) for box in cells["output.boxes"])
        assert cells["output.labels"] == expected["labels"].tolist()
        assert cells["class.labels"] == ["high"] * len(expected["labels"])
        assert cells["output.sure"] == pytest.approx(float(expected["sure"]))
    assert sorted({len(expected["labels"]) for expected in given(run, "boxes")}) == [0, 1, 2]


@pytest.mark.parametrize(
    ("form", "name", "of"),
    [
        ("boxes inside", "output.found.labels", lambda row: row["found"]["labels"].tolist()),
        ("texts", "output.text", lambda row: row["text"]),
        ("ragged", "output", lambda row: pytest.approx(row.tolist())),
    ],
)
def test_lists_with_an_item_for_each_sample(run: Result, tmp_path: Path, form: str, name: str, of: Any) -> None:
    rows = predicted(run, form, "loss=model", to=tmp_path / "out.jsonl")
    whole = given(run, form)
    key = {"boxes inside": "found", "texts": "text"}.get(form)
    items = whole if key is None else [{key: item} for item in whole[key]]
    assert [row[name] for row in rows] == [of(item) for item in items]


def test_what_ctc_gets_has_its_samples_second(run: Result, tmp_path: Path) -> None:
    parts = "_outputs_: {log_probs: frames, input_lengths: value, target_lengths: value}, _targets_: {targets: 1}"
    ctc = f"{{_target_: CTCLoss, {parts}}}"
    loss = f"loss={{a: {ctc}, b: {SUM % 'value'}}}"
    rows = predicted(run, "frames", loss, "evaluate.batch_size=5", to=tmp_path / "out.jsonl")
    check_same(column(rows, "output.frames"), given(run, "frames")["frames"].movedim(1, 0))


def test_numbers_of_any_type(run: Result, tmp_path: Path) -> None:
    expected = given(run, "types")
    for suffix in ("jsonl", "parquet"):
        rows = predicted(run, "types", "loss=model", to=tmp_path / f"out.{suffix}")
        raw = {name.removeprefix("output."): [row[name] for row in rows] for name in rows[0]}
        assert raw["bool"] == expected["bool"].tolist()
        assert raw["int"] == expected["int"].tolist()  # beyond what a float32 holds
        for name in ("half", "bfloat16", "double", "wide"):
            check_same(torch.tensor(raw[name]), expected[name].float())
        check_same(torch.tensor(raw["sparse"]), expected["sparse"].to_dense())
        check_same(torch.view_as_complex(torch.tensor(raw["complex"])), expected["complex"])


def test_ranks_that_share_the_model_write_no_row_of_what_only_one_takes_for_an_output(
    run: Result, tmp_path: Path
) -> None:
    """They cannot ask for one sample more: a table that has as many rows as the first batch is found out later."""
    words = command(run, "a table", "device.sharding=full", "loss=model", to=tmp_path / "out.jsonl")
    assert in_world(2, ended, words) == [1, 1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "line"),
    [
        (
            "a number",
            "the model's output, float32 [], has no row for each sample of a batch of 4; if it is a loss, and",
        ),
        ("turned", "the model's output, float32 [2, 4], has no row for each sample of a batch of 4"),
        ("shorter", "the model's output, 0 (float32 [3, 2]), 1 (float32 []), has no row for each sample"),
        ("nothing", "the model's output, NoneType, has no row for each sample of a batch of 4"),
        ("no longer", "in the first batch, and in another float32 [4, 2] for 2 samples; pick"),
        ("a part", "the model's output value has a row for each sample in the first batch, and in another none; pick"),
        ("a key", "the model gives b for some batches only; pick what each has with batch.outputs"),
    ],
)
def test_what_has_no_rows_is_refused_in_a_line(
    run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, line: str
) -> None:
    capsys.readouterr()
    assert main(command(run, form, "loss=model", to=tmp_path / "out.jsonl")) == 1
    errors = [text for text in capsys.readouterr().err.splitlines() if not text.startswith("own code")]
    assert len(errors) == 1
    assert line in errors[0]
    assert not (tmp_path / "out.jsonl").exists()


# ---------------------------------------------------------------------- from Python, and files of rows


def trained(folder: Path, *changes: str) -> Result:
    return launcher.train(RECIPE, *changes, "train.steps=1", cpu=True, run_dir=folder, output="quiet")


def test_a_result_gives_them_by_the_same_names(tmp_path: Path) -> None:
    losses = f"loss={{kind: {KIND % 'logits'}, sum: {SUM % 'value'}}}"
    result = trained(tmp_path / "run", "model.gives=mapping", losses)
    for data in (INPUTS, "validation"):
        outputs = result.predict(data, cpu=True)
        assert not isinstance(outputs, torch.Tensor)
        with torch.no_grad():
            expected = result.model(INPUTS)
        assert list(outputs) == ["logits", "value"]
        for name, output in outputs.items():
            check_same(output, expected[name])


def test_a_result_gives_a_detector_s_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    del recipe["data"]["validation"]
    recipe |= {"name": "boxes", "loss": "model", "model": {"_target_": "heads.py:Net", "gives": "boxes"}}
    monkeypatch.chdir(RECIPES)
    result = launcher.train(recipe, cpu=True, run_dir=tmp_path / "run", output="quiet")
    outputs = result.predict(INPUTS, cpu=True)
    for output, expected in zip(outputs, result.model(INPUTS), strict=True):
        assert list(output) == list(expected)
        for name, value in output.items():
            check_same(value, expected[name])


def test_types_of_a_table_are_those_of_the_first_values(tmp_path: Path) -> None:
    path = tmp_path / "o.parquet"
    with output_file(path) as write:
        write({"a": [None], "b": [[]], "c": [1]})
        write({"a": ["x"], "b": [[[1.5]]], "c": [0.5]})
        write({"a": [None], "b": [[]], "c": [2]})
    assert read(path) == [
        *({"a": None, "b": [], "c": 1.0}, {"a": "x", "b": [[1.5]], "c": 0.5}, {"a": None, "b": [], "c": 2.0})
    ]
    with output_file(path) as write:
        write({"a": [None]})
    assert read(path) == [{"a": None}]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [(1, 0.5, "a is int64, then double"), ("x", 1, "a is string, then int64"), ([1], 1, "a is list<")],
)
def test_values_that_are_of_no_such_type_are_refused(tmp_path: Path, first: Any, second: Any, words: str) -> None:
    def written() -> None:
        with output_file(tmp_path / "o.parquet") as write:
            write({"a": [first]})
            write({"a": [second]})

    with pytest.raises(LauncherError, match=words):
        written()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (2, 0), (0,)])
@pytest.mark.parametrize("value", [0.1, -1.0, float("inf"), 1e-30])
def test_numbers_have_the_digits_that_they_need_in_any_shape(shape: tuple[int, ...], value: float) -> None:
    plain = shortest_numbers(torch.full(shape, value))
    assert plain == torch.full(shape, value, dtype=torch.float64).tolist()
    assert shortest_numbers(np.array(torch.full(shape, value).numpy(), order="F")) == plain
    assert shortest_numbers(torch.full(shape, 3)) == torch.full(shape, 3).tolist()
