"""3: model. What a constructor does, written down without memory, and done again tensor by tensor.

A model that no process shall hold whole is first built of tensors that have no memory. What torch was asked to do
stands on a tape then, and is done again with the seed's numbers, in the same order: so they are those of the model
built at once. Each tensor is given away after its last use, and its memory given back.

What the tape does not know of is not done without it: then the model is built whole.
"""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from launcher import internals
from launcher.model.left_files import files_left
from launcher.model.rows import Converted, Stored
from launcher.recipe.raised import chain_of

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

    def is_whole(self, sizes: Sequence[int]) -> bool:
        """Whether it is all of its storage, entry by entry."""
        plain = torch.empty(self.shape, device="meta").stride()
        return self.offset == 0 and self.stride == plain and self.num_bytes == sizes[self.number]


@dataclass(frozen=True)
class Operation:
    """Something that torch was asked to do, with places where tensors were.

    Attributes:
        function: What was asked.
        args: With places where tensors were.
        kwargs: The same.
        results: The same.
        changed: The storages that it writes into, of those that were there.
    """

    function: Any
    args: Any
    kwargs: dict[str, Any]
    results: Any
    changed: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        """Without what tells its variants apart."""
        return str(self.function.__name__).partition(".")[0]

    @property
    def draws(self) -> bool:
        """Whether it takes numbers from a generator."""
        return torch.Tag.nondeterministic_seeded in getattr(self.function, "tags", ())

    @property
    def places(self) -> list[Place]:
        """All that it has to do with."""
        return places_in((self.args, self.kwargs, self.results))

    def touches(self, number: int) -> bool:
        """Whether it has to do with a storage."""
        return any(place.number == number for place in self.places)

    @property
    def only_names(self) -> bool:
        """Whether it gives a tensor that was there another name or form, and no more."""
        given = {place.number for place in places_in((self.args, self.kwargs))}
        return not self.changed and len(given) == 1 and {place.number for place in self.places} == given

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


def _asks_for_the_form(function: Any) -> bool:
    """Whether an operation makes a tensor like another, and reads nothing of it."""
    name = str(function.__name__).partition(".")[0]
    return name.startswith("new_") or name.endswith("_like")


