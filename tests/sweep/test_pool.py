"""Sweeps by real processes: killed, stopped, joined and grown, they come to what an undisturbed one comes to."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from places import TINY
from tiers import rounds
from worlds import Command

from launcher.runs.tracking.tracking import read_metrics
from launcher.sweep.begin import Asked, opened, sought
from launcher.sweep.halving import counted
from launcher.sweep.record import Record
from launcher.sweep.starter import Starter
from launcher.sweep.work import work_off

# 20 steps a trial, each of some 30 ms
FIXED = (
    "train.epochs=5",
    "data.train={_target_: parts.py:Noisy, seconds: 0.002}",
    "data.validation={_target_: parts.py:WholeNumbers, size: 23, seed: 2}",
    "data.workers=0",
    "save.every=2 steps",
)
SPACES = {
    "grid": ("optimizer.lr=1e-3,3e-3,1e-2,3e-2,1e-1,3e-1",),
    "random": ("optimizer.lr=1e-4..1:log", "model.dropout=0..0.5"),
    "tpe": ("optimizer.lr=1e-4..1:log", "model.dropout=0..0.5"),
    "halving": ("optimizer.lr=1e-4..1:log",),
}
METHODS = tuple(SPACES)


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    """One for all sweeps of this process: most of a short sweep is its imports."""
    with closing(Starter()) as shared:
        yield shared


def asked(folder: Path, method: str, *words: str, trials: int = 6, slots: int = 2, **more: Any) -> Asked:
    return Asked(
        recipe=str(TINY),
        words=(*FIXED, *SPACES[method], *words),
        run_dir=str(folder / "sweep"),
        trials=trials,
        parallel=slots,
        method=method,
        lag=4,
        cpu=True,
        **more,
    )


def swept(wanted: Asked, starter: Starter, **options: Any) -> Record:
    """A sweep that is begun or gone on with in this process, and comes to its end."""
    new = sought(wanted)
    record = opened(new)
    assert work_off(record, new.space, new.recipe, new.slots, starter=starter, **options) == "complete"
    return record


def command(wanted: Asked, *flags: str) -> Command:
    """The same on the command line, as a process of its own."""
    folder = Path(wanted.run_dir or "")
    given = ("--method", wanted.method, "--trials", wanted.trials, "--lag", wanted.lag, "--parallel", wanted.parallel)
    words = ("sweep", wanted.recipe, *wanted.words, "--cpu", "--run-dir", folder, *given, *flags)
    return Command(folder.parent, *map(str, words))


def done(command: Command, code: int = 0) -> str:
    ended = command.wait()
    assert ended.code == code, ended.screen
    assert not ended.left, "a process was left behind"
    return ended.screen


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines_of(folder: Path) -> int:
    """How far a sweep is."""
    path = folder / "sweep" / "record.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def curve(record: Record, trial: int) -> list[dict[str, Any]]:
    """A trial's figures, as they are read of its run."""
    lines = read_metrics(record.folder_of(trial) / "metrics.jsonl")
    return [{key: line.get(key) for key in ("step", "split", "loss", "lr")} for line in lines]


def assert_same(record: Record, other: Record) -> None:
    """Two sweeps have the same trials, values, members of each rung and curves; the same weights are left."""
    assert {n: t.parameters for n, t in record.trials.items()} == {n: t.parameters for n, t in other.trials.items()}
    for rung in range(other.settings.num_rungs):
        assert counted(record, rung) == counted(other, rung)
        for point in counted(other, rung):
            assert record.trials[point].values[rung] == other.trials[point].values[rung]
    for number in other.trials:
        both = curve(record, number), curve(other, number)
        shorter = min(map(len, both))
        assert shorter
        assert both[0][:shorter] == both[1][:shorter]
    if other.settings.method != "halving":  # there one that was taken early may be left as well
        assert left(record) == left(other)


def left(record: Record) -> list[str]:
    """The trials whose weights are still there."""
    return sorted(path.parent.name for path in record.folders.glob("*/model_weights.pth"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, starter: Starter) -> Callable[[str], Record]:
    """The sweep that nothing happened to, by its method."""
    return cache(lambda method: swept(asked(tmp_path_factory.mktemp(method), method), starter))


@rounds("method, kills", plain=[(method, 1) for method in METHODS], long=[(method, 10) for method in METHODS])
def test_killed_at_random_moments_and_resumed(
    tmp_path: Path, method: str, kills: int, undisturbed: Callable[[str], Record], starter: Starter
) -> None:
    """With one, two and three slots; a kill is of the sweep, or first of one of its trials."""
    expected = undisturbed(method)
    moments, whole = random.Random(kills + METHODS.index(method)), expected.lines
    for number in range(kills):
        wanted = min(whole - 1, max(3, round(moments.uniform(number, number + 1) / kills * whole)))
        running = command(asked(tmp_path, method, slots=1 + (number + 1) % 3))
        until(lambda: lines_of(tmp_path) >= wanted or not running.process.is_alive())  # noqa: B023
        time.sleep(moments.uniform(0, 0.5))
        if number % 3 == 2 and (trials := trials_of(running)):
            moments.choice(trials).kill()
            time.sleep(0.3)
        if running.process.is_alive():
            os.kill(running.process.pid, signal.SIGKILL)
        assert not running.wait().left, "trials outlived their sweep"
    assert_same(swept(asked(tmp_path, method, slots=3), starter), expected)


def trials_of(running: Command) -> list[psutil.Process]:
    """The processes of its trials."""
    mine = [process for process in running.family() if process.pid != running.process.pid]
    return [process for process in mine if (parent := process.parent()) is not None and parent in mine]
