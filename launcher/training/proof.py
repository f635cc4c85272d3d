"""That a run can be resumed: proven with its first checkpoint, and not after a night.

What cannot be read back safely is found before anything is written. What was written is opened again and compared with
what it was made of, and the optimizer's state is taken up by a second optimizer.
"""

from __future__ import annotations

import copy
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from launcher.checkpoints.format import Checkpoint, Snapshot, copied, plain, size_in
from launcher.checkpoints.plain import restored, unwrapped, with_arrays
from launcher.checkpoints.sameness import difference
from launcher.checkpoints.saving import UnresumableError
from launcher.checkpoints.weights import shapes_of
from launcher.evaluation.modes import own_randomness
from launcher.model.adapt import Built
from launcher.model.rows import Rows
from launcher.training.optimizer_state import NamedOptimizer, NamedOptimizers

_LARGEST = 2**30  # bytes of an optimizer's state and parameters that are made a second time
_READABLE = (torch.Tensor, torch.nn.Parameter, Rows)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic)
_REMEDY = "keep tensors, numbers, text, lists and dictionaries there"


class Proof:
    """Asked before the first checkpoint is written, and in part before each other; what it finds ends the run.

    Args:
        named: The run's optimizer or optimizers, by the names of their parameters.
        shapes: Of the model's state_dict as it was built.
        fresh: Builds another model.
        names: Gives the names of the parameters that the model has by then, by their identity.
    """

    def __init__(
        self,
        named: NamedOptimizer | NamedOptimizers,
        shapes: Mapping[str, Sequence[int] | None],
        fresh: Callable[[], Built],
        names: Callable[[], Mapping[int, str]] | None = None,
    ):
        self._named, self._fresh, self._names = named, fresh, names
        self._shapes: Mapping[str, Sequence[int] | None] = shapes
        self._second: dict[str, NamedOptimizer] = {}

    def again(self, snapshot: Snapshot) -> None:
        """Before each later one: a step may have made the model another.

        Raises:
            UnresumableError: A new model does not take up its state, or the optimizer trains what is no longer in it.
        """
        if (name := self._gone()) is not None:
            raise UnresumableError(
                f"model: '{name}' is no longer the parameter that the optimizer trains: something removed it or put "
                "another in its place, which nothing trains; change its numbers in place, as by copy_()"
            )
        try_fresh(snapshot.weights, self._shapes, self._fresh)
        self._shapes = shapes_of(snapshot.weights)

    def _gone(self) -> str | None:
        """The name of a parameter that is trained, and was the model's; None where all are."""
        parts = self._named.parts.values()
        if self._names is None or any(part.shards is not None for part in parts):
            return None
        now = self._names()
        trained = [
            (part.names.get(id(parameter)), parameter)
            for part in parts
            for group in part.param_groups
            for parameter in group["params"]
        ]
        return next((name for name, parameter in trained if name is not None and id(parameter) not in now), None)

    def before(self, snapshot: Snapshot) -> None:
        """Looks for what could not be read back, and makes the second optimizer while nothing moves.

        Raises:
            UnresumableError: There is such a thing.
        """
        for part, state in (("model", snapshot.weights), *snapshot.training.items()):
            if issue := _unreadable(plain(state), part):
                raise UnresumableError(
                    f"{part}: {issue}, which cannot be read from a checkpoint without running code: this run could not "
                    f"be resumed; {_REMEDY}"
                )
        self.again(snapshot)
        if any(part.shards is not None for part in self._named.parts.values()):
            return  # it takes up no state that is whole; each process reads back the rows that it writes
        strange = [name for name, shape in shapes_of(snapshot.weights).items() if shape is None]
        if strange and size_in(snapshot.weights) < _LARGEST:
            self._try_strange(snapshot.weights, strange[0])
        state = snapshot.training.get("optimizer")
        size = size_in([state, *self._named.param_groups])
        if state is not None and size < _LARGEST:
            copies = {name: _second_of(part) for name, part in self._named.parts.items()}
            self._second = {name: second for name, second in copies.items() if second is not None}

    def _try_strange(self, weights: Mapping[str, Any], name: str) -> None:
        """What somebody's class gives beside tensors, another model must take up as a checkpoint gives it."""
        try:
            with own_randomness(0, 0, torch.device("cpu")):
                self._fresh().load_state_dict(with_arrays(plain(copied(weights))))
        except Exception as error:  # whatever somebody's code raises
            raise UnresumableError(
                f"model: a new one does not take up what its state_dict gives as '{name}' ({type(error).__name__}: "
                f"{' '.join(str(error).split())}): this run could not be resumed; look at its get_extra_state and "
                "set_extra_state, or state_dict and load_state_dict"
            ) from error

    def after(self, snapshot: Snapshot, checkpoint: Checkpoint) -> None:
        """Compares what was written with what it was made of, and takes the optimizer's state up.

        Raises:
            UnresumableError: Something is not what it was.
        """
        for name, state in snapshot.contents.items() if "rows" not in checkpoint.manifest else ():
            path = checkpoint.folder / name
            written = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if mismatch := difference(plain(state), written):
                raise UnresumableError(f"{path}: {mismatch}: this run could not be resumed")
        saved = checkpoint.training()["optimizer"] if self._second else {}
        for name, second in self._second.items():
            self._take_up(second, saved[name] if name else saved)
        self._second = {}

    def _take_up(self, second: NamedOptimizer, saved: Mapping[str, Any]) -> None:
        try:
            second.load_state_dict(restored(copied(saved)))
            problem = difference(saved, copied(unwrapped(second.state_dict())))
        except Exception as error:  # whatever somebody's optimizer raises
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise UnresumableError(
                f"optimizer: {type(second.optimizer).__name__} does not load the state that it returned "
                f"({' '.join(problem.split())}): this run could not be resumed; look at its state_dict and "
                "load_state_dict"
            )


