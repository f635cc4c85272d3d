"""What a run holds on each GPU, and the settings that would make it fit, the cheapest first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.checks.footprint import KINDS
from launcher.checks.memory import Traced, trace
from launcher.data.load import Data
from launcher.errors import LauncherError, UsageError
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.text import size
from launcher.training.build import open_run_data
from launcher.world.world import World

Say = Callable[[str, str], None]

_OUTSIDE = 2**30  # of a GPU: its driver's context, kernels and libraries, which torch's allocator does not count
_OF_RANKS = 2**29  # and NCCL's buffers
_SPARE = 0.05  # of a GPU: holes between tensors, that the allocator cannot give away
_UNITS = {"MB": 10**6, "MIB": 2**20, "GB": 10**9, "GIB": 2**30, "TB": 10**12, "TIB": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b)", re.IGNORECASE)


@dataclass(frozen=True)
class Gpu:
    """The memory of a GPU.

    Attributes:
        text: As it was said: `80GB`.
        num_bytes: How much that is.
    """

    text: str
    num_bytes: int

    @staticmethod
    def parse(text: str) -> Gpu | None:
        """Reads `80GB` or `24 GiB`; None of what is no size."""
        match = _SIZE.fullmatch(text.strip())
        if match is None or match[2].upper() not in _UNITS:
            return None
        return Gpu(text.strip(), round(float(match[1]) * _UNITS[match[2].upper()]))

    def room(self, world: World) -> int:
        """What torch's allocator can have of it."""
        outside = _OUTSIDE + (_OF_RANKS if world.size > 1 else 0)
        return round(self.num_bytes * (1 - _SPARE)) - outside


@dataclass(frozen=True)
class Setting:
    """A change to a recipe that needs less memory.

    Attributes:
        override: As on the command line.
        cost: What it costs, in words.
        micro_batch: Samples at once, where that is what it changes.
        device: Keys of `device` that it changes.
    """

    override: str
    cost: str
    micro_batch: int | None = None
    device: Mapping[str, Any] | None = None


def check_memory(recipe: Recipe, builder: Builder, world: World, say: Say, gpu: Gpu | None) -> None:
    """Says what a process holds at the worst moment of a step, and where that is too much, what would make it fit.

    Args:
        recipe: The recipe.
        builder: Its components, checked.
        world: The processes that the run is meant for.
        say: Told of each line.
        gpu: What each has; None only counts.

    Raises:
        LauncherError: It does not fit, or cannot be traced.
    """
    data = open_run_data(recipe, builder, world)
    ask = _Ask(recipe, builder, data, world, gpu)
    traced = ask.trace()
    _show(traced, world, say)
    if gpu is None:
        return
    needed, room = traced.footprint.total, gpu.room(world)
    if needed <= room:
        say("fits", f"{gpu.text}: {size(room - needed)} are left, beside {_outside(gpu, world)}")
        return
    say("too much", f"{gpu.text}: {size(needed - room)} are missing, beside {_outside(gpu, world)}")
    remedy = ask.remedies(traced, say)
    raise UsageError(f"--memory: {recipe.name} does not fit {gpu.text} on {_processes(world)}; {remedy}")


def _outside(gpu: Gpu, world: World) -> str:
    return f"{size(gpu.num_bytes - gpu.room(world))} for the driver, NCCL and holes"


def _processes(world: World) -> str:
    return f"{world.size} process{'es' * (world.size > 1)}"


def _written(settings: Sequence[Setting]) -> str:
    return " ".join(setting.override for setting in settings)


def _joined(before: Sequence[Setting], setting: Setting) -> list[Setting]:
    """Those and one more, which takes the place of what sets the same key."""
    key = setting.override.partition("=")[0]
    return [*(earlier for earlier in before if earlier.override.partition("=")[0] != key), setting]


