"""A loss that draws, measured as any other: a piece of a batch gets the same numbers in every union that it is in.

The noise of a diffusion, or what a variational autoencoder draws, makes another value of each call. Here what torch
draws for a batch is drawn for each piece by itself, from a seed of its own: only with the same numbers can a union's
value be compared with its pieces'. What has one shape in all unions is drawn for a batch as a whole, and is the same
in all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from launcher.data.permutation import mix
from launcher.data.seeds import seed_torch
from launcher.device.kind import in_use
from launcher.internals import aliased_arguments, named_arguments, operations_through

Shape = tuple[int, ...]
HALVES = (3, 1, 2)  # a whole and its halves, as unions
_HELD = 7  # what these seeds are for


class NotHeldError(Exception):
    """What is drawn is not of the pieces side by side, as a permutation of a batch is not."""


@dataclass(frozen=True)
class Draw:
    """Something that is drawn in each call of a loss.

    Attributes:
        shapes: What it has, by union.
        dim: Along which pieces stand side by side; None where it is drawn for a batch as a whole.
    """

    shapes: Mapping[int, Shape]
    dim: int | None

    @classmethod
    def of(cls, shapes: Mapping[int, Shape]) -> Draw:
        """How the pieces stand in it.

        Raises:
            NotHeldError: Nothing shows that.
        """
        if len(set(shapes.values())) == 1:
            return cls(shapes, None)
        if len({len(shape) for shape in shapes.values()}) > 1:
            raise NotHeldError
        for dim in range(len(next(iter(shapes.values())))):
            if all(shapes[union][dim] == sum(shapes[piece][dim] for piece in _pieces(union)) for union in shapes):
                return cls(shapes, dim)
        raise NotHeldError

    def drawn(self, union: int, seed: int, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What one of torch's operations draws for a union."""
        if self.dim is None:
            seed_torch(mix(seed, 0, _HELD), in_use())
            return function(*args, **kwargs)
        start, results = 0, []
        for piece in _pieces(union):
            seed_torch(mix(seed, piece, _HELD), in_use())
            results.append(self._of_piece(union, piece, start, function, args, kwargs))
            start += self.shapes[piece][self.dim]
        if len(changed := aliased_arguments(function, args, changed=True)) == 1 and _name(function).endswith("_"):
            return changed[0].copy_(torch.cat(results, self.dim))
        if changed or "out" in kwargs:
            raise NotHeldError
        if isinstance(results[0], torch.Tensor):
            return torch.cat(results, self.dim)
        return tuple(torch.cat(parts, self.dim) for parts in zip(*results, strict=True))

    def _of_piece(
        self, union: int, piece: int, start: int, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """What is drawn for a piece: as large as in the largest union, for padding changes what comes after it."""
        assert self.dim is not None
        dim, whole, size = self.dim, self.shapes[union], self.shapes[piece][self.dim]
        own = (*whole[:dim], size, *whole[dim + 1 :])
        largest = [max(sizes) for sizes in zip(*self.shapes.values(), strict=True)]
        largest[dim] = size
        before = [*args, *kwargs.values()]
        after = [_cut(value, dim, whole, start, largest) for value in before]
        if all(cut is value for cut, value in zip(after, before, strict=True)):
            raise NotHeldError
        result = function(*after[: len(args)], **dict(zip(kwargs, after[len(args) :], strict=True)))
        crop = tuple(slice(0, length) for length in own)
        return result[crop] if isinstance(result, torch.Tensor) else [part[crop] for part in result]


def _cut(value: Any, dim: int, whole: Shape, start: int, largest: Sequence[int]) -> Any:
    """An argument for one piece: its rows of a tensor, with room up to the largest, or the sizes that are wanted."""
    if isinstance(value, list | tuple) and tuple(value) == whole:
        return list(largest)
    if not isinstance(value, torch.Tensor) or value.dim() <= dim or value.shape[dim] != whole[dim]:
        return value
    rows = value.narrow(dim, start, largest[dim])
    if tuple(value.shape) != whole:
        return rows
    room = [(0, most - length) for length, most in zip(rows.shape, largest, strict=True)]
    return torch.nn.functional.pad(rows, [*itertools.chain(*reversed(room))]).contiguous()


class Draws:
    """All that is drawn in a call of a loss, in order.

    Args:
        draws: Those.
    """

    def __init__(self, draws: Sequence[Draw]):
        self._draws = draws

    @classmethod
    def seen(cls, call: Callable[[int], Any], unions: Iterable[int]) -> Draws | None:
        """What is drawn while the loss of unions is called; None where that cannot be held.

        Args:
            call: Gives the loss of a union, None where there is none.
            unions: A bit for each piece; the pieces themselves are among them.
        """
        shapes: dict[int, list[Shape]] = {}
        for union in unions:
            own = shapes[union] = []

            def note(function: Any, args: Any, kwargs: Any, own: list[Shape] = own) -> Any:
                result = function(*args, **kwargs)
                if _is_random(function, args, kwargs):
                    own.append(tuple((result if isinstance(result, torch.Tensor) else result[0]).shape))
                return result

            with operations_through(note):
                if call(union) is None:
                    return None
        if len({len(own) for own in shapes.values()}) > 1:
            return None
        try:
            draws = [Draw.of(dict(zip(shapes, each, strict=True))) for each in zip(*shapes.values(), strict=True)]
        except NotHeldError:
            return None
        return cls(draws) if draws else None

    def value(self, value: Callable[..., float | None], union: int, seed: int) -> float | None:
        """The loss of a union, with what it draws held."""
        with self.of(union):
            return value(union, seed)

    def of(self, union: int) -> AbstractContextManager[None]:
        """Has a union's numbers drawn in the one call of its loss that is made meanwhile."""
        numbers = itertools.count()

        def draw(function: Any, args: Any, kwargs: Any) -> Any:
            if not _is_random(function, args, kwargs):
                return function(*args, **kwargs)
            kwargs = {key: None if key == "generator" else value for key, value in kwargs.items()}
            number = next(numbers)
            if number >= len(self._draws):
                raise NotHeldError
            return self._draws[number].drawn(union, number, function, args, kwargs)

        return operations_through(draw)


def held(values: Sequence[Callable[..., float | None]], unions: Sequence[int]) -> list[Draws]:
    """What a loss draws, in each group; none where that cannot be held, or where other generators than torch's draw.

    Args:
        values: Of each group, the loss of a union, with a seed for all generators; None where it has none.
        unions: As of `Draws.seen`.
    """
    all_draws, whole = [], max(unions)
    for value in values:
        if (draws := Draws.seen(value, unions)) is None:
            return []
        first, second = (draws.value(value, whole, seed) for seed in (0, 1))
        if first is None or first != second:
            return []
        all_draws.append(draws)
    return all_draws


def of_halves(value: Callable[..., float | None]) -> list[float | None]:
    """A loss of a whole and of its halves, with what it draws held; nothing where it cannot be."""
    return [draws.value(value, union, 0) for draws in held([value], HALVES) for union in HALVES]


def _pieces(union: int) -> list[int]:
    return [1 << bit for bit in range(union.bit_length()) if union >> bit & 1]


def _is_random(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation draws; one with a dropout of its own that is 0, as attention's, does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(function, "tags", ()):
        return _name(function) == "random_"
    named = named_arguments(function, args, kwargs)
    return bool(named.get("dropout_p", named.get("dropout", 1.0)))


def _name(function: Any) -> str:
    return str(function.__name__).partition(".")[0]
