"""What steps change and no checkpoint keeps: looked at when a checkpoint is made, since some of it begins late."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from launcher.training.beside import beside_states, changed_names, listed


class Late:
    """Attributes as they were before the first step; what is another at a save is named once.

    Args:
        things: What has them, by key: the model, losses, optimizers, what is called after a step.
        warn: Gets a line on what has changed.
        noted: Names of those that each forward changes, which were looked at already.
    """

    def __init__(self, things: Mapping[str, Any], warn: Callable[[str], None], noted: Collection[str] | None = None):
        self._things, self._warn, self._named = things, warn, set(noted or ())
        self._before = beside_states(things)
        self._saves = 0

    def look(self) -> None:
        """At the first save, the second, the fourth and so on: it reads all of it."""
        self._saves += 1
        if self._saves & (self._saves - 1):
            return
        names = [name for name in changed_names(self._before, beside_states(self._things)) if name not in self._named]
        if names:
            self._named |= set(names)
            self._warn(
                f"{listed(names)}: steps have changed it, and no checkpoint keeps it: where a number depends on it, "
                "a resume gives others; give it by state_dict; of a module, make it a buffer, and of an optimizer keep "
                "it in the state or the param_groups"
            )
