"""What a loss is a mean over: a reading, the counts that there are, and those that a batch could mean."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.device.kind import kind_of
from launcher.errors import LauncherError

TOLERANCE = {torch.float64: 2e-6, torch.float32: 5e-5}  # 1e-6 in a denominator passes, 1e-3 does not
Where = tuple[int | str, ...]  # a tensor's place in what is counted: positions and keys
_BY_SAMPLES = ("samples", "sum", "batch")  # counted without reading a batch
_INVALID = (-100, -1, 255)  # what people write for "no class"
NOTHING = (0.0, -1.0, -100.0)  # and among real numbers, for what nobody has measured


# ---------------------------------------------------------------------- a reading


@dataclass(frozen=True)
class Reading:
    """What the value of a loss on a batch is: a mean over a count, a sum, or of the whole batch.

    Attributes:
        kind: A key of `COUNTS`, or `user`, `sum`, `batch`.
        where: The tensor that is counted, among the targets (or the batch, where the model has its own loss).
        ignored: The class number that does not count.
        shifted: Whether the first place of each row does not count: a model of language that shifts by itself.
        name: What that tensor is called in messages.
        found: `known`, `measured`, `stated`, or `trusted` where nothing could be measured.
        why: The reason, in words.
        weights: The weight of each class.
        function: A count of the user's own.
        each: What every sample counts, where the whole data set was looked at and all count alike.
        floor: The least that a batch is divided by, as in `sum / positives.clamp(min=1)`.
        beside: What is added to the count, as in `sum / (mask.sum() + 1e-8)`.
        needs: Whether each piece must have something that counts: where nothing does, the loss is no such mean.
        untold: What these samples do not tell from it, and others may; in words, taken on trust.
        unless: Values that these samples lack, by their places: with one of them, the loss is no such mean any more.
        draws: Whether it draws: it was measured with the same random numbers for a sample whatever it is together with.
    """

    kind: str
    where: Where = (0,)
    ignored: float = -100
    shifted: bool = False
    name: str = field(default="the targets", compare=False)
    found: str = field(default="measured", compare=False)
    why: str = field(default="", compare=False)
    weights: torch.Tensor | None = field(default=None, compare=False, repr=False)
    function: Callable[[Any], Any] | None = field(default=None, compare=False, repr=False)
    each: float | None = field(default=None, compare=False, repr=False)
    floor: float = field(default=0.0, compare=False, repr=False)
    beside: float = field(default=0.0, compare=False, repr=False)
    needs: bool = field(default=False, compare=False, repr=False)
    untold: str = field(default="", compare=False, repr=False)
    unless: tuple[tuple[Where, float], ...] = field(default=(), compare=False, repr=False)
    draws: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Counts are made in host memory: copying the weights there in each step would make the host wait."""
        if self.weights is not None and self.weights.device.type != "cpu":
            object.__setattr__(self, "weights", self.weights.detach().cpu())

    @property
    def is_mean(self) -> bool:
        """Whether pieces are put together by a count."""
        return self.kind not in ("sum", "batch")

    @property
    def by_samples(self) -> bool:
        """Whether the count is known without reading a batch."""
        return (self.each is not None or self.kind in _BY_SAMPLES) and not self.unless

    def unforeseen(self, parts: Any) -> str:
        """The first value in a batch with which the loss is no such mean, in words; empty where there is none."""
        for where, value in self.unless:
            tensor = at(parts, where)
            if bool((tensor.isnan() if math.isnan(value) else tensor == value).any()):
                return f"{value:g} in {shown(where)}"
        return ""

    def weight(self, count: float) -> float:
        """What a piece of so much weighs in the whole, or what the whole is divided by."""
        return max(count, self.floor) + self.beside if self.is_mean else count

    def of_any_set(self) -> Reading:
        """The same without what the training set has shown: others may hold what is ignored."""
        return self if self.each is None else replace(self, each=None)

    def count(self, parts: Any, samples: int) -> float:
        """What a batch in host memory contributes to the count.

        Args:
            parts: The targets, or the whole batch.
            samples: How many samples count; none in a stand-in.
        """
        if samples == 0 or self.each is not None or self.kind in _BY_SAMPLES:
            return samples * (1.0 if self.each is None else self.each)
        if self.function is not None:
            return float(self.function(parts))
        tensor: Any = parts[0] if self.where == (0,) and type(parts) is tuple else at(parts, self.where)
        if not isinstance(tensor, torch.Tensor) and not (self.kind == "rows" and isinstance(tensor, list)):
            raise LauncherError(f"loss: {self.name} should be a tensor to count, and are a {type(tensor).__name__}")
        return COUNTS[self.kind](_later(tensor) if self.shifted else tensor, self)

    def as_found(self, found: str, why: str = "") -> Reading:
        """The same, found otherwise."""
        return replace(self, found=found, why=why)

    def __str__(self) -> str:
        if self.kind == "batch" and self.found == "trusted":
            return "what it is a mean over is not known" + (f": {self.why}" if self.why else "")
        apart = f"; these samples cannot tell it from one over {self.untold}" if self.untold else ""
        held = ", what it draws held" if self.draws else ""
        return f"{self.words} ({self.found}{held}{f': {self.why}' if self.why else apart})"

    @property
    def words(self) -> str:
        """What it is, in words."""
        if not self.is_mean:
            return "a sum" if self.kind == "sum" else "of the whole batch"
        name = self.name or "the batch"  # which is one tensor
        later = ", the first of each row left out" if self.shifted else ""
        if self.kind == "kept" and name != "the targets":
            return f"a mean over the entries of {name} that are not {self.ignored}{later}"
        return "a mean over " + _WORDS[self.kind].format(name=name, ignored=self.ignored) + later

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        kept = {key: value for key, value in vars(self).items() if key not in ("weights", "function", "each")}
        unless = [[list(where), None if math.isnan(value) else value] for where, value in self.unless]
        return {**kept, "where": list(self.where), "unless": unless}

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any], **objects: Any) -> Reading:
        """What `manifest` gave; `weights` and `function` are passed in."""
        unless = tuple(
            (tuple(where), math.nan if value is None else value) for where, value in manifest.get("unless", ())
        )
        manifest = {key: value for key, value in manifest.items() if key not in ("entry", "summed")}  # an objective's
        return cls(**{**manifest, "where": tuple(manifest["where"]), "unless": unless}, **objects)


