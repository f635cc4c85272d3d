"""Evaluating, saving and resuming change nothing: what people bring comes back as it was."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from places import RECIPES
from randomness import states
from tiers import rounds
from worlds import Command, Trained, in_world, killed, result_of, train_here

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.sameness import same
from launcher.errors import LauncherError
from launcher.evaluation.unmoved import Unmoved
from launcher.recipe.load import load_recipe
from launcher.run import run as launch
from launcher.runs.options import Options
from launcher.runs.tracking.tracking import read_metrics
from launcher.training.optimizer_state import NamedOptimizer
from launcher.world.world import World

RECIPE = RECIPES / "kept.yaml"
COUNT = "train.count=kept.py:samples"


def here(folder: str, overrides: tuple[str, ...], environ: Mapping[str, str], faults: str | None = None) -> str:
    """Trains as one rank, with an environment that a project of its own may read."""
    os.environ.update(environ)
    return train_here(folder, overrides, str(RECIPE), faults=faults)


def train(folder: Path, *overrides: str, size: int = 1, **environ: str) -> Trained:
    in_world(size, here, str(folder), overrides, environ)
    return result_of(folder)


def stopped(folder: Path, *overrides: str, size: int = 1, at: int = 5, **environ: str) -> None:
    """Trains until it is killed after a step."""
    killed(size, here, str(folder), overrides, environ, f"kill@step:{at}")


def straight_and_resumed(folder: Path, *overrides: str, size: int = 1) -> tuple[Trained, Trained]:
    straight = train(folder / "straight", *overrides, size=size)
    stopped(folder / "killed", *overrides, size=size)
    return straight, train(folder / "killed", *overrides, size=size)


def assert_same(one: Trained, other: Trained) -> None:
    assert same(one.weights, other.weights)
    assert other.column("loss") == one.column("loss")
    assert other.column("loss", "validation") == one.column("loss", "validation")


# ---------------------------------------------------------------------- optimizers


@rounds(
    "optimizer, dtype",
    plain=[("Kept", "bfloat16"), ("Wrapped", "float64"), ("Halving", "float64")],
    long=[("Kept", "float64"), ("Wrapped", "bfloat16")],
)
def test_what_an_optimizer_keeps_comes_back_as_it_was(tmp_path: Path, optimizer: str, dtype: str) -> None:
    wanted = (f"optimizer={{_target_: kept.py:{optimizer}, lr: 0.05}}", f"model.dtype={dtype}")
    assert_same(*straight_and_resumed(tmp_path, *wanted))


def test_two_lines_exchanged_change_nothing(tmp_path: Path) -> None:
    pair = ("model={_target_: kept.py:Pair}", "optimizer={_target_: Adam, lr: 0.05}")
    straight = train(tmp_path / "straight", *pair)
    stopped(tmp_path / "killed", *pair)
    assert_same(straight, train(tmp_path / "killed", *pair, PAIR_LINES="ba"))


@rounds("size", plain=[2], long=[1])
def test_a_model_that_is_another_is_refused_before_a_step(tmp_path: Path, size: int) -> None:
    pair = ("model={_target_: kept.py:Pair}", "optimizer={_target_: Adam, lr: 0.05}")
    stopped(tmp_path / "run", *pair, size=size)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    said = in_world(size, refused_here, str(tmp_path / "run"), pair, {"PAIR_WIDTH": "5"})
    assert all("the checkpoint does not fit this model or optimizer: " in one for one in said)
    assert all("size mismatch for a.weight" in one and "\n" not in one for one in said)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_state_of_other_shapes_is_refused_in_a_line(tmp_path: Path) -> None:
    state = {"one": torch.zeros(2, 3, requires_grad=True), "two": torch.zeros(3, requires_grad=True)}
    named = _named(torch.optim.Adam(state.values(), fused=True), state)
    _step(named)
    saved = named.state_dict()
    for wrong, said in (
        ({"one": torch.zeros(3, 2), "two": torch.zeros(3)}, "'one' is 3×2 float32 here and 2×3 float32 there"),
        ({"one": torch.zeros(2, 3), "two": torch.zeros(3).double()}, "'two' is 3 float64 here and 3 float32 there"),
        ({"one": torch.zeros(2, 3), "other": torch.zeros(3)}, "'other' is not in it"),
        ({"one": torch.zeros(2, 3)}, "'two' is only in it"),
    ):
        own = {name: one.requires_grad_() for name, one in wrong.items()}
        with pytest.raises(ValueError, match=said):
            _named(torch.optim.Adam(own.values(), fused=True), own).load_state_dict(saved)


def test_an_order_that_matters_is_compared(tmp_path: Path) -> None:
    from recipes.kept import Wrapped

    state = {"one": torch.zeros(3, requires_grad=True), "two": torch.zeros(3, requires_grad=True)}
    saved = _named(Wrapped(list(state.values())), state).state_dict()
    exchanged = dict(reversed(state.items()))
    with pytest.raises(ValueError, match="'two' stands where 'one' stood"):
        _named(Wrapped(list(exchanged.values())), exchanged).load_state_dict(saved)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.ASGD, torch.optim.Rprop])
def test_every_parameter_finds_its_own_state(kind: Any) -> None:
    state = {name: torch.randn(3, requires_grad=True) for name in "abc"}
    named = _named(kind(state.values(), **({"momentum": 0.9} if kind is torch.optim.SGD else {})), state)
    _step(named)
    other = {name: state[name].detach().clone().requires_grad_() for name in "cab"}
    again = _named(kind(other.values(), **({"momentum": 0.9} if kind is torch.optim.SGD else {})), other)
    again.load_state_dict(checkpoints.copied(named.state_dict()))
    for one, grad in zip(state, (1.0, 2.0, 3.0), strict=True):
        state[one].grad, other[one].grad = torch.full((3,), grad), torch.full((3,), grad)
    named.optimizer.step()
    again.optimizer.step()
    assert all(torch.equal(state[name], other[name]) for name in state)


def _named(optimizer: torch.optim.Optimizer, named: Mapping[str, torch.Tensor]) -> NamedOptimizer:
    return NamedOptimizer(optimizer, {id(one): name for name, one in named.items()})


def _step(named: NamedOptimizer) -> None:
    for group in named.optimizer.param_groups:
        for place, one in enumerate(group["params"]):
            one.grad = torch.full_like(one, place + 1.0)
    named.optimizer.step()


def test_an_average_of_16_bit_weights_is_kept_in_32(tmp_path: Path) -> None:
    small = ("model.dtype=bfloat16", "train.ema=0.999", "save={every: 2 steps, background: false}")
    straight, again = straight_and_resumed(tmp_path, *small)
    assert_same(straight, again)
    newest = max((tmp_path / "killed" / "checkpoints").iterdir())
    average = checkpoints.verify(newest).training()["average"]["parameters"]
    assert {one.dtype for one in average.values()} == {torch.float32}


# ---------------------------------------------------------------------- evaluating

VALIDATION = ("data.validation={_target_: kept.py:Reg}", "evaluate.every=2 steps")


def by_hand(model: Any, optimizer: Any, loss: Any, steps: int = 8, every: int = 2) -> tuple[list[float], list[float]]:
    """The loop that one writes by hand, evaluating every so many steps; losses of training and of evaluation."""
    from recipes.kept import Reg

    data, losses, scores = Reg(), [], []
    model.train()
    if hasattr(optimizer, "train"):
        optimizer.train()
    order = [list(range(20))[at : at + 8] for at in (0, 8, 16)]
    for step in range(steps):
        rows = order[step % 3]
        value = loss(model(data.x[rows]), data.y[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
        if (step + 1) % every == 0:
            for one in (model, optimizer):
                if hasattr(one, "eval"):
                    one.eval()
            scores.append(float(loss(model(data.x), data.y).detach()))
            for one in (model, optimizer):
                if hasattr(one, "train"):
                    one.train()
    return losses, scores


@rounds("size", plain=[2], long=[1])
def test_a_layer_that_folds_itself_in_is_trained_as_by_hand(tmp_path: Path, size: int) -> None:
    from recipes.kept import LowRank

    model = LowRank()
    losses, scores = by_hand(model, torch.optim.SGD(model.parameters(), 0.05), torch.nn.MSELoss())
    changes = ("model={_target_: kept.py:LowRank}", "data.shuffle=false", *VALIDATION)
    found = train(tmp_path / "run", *changes, size=size)
    assert found.column("loss") == pytest.approx(losses, abs=1e-9)
    assert found.column("loss", "validation") == pytest.approx(scores, abs=1e-9)
    model.train()
    assert all(torch.allclose(found.weights[name], one, atol=1e-9) for name, one in model.state_dict().items())
    fresh = LowRank()
    fresh.load_state_dict(found.weights)
    fresh.eval()
    assert all(torch.allclose(one, model.eval().state_dict()[name]) for name, one in fresh.state_dict().items())
    again = in_world(1, evaluated_here, str(tmp_path / "run"))[0]
    assert again == pytest.approx(scores[-1], abs=1e-9)


def evaluated_here(folder: str) -> float:
    """What `launcher evaluate` says of a run's last weights, or of a checkpoint."""
    from launcher.checkpoints.saved_run import find_saved
    from launcher.evaluation.offline import evaluate_saved
    from launcher.world.world import World

    lines = evaluate_saved(find_saved(Path(folder)), World.from_environ(), None, cpu=True)
    return float(lines[-1]["loss"])


