"""Two tiers of a test: *plain* always runs; *long* is the same code in more rounds (`scripts/test --long`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def rounds(names: str, *, plain: Iterable[Any], long: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test: with `plain` always, with `long` where the long tests run."""
    return pytest.mark.parametrize(names, [*plain, *map(_long, long)])


def _long(values: Any) -> Any:
    return pytest.param(*(values if isinstance(values, tuple) else (values,)), marks=pytest.mark.long)
