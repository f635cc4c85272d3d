"""`status.json` and `events.jsonl` of a run: how it stands, and what happened when."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.recipe.masking import masked_in
from launcher.runs.folder import STATUS_FILE, write_json
from launcher.world import faults
from launcher.world.began import BEGAN
from launcher.world.failure_report import FAILURE_FILE
from launcher.world.world import World


class Record:
    """What rank 0 writes; a file that cannot be written is no reason to stop training.

    Args:
        folder: The run's.
        world: Its processes.
        step: Optimizer steps completed before this start.
        total_steps: The run's length; None where it is a time.
        epoch: Passes over the data after so many steps.
    """

    def __init__(self, folder: Path, world: World, step: int, total_steps: int | None, epoch: Callable[[int], float]):
        self._folder, self._epoch = folder, epoch
        self._status: dict[str, Any] = {
            "state": "running",
            "step": step,
            "epoch": round(epoch(step), 6),
            "total_steps": total_steps,
            "world": world.size,
            "host": platform.node(),
            "pid": os.getpid(),
            "job": world.job,
            "started": time.time(),
        }
        with suppress(OSError):
            (folder / FAILURE_FILE).unlink(missing_ok=True)  # of an earlier start
        began = max(BEGAN, time.time() - 3600)  # a notebook's process may be days old
        self.event("resume" if step else "start", step, world=world.size, host=platform.node(), began=began)
        self.write()

    @property
    def state(self) -> str:
        """`running`, `finished`, `stopped` or `failed`."""
        return str(self._status["state"])

    def reached(self, step: int) -> None:
        """So many steps are completed."""
        self._status.update(step=step, epoch=round(self._epoch(step), 6))
        self.write()

    def evaluated(self, step: int, seconds: float) -> None:
        """An evaluation was made."""
        self.event("evaluate", step, seconds=round(seconds, 4))

    def saved(self, step: int, seconds: float, stall: float) -> None:
        """A checkpoint is on disk; training paused for `stall` of the seconds it took."""
        self.event("save", step, seconds=round(seconds, 4), stall=round(stall, 4))

    def event(self, event: str, step: int, **details: Any) -> None:
        """Appends one line to `events.jsonl`."""
        line = {"event": event, "step": step, "time": round(time.time(), 3), **masked_in(details)}
        with suppress(OSError), (self._folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def end(self, state: str, step: int | None = None, weights: int | None = None, **details: Any) -> None:
        """The run ends, for this time.

        Args:
            state: How.
            step: Optimizer steps completed.
            weights: Those that made `model_weights.pth`, which may be the best ones.
            **details: For the event.
        """
        self._status.update(state=state, ended=time.time())
        if step is not None:
            self._status.update(step=step, epoch=round(self._epoch(step), 6))
        if weights is not None:
            self._status["weights"] = {"step": weights, "epoch": round(self._epoch(weights), 6)}
        self.event({"finished": "finish", "stopped": "stop"}.get(state, "fail"), self._status["step"], **details)
        self.write()

    def write(self) -> None:
        """Writes `status.json`, whole or not at all."""
        faults.point("status.write", self._status["step"])
        self._status["updated"] = time.time()
        with suppress(OSError):
            write_json(self._folder / STATUS_FILE, self._status)


class NoRecord(Record):
    """What the other ranks have: the same signature, and nothing is written."""

    def __init__(self) -> None:
        """Holds nothing."""
        self._status = {"state": "running"}

    def reached(self, step: int) -> None:
        """Does nothing."""

    def event(self, event: str, step: int, **details: Any) -> None:
        """Does nothing."""

    def end(self, state: str, step: int | None = None, weights: int | None = None, **details: Any) -> None:
        """Keeps the state."""
        self._status["state"] = state

    def write(self) -> None:
        """Does nothing."""