def _show(traced: Traced, world: World, say: Say) -> None:
    held, pieces = traced.footprint.held, traced.pieces
    at_once = f"{traced.samples} sample{'s' * (traced.samples > 1)} at once" + f", {pieces} times" * (pieces > 1)
    say("memory", f"each of {_processes(world)} at a step's worst moment ({traced.footprint.moment}), {at_once}")
    for kind in KINDS:
        if held.get(kind):
            say("", f"{kind:<14} {size(held[kind]):>12}")
    say("", f"{'in all':<14} {size(traced.footprint.total):>12}")


class _Ask:
    """Traces a run as it is, and as it would be.

    Args:
        recipe: The recipe.
        builder: Its components.
        data: Its data.
        world: Its processes.
        gpu: What each has.
    """

    def __init__(self, recipe: Recipe, builder: Builder, data: Data, world: World, gpu: Gpu | None):
        self.recipe, self.builder, self.data, self.world, self.gpu = recipe, builder, data, world, gpu

    def trace(self, *settings: Setting) -> Traced:
        """The run with some changes."""
        recipe, micro_batch = self.recipe, None
        for setting in settings:
            micro_batch = setting.micro_batch or micro_batch
            device = recipe.device.model_copy(update=dict(setting.device or {}))
            recipe = recipe.model_copy(update={"device": device})
        builder = self.builder.for_recipe(recipe)
        on_gpu = self.gpu is not None
        return trace(recipe, builder, self.data, self.world, micro_batch=micro_batch, on_gpu=on_gpu)

    def remedies(self, traced: Traced, say: Say) -> str:
        """Shows what each change alone comes to, and all so far together; gives the first that is enough, in words."""
        enough: list[Sequence[Setting]] = []
        before: list[Setting] = []
        for setting in self._settings(traced):
            needed = self._needed([setting])
            if needed is None:
                continue
            if self._is_enough([setting], needed, say):
                enough.append([setting])
            elif before and not enough:
                together = _joined(before, setting)
                needed = self._needed(together)
                if needed is not None and self._is_enough(together, needed, say):
                    enough.append(together)
                    break
            before.append(setting)
        if not enough:
            shared = "" if self.recipe.device.sharding != "none" else " with device.sharding=full"
            return f"no setting is enough: use a smaller model, or more GPUs{shared}"
        return f"the cheapest change: {_written(enough[0])}"

    def _is_enough(self, settings: Sequence[Setting], needed: int, say: Say) -> bool:
        """Shows what changes come to."""
        assert self.gpu is not None
        fits = needed <= self.gpu.room(self.world)
        say("fits with" if fits else "too much", f"{_written(settings)}: {size(needed)} ({settings[-1].cost})")
        return fits

    def _needed(self, settings: Sequence[Setting]) -> int | None:
        """What a change comes to; None where this model cannot have it."""
        try:
            return self.trace(*settings).footprint.total
        except LauncherError:
            return None

    def _settings(self, traced: Traced) -> Iterator[Setting]:
        """What needs less, in order of what it costs."""
        section = self.recipe.device
        if traced.samples > 1:
            most = self._largest(traced)
            yield Setting(f"data.micro_batch_size={most}", "the same run, in more passes", micro_batch=most)
        if not section.recompute:
            yield Setting("device.recompute=true", "the same run, a third more work", device={"recompute": True})
        if self.world.size > 1 and section.sharding == "none":
            cost = "the same run, half as much again to send"
            yield Setting("device.sharding=full", cost, device={"sharding": "full"})
        if section.precision == "no":
            yield Setting("device.precision=bf16", "another rounding, and faster", device={"precision": "bf16"})
        if section.precision != "bf16-true":
            yield Setting(
                "device.precision=bf16-true",
                "another run: weights of 8 bits of precision",
                device={"precision": "bf16-true"},
            )

    def _largest(self, traced: Traced) -> int:
        """The largest half, quarter and so on of the micro-batch that fits by itself, or one sample."""
        assert self.gpu is not None
        smallest = self.trace(Setting("", "", micro_batch=1)).footprint.total
        for_each = (traced.footprint.total - smallest) / (traced.samples - 1)
        micro_batch = traced.samples
        while micro_batch > 1 and smallest + for_each * (micro_batch - 1) > self.gpu.room(self.world):
            micro_batch = -(-micro_batch // 2)
        return micro_batch
