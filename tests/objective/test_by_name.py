"""Losses that give several numbers by name: each is logged, evaluated and kept; what does not fit is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import by_names, in_parts
from nets import three
from places import ROOT
from sets import Cls
from worlds import Trained, in_world, result_of, train, train_here

from launcher.cli.main import main
from launcher.errors import LauncherError
from launcher.objective.batch import losses_among
from launcher.objective.entries import fault_in, to_log

RECIPE = ROOT / "tests" / "brought" / "parts" / "brought.yaml"
IGNORED = "{_target_: sets.py:Cls, ignored: -100}"
BY_NAME = (
    "model={_target_: nets.py:three}",
    "loss={_ref_: losses.py:by_names}",
    f"data.train={IGNORED}",
    f"data.validation={IGNORED}",
    "evaluate={every: 3 steps, batch_size: 7}",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("names") / "run", *BY_NAME, "data.micro_batch_size=3", size=2, recipe=RECIPE)


def test_each_is_logged_by_its_name(run: Trained) -> None:
    first, data = run.lines[0], Cls(ignored=-100)
    given = by_names(three()(data.x[:8]), data.y[:8])
    assert first["loss/ce"] == pytest.approx(given["ce"].item(), rel=1e-9)
    assert first["loss/size"] == pytest.approx(given["size"].item(), rel=1e-9)
    assert first["loss"] == pytest.approx(given["ce"].item() + given["size"].item(), rel=1e-9)
    assert 0 <= first["accuracy"] <= 1
    assert "scores" not in first


def test_an_evaluation_has_them_and_is_repeated_from_what_is_saved(
    run: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = (line for line in run.lines if line["split"] == "validation" and line["step"] == 6)
    assert line["loss"] == pytest.approx(line["loss/ce"] + line["loss/size"], rel=1e-12)
    assert main(["evaluate", str(run.folder), "--json", "--cpu"]) == 0
    (again,) = (json.loads(text) for text in capsys.readouterr().out.splitlines() if text.startswith("{"))
    assert {key: again[key] for key in again if key.startswith("loss")} == pytest.approx(
        {key: value for key, value in line.items() if key.startswith("loss")}, rel=1e-9
    )


def test_check_names_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(RECIPE), *BY_NAME, "--processes", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "loss.ce: a mean over the targets that are not -100" in said
    assert "loss.size: a mean over samples" in said


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss={_target_: losses.py:ByNames}", "device.sharding=full"),
        ("loss={_target_: losses.py:ByNames}", "data.micro_batch_size=auto"),
        ("loss={_ref_: losses.py:by_names, _per_: batch}", "data.drop_last=true"),
    ],
)
def test_they_go_with_everything_else(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    in_world(2, train_here, str(tmp_path / "run"), (*BY_NAME, *overrides), str(RECIPE))
    line = result_of(tmp_path / "run").lines[0]
    assert line["loss"] == pytest.approx(line["loss/ce"] + line["loss/size"], rel=1e-9)


def test_memory_is_traced_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(RECIPE), *BY_NAME, "--memory"]) == 0
    assert "loss" in capsys.readouterr().out


def test_what_a_model_gives_by_name_is_logged_too(tmp_path: Path) -> None:
    own = ("model={_target_: nets.py:NamesLosses}", "loss=model", "batch.inputs=[0, 1]", "data.micro_batch_size=3")
    in_world(2, train_here, str(tmp_path / "run"), own, str(RECIPE))
    line = result_of(tmp_path / "run").lines[0]
    assert line["loss"] == pytest.approx(line["loss/near"] + line["loss/small"], rel=1e-9)
    assert line["far"] > 0


# ---------------------------------------------------------------------- what does not fit

ONE, TRAINED = torch.ones(()), torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ce": TRAINED, "late": TRAINED}, "loss: 'late' has a gradient here and had none on the first samples"),
        ({"ce": TRAINED, "lr": 0.1}, "loss: a line of metrics.jsonl means something else by 'lr'; rename it"),
    ],
)
def test_what_cannot_be_logged(given: Mapping[str, Any], message: str) -> None:
    with pytest.raises(LauncherError) as caught:
        to_log(given, ["ce"], "loss", "", adds=True)
    assert message in str(caught.value)


def test_what_is_logged() -> None:
    given = {"loss": TRAINED, "ce": TRAINED, "hits": 3, "scores": torch.ones(2), "words": "some"}
    assert to_log(given, ["loss"], "loss", "a/", adds=False) == {"a/ce": ONE, "a/hits": 3}


def test_a_sum_of_the_others_is_found_where_it_is_one() -> None:
    out = torch.ones(3, 1, requires_grad=True)
    parts = in_parts(out, torch.zeros(3, 1))._asdict()
    whole = {**parts, "all": parts["near"] + parts["small"]}
    assert "its 'all' is the sum of the others" in str(fault_in([whole], list(whole)))
    assert fault_in([whole, {**whole, "all": parts["near"]}], list(whole)) is None


def test_a_number_that_is_not_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match=r"loss: gave .*, without 'small'; return it for each batch"):
        train_here(str(tmp_path / "run"), ("loss={_ref_: losses.py:gone}",), str(RECIPE))


def test_a_zero_beside_losses_that_is_called_one_is_one() -> None:
    zero = torch.zeros(())
    assert losses_among({"loss_box": zero, "loss_class": TRAINED, "hits": zero}) == ["loss_box", "loss_class"]
    assert losses_among({"loss_box": ONE, "ce": TRAINED}) == ["ce"]
    assert losses_among({"loss_box": zero}) == []
    assert losses_among({"ce": TRAINED, "total": ONE}) == ["total"]
