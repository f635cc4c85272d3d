"""`launcher check`: stages, the rehearsal, the plan for any world, and what it finds before a run would."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import projects
import pytest
import worlds
from places import FIT_HERE, REAL, ROOT, SHIPPED

from launcher.cli.main import main
from launcher.recipe.component_syntax import OPTIONS

STAGES = ["reading", "components", "data", "model", "batch", "forward", "loss", "backward", "step", "evaluation"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and no cluster."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def check(capsys: pytest.CaptureFixture[str], recipe: Path | str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and error output of `launcher check`."""
    code = main(["check", str(recipe), "launch.threads=1", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def stages(out: str) -> list[str]:
    return labels(out.partition("\n\n")[0])


def labels(out: str) -> list[str]:
    said = [line for line in out.splitlines() if line and not line.startswith(("own code", "network"))]
    return [line.split()[0] for line in said]


# ---------------------------------------------------------------------- recipes that are right


@pytest.mark.parametrize("recipe", FIT_HERE, ids=lambda path: path.stem if path.stem != "recipe" else path.parent.name)
def test_every_shipped_recipe_passes(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    quickly = ["model.steps=2"] if recipe.parent.name.startswith("lora") else []  # which pretrain a base of their own
    code, out, err = check(capsys, recipe, *quickly)
    assert (code, err) == (0, "")
    expected = [stage for stage in STAGES if "gan" not in recipe.parent.name or stage not in ("forward", "backward")]
    assert stages(out)[: len(expected)] == expected
    assert stages(out)[-1] == "checkpoint"
    assert "question" not in labels(out)
    assert os.listdir() == []


REAL_RECIPES = ["resnet50", "gpt2", "siamese", "segmentation", "warmup_cosine", "lambda", "two_groups"]
if find_spec("transformers"):  # else gpt2's model of the same shapes is all there is
    REAL_RECIPES.append("gpt2_of_transformers")


@pytest.mark.parametrize("name", REAL_RECIPES)
def test_a_real_recipe_can_be_written_and_passes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    before = sorted(REAL.iterdir())
    code, out, err = check(capsys, REAL / f"{name}.yaml")
    assert (code, err) == (0, "")
    assert stages(out)[-1] == "checkpoint"
    assert "question" not in labels(out)
    assert os.listdir() == []
    assert sorted(REAL.iterdir()) == before


def test_a_gan_is_told_where_to_go(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(capsys, REAL / "gan.yaml")
    assert code == 2
    assert out == "reading      1 mistake:\n"
    assert "model: a recipe has one model; write one module that holds both, and let optimizer name its parts" in err


# ---------------------------------------------------------------------- worlds


@pytest.mark.parametrize(
    ("arguments", "batch", "world"),
    [
        ([], "global batch 4096 = 1 process × 4096 × 1 accumulated", "1 process"),
        (
            ["--processes", "64", "--nodes", "16", "data.micro_batch_size=16"],
            "global batch 4096 = 64 processes × 16 × 4 accumulated",
            "64 processes on 16 nodes, started by launcher",
        ),
        (
            ["--processes", "4096", "--nodes", "512"],
            "global batch 4096 = 4096 processes × 1 × 1 accumulated",
            "4096 processes on 512 nodes, started by launcher",
        ),
        (["launch.processes=8"], "global batch 4096 = 8 processes × 512 × 1 accumulated", "8 processes"),
        (
            ["--nodes", "2", "slurm.gpus_per_node=h100:4"],
            "global batch 4096 = 8 processes × 512",
            "8 processes on 2 nodes",
        ),
    ],
)
def test_worlds_are_arithmetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], batch: str, world: str
) -> None:
    recipe = projects.make(tmp_path / "project", projects.RECIPE.replace("Points}", "Points, size: 10000}"))
    code, out, _ = check(capsys, recipe, "data.global_batch_size=4096", *arguments)
    assert code == 0
    assert f"batch        {batch}" in out
    assert f"world        {world}" in out
    assert "length       9 steps, 3 steps an epoch" in out


def test_shares_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project")
    code, _, err = check(capsys, recipe, "--processes", "17")
    shares = ": data.global_batch_size: 17 processes cannot share a global batch of 16; use at most 16"
    assert (code, shares in err) == (2, True)
    for asked in (["--processes", "17"], ["--nodes", "5", "slurm.gpus_per_node=h100:4"]):
        code, out, err = check(capsys, recipe, "--fast", *asked)
        assert (code, out, "cannot share a global batch of 16" in err) == (2, "reading      1 mistake:\n", True)
    code, _, err = check(capsys, recipe, "--processes", "2", "--nodes", "4")
    assert (code, err) == (2, "--nodes 4: 2 processes are too few; --processes counts those of all nodes\n")
    code, out, _ = check(capsys, recipe, "--processes", "3")
    assert "global batch 16 = 6 + 5 + 5 on 3 processes" in out
    assert "note         the last step of an epoch has 2 samples: 1 process has nothing to do in it" in out


# ---------------------------------------------------------------------- stages


def test_fast_stops_after_reading_and_loads_no_torch(tmp_path: Path) -> None:
    recipe = projects.make(tmp_path / "project", projects.RECIPE.replace("SGD", "Nothing"))
    script = (
        "import sys; from launcher.cli.main import main; "
        f"code = main(['check', {str(recipe)!r}, '--fast']); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    own = "own code     data.train: parts.py:Points()\nown code     model: parts.py:Net()\n"
    assert done.stdout == f"reading      15 values, none wrong\n{own}0 False\n"


def test_on_a_login_node_the_rest_is_left_to_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sinfo = tmp_path / "bin" / "sinfo"  # a cluster answers
    sinfo.parent.mkdir()
    sinfo.write_text("#!/bin/sh\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sinfo.parent}:{os.environ['PATH']}")
    recipe = projects.make(tmp_path / "project")
    code, out, _ = check(capsys, recipe, "slurm.partition=gpu", "--processes", "4")
    assert code == 0
    assert stages(out) == ["reading", "components"]
    command = f"srun --ntasks=1 --time=00:10:00 --partition=gpu launcher check {recipe} launch.threads=1"
    assert f"  {command} slurm.partition=gpu --processes 4\n" in out
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert stages(check(capsys, recipe)[1])[-1] == "checkpoint"


def test_each_stage_is_named_where_it_finds_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project")
    code, out, err = check(capsys, recipe, "seed=-1", "name=a/b")
    assert (code, out, len(err.splitlines())) == (2, "reading      2 mistakes:\n", 2)
    code, out, err = check(capsys, recipe, "optimizer.lrr=1")
    assert (code, out.splitlines()[-1], len(err.splitlines())) == (2, "components   1 mistake:", 1)
    code, out, err = check(capsys, recipe, "track={nothing: {}}")
    assert (code, out.splitlines()[-1]) == (2, "components   1 mistake:")
    assert "track.nothing: there is no such tracker" in err


def test_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2
    assert "name a recipe" in capsys.readouterr().err
    assert main(["check", "--allowed"]) == 0
    out = capsys.readouterr().out
    assert "  torch.optim.*  of kind Optimizer or LRScheduler or Module\n" in out
    assert "  datasets.load.load_dataset  with path name" in out


# ---------------------------------------------------------------------- what the rehearsal finds

FORWARD = """
from parts import Net as Base
import torch
from torch import nn
class Net(Base):
    def forward(self, points):
        return {body}
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "self.layers(points[:, :1])",
            "model: forward: RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x1 and 2x4) "
            "({folder}/broken.py:7: return self.layers(points[:, :1])); the batch was float32 [2, 2], int64 [2]",
        ),
        (
            "self.layers(points)[:, 0]",
            "; the batch was float32 [2, 2], int64 [2]; the model gave float32 [2]",
        ),
        ("self.layers(points).detach()", "loss: does not depend on the model: no parameter gets a gradient"),
        ("self.layers(points) / 0 * 0", "loss: is nan on the first two samples"),
    ],
)
def test_what_is_wrong_with_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, message: str
) -> None:
    recipe = projects.make(tmp_path / "project", broken=FORWARD.format(body=body))
    code, out, err = check(capsys, recipe, "model._target_=broken.py:Net")
    assert code == 2
    assert message.format(folder=tmp_path / "project") in err
    assert out.splitlines()[-1] == "rehearsal    1 mistake:"
    assert len(err.splitlines()) == 1


def test_what_two_samples_are_too_few_for_is_rehearsed_on_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a grid that is laid over the samples of a batch: nothing of the first try is left in its buffers."""
    body = "self.layers(points) * self.mean(points)"
    net = f"""{FORWARD.format(body=body)}
    def __init__(self, *sizes, **settings):
        super().__init__(*sizes, **settings)
        self.register_buffer("running", torch.zeros(()))
    def mean(self, points):
        self.running += points.std(0).sum() if len(points) > 2 else torch.nan
        return self.running
"""
    recipe = projects.make(tmp_path / "project", broken=net)
    code, out, err = check(capsys, recipe, "model._target_=broken.py:Net", "data.global_batch_size=4")
    assert (code, err) == (0, "")
    assert "batch        4 samples: float32 [4, 2]" in out


def test_what_is_wrong_with_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "from torch import nn\nclass Each(nn.Module):\n    def forward(self, a, b):\n        return a.sum(1)\n"
    recipe = projects.make(tmp_path / "project", my_losses=code)
    err = check(capsys, recipe, "loss._target_=my_losses.py:Each")[2]
    assert "loss: gave float32 [2]; a step needs one number" in err
    err = check(capsys, recipe, "loss._target_=MSELoss")[2]
    assert "recipe.yaml:5:7: loss: RuntimeError: The size of tensor a (3) must match" in err
    assert "; the batch was float32 [2, 2], int64 [2]; the model gave float32 [2, 3]; for one of 3 classes write" in err


PAIRS = """
import torch
class Pairs:
    def __init__(self, inputs="float32", targets="int64", shape=(), first=0, value=0.5, bare=False):
        kinds = getattr(torch, inputs), getattr(torch, targets)
        self.pair = torch.full((2,), value, dtype=kinds[0]), torch.full(shape, first, dtype=kinds[1])
        self.bare = bare
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return self.pair[:1] if self.bare else self.pair
"""
UNFIT = {
    "inputs of double": ("inputs: float64", "; in layers.0, Linear(in_features=2, out_features=4, bias=True); the "
        "model computes in float32: have the data set give that"),
    "inputs of whole numbers": ("inputs: int64, value: 1", "; the model computes in float32: have the data set"),
    "classes of int32": ("targets: int32", "; CrossEntropyLoss wants targets of int64 here: have the data set"),
    "classes of bool": ("targets: bool", "; CrossEntropyLoss wants targets of int64 here: have the data set"),
    "classes of float": ("targets: float32", "; CrossEntropyLoss wants targets of int64 here: have the data set"),
    "a class too many": ("first: 3", "Target 3 is out of bounds; the batch was float32 [2, 2], int64 [2]; the model "
        "gave float32 [2, 3]; the model gives 3 scores, for classes 0 to 2, and a target is 3"),
    "a class below 0": ("first: -1", "; the model gives 3 scores, for classes 0 to 2, and a target is -1"),
    "classes in a column": ("shape: [1]", "; its targets have a dimension too many: have the data set give each"),
    "a number that is none": ("value: .nan", "loss: is nan on the first two samples; the batch has NaN in part 0"),
    "no targets": ("bare: true", "batch: a batch has no 1; it is a list of 1; a sample is (input, target) unless"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_data_that_do_not_fit_get_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    arguments, message = UNFIT[case]
    recipe = projects.make(tmp_path / "project", pairs=PAIRS)
    err = check(capsys, recipe, f"data.train={{_target_: pairs.py:Pairs, {arguments}}}", "data.validation=null")[2]
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("metric", ["BinaryAccuracy", "MeanSquaredError"])
def test_a_metric_for_something_else_than_classes_gets_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str
) -> None:
    recipe = projects.make(tmp_path / "project")
    measured = f"evaluate.metrics={{mine: {{_target_: {metric}}}}}"
    err = check(capsys, recipe, measured, "data.validation=20% of train")[2]
    assert "; the outputs are scores of 3 classes, as for {_target_: MulticlassAccuracy, num_classes: 3}" in err


def test_what_a_model_and_a_loss_get_is_said_where_they_take_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As siamese nets, two encoders, and language models that return logits and loss are brought."""
    code = """
    import torch
    from torch import nn
    class Pairs:
        def __len__(self):
            return 6
        def __getitem__(self, index):
            return tuple(torch.tensor([number]) for number in (float(index), 1.0, 0.0))
    class Two(nn.Linear):
        def forward(self, left, right):
            both = self.weight * left, self.weight * right
            return both
    def apart(left, right, target):
        return (left - right - target).square().mean()
    """
    recipe = projects.make(tmp_path / "project", two=textwrap.dedent(code))
    pairs = ["data.train={_target_: two.py:Pairs}", "data.validation=null", "evaluate.metrics={}"]
    two = ["model={_target_: two.py:Two, in_features: 1, out_features: 1, bias: false}"]
    err = check(capsys, recipe, *pairs, *two)[2]
    assert err.endswith("; the model gets the first alone: batch.inputs: [0, 1] gives it more\n")
    two += ["batch={inputs: [0, 1], targets: [2]}", "loss=two.py:apart"]
    err = check(capsys, recipe, *pairs, *two)[2]
    assert err.endswith("; the loss gets that as one: batch.outputs: [0, 1] gives it one by one, [0] the first alone\n")
    assert check(capsys, recipe, *pairs, *two, "batch.outputs=[0, 1]")[0] == 0
    err = check(capsys, recipe, *pairs, *two, "loss=model")[2]
    assert err.endswith("it is a tuple of 2; say where in it the loss stands, as in batch.loss: 1\n")


def test_what_is_wrong_with_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project")
    err = check(capsys, recipe, "batch={targets: [label]}")[2]
    assert "override 'batch={targets: [label]}': batch: a batch has no 'label'; it is a list of 2" in err


def test_data_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "from parts import Points\nclass Bad(Points):\n    def __getitem__(self, index):\n        return {}['x']\n"
    recipe = projects.make(tmp_path / "project", my_sets=code)
    for override in ("data.train._target_=my_sets.py:Bad", "data.validation={_target_: my_sets.py:Bad}"):
        code_, _, err = check(capsys, recipe, override)
        assert code_ == 2
        assert "KeyError: 'x'" in err
        assert len(err.splitlines()) == 1


def test_batch_norm_needs_two_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project", projects.RECIPE.replace("parts.py:Net", "parts.py:Net, norm: true"))
    code, _, err = check(capsys, recipe, "--processes", "2")  # 50 samples: the last step has 2
    assert code == 2
    assert "BatchNorm needs two samples at a time, and step 4 of an epoch has 2 samples on 2 processes" in err
    assert err.endswith("set data.drop_last: true\n")
    assert check(capsys, recipe, "--processes", "2", "data.drop_last=true")[0] == 0
    assert check(capsys, recipe, "--processes", "2", "train.steps=3")[0] == 0
    assert check(capsys, recipe, "--processes", "1")[0] == 0
    code, _, err = check(capsys, recipe, "--processes", "16", "data.drop_last=true")
    assert "step 1 of an epoch has 16 samples on 16 processes: some get fewer; use fewer processes" in err
    code, _, err = check(capsys, recipe, "data.drop_last=true", "data.micro_batch_size=1")
    assert "16 samples on 1 processes in 16 parts each: some get fewer" in err


def test_parameters_without_a_gradient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project", projects.RECIPE.replace("parts.py:Net", "parts.py:Net, unused: true"))
    code, _, err = check(capsys, recipe, "--processes", "2")
    assert code == 2
    assert "2 of its parameters got no gradient (spare.weight, spare.bias), for which 2 processes would wait" in err
    code, out, _ = check(capsys, recipe)
    assert "4 of 6 parameter tensors got a gradient; 2 without: spare.weight, spare.bias" in out
    assert check(capsys, recipe, "--processes", "2", "device.ddp.find_unused_parameters=true")[0] == 0


def test_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project")
    sets = "data.validation={_target_: parts.py:Points}"
    wrong = "evaluate.metrics={m: {_target_: MulticlassAccuracy, num_classes: 4}}"
    assert "evaluate.metrics.m: MulticlassAccuracy does not accept outputs" in check(capsys, recipe, sets, wrong)[2]
    listed = "evaluate.metrics={m: {_target_: MulticlassAccuracy, num_classes: 3, average: none}}"
    best = "evaluate.best={metric: m, mode: max}"
    assert "'m' gives a list, and only one number can be the best" in check(capsys, recipe, sets, listed, best)[2]
    several = (
        "evaluate.metrics={m: {_target_: MetricCollection, metrics: [{_target_: MulticlassF1Score, num_classes: 3}]}}"
    )
    err = check(capsys, recipe, sets, several, best)[2]
    assert "'m' gives several numbers; name one of: loss, m/MulticlassF1Score" in err


def test_a_state_that_does_not_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = """
from parts import Net as Base
class Forgetful(Base):
    def load_state_dict(self, state, strict=True, assign=False):
        return super().load_state_dict({key: value * 2 for key, value in state.items()})
class Odd(Base):
    def get_extra_state(self):
        return {1j, object}
    def set_extra_state(self, state):
        pass
"""
    recipe = projects.make(tmp_path / "project", my_nets=code)
    err = check(capsys, recipe, "model._target_=my_nets.py:Forgetful")[2]
    assert "model: does not come back from a checkpoint as it was saved; look at its state_dict" in err
    code_, _, err = check(capsys, recipe, "model._target_=my_nets.py:Odd")
    assert code_ == 2
    assert "model: its state holds a builtins.set at model._extra_state" in err


# ---------------------------------------------------------------------- schedules that end early or late


SEQUENCE = "{_target_: SequentialLR, milestones: [%d], schedulers: [{_target_: LinearLR, total_iters: 100}, %s]}"


@pytest.mark.parametrize(
    ("scheduler", "question"),
    [
        (
            "{_target_: CosineAnnealingLR, T_max: 30}",
            "ends after 30 of 1,200 steps; did you mean epochs? Write T_max: 30 epochs",
        ),
        ("{_target_: CosineAnnealingLR, T_max: 30 epochs}", "ends after 120 of 1,200 steps; T_max: ${scheduler.steps}"),
        ("{_target_: CosineAnnealingLR, T_max: 99999}", "would end after 99,999 steps, and the run ends after 1,200"),
        (
            "{_target_: CosineAnnealingLR, _warmup_: 10%, T_max: '${train.steps}'}",
            "would end after 1,200 steps, and the run ends after 1,080; T_max: ${scheduler.steps} ends with the run",
        ),
        ("{_target_: StepLR, step_size: 30, gamma: 0.1}", "by step 90 of 1,200; did you mean epochs?"),
        ("{_target_: StepLR, step_size: 30, gamma: 0.1}", "write step_size: 30 epochs"),
        ("{_target_: MultiStepLR, milestones: [30, 60, 90]}", "write milestones: [30 epochs, 60 epochs, 90 epochs]"),
        (
            "{_target_: ExponentialLR, gamma: 0.9}",
            "did you mean epochs? A scheduler counts steps here: write _every_: 1 epoch",
        ),
        (
            "{_target_: PolynomialLR, total_iters: 300}",
            "ends after 300 of 1,200 steps; total_iters: ${scheduler.steps}",
        ),
        ("{_target_: LambdaLR, lr_lambda: {_ref_: lambdas.py:halved}}", "write _every_: 1 epoch"),
        (
            "{_target_: StepLR, step_size: 5, _warmup_: 400 epochs}",
            "the ramp of 1,600 steps is as long as the run of 1,200",
        ),
        (
            "{_target_: CosineAnnealingWarmRestarts, T_0: 2}",
            "restarts within an epoch; did you mean epochs? Write T_0: 2 epochs",
        ),
        (
            "{_target_: StepLR, step_size: 300 epochs}",
            "StepLR changes the rate after 1,200 steps, and the run ends after 1,200",
        ),
        (
            "{_target_: MultiStepLR, milestones: [5000, 8000]}",
            "MultiStepLR changes the rate after 5,000 steps, and the run ends after 1,200",
        ),
        (
            SEQUENCE % (5000, "{_target_: ConstantLR, factor: 1.0}"),
            "SequentialLR changes the rate after 5,000 steps, and the run ends after 1,200",
        ),
        (
            SEQUENCE % (100, "{_target_: CosineAnnealingLR, T_max: 30}"),
            "CosineAnnealingLR ends after 30 of 1,100 steps; did you mean epochs? Write T_max: 30 epochs",
        ),
        (
            SEQUENCE % (100, "{_target_: CosineAnnealingLR, T_max: '${scheduler.steps}'}"),
            "would end after 1,200 steps, and the run ends after 1,100; T_max: ${scheduler.steps - 100} ends with",
        ),
    ],
)
def test_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str], scheduler: str, question: str) -> None:
    recipe = projects.make(tmp_path / "project", lambdas="def halved(step):\n    return 0.5**step\n")
    code, out, err = check(capsys, recipe, "train.epochs=300", f"scheduler={scheduler}")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("question")]
    assert "scheduler: " in line
    assert question in line


@pytest.mark.parametrize(
    "scheduler",
    [
        "{_target_: CosineAnnealingLR, _warmup_: 10%, T_max: '${scheduler.steps}'}",
        "{_target_: CosineAnnealingLR, T_max: 300 epochs, eta_min: 0.01}",
        "{_target_: LinearLR, total_iters: 10}",
        "{_target_: ExponentialLR, gamma: 0.9, _every_: 10 epochs}",
        "{_target_: StepLR, step_size: 100 epochs}",
        "{_target_: OneCycleLR, max_lr: 0.1, total_steps: 100%}",
        "{_target_: CosineAnnealingWarmRestarts, T_0: 30 epochs}",
        "{_target_: ConstantLR}",
        SEQUENCE % (100, "{_target_: CosineAnnealingLR, T_max: '${scheduler.steps - 100}'}"),
        "{_target_: ChainedScheduler, schedulers: [{_target_: StepLR, step_size: 100 epochs}, {_target_: ConstantLR}]}",
    ],
)
def test_no_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str], scheduler: str) -> None:
    recipe = projects.make(tmp_path / "project")
    code, out, err = check(capsys, recipe, "train.epochs=300", f"scheduler={scheduler}")
    assert (code, err, "question" in labels(out)) == (0, "", False)


def test_a_schedule_that_would_end_with_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project")
    code, _, err = check(capsys, recipe, "scheduler={_target_: OneCycleLR, max_lr: 0.1, total_steps: 5}")
    assert code == 2
    assert "OneCycleLR ends with an error after 5 steps, and the run has 12; say total_steps: 100%" in err


def test_precision_that_this_machine_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project")
    code, out, _ = check(capsys, recipe, "device.precision=fp16")
    assert code == 0
    assert "device       precision fp16; rehearsed on this machine's CPU in float32" in out
    assert "note         device: precision fp16 needs a GPU, which this machine has not" in out


# ---------------------------------------------------------------------- schema and new


def test_every_recipe_is_valid_under_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    import jsonschema
    import yaml

    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    templates = ROOT / "launcher" / "templates"
    for path in [*SHIPPED, *(one for folder in (REAL, REAL.parent, templates) for one in folder.glob("*.yaml"))]:
        if path.stem != "gan":
            text = re.sub(r"\b(\d)e-", r"\1.0e-", path.read_text())  # YAML 1.1
            assert list(validator.iter_errors(yaml.safe_load(text))) == [], path


@pytest.mark.parametrize(
    ("recipe", "path"),
    [
        ({"optimiser": 1}, []),
        ({"base": "x.yaml", "train": {"epochs": "many"}}, ["train", "epochs"]),
        ({"base": "x.yaml", "data": {"batch_size": 3}}, ["data"]),
        ({"base": "x.yaml", "device": {"precision": "fp32"}}, ["device", "precision"]),
        ({"base": "x.yaml", "model": "Net"}, ["model"]),
        ({"base": "x.yaml", "slurm": {"time": "soon"}}, ["slurm", "time"]),
    ],
)
def test_the_schema_finds_mistakes(recipe: dict[str, object], path: list[str]) -> None:
    import jsonschema

    from launcher.recipe.json_schema import recipe_schema

    errors = list(jsonschema.Draft202012Validator(recipe_schema()).iter_errors(recipe))
    assert path in [list(error.path) for error in errors]


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an argument that AdamW has not": ({"optimizer": {"_target_": "AdamW", "lrr": 1}}, ["optimizer"]),
    "a word for a number": ({"optimizer": {"_target_": "SGD", "lr": "fast"}}, ["optimizer", "lr"]),
    "an option of ours": ({"scheduler": {"_target_": "StepLR", "_warmpu_": 1}}, ["scheduler"]),
    "an argument of a data set": ({"data": {"train": {"_target_": "ImageFolder", "rot": "x"}}}, ["data", "train"]),
    "a tracker's setting": ({"track": {"wandb": {"projct": "x"}}}, ["track", "wandb"]),
    "no duration": ({"save": {"every": "often"}}, ["save", "every"]),
    "a duration of another kind": ({"evaluate": {"limit": "3 epochs"}}, ["evaluate", "limit"]),
}
RIGHT: dict[str, dict[str, Any]] = {
    "a short name": {"model": {"_target_": "MLP", "inputs": 3, "outputs": 1}},
    "one's own": {"model": {"_target_": "my_model.py:Net", "anything": 1}},
    "a full name": {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 1}},
    "a reference": {"optimizer": {"_target_": "AdamW", "lr": "${define.lr}"}},
    "several by name": {"optimizer": {"a": {"_target_": "SGD", "lr": 1}, "b": {"_target_": "my.py:Mine", "x": 1}}},
    "options of ours": {"scheduler": {"_target_": "CosineAnnealingLR", "T_max": "10 epochs", "_warmup_": "5%"}},
    "groups": {"optimizer": {"_target_": "AdamW", "_groups_": {"*.bias": {"weight_decay": 0}}}},
    "a tracker": {"track": {"wandb": {"project": "x", "tags": ["a"]}, "mlflow": None}},
    "durations": {"evaluate": {"every": "1.5 hours", "limit": "50 batches"}, "save": {"every": "${define.often}"}},
}


@pytest.fixture(scope="module")
def editors_schema() -> Any:
    from launcher.recipe.json_schema import editor_schema
    from launcher.runs.tracking.trackers import SETTINGS

    return editor_schema(SETTINGS)


def faults_in(schema: Any, recipe: dict[str, Any]) -> list[list[Any]]:
    """The places of what an editor underlines, in a recipe that has a base for the rest."""
    import jsonschema

    def places(error: Any) -> Iterator[list[Any]]:
        yield list(error.absolute_path)
        for inner in error.context or []:
            yield from places(inner)

    errors = jsonschema.Draft202012Validator(schema).iter_errors({"base": "x.yaml", **recipe})
    return [place for error in errors for place in places(error)]


@pytest.mark.parametrize("case", MISTAKES)
def test_the_schema_knows_components_trackers_and_durations(editors_schema: Any, case: str) -> None:
    recipe, path = MISTAKES[case]
    assert path in faults_in(editors_schema, recipe)


@pytest.mark.parametrize("case", RIGHT)
def test_the_schema_underlines_nothing_that_is_right(editors_schema: Any, case: str) -> None:
    assert faults_in(editors_schema, RIGHT[case]) == []


def test_hovers_are_sentences(editors_schema: Any) -> None:
    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict) and isinstance(value.get("description"), str):
            yield value["description"]
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from texts(inner)

    ours = {key: value for key, value in editors_schema.items() if key != "$defs"}
    known = {key: value for key, value in editors_schema["$defs"].items() if not key.startswith("Component.")}
    for text in texts([ours, known]):
        assert re.fullmatch(r"['`]?[A-Z].*\.", text, re.DOTALL), text
    for slot, options in OPTIONS.items():  # one's own keys beside the arguments
        properties = editors_schema["$defs"][f"Component.{slot}"]["properties"]
        assert all(properties[name].get("description") for name in options)
    optimizer = editors_schema["$defs"]["Component.optimizer"]["allOf"]
    adamw = next(entry["then"] for entry in optimizer if entry["if"]["properties"]["_target_"].get("const") == "AdamW")
    assert adamw["properties"]["_target_"]["description"].startswith("Implements AdamW")
    assert adamw["properties"]["lr"]["description"] == "Learning rate (default: 1e-3)."
    assert "params" not in adamw["properties"]  # which the run hands in
    # YAML's language server writes the titles and texts of all of an `anyOf` into a hover, with bars between them
    assert "title" not in editors_schema
    assert "anyOf" not in editors_schema["$defs"]["Train"]["properties"]["ema_warmup"]


def test_every_field_is_documented_in_the_schema() -> None:
    from launcher.recipe.json_schema import recipe_schema

    schema = recipe_schema()
    for name, section in {**schema["$defs"], "": schema}.items():
        for key, field in section.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key}"


def test_a_new_project_passes_check_and_its_own_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "mine"]) == 0
    assert "mine/recipe.yaml" in capsys.readouterr().out
    assert (main(["new", "mine"]), "mine exists already" in capsys.readouterr().err) == (2, True)
    for name in ("../mine", "a/b", "-x", "", "x" * 200, "mine\n"):
        assert main(["new", "--", name]) == 2
    capsys.readouterr()
    assert os.listdir() == ["mine"]
    code, out, err = check(capsys, "mine/recipe.yaml", "--processes", "2")
    assert (code, err) == (0, "")
    assert "question" not in labels(out)
    assert sorted(os.listdir("mine")) == ["data.py", "model.py", "recipe.yaml", "test_recipe.py"]
    assert worlds.in_world(1, its_own_test, os.path.abspath("mine")) == [2]


def its_own_test(folder: str) -> int:
    """Runs the tests of a new project's `test_recipe.py`; returns how many there are."""
    sys.path.insert(0, folder)
    import test_recipe  # type: ignore[import-not-found]  # of the project

    tests = [getattr(test_recipe, name) for name in dir(test_recipe) if name.startswith("test_")]
    for test in tests:
        test(**{name: Path(folder) / "runs" for name in inspect.signature(test).parameters})
    return len(tests)


NAMED = """

class Named(Points):
    def __init__(self, classes: list[str]) -> None:
        super().__init__()
        self.classes = classes


class Pairs(Points):
    \"\"\"One target for each point, which a model of one column does not fit.\"\"\"

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.points[index].sum()
"""


def test_classes_that_evaluation_would_number_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project", parts=projects.PARTS + NAMED)
    train = "data.train={_target_: parts.py:Named, classes: [cat, dog, eel]}"
    for part in ("validation", "test"):
        for classes, said in (
            ("[dog, eel]", "0 is 'dog', which in the training set is 'cat'"),
            ("[cat, dog, eel, fox]", "3 is 'fox', which in the training set is missing"),
        ):
            other = f"data.{part}={{_target_: parts.py:Named, classes: {classes}}}"
            code, _, err = check(capsys, recipe, train, other)
            assert code == 2
            assert f"data.{part}: its class {said}: targets would be others; give it classes:" in err
        assert check(capsys, recipe, train, f"data.{part}={{_target_: parts.py:Named, classes: [cat, dog]}}")[0] == 0


def test_an_evaluation_set_without_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project")
    for part in ("validation", "test"):
        code, _, err = check(capsys, recipe, f"data.{part}={{_target_: parts.py:Points, size: 0}}")
        assert code == 2
        assert f"data.{part}: the set is empty; check its path and split, or remove it" in err


def test_what_a_loss_warns_of_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project", parts=projects.PARTS + NAMED)
    said = (
        "data.train._target_=parts.py:Pairs",
        "loss._target_=MSELoss",
        "model={_target_: torch.nn.Linear, _args_: [2, 1]}",
    )
    code, out, _ = check(capsys, recipe, *said)
    assert code == 0
    assert re.search(r"question +the model or its loss warns: Using a target size .* broadcasting", out)
