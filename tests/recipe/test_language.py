"""What people write in a recipe is taken for what they mean: functions, constants, shapes, bases, scripts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import projects
import pytest
import torch
import yaml
from torch import nn

from launcher.cli.main import _parsed
from launcher.errors import LauncherError, RecipeError
from launcher.recipe.build import Builder
from launcher.recipe.component import Component
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.run import Result, run
from launcher.runs.options import Options
from launcher.world.world import World

OWN = '''
import functools

import torch
import torchmetrics
from parts import Net, Points
from torch import nn
from torch.nn import functional


def weighted(output, target, factor):
    return factor * functional.cross_entropy(output, target)


def made(factor=1.0):
    return functools.partial(weighted, factor=factor)


def nothing(output, target):
    return output.sum() * 0.0


def number(output=None, target=None):
    return torch.zeros(())


def column(points, target):
    return points.squeeze(-1), target.to(points.dtype)


def turned(points, target):
    """Twice beside each other, and the model's in another order of memory, as a transposed result is."""
    return torch.stack([points.squeeze(-1)] * 2).T, torch.stack([target.to(points.dtype)] * 2, 1)


def masked(points, target, mask):
    """Uses a target up."""
    return points.squeeze(-1)[mask > 0], target[mask > 0].to(points.dtype)


class Regressor(nn.Module):
    """Points to [N, 1]; what it is called with is kept."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(2, 1), []

    def forward(self, points, categories="unsaid", scale=1.0, double=False):
        self.seen.append((categories, scale, double))
        return self.layer(points)


class Boxes(torch.utils.data.Dataset):
    """Pictures with a box each, as detectors get them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        place = torch.tensor([0.1 * index, 0.0, 0.1 * index + 0.2, 0.3])
        return place.reshape(1, 2, 2), {"boxes": place[None], "labels": torch.tensor([index % 2])}


def listed(samples):
    pictures, targets = zip(*samples)
    return list(pictures), list(targets)


