"""The recipes that travel in the package."""

from __future__ import annotations

import re
import shutil
from collections.abc import Container
from itertools import takewhile
from pathlib import Path

from launcher.errors import UsageError
from launcher.text import hint
from launcher.version import PACKAGE


def folder() -> Path:
    """Where they are: inside an installed package, or beside it in a checkout."""
    installed = PACKAGE / "_recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def shipped() -> dict[str, str]:
    """Name and first sentence of each recipe; a folder's is that of its `recipe.yaml`."""
    return {name: _first_sentence(path.read_text(encoding="utf-8")) for name, path in sorted(_files().items())}


def names() -> Container[str]:
    """What the recipes are called."""
    return _files()


def _files() -> dict[str, Path]:
    recipes = {path.stem: path for path in folder().glob("*.yaml")}
    return {**recipes, **{path.parent.name: path for path in folder().glob("*/recipe.yaml")}}


def _first_sentence(text: str) -> str:
    """What a recipe is for: its comment, up to the commands, begins with that."""
    lines = takewhile(lambda line: re.match("# [^ ]", line), text.splitlines())
    return " ".join(line.removeprefix("# ") for line in lines).partition(". ")[0].removesuffix(".")


def copy(name: str, into: Path | None = None) -> list[Path]:
    """Copies a recipe, or a recipe's folder, into the working directory; never over something.

    Returns:
        The files written.

    Raises:
        UsageError: There is no such recipe, or a file of that name exists.
    """
    into = into or Path()
    name = name.removesuffix(".yaml")
    known = shipped()
    if name not in known:
        raise UsageError(f"there is no recipe '{name}'{hint(name, known, 'there are: ' + ', '.join(known))}")
    file, whole = folder() / f"{name}.yaml", folder() / name
    target = into / (file.name if file.is_file() else name)
    if target.exists():
        raise UsageError(f"{target} exists already; move it, or copy from another folder")
    try:
        if file.is_file():
            _copy_text(file, target)
            return [target]
        ignored = shutil.ignore_patterns("__pycache__", "runs")
        shutil.copytree(whole, target, ignore=ignored, copy_function=_copy_text)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}") from error
    return sorted(path for path in target.rglob("*") if path.is_file())


def _copy_text(source: str | Path, target: str | Path) -> None:
    """Copies a file of the recipes; the commands in its comments are then those for where it lies."""
    text = Path(source).read_text(encoding="utf-8")
    Path(target).write_text(text.replace(" recipes/", " "), encoding="utf-8")
