"""What a loss is a mean over: known of torch's own, found from its values on pieces of a batch, or not to be found.

A loss that is a mean over a *count* puts together exactly from pieces of any size: the mean of the pieces' values,
weighted by their counts. `decide` looks for the count with which it does so in every trial. How trials are made is
the matter of `launcher.objective.probe`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.errors import LauncherError
from launcher.internals import has_hooks

TOLERANCE = {torch.float64: 2e-6, torch.float32: 5e-5}  # 1e-6 in a denominator passes, 1e-3 does not
Where = tuple[int | str, ...]  # a tensor's place in what is counted: positions and keys
_BY_SAMPLES = ("samples", "sum", "batch")  # counted without reading a batch
_INVALID = (-100, -1, 255)  # what people write for "no class"


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
        untold: What these samples do not tell from it, and others may; in words, taken on trust.
    """

    kind: str
    where: Where = (0,)
    ignored: int = -100
    shifted: bool = False
    name: str = field(default="the targets", compare=False)
    found: str = field(default="measured", compare=False)
    why: str = field(default="", compare=False)
    weights: torch.Tensor | None = field(default=None, compare=False, repr=False)
    function: Callable[[Any], Any] | None = field(default=None, compare=False, repr=False)
    each: float | None = field(default=None, compare=False, repr=False)
    floor: float = field(default=0.0, compare=False, repr=False)
    untold: str = field(default="", compare=False, repr=False)

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
        return self.each is not None or self.kind in _BY_SAMPLES

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
        tensor = parts[0] if self.where == (0,) and type(parts) is tuple else at(parts, self.where)
        if not isinstance(tensor, torch.Tensor):
            raise LauncherError(f"loss: {self.name} should be a tensor to count, and are a {type(tensor).__name__}")
        return COUNTS[self.kind](tensor[:, 1:] if self.shifted else tensor, self)

    def as_found(self, found: str, why: str = "") -> Reading:
        """The same, found otherwise."""
        return replace(self, found=found, why=why)

    def __str__(self) -> str:
        if self.kind == "batch" and self.found == "trusted":
            return "what it is a mean over is not known" + (f": {self.why}" if self.why else "")
        apart = f"; these samples cannot tell it from one over {self.untold}" if self.untold else ""
        return f"{self.words} ({self.found}{f': {self.why}' if self.why else apart})"

    @property
    def words(self) -> str:
        """What it is, in words."""
        if not self.is_mean:
            return "a sum" if self.kind == "sum" else "of the whole batch"
        later = ", the first of each row left out" if self.shifted else ""
        if self.kind == "kept" and self.name != "the targets":
            return f"a mean over the entries of {self.name} that are not {self.ignored}{later}"
        return "a mean over " + _WORDS[self.kind].format(name=self.name, ignored=self.ignored) + later

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        kept = {key: value for key, value in vars(self).items() if key not in ("weights", "function", "each")}
        return {**kept, "where": list(self.where)}

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any], **objects: Any) -> Reading:
        """What `manifest` gave; `weights` and `function` are passed in."""
        return cls(**{**manifest, "where": tuple(manifest["where"])}, **objects)


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