@rounds("size", plain=[2], long=[1])
def test_a_schedule_free_optimizer_is_evaluated_and_saved_with_its_weights_for_that(tmp_path: Path, size: int) -> None:
    from recipes.kept import Lin, ScheduleFree

    model = Lin()
    optimizer = ScheduleFree(model.parameters(), 0.05)
    losses, scores = by_hand(model, optimizer, torch.nn.MSELoss())
    optimizer.eval()
    free = ("optimizer={_target_: kept.py:ScheduleFree, lr: 0.05}", "data.shuffle=false", *VALIDATION)
    best = ("evaluate.best={metric: loss, mode: min}", "data.test={_target_: kept.py:Reg}")
    found = train(tmp_path / "run", *free, *best, size=size)
    assert found.column("loss") == pytest.approx(losses, abs=1e-9)
    assert found.column("loss", "validation") == pytest.approx(scores, abs=1e-9)
    assert found.column("loss", "test") == pytest.approx([min(scores)], abs=1e-9)
    assert all(torch.allclose(found.weights[name], one, atol=1e-9) for name, one in model.state_dict().items())
    stopped(tmp_path / "killed", *free, *best, size=size)
    assert_same(found, train(tmp_path / "killed", *free, *best, size=size))
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    saved = checkpoints.verify(newest)
    assert not torch.equal(saved.weights()["l.weight"], saved.evaluated()["l.weight"])
    scores_again = in_world(1, evaluated_here, str(newest))
    assert scores_again == pytest.approx(scores[-1:], abs=1e-9)
    (newest / checkpoints.EVALUATED).write_bytes(b"")
    with pytest.raises(checkpoints.DamagedError, match=r"evaluated\.pth: 0 bytes"):
        checkpoints.verify(newest)


