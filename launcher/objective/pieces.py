"""A batch as pieces side by side: any union of them, with outputs varied, and with targets that do not count.

Batches that are not their pieces side by side (somebody pads, or counts on from piece to piece) are told by comparing.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from launcher.data.parts import changed, refilled_mapping
from launcher.objective.reading import NOTHING, Hints, Where, is_mask, tensors_in


def cast(tree: Any, dtype: torch.dtype | None) -> Any:
    """The tree with its real numbers in another precision; None leaves it."""
    if dtype is None:
        return tree
    return changed(tree, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def narrowed(tree: Any, samples: int, start: int, stop: int) -> Any:
    """Some of the samples of a batch: along the first dimension, the second, or as items of a list.

    Raises:
        NotJoinedError: Nothing shows which of its numbers are of which sample.
    """
    if isinstance(tree, torch.Tensor):
        dim = next((dim for dim, size in enumerate(tree.shape[:2]) if size == samples), None)
        if dim is None and tree.dim():
            raise NotJoinedError
        return tree if dim is None else tree.narrow(dim, start, stop - start)
    if isinstance(tree, Mapping):
        return refilled_mapping(tree, {key: narrowed(value, samples, start, stop) for key, value in tree.items()})
    if isinstance(tree, list | tuple):
        is_items = len(tree) == samples and not all(tensor.shape[:1] == (samples,) for _, tensor in tensors_in(tree))
        if is_items and all(samples in tensor.shape[:2] for _, tensor in tensors_in(tree)):
            raise NotJoinedError  # an item for each sample, or parts of all samples: nothing shows which
        if is_items or (len(tree) == samples and not any(True for _ in tensors_in(tree))):
            return tree[start:stop]
        parts = [narrowed(value, samples, start, stop) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if any(True for _ in tensors_in(tree)):  # an object: nothing shows what they mean together
        raise NotJoinedError
    return tree


def narrowed_parts(batch: Any, samples: int, start: int, stop: int) -> Any:
    """The same of a batch that is a tuple of parts, each of all samples: there may be as many parts as samples.

    Raises:
        NotJoinedError: As above.
    """
    if type(batch) is tuple:
        return tuple(narrowed(part, samples, start, stop) for part in batch)
    return narrowed(batch, samples, start, stop)


# ---------------------------------------------------------------------- pieces that join

_MOST_CLASSES, _OFTEN = 16, 3  # that may be left out; how often a real number comes that may mean something
TINY = 1e-6  # above zero: what still counts then is what is above zero, and not above any other number

Tree = Any
Put = tuple[Where, float]
Joint = Any  # how a tree of pieces joins: a dimension, "list", "same", or the same tree of those


class NotJoinedError(Exception):
    """The whole is not its pieces side by side: somebody pads, or counts on from piece to piece."""


def _joint(pieces: Sequence[Tree], whole: Tree, exact: bool) -> Joint:
    """How the whole is put together from pieces.

    Args:
        pieces: Three of them.
        whole: The same samples in one batch.
        exact: Whether values must agree to the bit: outputs may differ by rounding.
    """
    if isinstance(whole, torch.Tensor):
        return _dimension(pieces, whole, exact)
    if isinstance(whole, Mapping):
        return {key: _joint([piece[key] for piece in pieces], value, exact) for key, value in whole.items()}
    if isinstance(whole, list | tuple):
        lengths = {len(piece) for piece in pieces}
        if lengths == {len(whole)}:
            return [_joint([piece[n] for piece in pieces], value, exact) for n, value in enumerate(whole)]
        if isinstance(whole, list) and len(whole) == sum(len(piece) for piece in pieces):
            return "list"
        raise NotJoinedError
    if isinstance(whole, str | int | float | bool | None) and all(piece == whole for piece in pieces):
        return "same"
    raise NotJoinedError


def _dimension(pieces: Sequence[torch.Tensor], whole: torch.Tensor, exact: bool) -> Joint:
    for dim in range(whole.dim()):
        if whole.shape[dim] != sum(piece.shape[dim] for piece in pieces if piece.dim() == whole.dim()):
            continue
        rest = {(*tensor.shape[:dim], *tensor.shape[dim + 1 :]) for tensor in (*pieces, whole)}
        if len(rest) == 1 and _agree(torch.cat(list(pieces), dim), whole, exact):
            return dim
    if all(piece.shape == whole.shape and _agree(piece, whole, True) for piece in pieces):
        return "same"
    raise NotJoinedError


def _agree(tensor: torch.Tensor, other: torch.Tensor, exact: bool) -> bool:
    """Whether two tensors are the same: to the bit, or but for rounding, as a model gives it for other batches."""
    if exact or not other.is_floating_point():
        return (
            torch.allclose(tensor, other, rtol=0, atol=0, equal_nan=True)
            if other.is_floating_point()
            else tensor.equal(other)
        )
    off = (tensor - other).abs().max() if other.numel() else torch.zeros(())
    return not bool(off > 0.02 * other.abs().max())


class Joined:
    """Outputs and targets of a batch, of which any union of pieces can be taken, varied or not.

    Args:
        pieces: Outputs and targets of each piece.
        whole: Those of all of them, batched together.
        numbers: How many samples each piece has.
    """

    def __init__(self, pieces: Sequence[Tree], whole: Tree, numbers: Sequence[int]):
        self.outputs, self.targets = whole
        self._joints = [_joint([piece[side] for piece in pieces], whole[side], exact=side == 1) for side in (0, 1)]
        self._lengths = [[_lengths(piece[side]) for piece in pieces] for side in (0, 1)]
        self.numbers = numbers

    def union(self, outputs: Tree, targets: Tree, pieces: int) -> tuple[Tree, Tree, int]:
        """Outputs and targets of some of the pieces, a bit for each, and how many samples they have."""
        taken = (
            _taken(tree, joint, lengths, pieces)
            for tree, joint, lengths in zip((outputs, targets), self._joints, self._lengths, strict=True)
        )
        samples = sum(number for bit, number in enumerate(self.numbers) if pieces >> bit & 1)
        return next(taken), next(taken), samples

    def over_outputs(self, change: Callable[[torch.Tensor, int], torch.Tensor]) -> Tree:
        """The outputs with each tensor of real numbers changed, along the dimension that joins."""

        def each(tree: Tree, joint: Joint) -> Tree:
            if isinstance(tree, torch.Tensor):
                return change(tree, joint) if isinstance(joint, int) and tree.is_floating_point() else tree
            if isinstance(tree, Mapping):
                return refilled_mapping(tree, {key: each(value, joint[key]) for key, value in tree.items()})
            if isinstance(tree, list | tuple) and joint not in ("list", "same"):
                values = [each(value, inner) for value, inner in zip(tree, joint, strict=True)]
                return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
            return tree

        return each(self.outputs, self._joints[0])

    @property
    def starts(self) -> list[int]:
        """The first sample of each piece."""
        return [0, *itertools.accumulate(self.numbers)][:-1]


def _lengths(tree: Tree) -> Tree:
    """The shapes of a piece's tensors and the lengths of its lists, in a tree like it."""
    if isinstance(tree, torch.Tensor):
        return tuple(tree.shape)
    if isinstance(tree, Mapping):
        return {key: _lengths(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return len(tree), [_lengths(value) for value in tree]
    return None


def _taken(tree: Tree, joint: Joint, lengths: Sequence[Tree], pieces: int) -> Tree:
    if isinstance(joint, str) and joint == "same":
        return tree
    if isinstance(joint, dict):
        held = {
            key: _taken(tree[key], inner, [piece_lengths[key] for piece_lengths in lengths], pieces)
            for key, inner in joint.items()
        }
        return refilled_mapping(tree, held)
    if isinstance(joint, list):
        values = [
            _taken(tree[n], inner, [piece_lengths[1][n] for piece_lengths in lengths], pieces)
            for n, inner in enumerate(joint)
        ]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    sizes = [piece_lengths[0] if joint == "list" else piece_lengths[joint] for piece_lengths in lengths]
    ends = list(itertools.accumulate(sizes))
    ranges = [(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    taken = [limits for bit, limits in enumerate(ranges) if pieces >> bit & 1]
    if joint == "list":
        return [item for first, end in taken for item in tree[first:end]]
    parts = [tree.narrow(joint, first, end - first) for first, end in taken]
    return parts[0] if len(parts) == 1 else torch.cat(parts, joint)


# ---------------------------------------------------------------------- variations


def classes_among(parts: Sequence[Tree]) -> list[float]:
    """The class numbers that samples have most often: any of them may be one that does not count.

    And of real numbers those that come again and again, as a -1 for what nobody has measured.
    """
    often: dict[float, int] = {}
    for tensor in (tensor for tree in parts for _, tensor in itertools.islice(tensors_in(tree), 8)):
        if not tensor.dim() or not tensor.numel() or tensor.dtype == torch.bool or tensor.is_complex():
            continue
        if tensor.is_floating_point() and is_mask(tensor):
            continue
        values, numbers = tensor.unique(return_counts=True)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            if isinstance(value, int) or number >= _OFTEN:
                often[value] = often.get(value, 0) + number
    return sorted(often, key=lambda value: -often[value])[:_MOST_CLASSES]


def classes_in(outputs: Tree) -> list[int]:
    """Class numbers that may mean "no class": the last, and the one after it."""
    first = next((tensor for _, tensor in tensors_in(outputs)), None)
    if first is None or first.dim() < 2:
        return []
    return sorted({size + more for size in {first.shape[1], first.shape[-1]} for more in (-1, 0)})


def draws(joined: Joined) -> Iterator[Tree]:
    """The outputs as they are, exchanged, shaken row by row by another amount, and mixed with others."""
    generator = torch.Generator().manual_seed(7)

    def ramp(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        shape = [1] * tensor.dim()
        shape[dim] = tensor.shape[dim]
        return torch.linspace(0.02, 0.6, tensor.shape[dim], dtype=tensor.dtype).view(shape)

    def shaken(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return tensor + ramp(tensor, dim) * (tensor.abs().mean() + 0.5) * noise

    yield joined.outputs
    yield joined.over_outputs(lambda tensor, dim: tensor.roll(1, dim))
    yield joined.over_outputs(shaken)
    yield joined.over_outputs(lambda tensor, dim: tensor + ramp(tensor, dim) * (tensor.roll(2, dim) - tensor))


def injections(joined: Joined, hints: Hints, *, marks: bool = True) -> Iterator[tuple[Tree, Tree, Put | None]]:
    """Values that may not count, put into the targets: what the samples lack may come later.

    Args:
        joined: Outputs and targets.
        hints: Of the loss.
        marks: Whether to try, once, what people write among real numbers for what is missing.

    Yields:
        Outputs, targets, and the place and the value, where it is one that the samples lack there.
    """
    generator = torch.Generator().manual_seed(11)

    def shaken(tensor: torch.Tensor, _: int) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return tensor + 0.05 * (tensor.abs().mean() + 0.5) * noise

    tensors = list(tensors_in(joined.targets))[:8]
    for is_first, outputs in ((True, joined.over_outputs(shaken)), (False, joined.outputs)):
        for number, (where, tensor) in enumerate(tensors):
            values = _values_for(tensor, number, joined.outputs, hints)
            for value in [*values, *(_marks_for(tensor, number, joined.outputs) if is_first and marks else ())]:
                holed = torch.where(_holes(tensor, joined, generator), torch.full_like(tensor, value), tensor)
                targets = changed(joined.targets, functools.partial(_exchanged, tensor, holed))
                yield outputs, targets, put_into(where, tensor, value)
    for _, tensor in tensors:  # samples that have nothing, which a loss may leave out
        for value, holes in _empty_rows(tensor, joined, hints, generator):
            holed = torch.where(holes, torch.full_like(tensor, value), tensor)
            yield (
                joined.over_outputs(shaken),
                changed(joined.targets, functools.partial(_exchanged, tensor, holed)),
                None,
            )


def _empty_rows(
    tensor: torch.Tensor, joined: Joined, hints: Hints, generator: torch.Generator
) -> Iterator[tuple[float, torch.Tensor]]:
    """Whole rows, and planes of rows, that hold nothing: half of them, and never the first of a piece."""
    if (
        not tensor.dim()
        or len(tensor) != sum(joined.numbers)
        or not (values := nothings(tensor, joined.outputs, hints))
    ):
        return
    for dims in range(1, min(tensor.dim(), 3)):
        holes = torch.rand(tensor.shape[:dims], generator=generator) < 0.5
        holes[joined.starts] = False
        for value in values:
            yield value, holes.view(*holes.shape, *[1] * (tensor.dim() - dims)).expand(tensor.shape)


def nothings(tensor: torch.Tensor, outputs: Tree, hints: Hints) -> list[float]:
    """What a whole row may hold that counts for nothing; none where it has one entry alone."""
    if tensor.dim() < 2 or tensor.shape[1:].numel() < 2 or tensor.is_complex():
        return []
    if tensor.is_floating_point():
        return [0.0] if bool((tensor >= 0).all()) else [math.nan] if bool(tensor.isnan().any()) else []
    if tensor.dtype == torch.bool or is_mask(tensor):
        return [0]
    return [hints.ignored[0]] if are_classes(tensor, outputs) else []


def _exchanged(old: torch.Tensor, new: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    return new if part is old else part


def put_into(where: Where, tensor: torch.Tensor, value: float) -> Put | None:
    """The place and the value that is put there; None where some samples have it already."""
    has = tensor.isnan() if math.isnan(value) else tensor == value
    return None if bool(has.any()) else (where, float(value))


def _values_for(tensor: torch.Tensor, number: int, outputs: Tree, hints: Hints) -> list[float]:
    """What may mean "does not count" in a tensor of targets."""
    if not tensor.dim() or not tensor.numel() or tensor.is_complex():
        return []
    of_mask: list[float] = [0] if bool(tensor.any()) else [0, 1]
    if tensor.dtype == torch.bool:
        return of_mask
    if tensor.is_floating_point():
        return of_mask if is_mask(tensor) else [math.nan, 0.0][: 1 + (number > 0)]
    may_mask = of_mask if number and is_mask(tensor) else []
    if not are_classes(tensor, outputs):
        return may_mask
    info = torch.iinfo(tensor.dtype)
    wanted = dict.fromkeys((*may_mask, *hints.ignored, 0, *classes_in(outputs)))
    return [value for value in wanted if info.min <= value <= info.max]


def _marks_for(tensor: torch.Tensor, number: int, outputs: Tree) -> list[float]:
    """What people write for what is missing: among real numbers, and where yes or no is said of each output."""
    if not tensor.dim() or not tensor.numel() or (number and is_mask(tensor)):
        return []
    if tensor.is_floating_point():
        return [*NOTHING[1:]] if is_mask(tensor) else [*NOTHING[number > 0 :], TINY]
    is_alike = any(output.shape == tensor.shape for _, output in itertools.islice(tensors_in(outputs), 8))
    is_signed = tensor.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
    return [*map(int, NOTHING[1:])] if is_alike and is_signed and not number else []


def tried_in(joined: Joined, hints: Hints) -> frozenset[Where]:
    """The tensors into which `injections` puts -100."""
    places = list(tensors_in(joined.targets))[:8]
    return frozenset(
        where
        for number, (where, tensor) in enumerate(places)
        if -100 in _values_for(tensor, number, joined.outputs, hints)
    )


def are_classes(tensor: torch.Tensor, outputs: Tree) -> bool:
    """Whether outputs have scores of classes for each: kernels that check nothing (CTC's) read where a label points."""
    shapes = [output.shape for _, output in itertools.islice(tensors_in(outputs), 8)]
    if not shapes or len(shapes[0]) < 2:
        return False
    heads = range(1, shapes.count(shapes[0]) + 1)  # each may have a column of its own
    return any(
        heads_used * shapes[0].numel() == tensor.numel() * size for heads_used in heads for size in shapes[0][1:]
    )


def _holes(tensor: torch.Tensor, joined: Joined, generator: torch.Generator) -> torch.Tensor:
    """Half of the places, and never all of a row, nor the first of a piece."""
    holes = torch.rand(tensor.shape, generator=generator) < 0.5
    if tensor.dim() > 1 and tensor[0].numel() > 1:
        holes.view(len(tensor), -1)[:, 1] = False
    else:
        holes[[start for start in joined.starts if start < len(tensor)]] = False
    return holes