COUNTS: Mapping[str, Callable[[torch.Tensor, Reading], float]] = {
    "samples": lambda tensor, _: float(len(tensor)),
    "rows": lambda tensor, _: float(tensor.shape[0]),
    "elements": lambda tensor, _: float(tensor.numel()),
    "kept": _of_class,
    "weights": _of_weight,
    "mask": lambda tensor, _: float(tensor.double().sum()),
    "present": lambda tensor, _: float(tensor.numel() - int(tensor.isnan().sum())),
    "lengths": lambda tensor, _: float(tensor.sum()),
    "total": lambda tensor, _: float(tensor.double().sum()),
    "positive": lambda tensor, _: float((tensor > 0).sum()),
}
_WORDS = {
    "samples": "samples",
    "rows": "the rows of {name}",
    "elements": "the elements of {name}",
    "kept": "{name} that are not {ignored}",
    "weights": "the class weights of {name}",
    "mask": "what mask {name} lets through",
    "present": "the elements of {name} that are not NaN",
    "lengths": "the lengths {name}",
    "total": "the sum of the weights {name}",
    "positive": "the elements of {name} above zero",
    "user": "a count of your own",
}
# of what fits equally well, which is taken
_ORDER = ("user", "samples", "rows", "elements", "kept", "weights", "present", "mask", "lengths", "total", "positive")


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
        index, weights = getattr(loss, "ignore_index", None), getattr(loss, "weight", None)
        own = (index,) if isinstance(index, int) else ()
        fits = isinstance(weights, torch.Tensor) and weights.dim() == 1
        return cls(tuple(dict.fromkeys((*own, *_INVALID))), weights if fits else None, user)


def candidates(parts: Any, samples: int, hints: Hints, classes: Iterable[int] = ()) -> dict[Reading, float]:
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
                shown = tensor[:, 1:] if reading.shifted else tensor
                counts[reading] = COUNTS[reading.kind](shown, reading)
    return counts


def _shown(where: Where) -> str:
    """A place in words: `'labels'`, `[1]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f"'{key}'" for key in where)


def _of_tensor(
    tensor: torch.Tensor, where: Where, number: int, hints: Hints, classes: Iterable[int]
) -> Iterator[Reading]:
    name = "the targets" if where == (0,) and not hints.of_batches else _shown(where)
    of = functools.partial(Reading, where=where, name=name)
    has_places = tensor.dim() > 1
    yield of("rows")
    yield of("elements")
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        if is_mask(tensor):
            yield from (of("mask", shifted=shifted) for shifted in (False, True)[: 1 + has_places])
        else:
            yield from map(of, ("positive", "present", *(("total",) if bool((tensor >= 0).all()) else ())))
        return
    if number and has_places and is_mask(tensor):
        yield from (of("mask", shifted=shifted) for shifted in (False, True))
    for ignored in dict.fromkeys((*hints.ignored, 0, *classes)):
        yield of("kept", ignored=ignored)
        if has_places:
            yield of("kept", ignored=ignored, shifted=True)
    yield of("positive")
    if hints.weights is not None and not number:
        yield of("weights", ignored=hints.ignored[0], weights=hints.weights)
    if number and not has_places and bool((tensor > 0).all()):
        yield of("lengths")


# ---------------------------------------------------------------------- known: torch's own


def known(function: Any) -> Reading | None:
    """What torch documents of its own loss; None where other code than torch's runs."""
    name, settings = _torch_name(function)
    kind = _OF_TORCH.get(name)
    if kind is None:
        return None
    reduction, weight = settings.get("reduction", "mean"), settings.get("weight")
    why = "torch's own"
    if reduction == "sum":
        return Reading("sum", found="known", why=why)
    if name == "kl_div" and reduction == "batchmean":
        return Reading("rows", found="known", why=why)
    if kind == "kept":
        index = settings.get("ignore_index", -100)
        counted = "kept" if weight is None else "weights"
        return Reading(counted, ignored=index, weights=weight, found="known", why=why)
    return Reading(kind, found="known", why=why)


def reduction_of(function: Any) -> str:
    """How torch's own loss puts its entries together; empty of any other."""
    name, settings = _torch_name(function)
    return str(settings.get("reduction", "mean")) if name else ""


def sums_itself(function: Any) -> bool:
    """Whether torch's own loss is called for a sum: its mean over nothing but ignored targets is NaN."""
    return _OF_TORCH.get(_torch_name(function)[0]) == "kept"


def summing(function: Any) -> Any:
    """The same loss, giving the sum; torch's own alone."""
    if isinstance(function, nn.Module):
        function = copy.copy(function)  # the one that was passed in stays a mean
        function.reduction = "sum"
        return function
    return functools.partial(function, reduction="sum")


