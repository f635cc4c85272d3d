"""The table of what people bring: all its lines, in order."""

from __future__ import annotations

from tests.brought import (
    of_data,
    of_everyday,
    of_losses,
    of_models,
    of_optimizers,
    of_packages,
    of_published,
    of_rarer,
    of_state,
)
from tests.brought.case import CASES

__all__ = [
    "CASES",
    "of_data",
    "of_everyday",
    "of_losses",
    "of_models",
    "of_optimizers",
    "of_packages",
    "of_published",
    "of_rarer",
    "of_state",
]
