"""`data.micro_batch_size: auto`: the largest that fits, found in processes that may die; halved when memory runs out.

What was found is remembered with the machine: in the user's own cache, by what the run is and by the device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from launcher.data.load import Data
from launcher.datasets.files import cache_path
from launcher.device.device import Device
from launcher.errors import UsageError
from launcher.evaluation.unmoved import Unmoved
from launcher.internals import batch_norms
from launcher.recipe.schema import Recipe
from launcher.runs.identity import digest, identity_of
from launcher.runs.options import Options
from launcher.training.state import Retry, TrainState
from launcher.training.trial import DOES_NOT_FIT, out_of_memory
from launcher.world import context, gpus
from launcher.world.failure import LINE, Failure, cut
from launcher.world.files import atomic_write
from launcher.world.hints import hint_for
from launcher.world.signals import pause, stop_requested
from launcher.world.world import World

_NO_PART = ("seed", "scheduler", "train.steps", "train.epochs", "train.time")  # in how much memory a step needs
_OF_A_WORLD = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "OMPI_", "PMI_", "PMIX_")
_MOMENT_SECONDS = 0.2
# isolated, or a json.py of the working directory would be read for Python's own
_START = "import json, sys; asked = json.load(sys.stdin); sys.path[:] = asked['path']; "
_START += "from launcher.training.trial import tried; sys.exit(tried(asked))"


@dataclass(frozen=True)
class Remembered:
    """What this machine knows of a run's micro-batch.

    Attributes:
        path: The file.
    """

    path: Path

    @staticmethod
    def of(recipe: Recipe, device: Device) -> Remembered:
        """Of runs of this recipe on devices of this kind, in worlds of this size."""
        identity = {key: value for key, value in identity_of(recipe).items() if not key.startswith(_NO_PART)}
        section = recipe.device.model_dump_json(exclude={"timeout"})
        facts = digest(identity), section, device.world.size, device.name, torch.__version__
        return Remembered(cache_path("micro-batch", *facts) / "micro_batch.json")

    def read(self) -> int | None:
        """The samples of a micro-batch; None where nothing is known."""
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))["samples"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return known if isinstance(known, int) and known > 0 else None

    def write(self, samples: int) -> None:
        """Remembers it, where that can be."""
        with suppress(OSError), atomic_write(self.path) as part:
            part.write_text(json.dumps({"samples": samples}) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------- at the start


def settle_micro_batch(recipe: Recipe, data: Data, device: Device, options: Options) -> tuple[Data, Retry | None]:
    """Cuts the training data into the largest micro-batches that fit every process, where the recipe leaves it open.

    Raises:
        UsageError: Not even one sample fits.
    """
    if recipe.data.micro_batch_size != "auto":
        return data, None
    sampler, place = data.train.sampler, Remembered.of(recipe, device)
    share = -(-sampler.batch_size(0) // device.world.size)
    own, how = place.read(), f"remembered in {place.path}"
    if own is None:
        own, how = _found(recipe, share, device, options)
    agreed = min(int(message) for message in device.coordinator.gather(str(min(own, share)).encode()))
    if not agreed:
        message = "data.micro_batch_size: auto: not even one sample fits; see launcher check --memory for what would"
        raise UsageError(message)
    if how.startswith("tried"):
        place.write(agreed)
    sampler.cut(agreed)
    several = "; then all start again (launch.max_restarts)" if device.world.size > 1 else ""
    if not several and isinstance(recipe.train.step, Mapping):
        several = ": at the next start, where the first turn has stepped already"
    note = f"data.micro_batch_size: auto: {agreed} ({how}), half of that when memory runs out{several}"
    return replace(data, notes=(*data.notes, note)), Halving(place, device.world)


def _found(recipe: Recipe, share: int, device: Device, options: Options) -> tuple[int, str]:
    """How many samples fit this process, and how that is known; its whole share where nothing can be tried."""
    if "recipe" not in options.how:
        return share, "the whole share: a run with objects from Python cannot be tried in a process of its own"
    if recipe.device.sharding != "none" and device.world.size > 1:
        return share, "the whole share: one process cannot try what several hold"
    asked = {
        "path": sys.path,
        **{name: list(options.how.get(name, ())) for name in ("overrides", "remove", "allow")},
        "recipe": str(options.how["recipe"]),
        "cpu": options.cpu,
        "processes": device.world.size,
        "parent": os.getpid(),
    }
    environment = _environment(device)
    seconds = recipe.device.timeout.amount
    try:
        return largest(share, lambda samples: _fits({**asked, "samples": samples}, environment, seconds)), "tried"
    except _UntriedError as error:
        return share, f"the whole share: it could not be tried: {error}"


def largest(share: int, fits: Callable[[int], bool]) -> int:
    """The largest part of a share, cut into 1, 2, 3, … parts, that fits; 0 where none does."""
    failed, parts = 0, 1
    while not fits(-(-share // parts)):
        if parts == share:
            return 0
        failed, parts = parts, min(2 * parts, share)
    while parts - failed > 1:
        middle = (failed + parts) // 2
        if -(-share // middle) == -(-share // parts) or fits(-(-share // middle)):
            parts = middle
        else:
            failed = middle
    return -(-share // parts)


class _UntriedError(Exception):
    """A trial has failed for another reason than memory."""


def _fits(asked: dict[str, Any], environment: dict[str, str], seconds: float) -> bool:
    """Makes two steps in a process of its own, which may die of it.

    Raises:
        _UntriedError: Something else went wrong there: a card that lets in one process, say, and this one has it.
    """
    command = [sys.executable, "-I", "-c", _START]
    words = json.dumps(asked)
    try:
        done = subprocess.run(
            command, input=words, env=environment, capture_output=True, encoding="utf-8", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode < 0:
        pause(_MOMENT_SECONDS)  # what has ended it may be for this process too, as a Ctrl-C is
        if stop_requested():
            raise _UntriedError("this run was asked to stop")
    if done.returncode > 0 and done.returncode != DOES_NOT_FIT:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        hint = hint_for(Failure(said))
        raise _UntriedError(f"{cut(said, LINE)}{f': {hint}' if hint else ''}")
    return done.returncode == 0


def _environment(device: Device) -> dict[str, str]:
    """This process's, as of one that is alone, with its own GPU."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_WORLD)}
    if device.torch_device.type == "cuda":
        visible, number = gpus.visible(variables) or [], device.torch_device.index or 0
        variables[gpus.variable(variables)] = visible[number] if number < len(visible) else str(number)
    return variables


