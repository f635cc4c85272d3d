"""Trackers that the user's own code speaks to: `wandb.log` in a model works from its first step on, on every rank."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from launcher.recipe.policy import is_installed

SPOKEN_TO = ("wandb",)  # those that have one run for all of a process, which whoever imports them finds
_MOST_BYTES = 2**22


def speaks_to(name: str, folders: Iterable[Path]) -> bool:
    """Whether a file of the user's that was imported names a package.

    Args:
        name: The package's.
        folders: Where the user's own code lies.
    """
    imported = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    files = [Path(file).resolve() for file in imported if file and file.endswith(".py")]
    own = [folder.resolve() for folder in folders]
    return any(_names(file, name) for file in files if any(file.is_relative_to(folder) for folder in own))


def _names(file: Path, name: str) -> bool:
    try:
        if is_installed(file) or file.stat().st_size > _MOST_BYTES:
            return False
        return re.search(rf"\b{name}\b", file.read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False


def stand_in(trackers: Collection[str], folders: Iterable[Path]) -> None:
    """Lets the user's code speak to the recipe's trackers where none of them is open, or not yet: it is not heard.

    The ranks other than 0 track nothing, a rehearsal neither, and a model is built before its run's folder is known.

    Args:
        trackers: Those that the recipe names.
        folders: Where the user's own code lies.
    """
    if "wandb" in trackers and speaks_to("wandb", folders):
        with suppress(ImportError):  # what is not installed is reported where trackers are checked
            import wandb

            if wandb.run is None:
                silence()


def silence() -> None:
    """Gives whoever speaks to wandb a run that hears nothing."""
    import wandb

    with suppress(Exception):  # without it what the user's code says is an error, as it is elsewhere
        wandb.init(mode="disabled", settings=wandb.Settings(silent=True))