def _later(tensor: Any) -> Any:
    """All but the first of each row; of rows' lengths, one less."""
    return tensor[:, 1:] if tensor.dim() > 1 else tensor - 1


def _of_class(tensor: torch.Tensor, reading: Reading) -> float:
    """A class number that is not ignored counts; as CrossEntropyLoss, places of probabilities count each."""
    if tensor.is_floating_point():
        return tensor.numel() / tensor.shape[1] if tensor.dim() > 1 else 1.0
    if tensor.device.type == "cpu":
        # half the time of torch's, and without the Python around NumPy's own count_nonzero
        return float(np.add.reduce(tensor.numpy() != reading.ignored, axis=None, dtype=np.intp))
    return float((tensor != reading.ignored).sum())


def _of_weight(tensor: torch.Tensor, reading: Reading) -> float:
    weights = reading.weights
    if weights is None or tensor.is_floating_point():
        return _of_class(tensor, reading)
    kept = tensor[(tensor != reading.ignored) & (tensor >= 0) & (tensor < len(weights))]
    return float(weights.detach().cpu()[kept.cpu()].double().sum())


def _total(tensor: torch.Tensor) -> float:
    return float(tensor.sum(dtype=kind_of(tensor.device).wide))


def _is_something(tensor: torch.Tensor, reading: Reading) -> torch.Tensor:
    """Which entries are not what means "nothing": NaN, or a number."""
    return ~tensor.isnan() if reading.kind == "told" else tensor != reading.ignored


COUNTS: Mapping[str, Callable[[Any, Reading], float]] = {
    "samples": lambda tensor, _: float(len(tensor)),
    "rows": lambda tensor, _: float(len(tensor)),
    "elements": lambda tensor, _: float(tensor.numel()),
    "kept": _of_class,
    "weights": _of_weight,
    "mask": lambda tensor, _: _total(tensor),
    "outside": lambda tensor, _: float((tensor == 0).sum()),
    "present": lambda tensor, _: float(tensor.numel() - int(tensor.isnan().sum())),
    "lengths": lambda tensor, _: float(tensor.sum()),
    "total": lambda tensor, _: _total(tensor),
    "positive": lambda tensor, _: float((tensor > 0).sum()),
    "from zero": lambda tensor, _: float((tensor >= 0).sum()),
    "unlike": lambda tensor, reading: float(((tensor != reading.ignored) & ~tensor.isnan()).sum()),
    "filled": lambda tensor, reading: float(_is_something(tensor, reading).flatten(1).any(1).sum()),
    "told": lambda tensor, reading: float(_is_something(tensor, reading).flatten(1).any(1).sum()),
    "planes": lambda tensor, reading: float(_is_something(tensor, reading).flatten(2).any(2).sum()),
}
_WORDS = {
    "samples": "samples",
    "rows": "the rows of {name}",
    "elements": "the elements of {name}",
    "kept": "{name} that are not {ignored}",
    "weights": "the class weights of {name}",
    "mask": "what mask {name} lets through",
    "outside": "what mask {name} leaves out",
    "present": "the elements of {name} that are not NaN",
    "lengths": "the lengths {name}",
    "total": "the sum of the weights {name}",
    "positive": "the elements of {name} above zero",
    "from zero": "the elements of {name} that are not below zero",
    "unlike": "the elements of {name} that are not {ignored:g}",
    "filled": "the rows of {name} that are not all {ignored}",
    "told": "the rows of {name} that are not all NaN",
    "planes": "the planes of {name} that are not all {ignored}",
    "user": "a count of your own",
}