BROUGHT = {
    "model": ("model={_target_: kept.py:Counting}",),
    "buffer": ("loss={_target_: kept.py:Centered}",),
    "callable": ("loss={_target_: kept.py:Annealed}",),
    "step": ("train.step={_target_: kept.py:Step}", "loss=null", COUNT),
    "module": ("train.step={_target_: kept.py:Stepper}", "loss=null", COUNT),
    "draws": ("train.step=kept.py:drawing_step", "loss=null", COUNT),
    "extra": ("model={_target_: kept.py:Extra}",),
    "loose": ("model={_target_: kept.py:Loose}",),
    "centring": ("data.on_device={_target_: kept.py:Centring}",),
    "scaling": ("data.on_device={_target_: kept.py:Scaling}",),
    "grows": ("model={_target_: kept.py:Growing}",),
    "coo": ("model={_target_: kept.py:Sparse}",),
    "csr": ("model={_target_: kept.py:Sparse, layout: sparse_csr}",),
    "arrays": ("train.step={_target_: kept.py:ArrayStep}", "loss=null", COUNT),
}


@rounds(
    "what, size",
    plain=[
        *((what, 1) for what in ("model", "buffer", "callable", "step", "draws", "centring")),
        *((what, 2) for what in ("buffer", "step")),
    ],
    long=[(what, 2) for what in ("model", "callable", "draws")],
)
def test_evaluating_changes_nothing(tmp_path: Path, what: str, size: int) -> None:
    never = train(tmp_path / "never", *BROUGHT[what], size=size)
    for ranks in ("first", "all")[:size]:
        often = train(tmp_path / ranks, *BROUGHT[what], *VALIDATION, f"evaluate.ranks={ranks}", size=size)
        assert often.distance(never) == 0
        assert often.column("loss") == never.column("loss")
        assert len(often.column("loss", "validation")) == 4


