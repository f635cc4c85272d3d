"""What a loss is a mean over, told from its values on pieces of a batch and on their unions.

A loss that is a mean over a *count* puts together exactly from pieces of any size: the mean of the pieces' values,
weighted by their counts. `decide` looks for the count with which it does so in every trial. How trials are made is
the matter of `launcher.objective.probe`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from launcher.objective.pieces import TINY
from launcher.objective.reading import TOLERANCE, Reading, Where

_EXACTLY, _BESIDE = 1e-12, 0.2  # off the whole: what is rounding, and what a number beside a count may explain
_BESIDES = (*(10.0**power for power in range(-12, 1)), torch.finfo(torch.float32).eps)
_SURELY = 20.0  # tolerances: what is so far off is no rounding
_GUESSES = ("positive", "from zero", "total", "unlike")  # counts that must fit exactly
_EXACT = 1e-11  # what fits to rounding in double precision is not mistaken for what a weak trial lets pass
# of what fits equally well, which is taken
_ORDER = (
    *("user", "samples", "rows", "elements", "kept", "weights", "present", "mask", "outside", "lengths", "total"),
    *("unlike", "from zero", "positive", "filled", "told", "planes"),
)


@dataclass(frozen=True)
class Trial:
    """The values of a loss on three pieces of a batch and all their unions, and every count of each.

    Attributes:
        values: By union, a bit for each piece.
        counts: Likewise.
        group: Which samples it was made of.
        put: A value that was put into a tensor, where these samples lack it there.
    """

    values: Mapping[int, float]
    counts: Mapping[int, Mapping[Reading, float]]
    group: int = 0
    put: tuple[Where, float] | None = None

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

    @property
    def is_flat(self) -> bool:
        """Whether it tells nothing."""
        return self.spread() <= 1e-6

    def misfit_of_sum(self) -> float:
        """How far off the whole a sum of its parts is."""
        values = self.values
        off = [abs(values[union] - values[piece] - values[other]) for union, piece, other in self.splits()]
        return max(off, default=math.inf) / self.scale

    def misfit(self, reading: Reading) -> float:
        """How far off the whole the mean of its parts by this count is, of the largest value."""
        values, counts, worst = self.values, self.counts, 0.0
        for union, piece, other in self.splits():
            a, b = (counts[part][reading] + reading.beside for part in (piece, other))
            if a + b == 0:
                off = 0.0 if abs(values[union]) < 1e-12 else self.scale
            else:
                terms = [count * values[part] for count, part in ((a, piece), (b, other)) if count]
                off = abs(values[union] - sum(terms) / (a + b - reading.beside))
            if reading.kind in _GUESSES:
                off = off if off <= 1e-3 * abs(values[piece] - values[other]) + 1e-9 * self.scale else self.scale
            worst = max(worst, off)
        return worst / self.scale

    def beside(self, reading: Reading) -> float:
        """What is added to the count, as far as the values tell it: as in `sum / (count + 1e-8)`."""
        values, counts = self.values, self.counts
        told, best = 0.0, 0.0
        for union, piece, other in self.splits():
            below = values[union] - values[piece] - values[other]
            if abs(below) > best:
                sums = [counts[part][reading] * values[part] for part in (piece, other, union)]
                best, told = abs(below), (sums[0] + sums[1] - sums[2]) / below
        return told

    def has(self, reading: Reading) -> bool:
        """Whether all its batches have something of the kind to count."""
        return all(reading in counts for counts in self.counts.values())

    def counts_in_all(self, reading: Reading) -> bool:
        """Whether something counts in each of its batches: else what a loss is divided by at least would refute it."""
        return all(counts[reading] for counts in self.counts.values())

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
        also: What was not told apart from the reading, taken on trust; of ambiguous ones, all that fit.
        off: How far off the whole the mean by each count is, of the largest value.
    """

    reading: Reading | None
    reason: str = ""
    detail: str = ""
    also: tuple[Reading, ...] = ()
    off: Mapping[Reading, float] = field(default_factory=dict, compare=False, repr=False)

    def fitting(self) -> tuple[Reading, ...]:
        """All that fits."""
        return (self.reading, *self.also) if self.reading is not None else self.also

    @property
    def is_misfit(self) -> bool:
        """Whether values were measured, and no count puts pieces together."""
        return self.reason == "unknown" or (self.reading is not None and self.reading.kind == "batch")


