"""One thread a process: several processes at once would drown two cores. Under `.ci/run` nothing may be skipped."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    """Where everything is installed (`.ci/run` as root), a skipped test is a failed one, a GPU alone excepted."""
    report = (yield).get_result()
    if report.skipped and os.environ.get("LAUNCHER_TESTS_SKIP_NOTHING") and "GPU" not in str(report.longrepr):
        report.outcome = "failed"
