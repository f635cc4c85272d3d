"""What tensors hold while a program runs, by what they are for, and its worst moment."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from launcher.data.parts import changed
from launcher.internals import operations_through, storage_id

KINDS = ("parameters", "gradients", "optimizer", "averages", "activations", "communication")


@dataclass(frozen=True)
class Footprint:
    """The worst moment of a step on one process.

    Attributes:
        held: Bytes of each kind.
        moment: When it is: `forward`, `backward` or `update`.
    """

    held: Mapping[str, int]
    moment: str

    @property
    def total(self) -> int:
        """All together."""
        return sum(self.held.values())


class Tracker:
    """Follows the storages that operations make, from the first tensor on each to the last.

    What nobody has said the kind of is an activation.

    Attributes:
        standing: Bytes of each kind that are there all the time, and belong to no tensor that is seen here.
        communication: Bytes that are there now because processes exchange something.
        moment: What is being done.
        apart: By how much what is made now is divided: between processes that share in it.
    """

    def __init__(self) -> None:
        self.standing: dict[str, int] = {}
        self.communication = 0
        self.moment = ""
        self.apart = 1
        self._now = dict.fromkeys(KINDS, 0)
        self._known: dict[int, tuple[int, str, weakref.ref[Any]]] = {}
        self._worst = Footprint({}, "")

    def hold(self, tensor: torch.Tensor, kind: str = "activations", apart: int = 1) -> None:
        """Says what a tensor's storage is for; one of no kind (`''`) is counted elsewhere.

        Args:
            tensor: Any on that storage.
            kind: One of KINDS.
            apart: How many processes share it.
        """
        storage = tensor.untyped_storage()
        key = storage_id(storage)
        if key in self._known:
            self._forget(key)
        num_bytes = -(-storage.nbytes() // apart) if kind else 0
        kind = kind or "activations"
        self._known[key] = num_bytes, kind, weakref.ref(storage, lambda _: self._forget(key))
        self._now[kind] += num_bytes

    def _forget(self, key: int) -> None:
        num_bytes, kind, _ = self._known.pop(key)
        self._now[kind] -= num_bytes

    @contextmanager
    def doing(self, moment: str, apart: int = 1) -> Iterator[None]:
        """Names what is done meanwhile."""
        before = self.moment, self.apart
        self.moment, self.apart = moment, apart
        self.look()
        try:
            yield
        finally:
            self.moment, self.apart = before

    def look(self) -> None:
        """Takes this moment for the worst where it is."""
        held = {kind: self._now[kind] + self.standing.get(kind, 0) for kind in KINDS}
        held["communication"] += self.communication
        if sum(held.values()) > self._worst.total:
            self._worst = Footprint(held, self.moment)

    @property
    def worst(self) -> Footprint:
        """The worst moment so far."""
        return self._worst

    def following(self) -> Any:
        """A context in which it looks at what operations make."""
        return operations_through(self._follow)

    def _follow(self, operation: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = operation(*args, **kwargs)
        changed(result, self._seen)
        self.look()
        return result

    def _seen(self, tensor: torch.Tensor) -> None:
        if storage_id(tensor.untyped_storage()) not in self._known:
            self.hold(tensor, apart=self.apart)
