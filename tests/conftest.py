"""One thread a process: several processes at once would drown two cores. Under `.ci/run` nothing may be skipped."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import launcher

os.environ.setdefault("OMP_NUM_THREADS", "1")
_PACKAGE = str(Path(launcher.__file__).parent)


@pytest.fixture(autouse=True)
def fresh_imports() -> Iterator[None]:
    """Forgets what a test imported from files that are no package's: each project may have a `parts.py` of its own."""
    path, known, bytecode = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    yield
    sys.path[:] = path
    sys.dont_write_bytecode = bytecode
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file and "site-packages" not in file and not file.startswith((sys.base_prefix, _PACKAGE)):
            del sys.modules[name]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    """Where everything is installed (`.ci/run` as root), a skipped test is a failed one, a GPU alone excepted."""
    report = (yield).get_result()
    if report.skipped and os.environ.get("LAUNCHER_TESTS_SKIP_NOTHING") and "GPU" not in str(report.longrepr):
        report.outcome = "failed"


# what tells a process of a world, or of a run: found by a later test's processes, it would be theirs
_OF_A_WORLD = re.compile(r"(.*_)?(RANK|WORLD_SIZE)$|(MASTER|TORCHELASTIC|ACCELERATE|SLURM|LAUNCHER)_")


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_environment() -> Iterator[None]:
    """A test that leaves such variables behind fails itself, not one that happens to come after it."""
    before = _of_a_world()
    yield
    assert _of_a_world() == before


def _of_a_world() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _OF_A_WORLD.match(name)}