# ---------------------------------------------------------------------- in mid-run


class Halving:
    """Makes a step again with half the micro-batch when memory runs out before its update.

    Args:
        place: Where the smaller size is remembered.
        world: Several processes cannot make a step again: all leave, and the next start takes the smaller size. So does
            one process where an optimizer has stepped already, as in the second of several turns.
    """

    def __init__(self, place: Remembered, world: World):
        self._place, self._world = place, world
        self._before: Unmoved | None = None

    def begin(self, state: TrainState) -> None:
        """Before a step: keeps what its forward passes may change."""
        objective = state.objective
        weights = objective.moves_weights and objective.step is None
        self._before = Unmoved.of_run(state.model.bare, objective, weights=weights)

    def passed(self) -> None:
        """The gradients are there: what follows cannot be made again."""
        self._before = None

    def wants(self, state: TrainState, error: Exception) -> bool:
        """Whether the step that raised this is to be made again; remembers the half for the next start in any case."""
        if not out_of_memory(error):
            return False
        readings = state.objective.readings.values()
        is_whole = any(reading is not None and reading.kind == "batch" for reading in readings)
        size = self._size(state)
        fewest = 2 if any(isinstance(module, batch_norms()) for module in state.model.bare.modules()) else 1
        if size <= fewest or is_whole:
            context.run.memory = "data.micro_batch_size: auto cannot take smaller ones"
            return False
        half = -(-size // 2)
        self._place.write(half)
        context.run.memory = f"the next start takes data.micro_batch_size={half} (auto)"
        return self._before is not None and self._world.size == 1

    def _size(self, state: TrainState) -> int:
        sampler = state.data.train.sampler
        return max(share.samples for share in sampler.shares(0))

    def recover(self, state: TrainState) -> int:
        """Puts all back as it was before the step, and cuts smaller micro-batches from now on; gives their size."""
        assert self._before is not None
        state.update.clear_gradients()
        self._before.put_back()
        self._before = context.run.batch = None
        context.run.memory = ""
        state.device.kind.give_back()
        size = -(-self._size(state) // 2)
        state.data.train.sampler.cut(size)
        return size
