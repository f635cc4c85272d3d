"""`launcher check --memory`: what a step holds is counted without memory, and is what torch's allocator then gives."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from places import ROOT
from recipes.stacks import Reading
from torch.profiler import ProfilerActivity, profile
from worlds import TINY, in_world

from launcher.checks.fits import Gpu, check_memory
from launcher.checks.memory import trace
from launcher.cli.main import main
from launcher.device.device import open_device
from launcher.errors import LauncherError, UsageError
from launcher.evaluation.modes import start_training
from launcher.objective.several import each
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.training.build import build_run_model, build_run_state, open_run_data
from launcher.training.steps import counted_steps
from launcher.world.world import World

GPT = str(ROOT / "recipes" / "text_gpt.yaml")
SMALL = ("data.workers=0", "launch.threads=1")


def predicted(recipe: str, *overrides: str, size: int = 1) -> int:
    read = load_recipe(recipe, [*SMALL, *overrides])
    builder, world = Builder(read), World(size=size, local_size=size)
    return trace(read, builder, open_run_data(read, builder, world), world).footprint.total


def taken(recipe: str, overrides: tuple[str, ...]) -> int:
    """What the allocator gave at the most in the third step of a rank, with what was there before."""
    read, world = load_recipe(recipe, [*SMALL, *overrides]), World.from_environ()
    builder = Builder(read)
    data = open_run_data(read, builder, world)
    with warnings.catch_warnings(), open_device(read.device, world, cpu=True) as device:
        warnings.simplefilter("ignore")
        state = build_run_state(read, builder, build_run_model(read, builder, device), device, data)
        state.objective.mark_audited()
        steps = counted_steps(state, 0, 5)
        start_training(state.model.wrapped, state.optimizer)
        for number in range(2):
            state.take_step(state, next(steps), state.length.at(number))
        before: int = _there(state.model.bare) + sum(
            _own(value).nbytes
            for optimizer in each(state.optimizer).values()
            for kept in optimizer.state.values()
            for value in kept.values()
        )
        if state.average is not None:
            before += sum(value.nbytes for value in state.average.state_dict()["parameters"].values())
        if world.size > 1 and state.shards is None:  # DDP's buckets
            before += sum(parameter.nbytes for parameter in state.model.bare.parameters())
        third = next(steps)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            state.take_step(state, third, state.length.at(2))
    held, most = 0, 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return before + int(most)


def _there(model: torch.nn.Module) -> int:
    return sum(_own(tensor).nbytes for tensor in (*model.parameters(), *model.buffers()))


def _own(tensor: Any) -> torch.Tensor:
    """What this rank has of a tensor, which may be sharded."""
    own: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        (GPT, ("device.recompute=true", "model.dropout=0.1", "train.clip_grad_norm=1.0")),
        (GPT, ("device.precision=bf16", "data.micro_batch_size=4")),
        (GPT, ("device.precision=bf16-true", "train={steps: 5, ema: 0.9}")),
        (str(ROOT / "recipes" / "digits_cnn.yaml"), ()),
    ],
)
def test_a_step_takes_what_was_predicted(recipe: str, overrides: tuple[str, ...]) -> None:
    assert in_world(1, taken, recipe, overrides)[0] == pytest.approx(predicted(recipe, *overrides), rel=0.02)


def test_two_processes_take_what_was_predicted() -> None:
    ranks = in_world(2, taken, GPT, ())
    assert max(ranks) == pytest.approx(predicted(GPT, size=2), rel=0.03)


LARGER = ("model={width: 256, layers: 6}", "device.sharding=full")


def test_two_processes_that_share_a_model_take_what_was_predicted() -> None:
    ranks = in_world(2, taken, GPT, LARGER)
    # how much is on its way at a time depends on how fast the other process is
    assert min(ranks) == pytest.approx(predicted(GPT, *LARGER, size=2), rel=0.1)


def test_a_model_whose_constructor_reads_values_is_counted_too() -> None:
    model = "model={_target_: stacks.py:%s, dropout: 0.0}"
    plain, reads = (predicted(str(TINY), model % name) for name in ("Stack", "Reading"))
    assert reads == plain
    assert Reading(dropout=0.0).get_parameter("blocks.0.layer.weight").abs().max() > 0


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        ("{_target_: 'ways.py:Sam', lr: 0.05, _closure_: true}", 1),
        ("{_target_: 'ways.py:Lookahead', optimizer: {_target_: SGD, lr: 0.02, momentum: 0.9}}", 2),
    ],
)
def test_what_an_optimizer_inside_another_keeps_is_counted(optimizer: str, copies: int) -> None:
    read = load_recipe(str(TINY.parent / "ways.yaml"), [f"optimizer={optimizer}"])
    builder, world = Builder(read), World()
    held = trace(read, builder, open_run_data(read, builder, world), world).footprint.held
    assert held["optimizer"] == copies * held["parameters"]


def _said(gpu: str | None, *overrides: str, size: int = 1) -> list[tuple[str, str]]:
    recipe = load_recipe(GPT, [*SMALL, *overrides])
    said: list[tuple[str, str]] = []
    world, size_of_gpu = World(size=size, local_size=size), Gpu.parse(gpu) if gpu else None
    try:
        check_memory(recipe, Builder(recipe), world, lambda *words: said.append(words), size_of_gpu)
    except UsageError as error:
        said.append(("error", str(error)))
    return said


def test_each_kind_is_shown_and_adds_up() -> None:
    rows = dict(text.rsplit("  ", 1) for label, text in _said(None, "train.ema=0.9") if not label)
    mib = {"KiB": 2**-10, "MiB": 1.0, "GiB": 2**10}
    numbers = {
        label.strip(): float(number) * mib[unit]
        for label, (number, unit) in ((label, text.split()) for label, text in rows.items())
    }
    assert set(numbers) == {"parameters", "gradients", "optimizer", "averages", "activations", "in all"}
    assert sum(numbers.values()) - numbers["in all"] == pytest.approx(numbers["in all"], abs=0.3)


def test_what_does_not_fit_comes_with_what_would_the_cheapest_first() -> None:
    said = _said("1.7GB", "data.global_batch_size=96", "define.context=512")
    assert said[-1][0] == "error"
    assert "text_gpt does not fit 1.7GB on 1 process; the cheapest change: data.micro_batch_size=" in said[-1][1]
    tried = [text for label, text in said if label in ("too much", "fits with")][1:]
    assert [text.partition(":")[0].partition("=")[0] for text in tried][:2] == [
        "data.micro_batch_size",
        "device.recompute",
    ]
    assert any("a third more work" in text for text in tried)


def test_what_nothing_makes_fit_says_so() -> None:
    said = _said("1.2GB", "data.global_batch_size=2", "model={width: 1024, layers: 2}")
    assert "no setting is enough" in said[-1][1]
    assert any("data.micro_batch_size=1 device.recompute=true" in text for _, text in said)


def test_enough_is_said_with_what_is_left() -> None:
    assert _said("80GB")[-1][0] == "fits"


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("80GB", 80 * 10**9), ("24 GiB", 24 * 2**30), ("1.5TB", 15 * 10**11), ("512mib", 2**29)]
)
def test_sizes_are_read(text: str, num_bytes: int) -> None:
    size = Gpu.parse(text)
    assert size is not None
    assert size.num_bytes == num_bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "--gpu", "80"], "is no size of memory; write it with its unit, as in 80GB"),
        (["--memory", "--gpu", "80 apples"], "is no size of memory"),
        (["--memory", "--gpu", "lots"], "--gpu lots: is no size of memory"),
        (["--gpu", "80GB"], "a size goes with --memory"),
        (["--memory", "--gpu"], "say how much memory a GPU has"),
    ],
)
def test_sizes_that_are_none_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", GPT, *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_behind_the_flag_is_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--fast", "--gpu", GPT, "train.steps=7"]) == 0
    assert "none wrong" in capsys.readouterr().out


def test_a_step_that_reads_values_is_said_not_to_be_traceable() -> None:
    with pytest.raises(LauncherError, match=r"--memory: a step cannot be traced without values.*on the GPU itself"):
        predicted(str(TINY), "model={_target_: stacks.py:Asking}")
