"""How a run is started, as far as the recipe does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.recipe.duration import Duration


@dataclass(frozen=True)
class Options:
    """What the command line decides about one run.

    Attributes:
        cpu: Use the CPU even if there is a GPU.
        run_dir: The run's folder, resumed if it holds a checkpoint; None chooses one.
        resume: Without `run_dir`: resume the newest unfinished run of this recipe, or start one.
        start: Which checkpoint to resume from: `best`, a step, or None for the newest.
        until: How far to train this time, an evaluation and a checkpoint included; None is to the end.
        allow: Further packages that the recipe may name.
        allow_changes: Keys of the recipe that may differ from the resumed run's.
        output: What the terminal shows: `auto`, `quiet` or `json`.
        profile: The first step to be profiled, and the first one after them.
        how: What started the run, for `environment.json`: enough to start it again.
    """

    cpu: bool = False
    run_dir: str | None = None
    resume: bool = False
    start: str | None = None
    until: Duration | None = None
    allow: tuple[str, ...] = ()
    allow_changes: tuple[str, ...] = ()
    output: str = "auto"
    profile: tuple[int, int] | None = None
    how: Mapping[str, Any] = field(default_factory=dict)
