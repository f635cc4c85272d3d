"""What steps change and no state_dict has: looked at when a checkpoint is made, since some of it begins late."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from launcher.training.beside import beside_states, changed_names, held_beside, listed, prints_of
from launcher.training.kept_beside import Keeper


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
        held = held_beside(self._things)
        names = [name for name in changed_names(self._before, prints_of(held, self._things)) if name not in self._named]
        self._named |= set(names)
        keeper = Keeper(self._things)
        lost = [name for name in names if keeper.kept_of(held[name].value) is None]
        if lost:
            self._warn(
                f"{listed(lost)}: steps have changed it, and no checkpoint keeps it: where a number depends on it, "
                "a resume gives others; give it by state_dict; of a module, make it a buffer, and of an optimizer keep "
                "it in the state or the param_groups"
            )
        kept = [name for name in names if name.startswith("model.") and name not in lost]
        if kept:
            self._warn(
                f"{listed(kept)}: steps have changed it, and no state_dict has it: checkpoints keep it for a resume, "
                "and model_weights.pth is without it; make it a persistent buffer, or give it by get_extra_state"
            )