_OF_TORCH = {
    **dict.fromkeys(("cross_entropy", "nll_loss"), "kept"),
    **dict.fromkeys(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss"), "elements"),
    **dict.fromkeys(("binary_cross_entropy", "binary_cross_entropy_with_logits", "gaussian_nll_loss"), "elements"),
    **dict.fromkeys(("kl_div", "soft_margin_loss", "hinge_embedding_loss", "margin_ranking_loss"), "elements"),
    **dict.fromkeys(("multi_margin_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss"), "rows"),
    "cosine_embedding_loss": "rows",
    "triplet_margin_loss": "samples",
}
_MODULES = {
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "NLLLoss2d": "nll_loss",
    "MSELoss": "mse_loss",
    "L1Loss": "l1_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
    "PoissonNLLLoss": "poisson_nll_loss",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "GaussianNLLLoss": "gaussian_nll_loss",
    "KLDivLoss": "kl_div",
    "SoftMarginLoss": "soft_margin_loss",
    "HingeEmbeddingLoss": "hinge_embedding_loss",
    "MarginRankingLoss": "margin_ranking_loss",
    "MultiMarginLoss": "multi_margin_loss",
    "MultiLabelMarginLoss": "multilabel_margin_loss",
    "MultiLabelSoftMarginLoss": "multilabel_soft_margin_loss",
    "CosineEmbeddingLoss": "cosine_embedding_loss",
    "TripletMarginLoss": "triplet_margin_loss",
}


def _torch_name(function: Any) -> tuple[str, Mapping[str, Any]]:
    """The function of torch.nn.functional that runs, and its settings; empty where another does."""
    if isinstance(function, nn.Module):
        cls = next((base for base in type(function).__mro__ if "forward" in vars(base)), nn.Module)
        is_torch = cls.__module__ == "torch.nn.modules.loss" and type(function).__call__ is nn.Module.__call__
        if not is_torch or "forward" in vars(function) or has_hooks(function):
            return "", {}
        names = ("reduction", "weight", "ignore_index")
        return _MODULES.get(cls.__name__, ""), {key: getattr(function, key) for key in names if hasattr(function, key)}
    settings: Mapping[str, Any] = {}
    if isinstance(function, functools.partial) and not function.args:
        settings, function = function.keywords, function.func
    name = getattr(function, "__name__", "")
    is_torch = inspect.isfunction(function) and function is getattr(nn.functional, name, None)
    old = {"size_average", "reduce"} & set(settings)
    return (name, settings) if is_torch and not old else ("", {})


# ---------------------------------------------------------------------- measured: from values on pieces


@dataclass(frozen=True)
class Trial:
    """The values of a loss on three pieces of a batch and all their unions, and every count of each.

    Attributes:
        values: By union, a bit for each piece.
        counts: Likewise.
        group: Which samples it was made of.
    """

    values: Mapping[int, float]
    counts: Mapping[int, Mapping[Reading, float]]
    group: int = 0

    @property
    def scale(self) -> float:
        """The largest value."""
        return max(map(abs, self.values.values())) or 1.0

    def splits(self) -> Iterator[tuple[int, int, int]]:
        """Every union with each pair of pieces that it is made of."""
        for union in self.values:
            part = (union - 1) & union
            while part > union - part:
                if part in self.values and union - part in self.values:
                    yield union, part, union - part
                part = (part - 1) & union

    def spread(self) -> float:
        """The largest difference between two parts: without one, any count fits."""
        apart = [abs(self.values[piece] - self.values[other]) for _, piece, other in self.splits()]
        return max(apart, default=0.0) / self.scale

    def misfit_of_sum(self) -> float:
        """How far off the whole a sum of its parts is."""
        values = self.values
        off = [abs(values[union] - values[piece] - values[other]) for union, piece, other in self.splits()]
        return max(off, default=math.inf) / self.scale

    def misfit(self, reading: Reading) -> float:
        """How far off the whole the mean of its parts by this count is, of the largest value."""
        values, counts, worst = self.values, self.counts, 0.0
        for union, piece, other in self.splits():
            a, b = counts[piece][reading], counts[other][reading]
            if a + b == 0:
                off = 0.0 if abs(values[union]) < 1e-12 else self.scale
            else:
                terms = [count * values[part] for count, part in ((a, piece), (b, other)) if count]
                off = abs(values[union] - sum(terms) / (a + b))
            if reading.kind in ("positive", "total"):  # such counts are guesses: they must fit exactly
                off = off if off <= 1e-3 * abs(values[piece] - values[other]) + 1e-9 * self.scale else self.scale
            worst = max(worst, off)
        return worst / self.scale

    def has(self, reading: Reading) -> bool:
        """Whether all its batches have something of the kind to count."""
        return all(reading in counts for counts in self.counts.values())

    def adds_up(self, reading: Reading) -> bool:
        """Whether the count of a union is that of its parts together."""
        counts = self.counts
        return all(
            math.isclose(counts[union][reading], counts[piece][reading] + counts[other][reading], rel_tol=1e-9)
            for union, piece, other in self.splits()
        )


@dataclass(frozen=True)
class Verdict:
    """What trials tell of a loss.

    Attributes:
        reading: What it is, or None.
        reason: Where there is none: `ambiguous`, `unknown`, `constant`, `random`, `failed`.
        detail: In words: the nearest reading and how far off it is, what fits equally, or an error.
        also: What was not told apart from the reading, taken on trust.
    """

    reading: Reading | None
    reason: str = ""
    detail: str = ""
    also: tuple[Reading, ...] = ()


def decide(
    trials: Sequence[Trial],
    injected: Iterable[Trial] = (),
    tolerance: float = TOLERANCE[torch.float64],
    tried: frozenset[Where] | None = frozenset(),
) -> Verdict:
    """What fits all trials.

    Args:
        trials: Of the values as they are, exchanged and shaken, on one set of samples or more.
        injected: Trials that only choose among what fits: one in which nothing fits is of a value that the loss does
            not know.
        tolerance: How far off a fit may be, of the largest value.
        tried: Tensors into which -100 was put; elsewhere nobody knows that it counts. None: nowhere in a whole batch.
    """
    if not trials:
        return Verdict(None, "constant", "no value was finite")
    names = set.intersection(*(set(counts) for trial in trials for counts in trial.counts.values()))
    misfit = {
        reading: max(trial.misfit(reading) for trial in trials)
        for reading in names
        if all(trial.adds_up(reading) for trial in trials)
    }
    of_sum = max(trial.misfit_of_sum() for trial in trials)
    if all(value == 0 for trial in trials for value in trial.values.values()):
        return Verdict(None, "constant", "it is always zero")
    if max(trial.spread() for trial in trials) <= 1e-6:
        return Verdict(None, "constant", "it is the same for all pieces")
    fit = [reading for reading in misfit if misfit[reading] <= tolerance]
    if of_sum <= tolerance:
        return (
            Verdict(None, "ambiguous", _listed(["a sum", *(reading.words for reading in fit)]))
            if fit
            else Verdict(Reading("sum"))
        )
    if not fit:
        return _nothing_fits(trials, misfit, of_sum)
    return _chosen(fit, list(trials), injected, tolerance, tried)


def _nothing_fits(trials: Sequence[Trial], misfit: Mapping[Reading, float], of_sum: float) -> Verdict:
    nearest = min(misfit, key=lambda reading: (misfit[reading], _rank(reading)), default=None)
    is_sum = nearest is None or of_sum < misfit[nearest]
    off = of_sum if nearest is None or is_sum else misfit[nearest]
    detail = f"nearest: {'a sum' if nearest is None or is_sum else nearest.words}, off by {off:.1g}"
    return Verdict(None, "unknown", detail) if _is_some_mean(trials) else Verdict(Reading("batch", why=detail))


def _chosen(
    fit: list[Reading], trials: list[Trial], injected: Iterable[Trial], tolerance: float, tried: frozenset[Where] | None
) -> Verdict:
    for trial in injected:
        still = [
            candidate
            for candidate in fit
            if trial.has(candidate) and trial.adds_up(candidate) and trial.misfit(candidate) <= tolerance
        ]
        if still and trial.spread() > 1e-6:
            fit = still
            trials.append(trial)
    alike = _proportional(fit, trials)
    if len(alike) > 1:
        return Verdict(None, "ambiguous", _listed([min(group, key=_rank).words for group in alike]))
    untried = _labels_of(alike[0]) if tried is None else Reading("kept") if (0,) not in tried else None
    ranked = sorted(alike[0], key=lambda candidate: (candidate != untried, _rank(candidate)))
    if all(reading.kind == "positive" and _is_real(reading, trials) for reading in ranked):
        return Verdict(None, "ambiguous", "it leaves elements out by their value, and which cannot be told")
    return Verdict(ranked[0], also=tuple(ranked[1:]))


def _labels_of(fit: Sequence[Reading]) -> Reading | None:
    """Of what fits alike, that which would be right too if labels of -100 came later."""
    kept = [reading for reading in fit if reading.kind == "kept" and reading.ignored == -100 and not reading.shifted]
    return max(kept, key=lambda reading: ("label" in str(reading.where), str(reading.where)), default=None)


def _is_real(reading: Reading, trials: Sequence[Trial]) -> bool:
    """Whether it counts a tensor of real numbers, of which nobody knows the threshold."""
    return any(Reading("present", reading.where) in counts for trial in trials for counts in trial.counts.values())


def _proportional(fit: Sequence[Reading], trials: Sequence[Trial]) -> list[list[Reading]]:
    """Groups of counts that stand in one proportion in every trial: no number tells them apart."""
    groups: list[tuple[list[float], list[Reading]]] = []
    for reading in sorted(fit, key=_rank):
        shares = [share for trial in trials for share in _shares(trial, reading)]
        for known_shares, group in groups:
            if max(abs(a - b) for a, b in zip(known_shares, shares, strict=True)) < 1e-6:
                group.append(reading)
                break
        else:
            groups.append((shares, [reading]))
    return [group for _, group in groups]


def _shares(trial: Trial, reading: Reading) -> list[float]:
    counts = [count.get(reading, math.nan) for count in trial.counts.values()]
    total = sum(counts) or 1.0
    return [count / total for count in counts]


def _is_some_mean(trials: Sequence[Trial]) -> bool:
    """Whether the weights that the values imply are positive, of one piece each, and the same in all trials."""
    implied: dict[int, list[tuple[float, float, float]]] = {}
    for trial in trials:
        ratios = [_ratio(trial, piece, other) for piece, other in ((1, 2), (2, 4), (1, 4))]
        if not all(ratio > 0 for ratio in ratios) or abs(ratios[0] * ratios[1] / ratios[2] - 1) > 1e-4:
            return False
        implied.setdefault(trial.group, []).append((ratios[0], ratios[1], ratios[2]))
    return bool(implied) and all(
        abs(later_ratio / first - 1) < 1e-4
        for group in implied.values()
        for later in group
        for later_ratio, first in zip(later, group[0], strict=True)
    )


def _ratio(trial: Trial, piece: int, other: int) -> float:
    """Weight of one piece over that of another; not a number where the values do not tell."""
    values = trial.values
    if not {piece, other, piece | other} <= values.keys():
        return math.nan
    below = values[piece] - values[piece | other]
    return (values[piece | other] - values[other]) / below if below else math.nan


def _rank(reading: Reading) -> tuple[Any, ...]:
    ignored = {-100: 0, 0: 2}.get(reading.ignored, 1)
    return _ORDER.index(reading.kind), reading.shifted, ignored, reading.ignored, len(reading.where), str(reading.where)


def _listed(words: Sequence[str]) -> str:
    return f"it may be {', or '.join(words[:4])}"
