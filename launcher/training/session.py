"""A run in progress: its folder and what surrounds the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launcher.checkpoints.saving import Saving
from launcher.evaluation.evaluation import Evaluation
from launcher.evaluation.predictions import Shown
from launcher.runs.record import Record
from launcher.runs.tracking.tracking import Tracking
from launcher.training.pretrained import Pretrained
from launcher.training.profiling import NoProfiling
from launcher.training.triggers import Periods
from launcher.world.signals import stop_requested


@dataclass
class Session:
    """What the loop and the phases after it need besides the model.

    Attributes:
        folder: The run's folder.
        tracking: Where lines go; does nothing on ranks other than 0.
        evaluation: What to do when an evaluation is due.
        saving: What to do when a save is due.
        periods: When they are.
        record: What the run's folder says of how it stands.
        profiling: What looks at the steps on their way.
        start: Steps made before this process started.
        seconds_before: Time trained before this process started.
        until: The step at which this start is to pause; None where that is the run's end.
        shown: The predictions that the report shows, where it is a classifier's.
        pretrained: Writes the folder that `from_pretrained` loads, where there is to be one.
        stopping: Whether this process was asked to stop.
    """

    folder: Path
    tracking: Tracking
    evaluation: Evaluation
    saving: Saving
    periods: Periods
    record: Record
    profiling: NoProfiling = field(default_factory=NoProfiling)
    start: int = 0
    seconds_before: float = 0.0
    until: int | None = None
    shown: Shown | None = None
    pretrained: Pretrained | None = None
    stopping: Callable[[], bool] = stop_requested

    def is_paused(self, done: int) -> bool:
        """Whether a run that has made so many steps is as far as it was to come this time."""
        return self.until is not None and done >= self.until