def try_fresh(
    weights: Mapping[str, Any], shapes: Mapping[str, Sequence[int] | None], fresh: Callable[[], Built]
) -> None:
    """Buffers that have come or grown since the model was built may be more than a fresh one takes up.

    Args:
        weights: The model's state.
        shapes: Of that which it was built with.
        fresh: Builds another model.

    Raises:
        UnresumableError: They are.
    """
    changed = [name for name, shape in shapes_of(weights).items() if name not in shapes or shapes[name] != shape]
    if not changed:
        return
    try:
        with own_randomness(0, 0, torch.device("cpu")):
            fresh().load_state_dict(copied(weights))
    except RuntimeError as error:
        raise UnresumableError(
            f"model: '{changed[0]}' has appeared or grown since it was built, and a new model does not load it "
            f"({' '.join(str(error).split())}): this run could not be resumed; register it in __init__ with "
            "the shape that it will have"
        ) from error


def _unreadable(value: Any, place: str) -> str | None:
    """Where a state holds something that `weights_only` refuses, and what it is; None where it does not."""
    if isinstance(value, _PLAIN) or type(value) in _READABLE:
        return None
    if isinstance(value, Mapping) or type(value) in (list, tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            if issue := _unreadable(key, place) or _unreadable(item, f"{place}.{key}"):
                return issue
        return None
    if _comes_back(value):
        return None
    kind = type(value)
    return f"its state holds a {kind.__module__}.{kind.__qualname__} at {place}"


def _comes_back(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # whatever a pickler raises: that is the answer
        return False
    return True


def _second_of(named: NamedOptimizer) -> NamedOptimizer | None:
    """Another optimizer of the same kind with parameters of its own; None where somebody's cannot be copied."""
    memo: dict[int, Any] = {}
    try:
        second = _copied(named.optimizer, memo)
    except Exception:  # it holds a lock, a process group, a file
        return None
    return NamedOptimizer(
        second, {id(memo[identity]): name for identity, name in named.names.items() if identity in memo}
    )


def _copied(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """A copy with all its attributes, of which torch's own way of copying leaves out those that it does not know."""
    second = object.__new__(type(optimizer))
    memo[id(optimizer)] = second
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer) and id(value) not in memo:
            memo[id(value)] = _copied(value, memo)
    own = {key: value for key, value in vars(optimizer).items() if key != "step"}  # which a schedule has put there
    second.__dict__.update(copy.deepcopy(own, memo))
    if type(optimizer).load_state_dict is Optimizer.load_state_dict:
        second.state = defaultdict(dict)
    return second
