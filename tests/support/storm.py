"""A storm: signals at random moments for everybody who belongs to a run, which is started again until it is done."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from worlds import Command, Launched, Trained, result_of

# 0 done, 1 failed, 75 saved, 130 left at once; below zero, and above 128, killed itself
CODES = {0, 1, 75, 130, *(-number for number in signal.valid_signals()), *range(129, 160)}
KINDS = (
    *("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2", "SIGKILL", "SIGSTOP") * 2,
    "SIGUSR1",
)
PEOPLE = ("launcher", "rank", "rank", "child")


@dataclass
class Storm:
    """Signals for one run after the other, all of the same recipe.

    Attributes:
        folder: Where commands are given; it holds the recipe and its code.
        arguments: Of `launcher`, without the run's folder.
        seed: Of what comes when, and to whom.
        patience: Seconds until the first signal of a start, at most.
        pace: Of a forward pass while signals come.
    """

    folder: Path
    arguments: Sequence[str]
    seed: int
    patience: float
    pace: float = 0.02
    sent: list[str] = field(default_factory=list)
    screens: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.temporary, self.memory = Path(tempfile.mkdtemp(dir="/tmp")), self.folder / "m"  # short: it is for sockets
        self.memory.mkdir()

    def run(self, signals: int) -> Iterator[Path]:
        """Sends so many signals; gives the folder of each run that has come to its end."""
        number = 0
        while len(self.sent) < signals:
            run, number = self.folder / f"run{number}", number + 1
            while self._start(run, disturbed=len(self.sent) < signals).code:
                pass
            yield run
            shutil.rmtree(run)

    def undisturbed(self) -> Trained:
        """What comes of it where nothing happens."""
        run = self.folder / "undisturbed"
        self._start(run, disturbed=False)
        return result_of(run)

    def left(self) -> list[str]:
        """What is left in TMPDIR and in shared memory."""
        return [str(path) for folder in (self.temporary, self.memory) for path in folder.rglob("*")]

    def _start(self, run: Path, disturbed: bool) -> Launched:
        pace = {"STORM_PACE": str(self.pace)} if disturbed else {}
        command = Command(
            self.folder,
            *self.arguments,
            f"--run-dir={run}",
            memory=str(self.memory),
            TMPDIR=str(self.temporary),
            **pace,
        )
        if disturbed:
            self._disturb(command)
        ended = command.wait()
        self.screens.append(ended.screen)
        assert ended.code in CODES, ended.screen
        assert disturbed or ended.code == 0, ended.screen
        assert not ended.left, (self.sent[-4:], ended.left, ended.screen)
        assert "Traceback" not in ended.screen, ended.screen
        return ended

    def _disturb(self, command: Command) -> None:
        """Some signals, and a last one that ends it."""
        time.sleep(self.chance.uniform(0.0, self.patience))
        for _ in range(self.chance.randint(1, 5)):
            self._send(command, self.chance.choice(KINDS), self.chance.choice(PEOPLE))
            time.sleep(self.chance.choice((0.0, 0.05, 0.5)))
        with suppress(psutil.Error):
            self._send(command, self.chance.choice(("SIGTERM", "SIGUSR2", "SIGKILL")), "launcher")

    def _send(self, command: Command, name: str, to: str) -> None:
        people = list(_people(command, to))
        if not people:
            return
        process = self.chance.choice(people)
        with suppress(psutil.Error):
            self.sent.append(f"{name} to {to}")
            process.send_signal(getattr(signal, name))
            if name == "SIGSTOP":
                time.sleep(0.3)
                process.send_signal(signal.SIGCONT)


def _people(command: Command, kind: str) -> Iterator[psutil.Process]:
    """Those of a run who are its launcher, its ranks, or processes of the ranks; one process is launcher and rank."""
    own = command.process.pid
    for process in command.family():
        with suppress(psutil.Error):
            parents = [parent.pid for parent in process.parents()]
            depth = parents.index(own) + 1 if own in parents else 0
            if min(depth, 2) == PEOPLE.index(kind) if kind != "child" else depth >= 1:
                yield process
