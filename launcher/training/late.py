"""What steps change and no state_dict has, in words: at a save, since some of it begins late."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from launcher.training.beside import listed


class Late:
    """Names once what is not at a save what it was before the first step.

    Args:
        changed: Gives that, by name: as a checkpoint keeps it, None of what it cannot.
        keys: Of the things whose attributes are named: the model, losses, optimizers, what is called after a step.
        warn: Gets a line on what has changed.
        noted: Names of those that each forward changes, which were looked at already.
    """

    def __init__(
        self,
        changed: Callable[[], Mapping[str, Any]],
        keys: Collection[str],
        warn: Callable[[str], None],
        noted: Collection[str] | None = None,
    ):
        self._changed, self._warn, self._named = changed, warn, set(noted or ())
        self._places = tuple(f"{key}." for key in keys)
        self._saves = 0

    def look(self) -> None:
        """At the first save, the second, the fourth and so on: where nobody keeps it, all of it is read for this."""
        self._saves += 1
        if not self._places or self._saves & (self._saves - 1):
            return
        changed = {name: kept for name, kept in self._changed().items() if name.startswith(self._places)}
        names = [name for name in changed if name not in self._named]
        self._named |= set(names)
        lost = [name for name in names if changed[name] is None]
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