# ---------------------------------------------------------------------- randomness and state


@rounds(
    "what, size",
    plain=[
        *((what, 1) for what in ("buffer", "callable", "step", "module", "draws", "extra", "csr", "arrays")),
        *((what, 1) for what in ("loose", "centring")),
        *((what, 2) for what in ("buffer", "module", "draws", "coo", "scaling")),
    ],
    long=[(what, 2) for what in ("callable", "step", "extra", "csr", "arrays", "loose", "centring")],
)
def test_whatever_has_a_state_goes_on_with_it(tmp_path: Path, what: str, size: int) -> None:
    assert_same(*straight_and_resumed(tmp_path, *BROUGHT[what], *VALIDATION, size=size))


IN = {
    "calls": "InClass",
    "_calls": "InModule",
    "count": "InClosure",
    "forward()": "InDefault",
    "meter": "InObject",
    "last": "InDeque",
}
IN |= {"named": "InMapping", "hidden": "InList", "noise": "InGenerator"}
UNKEPT = {
    "train.after_step.calls: steps have changed it, and no checkpoint": (
        "train.after_step={_target_: kept.py:Tallying, strange: true}",
    ),
    "model.gradients: steps have changed it, and no state_dict has it": ("model={_target_: kept.py:Backwards}",),
    **{
        f"model.{name}: each forward changes it, and no state_dict has it": (f"model={{_target_: beside.py:{kind}}}",)
        for name, kind in IN.items()
    },
    "data.on_device.calls: each forward changes it, and no checkpoint": (
        "data.on_device={_target_: kept.py:Tallying, strange: true}",
    ),
    "model.mean, model.other: each forward changes it, and no state_dict has it": BROUGHT["loose"],
    "": (*BROUGHT["scaling"], "optimizer={_target_: kept.py:Kept}", "train.after_step={_target_: kept.py:Quiet}"),
    "step 8": (
        *("train.step={_target_: kept.py:Late}", "loss=null", "optimizer={_target_: beside.py:Noisy, lr: 0.1}"),
        *("train.after_step={_target_: kept.py:Tallying}", "evaluate.after={_target_: kept.py:Tallying}", *VALIDATION),
    ),
    "finished step 8": ("model={_target_: kept.py:Noting}", *VALIDATION),
}


