"""Points of which something is known: what proposals are made from, and what importances are told of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.sweep.record import Parameters


@dataclass(frozen=True)
class Known:
    """A point that a proposal may be made from.

    Attributes:
        parameters: What it is.
        rank: How good it was, the smaller the better; infinite where it failed, None where that is not known yet.
    """

    parameters: Parameters
    rank: float | None


def finite_ranks(known: Sequence[Known]) -> list[float | None]:
    """Ranks with the worst there is in place of what failed; None where nothing is known."""
    worst = max((other.rank for other in known if other.rank is not None and math.isfinite(other.rank)), default=0.0)
    return [None if each.rank is None else each.rank if math.isfinite(each.rank) else worst for each in known]
