"""3: model. What a constructor does, written down without memory, and done again tensor by tensor.

A model that no process shall hold whole is first built of tensors that have no memory. What torch was asked to do
stands on a tape then, and is done again with the seed's numbers, in the same order: so they are those of the model
built at once. Each tensor is given away after its last use, and its memory given back.

What the tape does not know of is not done without it: then the model is built whole.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from launcher import internals

_UNWRITTEN = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
_WHOLLY = {"normal_", "uniform_", "zero_", "fill_", "copy_", "random_", "exponential_", "log_normal_", "trunc_normal_"}


_FEW = 2**20  # bytes that are computed at once for a value


class UnrecordedError(Exception):
    """A constructor cannot be written down; the message says why, as what it does."""


@dataclass(frozen=True)
class Place:
    """A tensor on a numbered storage."""

    number: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of its entries."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Operation:
    """Something that torch was asked to do, with places where tensors were."""

    function: Any
    args: Any
    kwargs: dict[str, Any]
    results: Any

    @property
    def name(self) -> str:
        """Without what tells its variants apart."""
        return str(self.function.__name__).partition(".")[0]

    @property
    def draws(self) -> bool:
        """Whether it takes numbers from a generator."""
        return torch.Tag.nondeterministic_seeded in self.function.tags

    @property
    def places(self) -> list[Place]:
        """All that it has to do with."""
        return places_in((self.args, self.kwargs, self.results))

    def overwrites(self, sizes: Sequence[int]) -> int | None:
        """The storage all of which it writes, and of which it reads nothing."""
        first = self.args[0] if self.args else None
        if not isinstance(first, Place) or self.name not in _WHOLLY or first.num_bytes != sizes[first.number]:
            return None
        is_read = any(place.number == first.number for place in places_in((self.args[1:], self.kwargs)))
        return None if is_read else first.number


def places_in(tree: Any) -> list[Place]:
    """The places in arguments or results."""
    found: list[Place] = []
    internals.tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, Place) else None, tree)
    return found


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors in results."""
    found: list[torch.Tensor] = []
    internals.tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, torch.Tensor) else None, tree)
    return found


@dataclass
class _Drawn:
    """A generator, its state before the first draw, and the one that it should be in now."""

    generator: torch.Generator
    first: torch.Tensor
    now: torch.Tensor