def is_on_meta(tree: Any) -> bool:
    """Whether there are tensors in a structure, and all of them have neither memory nor numbers."""
    found = tensors_in(tree)
    return bool(found) and all(tensor.device.type == "meta" for tensor in found)


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
        refused: Why it cannot be written down; empty where it can.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.sizes: list[int] = []
        self.written: set[int] = set()
        self.made: list[weakref.ref[torch.Tensor]] = []
        self._storages: list[Any] = []  # held, so that no other gets the number of one
        self._numbers: dict[int, int] = {}
        self._drawn: dict[int, _Drawn] = {}
        self._thread = threading.get_ident()
        self.refused = ""
        _, self._fake_type = internals.fake_tensors()
        self._drawn_from(torch.default_generator)

    def __call__(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Does an operation without memory, and writes it down."""
        tags = getattr(function, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags and not is_on_meta(args):
            self._note_draw([*args, *kwargs.values()])
        if str(function.__name__).startswith("_local_scalar_dense") and isinstance(args[0], self._fake_type):
            return self._value(args[0])
        if str(function.__name__).startswith("equal"):
            return self._are_equal(function, args)
        inputs = internals.tree_map(self._placed, (list(args), dict(kwargs)))
        results = function(*args, **kwargs)
        if not is_on_meta((args, kwargs, results)):  # where nothing has numbers; what stays there is refused in the end
            self._check(function, args, kwargs)
            self._write_down(function, inputs, results)
        return results

    def refuse(self, why: str) -> NoReturn:
        """Says that this cannot be written down; somebody's constructor may not let it through.

        Raises:
            UnrecordedError: In any case.
        """
        self.refused = self.refused or why
        raise UnrecordedError(why)

    def read(self, stored: Stored) -> torch.Tensor:
        """Writes down that a tensor is read from a file; gives one without memory.

        Raises:
            UnrecordedError: It is read where nothing is written down.
        """
        tensor: torch.Tensor = torch.empty(stored.shape, dtype=stored.dtype, device="cpu")
        if not isinstance(tensor, self._fake_type) or threading.get_ident() != self._thread:
            self.refuse("reads weights in a thread")
        place = self.place_of(tensor)
        self.operations[-1] = Operation(_Reading(stored), [], {}, place)
        self.written.add(place.number)
        return tensor  # type: ignore[no-any-return]  # mypy has taken the class away from it

    def truncated_normal(self, function: Callable[..., Any], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Writes down torch's truncated normal as one operation: it looks at what it has drawn."""
        if not isinstance(tensor, self._fake_type):
            self.refuse("draws into a tensor from outside of torch")
        self._note_draw([*args, *kwargs.values()])
        place = self.place_of(tensor)
        changed = frozenset([place.number])
        self.operations.append(Operation(_TruncatedNormal(function), [place, *args], kwargs, place, changed))
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
                self.refuse("reads values")
        short.sizes = self.sizes
        values: list[Any] = []
        internals.plainly(
            lambda: Replay(short).run({place.number: [lambda replay: values.append(replay.tensor(place).item())]})
        )
        return values[0]

    def _are_equal(self, function: Any, args: Sequence[Any]) -> Any:
        """Whether two tensors of files are, as is asked before they are tied: a few rows of them at a time."""
        sources = [self._in_file(tensor) for tensor in args]
        if None in sources:
            return function(*args)  # which says that there are no values
        shape, *others = (tuple(source.shape) for source in sources)
        if [shape] != others:
            return False
        each = max(1, _FEW // max(1, _bytes_of(sources[0]) // max(1, shape[0])))
        pieces = [(first, min(first + each, shape[0])) for first in range(0, shape[0], each)]
        return internals.plainly(lambda: all(torch.equal(*(one.rows(*piece) for one in sources)) for piece in pieces))

    def _in_file(self, tensor: Any) -> Any:
        if not isinstance(tensor, self._fake_type) or tensor.ndim == 0 or is_on_meta(tensor):
            return None
        found = _in_file(self, self.place_of(tensor))
        return None if found is None else found[0]

    def place_of(self, tensor: torch.Tensor) -> Place:
        """Where a tensor is.

        Raises:
            UnrecordedError: No operation made what it lies on.
        """
        number = self._numbers.get(internals.storage_id(tensor.untyped_storage()))
        if number is None:
            self.refuse("reads weights from a file, or takes tensors from somewhere else")
        return _place(tensor, number)

    def _placed(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.device.type == "meta":
            return internals.plainly(
                lambda: torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta")
            )
        if isinstance(leaf, self._fake_type):
            return self.place_of(leaf)
        return internals.plainly(lambda: leaf.detach().clone()) if isinstance(leaf, torch.Tensor) else leaf

    def _check(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        # torch.tensor([…]) is lifted, and nobody else has it
        changed = [] if function.__name__.startswith("lift_fresh") else internals.aliased_arguments(function, args)
        if any(isinstance(value, torch.Tensor) and not isinstance(value, self._fake_type) for value in changed):
            self.refuse("changes tensors from outside of torch, or gives others their memory")
        if any(one.device.type == "meta" for one in tensors_in((args, kwargs))) and not _asks_for_the_form(function):
            self.refuse("reads weights from a file, or tensors on meta")
        if any(isinstance(value, torch.UntypedStorage | torch.TypedStorage) for value in [*args, *kwargs.values()]):
            self.refuse("reads weights from a file, or takes memory from somewhere else")

    def _write_down(self, function: Any, inputs: Any, results: Any) -> None:
        for tensor in tensors_in(results):
            if tensor.device.type != "cpu":
                self.refuse(f"makes tensors on {tensor.device.type}")
            self.made.append(weakref.ref(tensor))
            storage = tensor.untyped_storage()
            if internals.storage_id(storage) not in self._numbers:
                self._numbers[internals.storage_id(storage)] = len(self.sizes)
                self._storages.append(storage)
                self.sizes.append(storage.nbytes())
        args, kwargs = inputs
        written = places_in(internals.tree_map(self._placed, internals.aliased_arguments(function, args, changed=True)))
        changed = frozenset(place.number for place in written)
        operation = Operation(function, args, kwargs, internals.tree_map(self._placed, results), changed)
        self.operations.append(operation)
        if operation.name not in _UNWRITTEN:
            known = {place.number for place in places_in(inputs)}
            self.written |= {place.number for place in places_in(operation.results)} - known
            self.written |= changed

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
            self.refuse("seeds a generator, or sets it back")

    def end(self) -> None:
        """Sees whether somebody has set a generator since, and sets all to where they began.

        Raises:
            UnrecordedError: Somebody has.
        """
        if self.refused:
            raise UnrecordedError(self.refused)
        for drawn in self._drawn.values():
            self._check_drawn(drawn)
        self.rewind()

    def rewind(self) -> None:
        """Sets all generators to where they were before."""
        for drawn in self._drawn.values():
            drawn.generator.set_state(drawn.first)


@dataclass(frozen=True)
class _Reading:
    """What reads a tensor from a file, as an operation."""

    stored: Stored
    __name__: str = "read"

    def __call__(self) -> Any:
        return self.stored.whole()


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
        ready: Parameters that were made outside of torch, or are tensors in files.
    """

    tape: Tape
    parameters: dict[str, Place] = field(default_factory=dict)
    buffers: dict[str, Place] = field(default_factory=dict)
    attributes: list[tuple[nn.Module, str, Place]] = field(default_factory=list)
    ready: dict[str, torch.Tensor | Stored] = field(default_factory=dict)

    def play(self, take: Callable[[str, torch.Tensor | Stored], None]) -> None:
        """Makes the numbers; generators are afterwards as if the module had been built at once.

        Args:
            take: Given each parameter and buffer by its name, which is whole then and soon no more, or in a file.
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
        return sum(place.num_bytes for place in places) + sum(map(_bytes_of, self.ready.values()))

    @property
    def held(self) -> int:
        """Bytes that are there at once, at most, while the numbers are made."""
        made = sum(tensor.nbytes for tensor in self.ready.values() if isinstance(tensor, torch.Tensor))
        return Replay(self.tape).largest() + made

    @property
    def in_files(self) -> bool:
        """Whether weights are read from files."""
        return any(not isinstance(tensor, torch.Tensor) for tensor in self.ready.values()) or any(
            isinstance(operation.function, _Reading) for operation in self.tape.operations
        )


def _bytes_of(held: torch.Tensor | Stored) -> int:
    return torch.Size(held.shape).numel() * held.dtype.itemsize


def _giving(take: Callable[[str, torch.Tensor | Stored], None], name: str, place: Place) -> Callable[[Replay], None]:
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
            files_left(tape),
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
        raise UnrecordedError(tape.refused or _reason(error)) from error
    recording = Recording(tape)
    _take_apart(module_of(made), recording)
    gc.collect()
    _, fake_type = internals.fake_tensors()
    if any(isinstance(reference(), fake_type) for reference in tape.made):
        raise UnrecordedError("keeps tensors where the program does not find them")
    return made, recording


def _reason(error: BaseException | None) -> str:
    """Why a constructor did not run without values."""
    for link in chain_of(error) if error is not None else ():
        if isinstance(link, UnrecordedError):
            return str(link)
        if type(link).__name__ in ("DataDependentOutputException", "DynamicOutputShapeException"):
            return "reads values"
    return f"does what needs values ({type(error).__name__}: {' '.join(str(error).split())[:120]})"


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
        if held.device.type == "meta":
            raise UnrecordedError(f"leaves '{name}' without memory")
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
    _leave_in_files(recording)


def _leave_in_files(recording: Recording) -> None:
    """Takes off the tape what parameters are as they stand in files: of these each process reads its own rows."""
    tape = recording.tape
    tape.operations = [operation for operation in tape.operations if not operation.only_names]
    for name, place in list(recording.parameters.items()):
        if (found := _in_file(tape, place)) is not None:
            recording.ready[name], done = found
            del recording.parameters[name]
            tape.operations = [operation for operation in tape.operations if not any(operation is one for one in done)]
    rest = (*recording.parameters.values(), *recording.buffers.values(), *(place for *_, place in recording.attributes))
    needed = {place.number for place in rest}
    needed |= {place.number for operation in tape.operations for place in places_in((operation.args, operation.kwargs))}
    tape.operations = [
        operation
        for operation in tape.operations
        if not isinstance(operation.function, _Reading) or operation.results.number in needed
    ]


def _in_file(tape: Tape, place: Place) -> tuple[Stored, Sequence[Operation]] | None:
    """What of a file a parameter is, and the operations that are done for nothing else; None where it is made."""
    uses = [operation for operation in tape.operations if operation.touches(place.number)]
    last = max(index for index, one in enumerate(uses) if index == 0 or place.number in one.changed)
    operation, later = uses[last], uses[last + 1 :]
    if isinstance(operation.function, _Reading):
        return (operation.function.stored, ()) if place == operation.results else None
    if not place.is_whole(tape.sizes) or any(not one.only_names for one in later):
        return None
    if operation.overwrites(tape.sizes) == place.number and operation.name == "copy_":
        origin = operation.args[1]
    elif last == 0 and operation.name in ("_to_copy", "clone") and operation.results == place:
        origin = operation.args[0]
    else:
        return None
    stored = next((one.function.stored for one in tape.operations if _reads(one, origin)), None)
    is_changed = isinstance(origin, Place) and any(origin.number in one.changed for one in tape.operations)
    if stored is None or is_changed or origin.shape != place.shape:
        return None
    return Converted(stored, place.dtype), uses[last:]


def _reads(operation: Operation, origin: Any) -> bool:
    return isinstance(operation.function, _Reading) and bool(operation.results == origin)
