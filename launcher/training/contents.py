"""What a checkpoint of a run holds: the one owner of that.

Besides the weights it is made of parts by name, each of which gives and takes its own state: `state_dict()` and
`load_state_dict()`, as everything of torch's does. What is not a tensor or a plain value has no place in it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from launcher.checkpoints.format import TRAINING, WEIGHTS, Checkpoint, DamagedError, Snapshot, copied
from launcher.checkpoints.plain import restored, unwrapped
from launcher.checkpoints.sameness import same
from launcher.errors import LauncherError
from launcher.evaluation.best import BestTracker
from launcher.evaluation.evaluation import History
from launcher.evaluation.modes import has_modes, weights_of_evaluation
from launcher.model.adapt import changed_base
from launcher.model.build import Model
from launcher.model.rows import Read
from launcher.model.sharding import ShardedPart, names_of, sharded_parts
from launcher.objective.schedule import Schedule, Schedules
from launcher.objective.several import Optimizers, each
from launcher.runs.folder import versions
from launcher.runs.identity import digest
from launcher.training.kept_beside import KeptBeside
from launcher.training.loose_buffers import LooseBuffers, loose_in
from launcher.training.optimizer_state import named_optimizer, parameter_names
from launcher.training.rank_states import OptimizerStates, Part, RankStates
from launcher.training.state import TrainState

_BESIDE = "beside"  # the part that no state_dict has


class Stopwatch:
    """Time trained, over all starts of a run.

    Attributes:
        seconds_before: That of the starts before this one.
    """

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self._began = time.monotonic()

    def state_dict(self) -> float:
        """Seconds so far."""
        return self.seconds_before + time.monotonic() - self._began

    def load_state_dict(self, seconds: float, /) -> None:
        """Continues from there."""
        self.seconds_before = float(seconds)


@dataclass
class Contents:
    """What a checkpoint of this run holds.

    Attributes:
        state: Whose weights and parts they are.
        identity: What makes the recipe the same, key by key.
        data_print: What the training set is.
        best: The best evaluation so far.
        history: What evaluations have said.
        stopwatch: Time trained.
        read: How many bytes were read of files of rows.
    """

    state: TrainState
    identity: Mapping[str, Any]
    data_print: str
    best: BestTracker
    history: History = field(default_factory=History)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    read: Read = field(default_factory=Read)

    def __post_init__(self) -> None:
        names = parameter_names(self.state.model.bare, self.state.objective.modules) | names_of(self.state.shards)
        shards = self.state.shards
        self.optimizer = named_optimizer(self.state.optimizer, names, shards)
        self.stateful: dict[str, Part] = dict(self.state.objective.stateful)
        own = self.stateful
        if shards is not None:
            sharded = sharded_parts(own, shards)
            own = {name: part for name, part in own.items() if name not in sharded}
            self.stateful |= sharded
            self.model: Part = ShardedPart(self.state.model.bare, shards, self.state.model.base)
        loose = loose_in(self.state.model.bare, self.state.model.state_dict()) if shards is None else []
        self.loose = LooseBuffers(self.state.model.bare, loose) if loose else None
        coordinator, device = self.state.device.coordinator, self.state.device.torch_device
        self.beside = None if shards is not None else KeptBeside(_things_of(self.state), device)
        self.ranks = RankStates(own if self.beside is None else {**own, _BESIDE: self.beside}, coordinator)
        self.optimizers = OptimizerStates(self.optimizer, coordinator) if shards is None else None

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by name, in the order in which they are taken up."""
        state = self.state
        parts: dict[str, Part | None] = {
            **self.stateful,
            _BESIDE: self.beside,
            "ranks": self.ranks,
            "buffers": self.loose,
            "optimizer": self.optimizer,
            "optimizers": self.optimizers,
            "scheduler": state.schedule.scheduler,
            "scaler": state.update.scaler,
            "average": state.average,
            "best": self.best,
            "evaluation": self.history,
            "seconds": self.stopwatch,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def lost(self) -> list[str]:
        """What of people's objects a checkpoint had, and nothing is there to have it."""
        return [] if self.beside is None else self.beside.lost

    def gather(self, alone: bool = False) -> None:
        """What differs between the ranks; all of them call this before a save, unless one saves alone."""
        self.ranks.gather(alone)
        if self.optimizers is not None:
            self.optimizers.gather(alone)

    def capture(self, step: int) -> Snapshot:
        """What a checkpoint after `step` steps is made of."""
        training = {name: unwrapped(part.state_dict()) for name, part in self.parts.items()}
        weights = self.state.model.state_dict() if self.state.shards is None else self.model.state_dict()
        return Snapshot(weights, training, self._manifest(step), evaluated_weights(self.state))

    def _manifest(self, step: int) -> dict[str, Any]:
        data, device = self.state.data, self.state.device
        return {
            "step": step,
            "epoch": self.state.length.epoch(step),
            "samples": data.samples_before(step),
            "best_step": self.best.step,
            "world": device.world.size,
            "sharding": "none" if self.state.model.sharding is None else self.state.model.sharding.section.sharding,
            "threads": device.threads,
            "readers": data.readers,
            "global_batch_size": data.train.sampler.global_batch_size,
            "recipe": self.identity,
            "recipe_sha256": digest(self.identity),
            "data": self.data_print,
            "versions": versions(),
            "saved": time.time(),
            "loss": self.state.objective.manifest(),
            "moves_weights": self.state.objective.moves_weights,
            **({"base": self._base} if self._base else {}),
        }

    @cached_property
    def _base(self) -> str:
        """The hash of the model's frozen base; empty where all of it is saved. Where it is sharded, rank 0 has it."""
        model, shards = self.state.model, self.state.shards
        if shards is None or model.base is None:
            return model.base_sha256()
        shards.reshard()
        return model.base.sha256(model.bare, shards.gathered)

    def _check_base(self, checkpoint: Checkpoint) -> None:
        """Every rank calls this; rank 0 hashes, to which the others give their rows where it is sharded.

        Raises:
            LauncherError: The base is not the one that the checkpoint's adapter was trained on.
        """
        kept = checkpoint.manifest.get("base", "")
        if kept and self.state.shards is not None:
            _ = self._base
        now = self.state.device.coordinator.from_first(lambda: self._base if kept else "")
        if kept != now:
            raise LauncherError(changed_base(checkpoint.folder.name, kept, now))

    def restore(self, checkpoint: Checkpoint, changed: Sequence[str] = ()) -> None:
        """Takes up the weights and the state of every part.

        Args:
            checkpoint: Verified.
            changed: Keys of the recipe that changed since: they win over what the checkpoint says.

        Raises:
            LauncherError: The checkpoint is not of this model or optimizer.
        """
        schedule, fresh = self.state.schedule, _settings(self.state.optimizer)
        is_changed = any(key.partition(".")[0] in ("optimizer", "scheduler", "train") for key in changed)
        replays = is_changed and not schedule.on_evaluation
        is_sharded_here = self.state.shards is not None
        training = checkpoint.lazily(TRAINING, self.read) if is_sharded_here else checkpoint.training()
        self._check_base(checkpoint)
        try:
            if is_sharded_here:
                self.model.load_state_dict(checkpoint.lazily(WEIGHTS, self.read))
            else:
                _fill(self.state.model, checkpoint.weights())
            for name, part in self.parts.items():
                if not (name == "scheduler" and replays) and name in training:
                    part.load_state_dict(restored(training[name]))
        except DamagedError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LauncherError(
                f"the checkpoint does not fit this model or optimizer: {' '.join(str(error).split())}; to start over "
                "with its weights use train.start_from in a new run"
            ) from error
        if is_changed:
            _let_win(self.state.optimizer, schedule, fresh, changed)
        if replays:
            schedule.replay(checkpoint.step)


def _things_of(state: TrainState) -> dict[str, Any]:
    """What may keep something in itself: the model, losses and functions, optimizers."""
    optimizers = {f"optimizer.{name}" if name else "optimizer": one for name, one in each(state.optimizer).items()}
    return {"model": state.model.bare, **state.objective.brought, **optimizers}


def evaluated_weights(state: TrainState) -> Mapping[str, Any] | None:
    """The weights to evaluate and to hand on, where the optimizer keeps others for that; None where there is one kind.

    Modules stay in train mode: what a layer folds into its weights in eval mode, it would fold into them once more
    where they are loaded.
    """
    if not has_modes(state.optimizer):
        return None
    with weights_of_evaluation(state.optimizer):
        weights: dict[str, Any] = copied(state.model.state_dict())
    return None if same(weights, state.model.state_dict()) else weights


def _fill(model: Model, weights: Mapping[str, Any]) -> None:
    """Puts weights into a model that has them in the same dtypes: copied into others they would be rounded.

    Raises:
        ValueError: It has not.
    """
    for name, own in model.state_dict().items():
        saved = weights.get(name)
        if isinstance(own, torch.Tensor) and isinstance(saved, torch.Tensor) and own.dtype != saved.dtype:
            here, there = (str(tensor.dtype).removeprefix("torch.") for tensor in (own, saved))
            raise ValueError(f"'{name}' is {here} here and {there} there")
    model.load_state_dict(weights)


def _settings(optimizer: Optimizers) -> dict[str, list[dict[str, Any]]]:
    """The settings of each group of parameters, by the name of the optimizer."""
    return {
        name: [{key: value for key, value in group.items() if key != "params"} for group in one.param_groups]
        for name, one in each(optimizer).items()
    }


def _let_win(
    optimizer: Optimizers,
    schedule: Schedule | Schedules,
    fresh: Mapping[str, Sequence[Mapping[str, Any]]],
    changed: Sequence[str],
) -> None:
    """Puts changed settings of the optimizers over those of the checkpoint."""
    for name, one in each(optimizer).items():
        prefix = f"optimizer.{name}." if name else "optimizer."
        named = {key.removeprefix(prefix).partition(".")[0] for key in changed if key.startswith(prefix)}
        if named & {"_groups_", "_layer_decay_"}:
            named = {key for group in fresh[name] for key in group}
        if not schedule.on_evaluation:
            named |= {"lr", "initial_lr"}
        for group, settings in zip(one.param_groups, fresh[name], strict=True):
            group.update({key: settings[key] for key in named if key in settings})