class Tape:
    """Operations in their order, written down while a constructor runs.

    Attributes:
        operations: They.
        sizes: Bytes of each storage.
        written: Storages that hold more than what happened to be in memory.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.sizes: list[int] = []
        self.written: set[int] = set()
        self.made: list[weakref.ref[torch.Tensor]] = []
        self._storages: list[Any] = []  # held, so that no other gets the number of one
        self._numbers: dict[int, int] = {}
        self._drawn: dict[int, _Drawn] = {}
        _, self._fake_type = internals.fake_tensors()
        self._drawn_from(torch.default_generator)

    def __call__(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Does an operation without memory, and writes it down."""
        tags = getattr(function, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            self._note_draw([*args, *kwargs.values()])
        if str(function.__name__).startswith("_local_scalar_dense") and isinstance(args[0], self._fake_type):
            return self._value(args[0])
        inputs = internals.tree_map(self._placed, (list(args), dict(kwargs)))
        self._check(function, args, kwargs)
        results = function(*args, **kwargs)
        self._write_down(function, inputs, results)
        return results

    def truncated_normal(self, function: Callable[..., Any], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Writes down torch's truncated normal as one operation: it looks at what it has drawn."""
        if not isinstance(tensor, self._fake_type):
            raise UnrecordedError("draws into a tensor from outside of torch")
        self._note_draw([*args, *kwargs.values()])
        place = self.place_of(tensor)
        self.operations.append(Operation(_TruncatedNormal(function), [place, *args], kwargs, place))
        self.written.add(place.number)
        return tensor

    def _value(self, tensor: torch.Tensor) -> Any:
        """A number that was computed and not drawn, as a layer's own rate of `torch.linspace(0, rate, depth)`.

        Raises:
            UnrecordedError: It was drawn, or is of much.
        """
        place = self.place_of(tensor)
        needed, short = {place.number}, Tape()
        for operation in reversed(self.operations):
            numbers = {other.number for other in operation.places}
            if not numbers & needed:
                continue
            needed |= numbers
            short.operations.insert(0, operation)
            if operation.draws or sum(self.sizes[number] for number in needed) > _FEW:
                raise UnrecordedError("reads values")
        short.sizes = self.sizes
        values: list[Any] = []
        internals.plainly(
            lambda: Replay(short).run({place.number: [lambda replay: values.append(replay.tensor(place).item())]})
        )
        return values[0]

    def place_of(self, tensor: torch.Tensor) -> Place:
        """Where a tensor is.

        Raises:
            UnrecordedError: No operation made what it lies on.
        """
        number = self._numbers.get(internals.storage_id(tensor.untyped_storage()))
        if number is None:
            raise UnrecordedError("reads weights from a file, or takes tensors from somewhere else")
        return _place(tensor, number)

    def _placed(self, leaf: Any) -> Any:
        if isinstance(leaf, self._fake_type):
            return self.place_of(leaf)
        return internals.plainly(lambda: leaf.detach().clone()) if isinstance(leaf, torch.Tensor) else leaf

    def _check(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        # torch.tensor([…]) is lifted, and nobody else has it
        changed = [] if function.__name__.startswith("lift_fresh") else internals.aliased_arguments(function, args)
        if any(isinstance(value, torch.Tensor) and not isinstance(value, self._fake_type) for value in changed):
            raise UnrecordedError("changes tensors from outside of torch, or gives others their memory")
        if any(isinstance(value, torch.UntypedStorage | torch.TypedStorage) for value in [*args, *kwargs.values()]):
            raise UnrecordedError("reads weights from a file, or takes memory from somewhere else")

    def _write_down(self, function: Any, inputs: Any, results: Any) -> None:
        for tensor in tensors_in(results):
            if tensor.device.type != "cpu":
                raise UnrecordedError(f"makes tensors on {tensor.device.type}")
            self.made.append(weakref.ref(tensor))
            storage = tensor.untyped_storage()
            if internals.storage_id(storage) not in self._numbers:
                self._numbers[internals.storage_id(storage)] = len(self.sizes)
                self._storages.append(storage)
                self.sizes.append(storage.nbytes())
        args, kwargs = inputs
        operation = Operation(function, args, kwargs, internals.tree_map(self._placed, results))
        self.operations.append(operation)
        if operation.name not in _UNWRITTEN:
            known = {place.number for place in places_in(inputs)}
            self.written |= {place.number for place in places_in(operation.results)} - known
            changed = internals.aliased_arguments(function, args, changed=True)
            self.written |= {place.number for place in places_in(internals.tree_map(self._placed, changed))}

    # ------------------------------------------------------------------ generators

    def _note_draw(self, arguments: Sequence[Any]) -> None:
        own = [value for value in arguments if isinstance(value, torch.Generator)]
        drawn = self._drawn_from(own[0] if own else torch.default_generator)
        self._check_drawn(drawn)
        internals.plainly(lambda: torch.rand(1, generator=drawn.generator))  # so that a state set back shows
        drawn.now = internals.plainly(drawn.generator.get_state)

    def _drawn_from(self, generator: torch.Generator) -> _Drawn:
        if id(generator) not in self._drawn:
            state = internals.plainly(generator.get_state)
            self._drawn[id(generator)] = _Drawn(generator, state, state)
        return self._drawn[id(generator)]

    def _check_drawn(self, drawn: _Drawn) -> None:
        if not internals.plainly(lambda: torch.equal(drawn.generator.get_state(), drawn.now)):
            raise UnrecordedError("seeds a generator, or sets it back")

    def end(self) -> None:
        """Sees whether somebody has set a generator since, and sets all to where they began.

        Raises:
            UnrecordedError: Somebody has.
        """
        for drawn in self._drawn.values():
            self._check_drawn(drawn)
        self.rewind()

    def rewind(self) -> None:
        """Sets all generators to where they were before."""
        for drawn in self._drawn.values():
            drawn.generator.set_state(drawn.first)


class _TruncatedNormal:
    """As an operation."""

    tags = (torch.Tag.nondeterministic_seeded,)

    def __init__(self, function: Callable[..., Any]):
        self.function, self.__name__ = function, "trunc_normal_"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _place(tensor: torch.Tensor, number: int) -> Place:
    return Place(number, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()), tensor.dtype)


# ---------------------------------------------------------------------- a module written down


@dataclass
class Recording:
    """A module without memory, and what makes its numbers.

    Attributes:
        tape: What its constructor did.
        parameters: Where each is at the end.
        buffers: The same.
        attributes: Tensors that are neither, by the module that has them and their name there.
        ready: Parameters that were made outside of torch.
    """

    tape: Tape
    parameters: dict[str, Place] = field(default_factory=dict)
    buffers: dict[str, Place] = field(default_factory=dict)
    attributes: list[tuple[nn.Module, str, Place]] = field(default_factory=list)
    ready: dict[str, torch.Tensor] = field(default_factory=dict)

    def play(self, take: Callable[[str, torch.Tensor], None]) -> None:
        """Makes the numbers; generators are afterwards as if the module had been built at once.

        Args:
            take: Given each parameter and buffer by its name, which is whole then and soon no more.
        """
        self.tape.rewind()
        wanted: dict[int, list[Callable[[Replay], None]]] = {}
        for name, place in (*self.parameters.items(), *self.buffers.items()):
            wanted.setdefault(place.number, []).append(_giving(take, name, place))
        for part, name, place in self.attributes:
            wanted.setdefault(place.number, []).append(_setting(part, name, place))
        Replay(self.tape).run(wanted)
        for name, tensor in self.ready.items():
            take(name, tensor)

    @property
    def total(self) -> int:
        """Bytes of all parameters and buffers."""
        places = (*self.parameters.values(), *self.buffers.values())
        return sum(place.num_bytes for place in places) + sum(tensor.nbytes for tensor in self.ready.values())

    @property
    def held(self) -> int:
        """Bytes that are there at once, at most, while the numbers are made."""
        return Replay(self.tape).largest() + sum(tensor.nbytes for tensor in self.ready.values())


def _giving(take: Callable[[str, torch.Tensor], None], name: str, place: Place) -> Callable[[Replay], None]:
    return lambda replay: take(name, replay.tensor(place))


def _setting(part: nn.Module, name: str, place: Place) -> Callable[[Replay], None]:
    return lambda replay: setattr(part, name, replay.tensor(place).clone())


def _soonest(operations: Sequence[Operation]) -> list[Operation]:
    """The operations, each that draws nothing right behind the last that had to do with what it has to do with.

    What a constructor does with every parameter at its end, as `.to(dtype)`, is so done with one after the other.
    """
    turns: list[int] = []
    last: dict[int, int] = {}  # by storage
    for number, operation in enumerate(operations):
        storages = {place.number for place in operation.places}
        before = [last[storage] for storage in storages & last.keys()]
        turns.append(number if operation.draws or not before else max(before))
        last.update(dict.fromkeys(storages, turns[-1]))
    return [operation for _, operation in sorted(zip(turns, operations, strict=True), key=lambda pair: pair[0])]


class Replay:
    """A tape done again, of which no storage is held longer than it is needed.

    Args:
        tape: It.
    """

    def __init__(self, tape: Tape):
        self._sizes, self._operations = tape.sizes, _soonest(tape.operations)
        self._held: dict[int, torch.UntypedStorage] = {}
        self._dropped = self._last_uses()

    def _last_uses(self) -> list[set[int]]:
        """What is of no more use after each operation: never touched again, or next overwritten wholly."""
        dropped: list[set[int]] = [set() for _ in self._operations]
        later: set[int] = set()
        for operation, worthless in zip(reversed(self._operations), reversed(dropped), strict=True):
            touched = {place.number for place in operation.places}
            worthless |= touched - later
            later |= touched
            later.discard(-1 if (number := operation.overwrites(self._sizes)) is None else number)
        return dropped

    def largest(self) -> int:
        """Bytes held at once, at most."""
        held, most = set[int](), 0
        for operation, worthless in zip(self._operations, self._dropped, strict=True):
            held |= {place.number for place in operation.places}
            most = max(most, sum(self._sizes[number] for number in held))
            held -= worthless
        return most

    def tensor(self, place: Place) -> torch.Tensor:
        """A tensor on its storage, which is made where there is none."""
        if place.number not in self._held:
            self._held[place.number] = torch.UntypedStorage(self._sizes[place.number])
        empty = torch.empty(0, dtype=place.dtype, device="cpu")
        return empty.set_(self._held[place.number], place.offset, place.shape, place.stride)

    @torch.no_grad()
    def run(self, wanted: Mapping[int, Sequence[Callable[[Replay], None]]]) -> None:
        """Does it.

        Args:
            wanted: Called for a storage after its last use.
        """
        ends = self._ends(wanted)
        for number, (operation, worthless) in enumerate(zip(self._operations, self._dropped, strict=True)):
            self._do(operation)
            for storage in ends.get(number, ()):
                for call in wanted[storage]:
                    call(self)
            for storage in worthless:
                self._held.pop(storage, None)

    def _ends(self, wanted: Mapping[int, Any]) -> dict[int, list[int]]:
        """The wanted storages by the operation that touches them last."""
        last = {place.number: index for index, one in enumerate(self._operations) for place in one.places}
        ends: dict[int, list[int]] = {}
        for storage in wanted:
            ends.setdefault(last[storage], []).append(storage)
        return ends

    def _do(self, operation: Operation) -> None:
        def real(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return leaf.clone()  # it may be changed, and be done again
            return self.tensor(leaf) if isinstance(leaf, Place) else leaf

        args, kwargs = internals.tree_map(real, (operation.args, operation.kwargs))
        results = operation.function(*args, **kwargs)
        known = {place.number for place in places_in((operation.args, operation.kwargs))}
        for tensor, place in zip(tensors_in(results), places_in(operation.results), strict=True):
            if place.number not in known:
                self._held[place.number] = tensor.untyped_storage()


@contextmanager
def _recording(tape: Tape) -> Iterator[None]:
    mode, _ = internals.fake_tensors()
    state = torch.get_rng_state()
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of what a constructor does where there is no memory
            mode(allow_non_fake_inputs=True),
            internals.operations_through(tape),
            internals.truncated_normal_through(tape.truncated_normal),
            _data_put_in(),
        ):
            yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def _data_put_in() -> Iterator[None]:
    """Has `module.to()` put new data into parameters, as ever: torch would exchange such objects, and fails."""
    own = torch.utils.swap_tensors

    def put(tensor: torch.Tensor, other: torch.Tensor) -> None:
        tensor.data = other.data

    torch.utils.swap_tensors = put
    try:
        yield
    finally:
        torch.utils.swap_tensors = own


def record(build: Callable[[], Any], module_of: Callable[[Any], nn.Module]) -> tuple[Any, Recording]:
    """Builds something without memory; its parameters are on `meta` afterwards, its buffers there and empty.

    Args:
        build: Builds it.
        module_of: Its module.

    Raises:
        UnrecordedError: It cannot be.
    """
    tape = Tape()
    try:
        with _recording(tape):
            made = build()
            tape.end()
    except UnrecordedError:
        raise
    except Exception as error:  # anybody's constructor
        raise UnrecordedError(_reason(error)) from error
    recording = Recording(tape)
    _take_apart(module_of(made), recording)
    gc.collect()
    _, fake_type = internals.fake_tensors()
    if any(isinstance(reference(), fake_type) for reference in tape.made):
        raise UnrecordedError("keeps tensors where the program does not find them")
    return made, recording


def _reason(error: BaseException | None) -> str:
    """Why a constructor did not run without values."""
    first = error
    while error is not None:
        if isinstance(error, UnrecordedError):
            return str(error)
        if type(error).__name__ in ("DataDependentOutputException", "DynamicOutputShapeException"):
            return "reads values"
        error = error.__cause__ or error.__context__
    return f"does what needs values ({type(first).__name__}: {' '.join(str(first).split())[:120]})"


def _take_apart(module: nn.Module, recording: Recording) -> None:
    """Notes where everything is, and puts tensors of other kinds in the place of those without memory."""
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise UnrecordedError("has lazy modules")
    _, fake_type = internals.fake_tensors()
    _note_places(module, recording, fake_type)
    others: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the first are held, so that no other gets their number

    def other(held: torch.Tensor) -> torch.Tensor:
        is_parameter = isinstance(held, nn.Parameter)
        if id(held) not in others:
            kind = "meta" if is_parameter else "cpu"
            empty = torch.empty_strided(held.size(), held.stride(), dtype=held.dtype, device=kind)
            others[id(held)] = held, nn.Parameter(empty, held.requires_grad) if is_parameter else empty
        return others[id(held)][1]

    for part in module.modules():
        for name, held in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if isinstance(held, nn.Parameter | fake_type):
                setattr(part, name, other(held))
        for name, held in list(vars(part).items()):
            if isinstance(held, fake_type):
                recording.attributes.append((part, name, recording.tape.place_of(held)))
                setattr(part, name, None)


def _note_places(module: nn.Module, recording: Recording, fake_type: Any) -> None:
    tape = recording.tape
    for name, held in module.named_parameters():
        if not isinstance(held, fake_type):
            recording.ready[name] = held.detach()
            continue
        recording.parameters[name] = place = tape.place_of(held)
        if place.number not in tape.written:
            raise UnrecordedError(f"leaves '{name}' as memory happened to be")
    if not recording.parameters:
        raise UnrecordedError("makes no parameters: it is there already")
    for name, buffer in module.named_buffers():
        if isinstance(buffer, fake_type):
            recording.buffers[name] = tape.place_of(buffer)
