"""What ranks keep differently, as means of what each has seen, or moments of the part of a model that it updates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from launcher.checkpoints.plain import restored, unwrapped
from launcher.device.coordination import Coordinator, packed, unpacked
from launcher.device.kind import kind_of
from launcher.internals import parts_of
from launcher.objective.reading import tensors_in
from launcher.training.inner_optimizers import all_inside
from launcher.training.optimizer_state import NamedOptimizer, NamedOptimizers

_ROUNDING = 1e-5  # of a tensor's norm: what machines may differ by


class Part(Protocol):
    """A part of a checkpoint."""

    def state_dict(self) -> Any:
        """Its state: tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Takes a state up."""
        ...


class RankStates:
    """What losses and step functions keep differently on each rank, as the means of what each rank has seen.

    DDP shares a model's buffers; nobody shares these. A start with as many ranks gives each its own, another one gives
    all of them rank 0's.

    Args:
        stateful: What has a state, by key.
        coordinator: The ranks' side channel.
    """

    def __init__(self, stateful: Mapping[str, Part], coordinator: Coordinator):
        self._stateful, self._coordinator = stateful, coordinator
        self._gathered: list[torch.Tensor] = []

    def gather(self, alone: bool = False) -> None:
        """Every rank's, on all ranks, which all call this before a save; nothing where all are the same.

        Args:
            alone: The others may be gone, and are not asked.
        """
        self._gathered = []
        if alone or not self._stateful or self._coordinator.world_size == 1:
            return
        try:
            own = packed({name: unwrapped(part.state_dict()) for name, part in self._stateful.items()})
        except Exception:  # whatever a pickler raises: the first checkpoint's proof says it in words
            own = b""
        digests = self._coordinator.gather(hashlib.sha256(own).digest())
        self._gathered = _as_tensors(self._coordinator.gather(own) if len(set(digests)) > 1 else [])

    def state_dict(self) -> list[torch.Tensor]:
        """What was gathered, rank by rank."""
        return self._gathered

    def load_state_dict(self, states: Sequence[torch.Tensor], /) -> None:
        """Takes up this rank's."""
        if len(states) == self._coordinator.world_size:
            own = _of_rank(states, self._coordinator.rank)
            for name, part in self._stateful.items():
                if name in own:  # an earlier version knew fewer
                    part.load_state_dict(own[name])


class OptimizerStates:
    """The state of an optimizer that divides its work among the ranks, as Muon's distributed form does.

    Each rank has the moments of what it updates; torch's own optimizers keep the same on all, and are not looked at.

    Args:
        named: The run's optimizer or optimizers.
        coordinator: The ranks' side channel.
    """

    def __init__(self, named: NamedOptimizer | NamedOptimizers, coordinator: Coordinator):
        self._named, self._coordinator = named, coordinator
        self._gathered: list[torch.Tensor] = []

    def gather(self, alone: bool = False) -> None:
        """Every rank's, on all ranks, which all call this before a save; nothing where all are the same.

        Args:
            alone: The others may be gone, and are not asked.
        """
        self._gathered = []
        if alone or self._coordinator.world_size == 1 or self._is_torchs():
            return
        own = unwrapped(self._named.state_dict())
        told = [unpacked(message) for message in self._coordinator.gather(packed(_outline(own)))]
        if not all(_are_alike(told[0], other) for other in told[1:]):
            self._gathered = _as_tensors(self._coordinator.gather(packed(own)))

    def state_dict(self) -> list[torch.Tensor]:
        """What was gathered, rank by rank."""
        return self._gathered

    def load_state_dict(self, states: Sequence[torch.Tensor], /) -> None:
        """Takes up this rank's.

        Raises:
            ValueError: There were more ranks, or fewer.
        """
        here, there = self._coordinator.world_size, len(states)
        if there and there != here:
            raise ValueError(
                f"the optimizer divides its state among the processes, which were {there} and are {here}; "
                f"resume with --processes {there}"
            )
        if there:
            self._named.load_state_dict(_of_rank(states, self._coordinator.rank))

    def _is_torchs(self) -> bool:
        optimizers = [part.optimizer for part in self._named.parts.values()]
        everything = [*optimizers, *(inner for one in optimizers for inner in all_inside(one))]
        return all(type(one).__module__.partition(".")[0] in ("torch", "launcher") for one in everything)


def _outline(state: Any) -> list[Any]:
    """What a state has in it, and the norm of each tensor."""
    leaves = list(tensors_in(state))
    names = repr([(where, tuple(tensor.shape)) for where, tensor in leaves])
    norms = [_norm(tensor.detach()) for _, tensor in leaves]
    return [hashlib.sha256(names.encode()).hexdigest(), torch.stack(norms) if norms else torch.zeros(0)]


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    wide = kind_of(tensor.device).wide
    parts = [part if part.is_complex() else part.to(wide) for part in parts_of(tensor)]  # several of a sparse one
    norms = [torch.linalg.vector_norm(part).cpu().double() for part in parts]
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _are_alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return bool(one[0] == other[0] and torch.allclose(one[1], other[1], rtol=_ROUNDING, atol=0, equal_nan=True))


def _as_tensors(states: Sequence[bytes]) -> list[torch.Tensor]:
    """Packed states as a checkpoint holds them."""
    return [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states]


def _of_rank(states: Sequence[torch.Tensor], rank: int) -> Any:
    return restored(unpacked(bytes(states[rank].numpy())))
