"""A schedule of the user's own."""

import math


def inverse_square_root(step: int, *, ramp: int) -> float:
    """As Vaswani et al. 2017 had it: up for `ramp` steps, then down with the root of the step."""
    return min((step + 1) / ramp, math.sqrt(ramp / (step + 1)))