class Detector(nn.Module):
    """Lists in, losses out; in eval mode boxes and no loss."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, pictures, targets=None):
        found = [self.head(picture.reshape(1, 4)) for picture in pictures]
        if not self.training:
            return [{"boxes": boxes, "labels": torch.zeros(1, dtype=torch.long)} for boxes in found]
        losses = [functional.l1_loss(boxes, target["boxes"]) for boxes, target in zip(found, targets)]
        return {"boxes": torch.stack(losses).mean()}


class Overlap(torchmetrics.Metric):
    """Takes lists of mappings, as mean average precision does."""

    def __init__(self):
        super().__init__()
        self.add_state("hits", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, preds, target):
        assert len(preds) == len(target)
        self.hits += sum(float(p["boxes"].shape == t["boxes"].shape) for p, t in zip(preds, target))

    def compute(self):
        return self.hits


def detected(model, batch, at):
    pictures, targets = batch
    if not model.training:
        return {"outputs": model(pictures), "targets": targets}
    return {"loss": model(pictures, targets)["boxes"]}
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the code above; what it imports is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("parts", "own", "script", "configs", "glue"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    return projects.make(tmp_path, own=OWN)


def train(recipe: Path, *overrides: str, run_dir: str = "run") -> Result:
    read = load_recipe(recipe, ["launch.threads=1", "train={steps: 3}", "track.every=1 steps", *overrides])
    return run(read, World(), Options(cpu=True, run_dir=str(recipe.parent / run_dir), output="quiet"))


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(LauncherError) as caught:
        Builder(load_recipe(recipe, overrides)).check()
    return str(caught.value)


def weights(result: Result) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in result.model.parameters()])


# ---------------------------------------------------------------------- functions


SAME_AS_CROSS_ENTROPY = {
    "in short": "loss=torch.nn.functional.cross_entropy",
    "called": "loss={_target_: torch.nn.functional.cross_entropy}",
    "bound": "loss={_target_: own.py:weighted, factor: 1.0}",
    "a factory": "loss={_target_: own.py:made}",
    "by name, in short": "loss={a: torch.nn.functional.cross_entropy, b: own.py:nothing}",
}


@pytest.mark.parametrize("loss", SAME_AS_CROSS_ENTROPY.values(), ids=SAME_AS_CROSS_ENTROPY)
def test_a_function_is_the_loss_that_is_plainly_meant(project: Path, loss: str) -> None:
    expected = weights(train(project, run_dir="first"))
    assert torch.equal(weights(train(project, loss)), expected)


def test_a_factory_that_gives_no_loss_says_what_to_write(project: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"loss: own.py:number gave float32 \[\], and no loss.*\{_ref_: own.py:number\}"
    ):
        train(project, "loss={_target_: own.py:number}")


def test_a_function_inside_something_else_is_called(project: Path) -> None:
    said = refusal(project, "model={_target_: torch.nn.Sequential, _args_: [{_target_: own.py:weighted}]}")
    assert "weighted needs 'output'; write 'output: …', or {_ref_: own.py:weighted} for the function itself" in said


# ---------------------------------------------------------------------- a batch


def test_inputs_may_be_constants(project: Path) -> None:
    inputs = "batch.inputs={points: 0, categories: null, scale: {_value_: 0.5}, double: true}"
    result = train(
        project, "model={_target_: own.py:Regressor}", inputs, "batch.adapt=own.py:column", "loss={_target_: MSELoss}"
    )
    assert set(result.model.seen) == {(None, 0.5, True)}


@pytest.mark.parametrize("wrong", ["{_value_: 1, other: 2}", "{value: 1}", "{_target_: Linear}"])
def test_what_is_no_part_and_no_constant_is_refused(project: Path, wrong: str) -> None:
    assert "batch.inputs" in refusal(project, f"batch.inputs=[{wrong}]")


@pytest.mark.parametrize(
    "adapt",
    [
        ("batch.adapt=own.py:column", "data.micro_batch_size=5"),
        ("batch.adapt=own.py:turned", "data.micro_batch_size=5"),
        ("batch.adapt=own.py:masked", "batch.targets=[1, 1]"),
    ],
)
def test_one_place_shapes_outputs_and_targets_for_loss_and_metrics(project: Path, adapt: tuple[str, ...]) -> None:
    measured = (
        "data.validation={_target_: parts.py:Points}",
        "evaluate.metrics={error: {_target_: torchmetrics.regression.MeanSquaredError}}",
    )
    result = train(
        project,
        "model={_target_: own.py:Regressor}",
        "loss={_target_: MSELoss}",
        *adapt,
        *measured,
    )
    line = result.scores[-1]
    assert line["error"] == pytest.approx(line["loss"], rel=1e-6)  # without it, 50 × 1 and 50 would broadcast


@pytest.mark.parametrize(
    "how", [("loss=model", "batch.inputs=[0, 1]"), ("loss=null", "train={steps: 3, step: own.py:detected}")]
)
def test_a_detector_is_evaluated_by_its_metrics_alone(project: Path, how: tuple[str, ...]) -> None:
    boxes = (
        "data={train: {_target_: own.py:Boxes}, validation: {_target_: own.py:Boxes}, global_batch_size: 4}",
        "data.collate={_ref_: own.py:listed}",
        "model={_target_: own.py:Detector}",
        "evaluate={metrics: {overlap: {_target_: own.py:Overlap}}, best: {metric: overlap, mode: max}}",
    )
    line = train(project, *boxes, *how).scores[-1]
    assert line["overlap"] == 8.0
    assert "loss" not in line


def test_a_detector_without_metrics_has_nothing_to_measure(project: Path) -> None:
    boxes = "data={train: {_target_: own.py:Boxes}, validation: {_target_: own.py:Boxes}, global_batch_size: 4}"
    how = ("data.collate={_ref_: own.py:listed}", "model={_target_: own.py:Detector}", "batch.inputs=[0, 1]")
    with pytest.raises(LauncherError, match="gives no loss in eval mode, and there are no metrics"):
        train(project, boxes, *how, "loss=model")


# ---------------------------------------------------------------------- arguments and modules


CONFIGS = '''
import functools


def open_to_more(kind):
    """As configurations of a well-known library are made: the signature says the fields, and more is taken."""
    before = kind.__init__

    @functools.wraps(before)
    def __init__(self, *args, **kwargs):
        known = {name: kwargs.pop(name) for name in ("hidden_size",) if name in kwargs}
        before(self, *args, **known)
        for name, value in kwargs.items():
            setattr(self, name, value)

    kind.__init__ = __init__
    return kind


class Base:
    problem: str | None = None
    attribute_map = {"width": "hidden_size"}

    @property
    def num_labels(self):
        return self._labels

    @num_labels.setter
    def num_labels(self, number):
        self._labels = number


@open_to_more
class Config(Base):
    def __init__(self, hidden_size: int = 4):
        self.hidden_size = hidden_size
'''


def test_arguments_that_a_signature_hides_are_looked_up(project: Path) -> None:
    (project.parent / "configs.py").write_text(CONFIGS)
    written = "define={c: {_target_: configs.py:Config, num_labels: 3, problem: x, width: 2, something_else: 1}}"
    builder = Builder(load_recipe(project, [written]))
    builder.check()
    assert builder.build(builder.defined[0]).num_labels == 3
    said = refusal(project, "define={c: {_target_: configs.py:Config, num_label: 3}}")
    assert "Config takes no 'num_label'; it takes: hidden_size" in said


def test_a_script_that_parses_arguments_is_explained(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["launcher"])
    script = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('data')\nparser.parse_args()\n"
    (project.parent / "script.py").write_text(script)
    said = refusal(project, "model={_target_: script.py:Net}")
    assert "it parses the command line when it is imported: the following arguments are required: data" in said
    assert "script.py:4" in said
    assert "move what a recipe names to a file of its own" in said
    assert "usage" not in capfd.readouterr().err


# ---------------------------------------------------------------------- bases, overrides, durations


def rate_and_seed(recipe: Recipe) -> tuple[Any, int]:
    assert isinstance(recipe.optimizer, Component)
    return recipe.optimizer.kwargs["lr"], recipe.seed


def test_several_bases_in_order_and_one_from_the_command_line(project: Path) -> None:
    folder = project.parent
    (folder / "first.yaml").write_text("optimizer: {_target_: SGD, lr: 1.0}\nseed: 1\nname: first\n")
    (folder / "second.yaml").write_text("optimizer: {lr: 2.0}\nseed: 2\n")
    (folder / "big.yaml").write_text("optimizer: {lr: 5.0}\n")
    rest = {key: value for key, value in yaml.safe_load(projects.RECIPE).items() if key != "optimizer"}
    (folder / "top.yaml").write_text(yaml.safe_dump({"base": ["first.yaml", "second.yaml"], **rest}))
    assert rate_and_seed(load_recipe(folder / "top.yaml")) == (2.0, 2)
    assert load_recipe(folder / "top.yaml").name == "project"
    options = _parsed(["train", "top.yaml", "--base", "big.yaml", "seed=7"])
    assert rate_and_seed(load_recipe(folder / options.recipe, options.overrides, options.remove)) == (5.0, 7)
    said = refusal(folder / "top.yaml", "base=bigger.yaml")
    assert "override 'base=bigger.yaml': base: 'bigger.yaml' does not exist; did you mean 'big.yaml'?" in said


@pytest.mark.parametrize("base", ["[]", "[1]", "[first.yaml, '${name}']", "{a: b}"])
def test_bases_that_are_no_paths(project: Path, base: str) -> None:
    (project.parent / "first.yaml").write_text("seed: 1\n")
    (project.parent / "top.yaml").write_text(f"base: {base}\n{projects.RECIPE}")
    assert "base: must be the path of another recipe" in refusal(project.parent / "top.yaml")


def test_several_put_over_one_do_not_become_its_arguments(project: Path) -> None:
    named = load_recipe(project, ["loss={a: {_target_: CrossEntropyLoss}, b: {_ref_: own.py:weighted}}"]).loss
    assert isinstance(named, dict)
    assert list(named) == ["a", "b"]


def test_samples_are_a_unit_of_durations(project: Path) -> None:
    """50 samples in batches of 16 are 4 steps."""
    schedule = "scheduler={_target_: StepLR, _warmup_: 25 samples, step_size: 50 samples}"
    result = train(project, schedule, "train={epochs: 4}", "evaluate.every=100 samples", "track.every=50 samples")
    lines: list[Any] = [yaml.safe_load(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [4, 8, 12, 16]
    assert lines[0]["lr"] == pytest.approx(0.1)


def test_the_precision_of_a_rehearsal_is_the_models(project: Path) -> None:
    from launcher.checks.rehearsal import _dtypes

    assert _dtypes(nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2))) == "float64 and float32"


def test_a_name_at_torchmetrics_root_warns_of_nothing(project: Path, recwarn: pytest.WarningsRecorder) -> None:
    metric = "evaluate.metrics={psnr: {_target_: PeakSignalNoiseRatio, data_range: 1.0}}"
    recipe = load_recipe(project, [metric, "data.validation={_target_: parts.py:Points}"])
    builder = Builder(recipe)
    builder.build(recipe.evaluate.metrics["psnr"])
    assert not [one for one in recwarn if issubclass(one.category, FutureWarning)]


def test_the_model_may_be_handed_to_what_makes_the_optimizer(project: Path) -> None:
    glue = (
        "import torch\n\n\ndef make(model, params):\n    return torch.optim.SGD(model.layers[2].parameters(), lr=0.1)\n"
    )
    (project.parent / "glue.py").write_text(glue)
    result = train(project, "optimizer={_target_: glue.py:make, model: '${model}'}")
    everywhere = train(project, run_dir="other")
    assert torch.equal(result.model.layers[2].bias, everywhere.model.layers[2].bias) is False
    untrained = train(project, "optimizer.lr=0.0", run_dir="untrained").model.layers[0].bias
    assert torch.equal(result.model.layers[0].bias, untrained)  # which that optimizer does not have