# ---------------------------------------------------------------------- the tensors that may be counted


def at(tree: Any, where: Where) -> Any:
    """The tensor at a place of a batch."""
    for key in where:
        tree = getattr(tree, key) if isinstance(key, str) and not isinstance(tree, Mapping) else tree[key]
    return tree


def tensors_in(tree: Any, where: Where = ()) -> Iterator[tuple[Where, torch.Tensor]]:
    """The tensors of a batch with their places, in order."""
    if isinstance(tree, torch.Tensor):
        yield where, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from tensors_in(value, (*where, key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from tensors_in(value, (*where, number))
    elif hasattr(tree, "__dict__") and not isinstance(tree, nn.Module):
        for key, value in vars(tree).items():
            if isinstance(value, torch.Tensor):
                yield (*where, key), value


def is_mask(tensor: torch.Tensor) -> bool:
    """Whether it holds nothing but yes and no."""
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


def lists_in(tree: Any, where: Where = ()) -> Iterator[tuple[Where, list[Any]]]:
    """The lists of a batch with their places: one may have an item for each sample, as detectors take them."""
    if isinstance(tree, list):
        yield where, tree
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    if len(where) < 2:
        for key, value in items:
            yield from lists_in(value, (*where, key))


@dataclass(frozen=True)
class Hints:
    """What a loss says of itself; nothing of it is believed that does not fit.

    Attributes:
        ignored: Class numbers that may not count.
        weights: A weight for each class.
        user: A count of the user's own.
        of_batches: Whether whole batches are counted, and not targets: the model or a step function has the loss.
    """

    ignored: tuple[int, ...] = _INVALID
    weights: torch.Tensor | None = None
    user: Callable[[Any], Any] | None = None
    of_batches: bool = False

    @classmethod
    def of(cls, loss: Any, user: Callable[[Any], Any] | None = None) -> Hints:
        """The hints of a loss: its `ignore_index` and its `weight`."""
        parts = [loss, *(loss.modules() if isinstance(loss, nn.Module) else ())]
        own = [part.ignore_index for part in parts if isinstance(getattr(part, "ignore_index", None), int)]
        return cls(tuple(dict.fromkeys((*own, *_INVALID))), _class_weights(loss), user)


def _class_weights(loss: Any) -> torch.Tensor | None:
    """What may be a weight for each class: `weight`, or a row of numbers that a loss has by any other name."""
    held: list[Any] = [getattr(loss, "weight", None)]
    if isinstance(loss, functools.partial):
        held += [*loss.keywords.values(), *loss.args, *_named_by(loss.func)]
    else:
        modules = loss.modules() if isinstance(loss, nn.Module) else ()
        held += [*(loss.buffers() if isinstance(loss, nn.Module) else ()), *getattr(loss, "__dict__", {}).values()]
        held += [value for module in modules for value in vars(module).values()]
        held += [*getattr(getattr(loss, "__self__", None), "__dict__", {}).values()]
        held += [*_contents(getattr(loss, "__closure__", None) or ()), *_named_by(loss)]
    rows = [row for row in map(_row_of_numbers, held) if row is not None]
    return next((row for row in rows if bool((row != row.round()).any())), rows[0] if rows else None)


def _contents(cells: Iterable[Any]) -> Iterator[Any]:
    for cell in cells:
        with suppress(ValueError):  # empty
            yield cell.cell_contents


def _named_by(loss: Any) -> Iterator[Any]:
    """What stands beside the code of a loss in its file, and is named in it."""
    called = type(loss).forward if isinstance(loss, nn.Module) else loss
    function = getattr(called, "__func__", called)
    code = getattr(function, "__code__", None)
    beside = getattr(function, "__globals__", {})
    return (beside[name] for name in (code.co_names if code else ()) if name in beside)


def _row_of_numbers(value: Any) -> torch.Tensor | None:
    value = list(value.values()) if isinstance(value, dict) else value
    is_array = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    is_numbers = isinstance(value, list | tuple) and all(type(number) in (int, float) for number in value)
    row: Any = torch.tensor(value, dtype=torch.float64) if is_array or (is_numbers and value) else value
    fits = isinstance(row, torch.Tensor) and row.dim() == 1 and row.is_floating_point() and len(row) > 1
    return row if fits else None


def candidates(parts: Any, samples: int, hints: Hints, classes: Iterable[float] = ()) -> dict[Reading, float]:
    """Everything that could be meant, with how many there are of it in one batch.

    Args:
        parts: The targets, or the whole batch.
        samples: How many samples it was made of.
        hints: Of the loss.
        classes: Further class numbers that may be ignored.
    """
    counts = {Reading("samples"): float(samples)}
    if hints.user is not None:
        counts[Reading("user", function=hints.user)] = float(hints.user(parts))
    for number, (where, tensor) in enumerate(itertools.islice(tensors_in(parts), 16)):
        if tensor.dim():
            for reading in _of_tensor(tensor, where, number, hints, classes):
                counts[reading] = COUNTS[reading.kind](_later(tensor) if reading.shifted else tensor, reading)
    for where, items in itertools.islice(lists_in(parts), 8):
        counts[Reading("rows", where, name=shown(where))] = float(len(items))
    return counts


def shown(where: Where) -> str:
    """A place in words: `'labels'`, `[1]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f"'{key}'" for key in where)


def _of_tensor(
    tensor: torch.Tensor, where: Where, number: int, hints: Hints, classes: Iterable[float]
) -> Iterator[Reading]:
    name = "the targets" if where == (0,) and not hints.of_batches else shown(where)
    of = functools.partial(Reading, where=where, name=name)
    has_places = tensor.dim() > 1
    yield of("rows")
    yield of("elements")
    if tensor.is_complex():
        return
    yield from _of_rows(tensor, hints, of)
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        if is_mask(tensor):
            yield from _of_mask(has_places, of)
        if tensor.is_floating_point():  # weights may happen to be 0 and 1 in a piece
            yield from map(of, ("positive", "from zero", "present", *(("total",) if bool((tensor >= 0).all()) else ())))
            may_be = dict.fromkeys((*NOTHING, *(value for value in classes if isinstance(value, float))))
            yield from (of("unlike", ignored=value) for value in may_be)
        return
    if number:
        yield from _of_mask(has_places, of) if is_mask(tensor) else [of("outside")]
    for ignored in dict.fromkeys((*hints.ignored, 0, *(number for number in classes if isinstance(number, int)))):
        yield of("kept", ignored=ignored)
        if has_places:
            yield of("kept", ignored=ignored, shifted=True)
    yield of("positive")
    if hints.weights is not None and not number:
        own = dict.fromkeys((hints.ignored[0], *(value for value in classes if isinstance(value, int))))
        yield from (of("weights", ignored=ignored, weights=hints.weights) for ignored in own)
    if number and not has_places and bool((tensor > 0).all()):
        yield from (of("lengths", shifted=shifted) for shifted in (False, True))
    if number and has_places and bool((tensor >= 0).all()):  # a mask may weigh
        yield of("total")


def _of_mask(has_places: bool, of: Callable[..., Reading]) -> Iterator[Reading]:
    """What a mask lets through, and what it leaves out, as masks of padding are meant."""
    for shifted in (False, True)[: 1 + has_places]:
        yield of("mask", shifted=shifted)
        yield of("outside", shifted=shifted)


def _of_rows(tensor: torch.Tensor, hints: Hints, of: Callable[..., Reading]) -> Iterator[Reading]:
    """Rows, and planes of them, in which something counts: a loss may leave out samples that have nothing."""
    if tensor.dim() < 2 or tensor.shape[1:].numel() < 2:
        return
    if not tensor.is_floating_point() and tensor.dtype != torch.bool:
        yield from (of("filled", ignored=ignored) for ignored in hints.ignored)
    elif tensor.is_floating_point() and bool(tensor.isnan().any()):
        yield of("told")
    if is_mask(tensor) or not tensor.is_floating_point() or bool((tensor >= 0).all()):
        yield of("filled", ignored=0)
        if tensor.dim() > 2:
            yield of("planes", ignored=0)
