"""One thread a process: several processes at once would drown two cores. Under `.ci/run` nothing may be skipped.

Tests marked `long` are left out and counted unless `--long` is given; those files that take longest are run first.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import launcher

os.environ.setdefault("OMP_NUM_THREADS", "1")
# as a shell's background job has it, and so what tests start would
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's affair
hypothesis.settings.load_profile("untimed")
_PACKAGE = str(Path(launcher.__file__).parent)
# in this order, before all others. Those of a cluster mostly wait, while the others compute; the last file of all
# should be a short one, as the other workers wait for it
_SLOWEST = (
    "launch/slurm/test_cluster.py",
    "launch/slurm/test_bad_days.py",
    "training/test_resume.py",
    "brought/test_brought.py",
    "training/test_sharded.py",
    "sweep/test_pool.py",
    "test_recipes.py",
    "launch/test_failures.py",
    "world/test_waiting.py",
    "checkpoints/test_state_kept.py",
    "runs/tracking/test_wandb.py",
    "evaluation/test_evaluation.py",
    "runs/test_bad_days.py",
    "launch/test_signals.py",
    "training/test_run.py",
    "world/test_environments.py",
    "training/test_micro_batch.py",
    "training/test_ways.py",
    "model/test_compiled.py",
    "device/test_lazy_compiler.py",
    "checkpoints/test_checkpoints.py",
    "checks/test_rehearsal.py",
    "training/test_worlds.py",
    "launch/test_script.py",
    "data/test_split_by_rank.py",
    "checks/test_verify_resume.py",
)
_left_out = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`."""
    parser.addoption("--long", action="store_true", help="run the tests marked long too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the long tests out, and puts the slowest files first."""
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in set(long)]
        config.hook.pytest_deselected(items=long)
        config.stash[_left_out] = len(long)
    places = {Path(__file__).parent / name: number for number, name in enumerate(_SLOWEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tells the process that started this one, where there is one, how many were left out: it collects none itself."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash.get(_left_out, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes that number: all workers collect the same tests."""
    node.config.stash[_left_out] = getattr(node, "workeroutput", {}).get("left_out", 0)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what was left out, after all else."""
    if left_out := terminalreporter.config.stash.get(_left_out, 0):
        terminalreporter.write_line(f"… and {left_out} long tests left out: scripts/test --long")


@contextmanager
def _imports_forgotten() -> Iterator[None]:
    """Forgets what was imported from files that are no package's: each project may have a `parts.py` of its own."""
    path, known, bytecode = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    yield
    sys.path[:] = path
    sys.dont_write_bytecode = bytecode
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file and "site-packages" not in file and not file.startswith((sys.base_prefix, _PACKAGE)):
            del sys.modules[name]


@pytest.fixture(autouse=True, scope="module")
def fresh_imports_of_a_file() -> Iterator[None]:
    """Forgets what a whole file's fixtures imported: another file may run after it in the same process."""
    with _imports_forgotten():
        yield


@pytest.fixture(autouse=True)
def fresh_imports() -> Iterator[None]:
    """Forgets what one test imported."""
    with _imports_forgotten():
        yield


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
