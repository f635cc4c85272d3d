"""A run that is tracked without being trained: its lines are written by hand."""

from __future__ import annotations

import gc
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.runs.tracking.tracking import Line, Tracking, open_tracking

CONFIG = {"name": "digits", "optimizer": {"_target_": "AdamW", "lr": 1e-3, "betas": [0.9, 0.999], "foreach": None}}
BEST = ("accuracy", "max")
API_KEY = "0123456789abcdef" * 3


def train_line(step: int, **more: Any) -> Line:
    return {"step": step, "epoch": step / 100, "split": "train", "loss": 1 / step, "lr": 1e-3, **more}


def validation_line(step: int, **more: Any) -> Line:
    return {
        "step": step,
        "epoch": step / 100,
        "split": "validation",
        "loss": 2 / step,
        "accuracy": 1 - 1 / step,
        **more,
    }


def track(run_dir: Path, start_step: int = 0, **options: Any) -> Tracking:
    """A run of 1,000 steps, tracked in `run_dir`."""
    given = {"total_steps": 1000, "trackers": {}, "run_name": "digits", "config": CONFIG, "best": BEST, **options}
    return open_tracking(run_dir=run_dir, start_step=start_step, **given)


def log_steps(tracking: Tracking, first: int, last: int) -> None:
    """Train lines every 10 steps, a validation every 50."""
    for step in range(first, last + 1, 10):
        tracking.log(train_line(step))
        tracking.progress(step)
        if step % 50 == 0:
            tracking.log(validation_line(step))


def strictly(text: str) -> Any:
    """Standard JSON, which has no NaN."""

    def refuse(word: str) -> Any:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def end(tracking: Tracking, outcome: str) -> None:
    """Ends a run as a process ends: wandb writes its last block when Python does."""
    import wandb

    tracking.close(outcome, [])
    wandb.teardown()
    gc.collect()  # warns of a killed helper now, where that is expected


def wandb_records(run_dir: Path) -> Iterator[Any]:
    """All records of all wandb files of a run, oldest file first: LevelDB's log format, read independently."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted(run_dir.glob("wandb/*run-*/run-*.wandb")):
        data, position, whole = path.read_bytes(), 7, b""
        while position + 7 <= len(data):
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", data, position)
            whole += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):
                record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # built when it is imported
                record.ParseFromString(whole)
                yield record
                whole = b""