@pytest.mark.parametrize("said", UNKEPT)
def test_what_no_checkpoint_keeps_is_said(tmp_path: Path, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(RECIPE, ["launch.threads=1", *UNKEPT[said]])
    launch(recipe, World(), Options(cpu=True, run_dir=str(tmp_path / "run")))
    told = " ".join(" ".join(capfd.readouterr()).split())
    assert said in told
    assert (" changed it" in told or " changes it" in told) is ("chang" in said)


def test_coins_of_two_generators_are_independent(tmp_path: Path) -> None:
    many = ("train.step=kept.py:flips_step", "loss=null", "train.steps=400", "save.every=400 steps")
    found = train(tmp_path / "run", *many)
    ours, theirs = found.column("numpy"), found.column("torch")
    both = [sum((a, b) == pair for a, b in zip(ours, theirs, strict=True)) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert sum((count - 100) ** 2 / 100 for count in both) < 16.3  # chi-square, 3 degrees of freedom, 1 in 1,000


def test_a_runs_own_weights_open_everywhere(tmp_path: Path) -> None:
    extra = ("model={_target_: kept.py:Extra}", *VALIDATION)
    found = train(tmp_path / "run", *extra)
    extra_state: Any = found.weights["_extra_state"]
    assert extra_state == {"calls": 8, "names": ["a"]}
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    for saved in (tmp_path / "run", newest):
        assert in_world(1, evaluated_here, str(saved)) == pytest.approx(found.column("loss", "validation")[-1:])
        assert "bit-equal" in in_world(1, exported_here, str(saved), str(tmp_path / f"{saved.name}.pth"))[0]
        (said,) = in_world(1, exported_here, str(saved), str(tmp_path / f"{saved.name}.safetensors"))
        assert "safetensors holds tensors only, and '_extra_state' of the model is a dict; write .pth" in said
    again = train(tmp_path / "again", *extra, f"train.start_from={tmp_path / 'run'}")
    assert again.weights["_extra_state"] == {"calls": 16, "names": ["a"]}


def exported_here(folder: str, target: str) -> str:
    from launcher.checkpoints.export import export
    from launcher.checkpoints.saved_run import find_saved

    try:
        return export(find_saved(Path(folder)), Path(target))
    except LauncherError as error:
        return str(error)


# ---------------------------------------------------------------------- a step function and DDP


@pytest.mark.parametrize("step", ["method_step", "around_step"])
def test_a_step_function_has_the_bare_model_in_any_world(tmp_path: Path, step: str) -> None:
    own = (f"train.step=kept.py:{step}", "loss=null", "data.micro_batch_size=2")
    one, two, three = (train(tmp_path / str(size), *own, size=size) for size in (1, 2, 3))
    assert one.distance(two) < 1e-9
    assert one.distance(three) < 1e-9


@rounds("size", plain=[2], long=[1])
@pytest.mark.parametrize(
    "thawing",
    [
        ("model={_target_: kept.py:HalfFrozen}", "train.step=kept.py:thawing_step", "loss=null"),
        ("model={_target_: kept.py:HalfFrozen, thaws_at: 4}",),
    ],
    ids=["step", "forward"],
)
def test_parameters_that_thaw_are_refused_when_they_do(tmp_path: Path, thawing: tuple[str, ...], size: int) -> None:
    said = in_world(size, refused_here, str(tmp_path / "run"), thawing)
    assert all("was frozen when the run began and requires a gradient now" in one for one in said)
    assert all("train.start_from" in one for one in said)
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")][-1] == 3


def refused_here(folder: str, overrides: tuple[str, ...], environ: Mapping[str, str] | None = None) -> str:
    """What a run is refused with."""
    os.environ.update(environ or {})
    try:
        train_here(folder, overrides, str(RECIPE))
    except LauncherError as error:
        return str(error)
    return "it was not refused"


# ---------------------------------------------------------------------- the first checkpoint


@pytest.mark.parametrize(
    ("brought", "said"),
    [
        ("optimizer={_target_: kept.py:WithDeque, lr: 0.1}", "optimizer: its state holds a collections.deque at opti"),
        ("optimizer={_target_: kept.py:Forgetful, lr: 0.1}", "optimizer: Forgetful does not load the state"),
        ("optimizer={_target_: kept.py:Rounding, lr: 0.1}", "optimizer: Rounding does not load the state"),
        ("model={_target_: kept.py:Growing}", "model: 'low' has appeared or grown since it was built"),
        ("loss={_target_: kept.py:SetLoss}", "loss: its state holds a kept.Moments at loss.moments"),
    ],
)
def test_what_could_not_be_gone_on_with_is_said_at_the_first_checkpoint(
    tmp_path: Path, brought: str, said: str
) -> None:
    background = str("kept.py:Rounding" not in brought).lower()
    long = (f"save={{every: 3 steps, background: {background}, on_failure: warn}}", "train.steps=100000")
    (found,) = in_world(1, refused_here, str(tmp_path / "run"), (brought, *long))
    assert found.startswith(said)
    assert "this run could not be resumed" in found
    assert "\n" not in found


def test_check_says_it_too(tmp_path: Path) -> None:
    command = Command(tmp_path, "check", str(RECIPE), "optimizer={_target_: kept.py:WithDeque, lr: 0.1}").wait()
    assert command.code == 2
    assert "optimizer: its state holds a collections.deque" in " ".join(command.screen.split())


# ---------------------------------------------------------------------- trying leaves nothing behind


@pytest.mark.parametrize("what", ["model", "buffer", "step", "draws", "grows"])
def test_the_pass_that_settles_buckets_leaves_nothing_behind(what: str) -> None:
    ((before, after),) = in_world(1, warmed_here, BROUGHT[what])
    assert before == after


def warmed_here(overrides: tuple[str, ...]) -> tuple[str, str]:
    """All that a model, a loss or a step function holds, and the generators, before and after that pass."""
    from launcher.device.device import open_device
    from launcher.recipe.build import Builder
    from launcher.recipe.load import load_recipe
    from launcher.training.build import build_run_model, build_run_state, open_run_data
    from launcher.training.step import warm_up
    from launcher.world.world import World

    recipe = load_recipe(str(RECIPE), overrides)
    builder = Builder(recipe, ())
    builder.check()
    data = open_run_data(recipe, builder, World())
    with open_device(recipe.device, World(), cpu=True) as device:
        model = build_run_model(recipe, builder, device)
        state = build_run_state(recipe, builder, model, device, data)
        before = _all_of(state)
        warm_up(state)
        return before, _all_of(state)


def _all_of(state: Any) -> str:
    things = [state.model.bare, *state.objective.brought.values()]
    modules = [module for one in things if isinstance(one, torch.nn.Module) for module in one.modules()]
    held = [
        {**vars(one), "_modules": None, "generator": None} for one in (*modules, *things) if hasattr(one, "__dict__")
    ]
    own = getattr(state.model.bare, "generator", None)
    torch.set_printoptions(precision=17)
    return repr((held, own and own.bit_generator.state, states()))


@pytest.mark.parametrize("brought", ["model={_target_: kept.py:Quantized}", "loss={_target_: kept.py:Centered}"])
def test_three_processes_go_on_as_well(tmp_path: Path, brought: str) -> None:
    assert_same(*straight_and_resumed(tmp_path, brought, size=3))


# ---------------------------------------------------------------------- ranks that part

PARTING = ("train.step=kept.py:parting_step", "loss=null", "track.every=10 steps")


@pytest.mark.parametrize(("every", "by", "last"), [(5, "0.01", 5), (1000, "0.01", 20), (1000, "1e-6", 20)])
def test_ranks_that_part_end_the_run(tmp_path: Path, every: int, by: str, last: int) -> None:
    long = (f"save={{every: {every} steps}}", "train.steps=1000")
    found = in_world(2, refused_here, str(tmp_path / "run"), (*PARTING, *long), {"PART_BY": by})
    assert len(set(found)) == 1
    assert re.match(r"step 2: the weights of rank 0 \(.+\) and rank 1 \(.+\) have parted", found[0])
    lines = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert max(lines, default=0) <= last
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_a_difference_of_rounding_is_said_once(tmp_path: Path) -> None:
    found = in_world(2, refused_here, str(tmp_path / "run"), PARTING, {"PART_BY": "1e-9"})
    assert found == ["it was not refused"] * 2
    said = (tmp_path / "run" / "logs" / "rank-0.log").read_text()
    assert said.count("as machines of different kinds round") == 1


# ---------------------------------------------------------------------- what else people's modules do


@pytest.mark.parametrize(("size", "skips"), [(1, "stop"), (2, "skip"), (3, "stop")])
def test_double_precision_as_the_default_of_torch(tmp_path: Path, size: int, skips: str) -> None:
    doubles = ("model={_target_: doubles.py:Doubles}", "train.clip_grad_norm=1.0", "train.ema=0.9", *VALIDATION)
    again = straight_and_resumed(tmp_path, *doubles, f"train.non_finite={skips}", size=size)
    assert_same(*again)
    assert {one.dtype for one in again[0].weights.values()} == {torch.float64}


def test_a_single_sample_under_batch_norm_is_refused_before_the_first_step(tmp_path: Path) -> None:
    single = ("model={_target_: kept.py:Normed}", "data.train={_target_: kept.py:Reg, size: 17}")
    (said,) = in_world(1, refused_here, str(tmp_path / "run"), single)
    assert "BatchNorm needs two samples at a time, and step 3 of an epoch has 1 samples" in said
    assert "set data.drop_last: true" in said
    assert not (tmp_path / "run").exists()
    assert in_world(1, refused_here, str(tmp_path / "run"), (*single, "data.drop_last=true")) == ["it was not refused"]
    two = in_world(2, refused_here, str(tmp_path / "two"), (*single, "data.train.size=19"))
    assert all("step 3 of an epoch has 3 samples on 2 processes" in one for one in two)


def test_the_plan_says_where_bits_are_the_same(tmp_path: Path) -> None:
    for processes, is_said in ((2, False), (3, True)):
        command = Command(tmp_path, "check", str(RECIPE), "--processes", str(processes)).wait()
        said = " ".join(command.screen.split())
        assert ("as many processes on as many machines" in said) is is_said


def test_what_a_run_gives_back_is_to_be_evaluated(tmp_path: Path) -> None:
    free = "optimizer={_target_: kept.py:ScheduleFree, lr: 0.05}"
    ((given, saved),) = in_world(1, given_back_here, str(tmp_path / "run"), free)
    assert given == saved


def given_back_here(folder: str, override: str) -> tuple[list[float], list[float]]:
    """The weights of the module that `launcher.train` returns, and those that it saved."""
    import launcher

    result = launcher.train(str(RECIPE), override, cpu=True, run_dir=folder, output="quiet")
    saved = torch.load(Path(folder) / "model_weights.pth", weights_only=True)
    return result.model.l.weight.flatten().tolist(), saved["l.weight"].flatten().tolist()


@rounds("size", plain=[1], long=[2])
def test_verify_resume_proves_it_for_all_that_has_a_state(tmp_path: Path, size: int) -> None:
    all_of_it = (
        "model={_target_: kept.py:Extra}",
        "loss={_target_: kept.py:Centered}",
        "optimizer={_target_: kept.py:ScheduleFree, lr: 0.05}",
        *VALIDATION,
    )
    flags = ("--steps", "4", "--kill-at", "3", "--cpu", "--processes", str(size))
    done = Command(tmp_path, "verify-resume", str(RECIPE), *all_of_it, *flags).wait()
    assert done.code == 0, done.screen
    assert "with these processes on this machine" in " ".join(done.screen.split())


def test_all_ranks_end_where_the_first_checkpoint_is_no_good(tmp_path: Path) -> None:
    deque = ("optimizer={_target_: kept.py:WithDeque, lr: 0.1}", "train.steps=100000")
    done = Command(tmp_path, "train", str(RECIPE), *deque, "--cpu", "--processes", "2", "--run-dir", "run").wait()
    assert done.code == 2
    assert not done.left
    assert done.screen.count("its state holds a collections.deque") == 1


class Frozen(OrderedDict[str, int]):
    """A configuration that nobody changes, as diffusers has."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("it is frozen")

    clear = copy = update  # type: ignore[assignment]


def test_objects_inside_of_packages_are_left_alone() -> None:
    """A tracker's client in a step function goes on counting; the step function's own meter does not."""
    from collections import Counter
    from logging import Logger

    from recipes.kept import Step

    step: Any = Step()
    step.meter, step.client, step.seen = Step(), Logger("client"), Counter({"a": 1})
    step.frozen, step.order = Frozen(a=1), OrderedDict(a=1, b=2)
    unmoved = Unmoved(step)
    step.order.move_to_end("a")
    step.calls += 1
    step.meter.calls += 1
    step.seen["a"] += 1
    step.client.level = 30
    step.late = 1
    unmoved.put_back()
    assert (step.calls, step.meter.calls, step.seen, step.client.level) == (0, 0, Counter({"a": 1}), 30)
    assert not hasattr(step, "late")
    assert step.frozen == {"a": 1}
    assert list(step.order) == ["a", "b"]


def test_what_was_tried_leaves_nothing_behind() -> None:
    """Wherever a model keeps what its forward changes."""
    from recipes import beside

    x = torch.ones(2, 4, dtype=torch.float64)
    for kind in (*IN.values(), "InWeights"):
        model = getattr(beside, kind)()
        unmoved = Unmoved(model, weights=True)
        first = model(x)
        assert not torch.equal(model(x), first), kind
        unmoved.put_back()
        assert torch.equal(model(x), first), kind


@pytest.mark.parametrize("model", ["{_target_: kept.py:HalfFrozen}", "{_target_: kept.py:Lin, dtype: bfloat16}"])
def test_parameters_of_any_dtype_are_compared(tmp_path: Path, model: str) -> None:
    longer = (f"model={model}", "train.steps=125", "save.every=5 steps")
    assert_same(*straight_and_resumed(tmp_path, *longer, size=2))
