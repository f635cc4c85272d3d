"""The tables that scikit-learn brings, read where they lie."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]


def bundled(file: str, otherwise: Callable[[], Table], delimiter: str | None = None) -> Table:
    """A table of numbers of scikit-learn's, which is not imported: that takes nearly as long as torch, in each process.

    Args:
        file: Its name among those.
        otherwise: Gives the table where there is no such file.
        delimiter: What stands between two numbers; None for spaces.
    """
    package = find_spec("sklearn")
    path = Path(package.origin).parent / "datasets" / "data" / file if package and package.origin else None
    return np.loadtxt(path, delimiter=delimiter) if path is not None and path.is_file() else otherwise()
