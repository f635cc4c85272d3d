"""`launcher.runs()`: the package of that name can be called."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from launcher.recipe.package import make_callable

if TYPE_CHECKING:
    from launcher.runs.reading import Run


def runs(name: str | os.PathLike[str] | None = None) -> list[Run]:
    """The runs of a folder or of a name, the newest first.

    Args:
        name: A folder, or a run's name as on the command line; None means all that `launcher runs` lists.

    Raises:
        UsageError: There is no such folder or run.
    """
    from dataclasses import replace

    from launcher.runs import naming

    return [replace(run, folder=run.folder.absolute()) for run in naming.runs(name)]


make_callable("launcher.runs", runs)
