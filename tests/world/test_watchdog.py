"""The watch over a rank's progress: what is a stall, and that a save which training waits for is none."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from worlds import in_world

from launcher.checkpoints.format import Snapshot
from launcher.checkpoints.saving import Saving
from launcher.recipe import schema
from launcher.world import progress
from launcher.world.notes import SAVED, SAVING, Notes
from launcher.world.watchdog import Watch
from launcher.world.world import World

STALL = 0.4


def watched(folder: str, what: str) -> bool:
    """Whether the watch raises its alarm while something takes three times as long as a stall."""
    run = Path(folder)
    notes = Notes(run).folder
    notes.mkdir()
    progress.running()
    with Watch(STALL, False, run, World()).watching():
        if what == "a save":
            saving = Saving(schema.Save(background=False), run / "checkpoints", True, capture=captured, warn=print)
            saving.save(1)
            time.sleep(STALL / 2)  # until the next step is made
        elif what == "another rank's save":
            (notes / SAVING).touch()
            time.sleep(3 * STALL)
            (notes / SAVED).touch()
            (notes / SAVING).unlink()
            time.sleep(STALL / 2)
        elif what == "a save that never ends":
            (notes / SAVING).touch()
            os.utime(notes / SAVING, (time.time() - 3600,) * 2)
            time.sleep(3 * STALL)
        else:
            time.sleep(3 * STALL)
    return (notes / "stalled").exists()


def captured(step: int) -> Snapshot:
    """A state that takes long to gather."""
    time.sleep(3 * STALL)
    return Snapshot({"weight": torch.ones(2)}, {"seconds": 1.0}, {"step": step})


@pytest.mark.parametrize(
    ("what", "stalls"),
    [("nothing", True), ("a save that never ends", True), ("a save", False), ("another rank's save", False)],
)
def test_a_save_is_no_stall(tmp_path: Path, what: str, stalls: bool) -> None:
    assert in_world(1, watched, str(tmp_path), what) == [stalls]
    assert not (Notes(tmp_path).folder / SAVING).exists() or what == "a save that never ends"