def decide(
    trials: Sequence[Trial],
    injected: Iterable[Trial] = (),
    tolerance: float = TOLERANCE[torch.float64],
    tried: frozenset[Where] | None = frozenset(),
    *,
    may_drop: bool = False,
) -> Verdict:
    """What fits all trials.

    Args:
        trials: Of the values as they are, exchanged and shaken, on one set of samples or more.
        injected: Trials that only choose among what fits: where nothing does, the reading holds unless such a value
            comes.
        tolerance: How far off a fit may be, of the largest value.
        tried: Tensors into which -100 was put; elsewhere nobody knows that it counts. None: nowhere in a whole batch.
        may_drop: Whether batches may have fewer samples than they were asked for: then what came is counted.
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
    if all(trial.is_flat for trial in trials):
        return Verdict(None, "constant", "it is the same for all pieces")
    fit = [reading for reading in misfit if misfit[reading] <= tolerance]
    if tolerance == TOLERANCE[torch.float64]:
        fit = [_exact(reading, trials, misfit[reading]) for reading in fit] or [
            exact for reading in misfit if (exact := _exact(reading, trials, misfit[reading])).beside
        ]
    if of_sum <= tolerance:
        words = _listed(["a sum", *(reading.words for reading in fit)])
        return Verdict(None, "ambiguous", words, (Reading("sum"), *fit)) if fit else Verdict(Reading("sum"))
    if not fit:
        return replace(_nothing_fits(trials, misfit, of_sum), off=misfit)
    return replace(_chosen(fit, list(trials), injected, tolerance, tried, may_drop=may_drop), off=misfit)


def _exact(reading: Reading, trials: Sequence[Trial], misfit: float) -> Reading:
    """The reading with the small number beside its count, as in `sum / (count + 1e-8)`, where there is one."""
    if misfit < _EXACTLY or misfit > _BESIDE:
        return reading
    told = max(trials, key=Trial.spread).beside(reading)
    beside = next((number for number in _BESIDES if abs(told / number - 1) < 0.01), 0.0)
    exact = replace(reading, beside=beside)
    return exact if beside and max(trial.misfit(exact) for trial in trials) < max(_EXACTLY, 1e-3 * misfit) else reading


def _nothing_fits(trials: Sequence[Trial], misfit: Mapping[Reading, float], of_sum: float) -> Verdict:
    told = [reading for reading in misfit if reading.kind != "kept" or reading.ignored in (-100, -1, 0, 255)]
    nearest = min(told, key=lambda reading: (misfit[reading], _rank(reading)), default=None)
    is_sum = nearest is None or of_sum < misfit[nearest]
    off = of_sum if nearest is None or is_sum else misfit[nearest]
    detail = f"nearest: {'a sum' if nearest is None or is_sum else nearest.words}, off by {off:.1g}"
    return Verdict(None, "unknown", detail) if _is_some_mean(trials) else Verdict(Reading("batch", why=detail))


def _chosen(
    fit: list[Reading],
    trials: list[Trial],
    injected: Iterable[Trial],
    tolerance: float,
    tried: frozenset[Where] | None,
    *,
    may_drop: bool,
) -> Verdict:
    unless: dict[tuple[Where, float], None] = {}
    from_zero: set[Where] = set()  # the tensors of which what is above zero counts, however little it is
    for trial in injected:
        off = {reading: trial.misfit(reading) for reading in fit if trial.has(reading) and trial.adds_up(reading)}
        if trial.is_flat:
            continue
        if still := [reading for reading in off if off[reading] <= tolerance]:
            fit = still
            trials.append(trial)
            from_zero |= {trial.put[0]} if trial.put is not None and trial.put[1] == TINY else set()
        elif trial.put is not None and trial.put[1] != TINY:
            told = [off[reading] for reading in off if trial.counts_in_all(reading)]
            if min(told, default=0.0) > _SURELY * tolerance:
                unless[trial.put] = None
    exact = [reading for reading in fit if max(trial.misfit(reading) for trial in trials) <= _EXACT]
    alike = _proportional(exact or fit, trials)
    if len(alike) > 1:
        return Verdict(None, "ambiguous", _listed([min(group, key=_rank).words for group in alike]), tuple(fit))
    untried = _labels_of(alike[0]) if tried is None else Reading("kept") if (0,) not in tried else None
    came = _as_many_as_samples(alike[0], trials) if may_drop else frozenset()
    ranked = sorted(alike[0], key=lambda reading: (reading != untried, reading not in came, _rank(reading)))
    is_guess = [reading.kind == "positive" and reading.where not in from_zero for reading in ranked]
    if all(is_guess) and all(_is_real(reading, trials) for reading in ranked):
        detail = "it leaves elements out by their value, and which cannot be told"
        return Verdict(None, "ambiguous", detail, tuple(ranked))
    return Verdict(replace(ranked[0], unless=tuple(unless)), also=tuple(ranked[1:]))


def _as_many_as_samples(fit: Sequence[Reading], trials: Sequence[Trial]) -> frozenset[Reading]:
    """Of rows, those that there are one of for each sample that was asked for: they tell how many came."""
    samples = Reading("samples")
    return frozenset(
        reading
        for reading in fit
        if reading.kind == "rows"
        and all(counts[reading] == counts[samples] for trial in trials for counts in trial.counts.values())
    )


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
    ignored = 0 if reading.ignored == -100 else 2 if reading.ignored == 0 else 1
    return _ORDER.index(reading.kind), reading.shifted, ignored, reading.ignored, len(reading.where), str(reading.where)


def _listed(words: Sequence[str]) -> str:
    return f"it may be {', or '.join(words[:4])}"
