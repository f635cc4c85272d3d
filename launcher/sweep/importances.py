"""Which keys decide: PED-ANOVA (Watanabe et al., IJCAI 2023), which needs nothing but the points and their ranks.

A key decides as far as its values among the best points are spread otherwise than among all: the Pearson divergence
of the two densities. It ranks the keys; its shares are no shares of variance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from launcher.sweep.known import Known
from launcher.sweep.space import Parameter, Space

FEWEST = 8  # finished points below which nothing is said
_BEST_SHARE = 0.1
_FEWEST_BEST = 4
_CELLS = 50  # into which a range is cut


def importances(space: Space, known: Sequence[Known]) -> Mapping[str, float] | None:
    """How much each key decides, the most important first; all shares add up to one.

    Args:
        space: The sweep's. Keys that exist only under some alternative are left out.
        known: Points of one length, and how good each was.

    Returns:
        By the recipe's key; None where too little is known.
    """
    finished = [each for each in known if each.rank is not None and math.isfinite(each.rank)]
    if len(finished) < FEWEST or len({each.rank for each in finished}) < 2:
        return None
    finished.sort(key=lambda each: each.rank or 0.0)
    best = finished[: max(_FEWEST_BEST, math.ceil(_BEST_SHARE * len(finished)))]
    always = [parameter for parameter in space.parameters if parameter.choice is None]
    shares = {parameter.key: _divergence(parameter, best, finished) for parameter in always}
    total = sum(shares.values())
    if not total:
        return None
    return {key: share / total for key, share in sorted(shares.items(), key=lambda item: -item[1])}


def _divergence(parameter: Parameter, best: Sequence[Known], every: Sequence[Known]) -> float:
    """The Pearson divergence of a parameter's density among the best from that among all."""
    among_best, among_all = (list(_density(parameter, points)) for points in (best, every))
    return sum(p * (q / p - 1) ** 2 for q, p in zip(among_best, among_all, strict=True))


def _density(parameter: Parameter, points: Sequence[Known]) -> Iterator[float]:
    """How likely each cell, or each alternative, is among some points: with one more that may be anywhere."""
    values = [each.parameters[parameter.name] for each in points]
    if parameter.range is None:
        counts = Counter(values)
        shares = (counts[index] + 1 / parameter.num_choices for index in range(parameter.num_choices))
        yield from (share / (len(values) + 1) for share in shares)
        return
    places = [parameter.range.fraction(value) for value in values]
    weights = [1 / _CELLS] * _CELLS
    width = _width(places)
    for place in places:
        bumps = [math.exp(-0.5 * (((cell + 0.5) / _CELLS - place) / width) ** 2) for cell in range(_CELLS)]
        mass = sum(bumps)
        weights = [weight + bump / mass for weight, bump in zip(weights, bumps, strict=True)]
    yield from (weight / (len(places) + 1) for weight in weights)


def _width(places: Sequence[float]) -> float:
    """A kernel's, by Scott's rule; never less than a cell's half, or a single value would decide."""
    mean = sum(places) / len(places)
    spread = math.sqrt(sum((place - mean) ** 2 for place in places) / max(1, len(places) - 1))
    return max(1.059 * spread / math.pow(len(places), 0.2), 0.5 / _CELLS)
