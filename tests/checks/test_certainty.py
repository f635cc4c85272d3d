"""`launcher check` says what it knew, what it measured and what it took on trust, and claims no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import FIT_HERE, RECIPES

from launcher.cli.main import main

COUNTED = RECIPES / "counted.yaml"
ONE_BY_ONE = "known        data.train: its samples one by one, as torch's DataLoader reads them"
TORCHS = "known        loss: a mean over the elements of the targets: torch's own"
TWO = "on trust     launch: 2 processes: one was rehearsed, and the others are arithmetic"
VECTORS = "data.train={_target_: counted.py:Vectors}"
CLASSES = ("data.train={_target_: counted.py:Vectors, classes: true}", "model.outputs=4")
STEP = ("--remove", "loss", VECTORS)
CUT = "another micro-batch size or number of processes gives other numbers"
KEPT = (
    "each forward changes it, and no state_dict has it: checkpoints keep it for a resume, and model_weights.pth is "
    "without it; make it a persistent buffer, or give it by get_extra_state"
)
BOTH = ("--processes", "2")

CASES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "all is torch's own": (
        ("data.train={_target_: depends.py:rows}",),
        [TORCHS, "known        data.train: whole batches are its rows"],
    ),
    "measured": (
        (*CLASSES, "loss={_target_: counted.py:Focal}", *BOTH),
        [
            ONE_BY_ONE,
            "measured     loss: a mean over samples",
            "on trust     loss: that it is no mean over the targets that are not -1: these samples cannot tell",
            TWO,
        ],
    ),
    "said by the recipe": (
        (VECTORS, "loss={_ref_: counted.py:noisy, _per_: sample}", *BOTH),
        [
            ONE_BY_ONE,
            "on trust     loss: a mean over samples, as the recipe says: its value on the same batch differs from call "
            "to call",
            "on trust     a step draws random numbers for each micro-batch, as in dropout: another micro-batch size or "
            "number of processes gives other numbers",
            TWO,
        ],
    ),
    "not known, and of no matter": (
        (VECTORS, "loss={_ref_: counted.py:noisy}"),
        [
            ONE_BY_ONE,
            "on trust     loss: what it is a mean over is not known, and one process that takes a batch at once need "
            "not",
        ],
    ),
    "BatchNorm": (
        (VECTORS, "model={_target_: depends.py:TorchNormed}", *BOTH),
        [
            TORCHS,
            ONE_BY_ONE,
            f"known        model: BatchNorm takes the mean of each micro-batch of a process: {CUT}",
            TWO,
        ],
    ),
    "a counter": (
        (VECTORS, "model={_target_: depends.py:Cooling}"),
        [TORCHS, ONE_BY_ONE, f"on trust     model.calls: {KEPT}"],
    ),
    "a memory": (
        (VECTORS, "loss={_target_: depends.py:Memory}", *BOTH),
        [
            ONE_BY_ONE,
            "measured     loss: a mean over samples",
            f"on trust     loss.queue: moves with each micro-batch of a process: {CUT}",
            TWO,
        ],
    ),
    "a step's memory": (
        (*STEP, "train.step={_target_: depends.py:Carrying}", "train.count=depends.py:samples_in", *BOTH),
        [
            ONE_BY_ONE,
            "measured     train.step: a mean over a count of your own",
            f"on trust     train.step.last: moves with each micro-batch of a process: {CUT}",
            "on trust     train.step: that depends.py:Carrying makes the same calls on every process",
            TWO,
        ],
    ),
    "a generator of its own": (
        ("data.train={_target_: depends.py:Drawing}",),
        [
            TORCHS,
            ONE_BY_ONE,
            "on trust     data.train: samples 1 and 11 are others when they are read again with the same seeds at [0]: "
            "a generator of their own, a count of reads, or samples that reading changes; a resume, workers and "
            "processes give other numbers; draw from random, NumPy's or torch's global generator, which are seeded for "
            "each sample, or give the data set a method seed_sample(seed) that seeds its own",
        ],
    ),
    "a cache of what is drawn": (
        ("data.train={_target_: depends.py:Caching}",),
        [
            TORCHS,
            ONE_BY_ONE,
            "on trust     data.train: what samples drew at random when they were first read they keep, as in a cache: "
            "a resume, workers and processes draw it again, and give other numbers; cache what is there before "
            "anything is drawn",
        ],
    ),
    "a step function": (
        (*STEP, "train.step=depends.py:counting_step"),
        [
            ONE_BY_ONE,
            "on trust     train.step: what it is a mean over is not known, and one process that takes a batch at once "
            "need not",
            "on trust     train.step: that depends.py:counting_step makes the same calls on every process",
        ],
    ),
    "another precision": (
        (VECTORS, "device.precision=bf16"),
        [TORCHS, ONE_BY_ONE, "on trust     device: precision bf16: the rehearsal is in float32 on a CPU"],
    ),
}


def last_lines(capsys: pytest.CaptureFixture[str], recipe: Path, *arguments: str) -> tuple[list[str], str]:
    """The lines below the plan, and the last one."""
    code = main(["check", str(recipe), "launch.threads=1", *arguments])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    *_, findings, conclusion = printed.out.strip().split("\n\n")
    return findings.splitlines(), conclusion


@pytest.mark.parametrize("name", CASES)
def test_what_a_run_rests_on_is_listed(capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments, expected = CASES[name]
    findings, conclusion = last_lines(capsys, COUNTED, *arguments)
    assert findings == expected
    trusted = sum(line.startswith("on trust") for line in expected)
    claim = f"nothing wrong was found in what is known or measured; on trust: {trusted}, named above"
    assert conclusion == f"{COUNTED}: {claim if trusted else 'nothing wrong was found'}"


def test_a_model_that_mixes_its_samples_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    findings, _ = last_lines(capsys, COUNTED, VECTORS, "model={_target_: depends.py:Normed}", *BOTH)
    (line,) = (line for line in findings if "model, loss" in line)
    assert line.startswith("on trust     model, loss: in train mode a sample's part depends on the others of its micro")
    assert line.endswith(f"off): {CUT}")


@pytest.mark.parametrize("recipe", [path for path in FIT_HERE if path.suffix == ".yaml" and path.stem != "recipe"])
def test_nothing_of_the_shipped_recipes_is_on_trust(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    findings, conclusion = last_lines(capsys, recipe)
    assert conclusion == f"{recipe}: nothing wrong was found"
    assert {line.split()[0] for line in findings} == {"known", "measured"}
