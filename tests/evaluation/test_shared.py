"""What was saved, evaluated, asked and exported by several processes: as by one, and none of them holds all of it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from memory import give_back, peak_of
from places import SUPPORT
from tiers import rounds
from worlds import Command, Trained, free_port, in_world, train

from launcher.checkpoints import format as checkpoints
from launcher.cli.main import main

RECIPE = SUPPORT / "recipes" / "sharded.yaml"


def told(*arguments: str) -> tuple[int, str, str]:
    """A command in this process, or as this rank: its exit code, and what it says."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = main(arguments)
    return code, out.getvalue(), errors.getvalue()


def by(size: int, *arguments: str) -> str:
    """What rank 0 of so many says; the others say nothing."""
    ranks = in_world(size, told, *arguments, "--cpu") if size > 1 else [told(*arguments, "--cpu")]
    for code, _, errors in ranks:
        assert code == 0, errors
    assert not any(out for _, out, _ in ranks[1:])
    return str(ranks[0][1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained by two that share the model, with a loss of its own parameters."""
    changes = ("device.sharding=full", "loss={_target_: 'sharded.py:Scaled'}", "train.steps=10")
    frozen = "train.freeze={'blocks.1.*': always}"  # of which there is no average
    return train(tmp_path_factory.mktemp("sharded") / "run", *changes, frozen, size=2, recipe=RECIPE)


def source(run: Trained, kind: str) -> str:
    """What the run has saved: its final weights, or its last checkpoint, in rows."""
    return str(run.folder if kind == "weights" else max((run.folder / "checkpoints").iterdir()))


# ---------------------------------------------------------------------- evaluate


@pytest.mark.parametrize(("size", "kind"), [(2, "weights"), (4, "checkpoint")])
def test_the_figures_are_those_of_one_process(run: Trained, size: int, kind: str) -> None:
    said = by(size, "evaluate", source(run, kind), "--json")
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    expected = [line for line in run.lines if line["split"] != "train"][-2:]
    for line, printed in zip(lines, expected, strict=True):
        assert line.keys() == printed.keys() - {"time"}
        for key, value in line.items():
            within = 1e-6 * value if "perplexity" in key else 1e-9  # which is added up in float32
            assert value == (printed[key] if isinstance(value, str) else pytest.approx(printed[key], abs=within)), key


def test_each_sample_s_prediction_by_four(run: Trained, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for size in (1, 4):
        by(size, "evaluate", str(run.folder), "--split", "test", "--predictions", str(tmp_path / f"{size}.parquet"))
    one, four = (parquet.read_table(tmp_path / f"{size}.parquet").to_pydict() for size in (1, 4))
    assert one.keys() == four.keys()
    for name, column in one.items():
        assert torch.allclose(torch.tensor(four[name]), torch.tensor(column), atol=1e-6), name


def test_a_run_that_was_not_sharded_is_shared_by_whole_models(run: Trained) -> None:
    said = by(2, "evaluate", str(run.folder), "device.sharding=none", "--json", "--split", "test")
    assert json.loads(said.splitlines()[-1])["loss"] == pytest.approx(run.column("loss", "test")[-1], abs=1e-9)


def test_one_process_holds_it_whole_and_says_so(run: Trained) -> None:
    _, out, errors = told("evaluate", str(run.folder), "--json", "--cpu")
    assert "device.sharding is full, and one process holds the model whole here; --processes N shards it" in errors
    assert all(line.startswith("{") for line in out.splitlines())


# ---------------------------------------------------------------------- predict


@pytest.mark.parametrize(("size", "form"), [(2, "jsonl"), (4, "csv"), (3, "parquet")])
def test_predictions_stand_in_the_order_of_the_set(run: Trained, tmp_path: Path, size: int, form: str) -> None:
    many = "data.test.size=27"  # of which the last round is not full
    for number in (1, size):
        by(number, "predict", str(run.folder), many, "--to", str(tmp_path / f"{number}.{form}"))
    if form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        one, several = (parquet.read_table(tmp_path / f"{number}.{form}").to_pylist() for number in (1, size))
    else:
        one, several = ((tmp_path / f"{number}.{form}").read_text().splitlines() for number in (1, size))
    assert len(one) == 27 + (form == "csv")
    assert several == one  # to the bit: a sample is computed by itself


def test_a_stream_is_dealt_out_batch_by_batch(run: Trained, tmp_path: Path) -> None:
    stream = "data.test={_target_: 'sharded.py:Flow', size: 13}"
    for size in (1, 3):
        by(size, "predict", str(run.folder), stream, "--to", str(tmp_path / f"{size}.jsonl"))
    one, three = ((tmp_path / f"{size}.jsonl").read_text() for size in (1, 3))
    assert one.count("\n") == 13
    assert three == one


def test_lines_on_standard_input_by_two(run: Trained, tmp_path: Path) -> None:
    rows = "".join(json.dumps([number, 1, 2, 3, 4, number]) + "\n" for number in range(7))
    (tmp_path / "rows.jsonl").write_text(rows)
    expected = by(1, "predict", str(run.folder), str(tmp_path / "rows.jsonl"), "--to", "-")
    done = Command(tmp_path, "predict", str(run.folder), "-", "--cpu", "--processes", "2", stdin="rows.jsonl").wait()
    assert (done.code, done.left) == (0, []), done.screen
    assert [line for line in done.screen.splitlines() if line.startswith("{")] == expected.splitlines()
    assert re.search(r"standard output: 7 outputs of \S*model_weights.pth", done.screen)


# ---------------------------------------------------------------------- export


@pytest.mark.parametrize(("size", "form", "kind"), [(4, "pth", "weights"), (2, "safetensors", "checkpoint")])
def test_what_several_export_is_what_one_does(run: Trained, tmp_path: Path, size: int, form: str, kind: str) -> None:
    for number in (1, size):
        said = by(number, "export", source(run, kind), "--to", str(tmp_path / f"{number}.{form}"))
        assert "outputs on a real batch are bit-equal" in said
    if form == "safetensors":
        assert (tmp_path / f"{size}.{form}").read_bytes() == (tmp_path / f"1.{form}").read_bytes()
        return
    one, several = (torch.load(tmp_path / f"{number}.{form}", weights_only=True) for number in (1, size))
    assert list(one) == list(several)
    assert all(torch.equal(one[name], several[name]) for name in one)
    assert several["head.weight"].data_ptr() == several["tokens.weight"].data_ptr()


def test_weights_in_bfloat16_stay_what_they_are(tmp_path: Path) -> None:
    half = ("device.sharding=full", "device.precision=bf16-true", "model.dtype=float32", "train.steps=2")
    run = train(tmp_path / "run", *half, size=2, recipe=RECIPE)
    by(2, "export", str(run.folder), "--to", str(tmp_path / "two.pth"))
    exported = torch.load(tmp_path / "two.pth", weights_only=True)
    assert all(torch.equal(exported[name], weight) for name, weight in run.weights.items())
    assert exported["head.weight"].dtype == torch.bfloat16


# ---------------------------------------------------------------------- what is refused

# the words of a command behind the run, and the line that says why not
REFUSED = {
    "more processes than samples": (("evaluate", "data.test.size=1"), "test has 1 samples for 2 processes; start 1"),
    "rank 0 alone": (("evaluate", "--ranks", "first"), "rank 0 alone has no whole model under device.sharding"),
    "standard input of torchrun's": (("predict", "-"), "standard input is one process's, on one machine"),
    "a program": (("export", "--to", "x.pt2"), "pt2 needs the whole model, which one process then holds; start one"),
    "a folder": (("export", "--to", "x", "--as", "transformers"), "transformers needs the whole model"),
    "an adapter": (("export", "--to", "x.pth", "--merge"), "--merge needs the whole model"),
    "another number": (("evaluate", "--processes", "3"), "--processes 3: torchrun has started 2; omit --processes"),
}


@pytest.fixture
def first_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What the first of two is told, which meets nobody: what is refused, is before."""

    def refused(*words: str) -> str:
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        code, _, errors = told(*words, "--cpu")
        assert code == 2
        assert errors.count("\n") == 1
        assert not list((tmp_path / "here").iterdir())
        return errors

    return refused


@pytest.mark.parametrize("case", REFUSED)
def test_what_several_cannot_do_is_said_in_a_line(run: Trained, first_of_two: Callable[..., str], case: str) -> None:
    (command, *words), message = REFUSED[case]
    assert message in first_of_two(command, str(run.folder), *words)


def test_what_was_not_sharded_is_not_exported_together(tmp_path: Path, first_of_two: Callable[..., str]) -> None:
    folder = train(tmp_path / "run", "train.epochs=1").folder
    said = first_of_two("export", str(folder), "--to", "x.pth")
    assert "model_weights.pth: the run's device.sharding is none, there is nothing to share; start one" in said


@rounds("command", plain=["predict"], long=["evaluate"])
def test_an_error_of_one_ends_all(run: Trained, tmp_path: Path, command: str) -> None:
    wrong = "data.test={_target_: 'sharded.py:Holed', size: 12, hole: 7}"
    done = Command(tmp_path, command, str(run.folder), wrong, "--cpu", "--processes", "2").wait()
    assert (done.code, done.left) == (1, []), done.screen
    assert done.report.startswith("launcher: rank 1 of 2"), done.screen
    assert "sharded.py" in done.report
    assert "OSError: a bad disk" in done.report
    assert "launcher_tmp" not in done.report  # a folder that is gone
    assert not (tmp_path / "outputs.jsonl").exists()


def test_ctrl_c_ends_all_and_is_no_failure(run: Trained, tmp_path: Path) -> None:
    slow = "data.test={_target_: 'sharded.py:Slow', size: 12}"
    command = Command(tmp_path, "predict", str(run.folder), slow, "--cpu", "--processes", "2")
    while command.process.is_alive() and not (command.screen.exists() and "reading" in command.screen.read_text()):
        time.sleep(0.1)
    os.kill(command.process.pid, signal.SIGINT)
    done = command.wait()
    assert (done.code, done.left, done.report) == (130, [], ""), done.screen


@pytest.mark.long
def test_machines_meet_as_they_do_to_train(run: Trained, tmp_path: Path) -> None:
    words = ("evaluate", str(run.folder), "--json", "--cpu", "--nodes", "2", "--master", f"127.0.0.1:{free_port()}")
    first, other = (Command(tmp_path, *words, "--node-rank", str(number)) for number in range(2))
    told_first, told_other = first.wait(), other.wait()
    assert (told_first.code, told_other.code) == (0, 0), told_first.screen + told_other.screen
    lines = [json.loads(line) for line in told_first.screen.splitlines() if line.startswith("{")]
    assert lines[-1]["loss"] == pytest.approx(run.column("loss", "test")[-1], abs=1e-9)


# ---------------------------------------------------------------------- memory


def blocks_of(width: int) -> tuple[str, ...]:
    """Sixteen of them, trained for a moment."""
    return (
        f"model={{_target_: 'sharded.py:Net', width: {width}, layers: 16, dtype: float32}}",
        *("device.sharding=full", "train={steps: 1}", "save={every: 1 steps}"),
    )


def peak_here(small: str, large: str, *words: str) -> int:
    """Bytes that this rank's memory grew by, at most, while a command worked on the large model."""

    def done(saved: str, name: str) -> None:
        code, _, errors = told(words[0], saved, *(word.replace("NAME", name) for word in words[1:]), "--cpu")
        assert code == 0, errors

    give_back()
    done(small, "small")  # imports
    return peak_of(lambda: done(large, "large"))


WORK = {"evaluate": ("--split", "test"), "export": ("--to", "NAME.pth")}
EACH = [(command, kind) for command in WORK for kind in ("weights", "checkpoint")]


@rounds("size, width, work", plain=[(2, 320, EACH[::3])], long=[(2, 640, EACH), (4, 1024, EACH)])
def test_no_rank_holds_a_whole_copy(tmp_path: Path, size: int, width: int, work: list[tuple[str, str]]) -> None:
    small, large = (
        train(tmp_path / str(each), *blocks_of(each), size=2, recipe=RECIPE, remove=("train.ema",))
        for each in (10, width)
    )
    total = sum(weight.nbytes for name, weight in large.weights.items() if name != "head.weight")
    for command, kind in work:
        words = [word.replace("NAME", str(tmp_path / f"NAME-{kind}")) for word in WORK[command]]
        # its rows, as many that are mapped of a file, or the blocks that are put together
        for peak in in_world(size, peak_here, source(small, kind), source(large, kind), command, *words):
            assert total / size < peak < total


def test_a_checkpoint_that_processes_have_written_is_in_rows(run: Trained) -> None:
    assert "rows" in checkpoints.verify(Path(source(run, "checkpoint"))).manifest
