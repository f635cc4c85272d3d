"""A user's project: making one, and what its pyproject.toml says for all its recipes."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.recipe.schema import NAME_PATTERN
from launcher.recipe.show import scalar
from launcher.text import brief, hint

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KEYS = ("allow",)
_TEMPLATES = Path(__file__).parent / "templates"


def allowed_packages(flags: Sequence[str] = (), folder: Path | None = None) -> tuple[str, ...]:
    """The packages that recipes may name besides the list: those of `--allow`, and those of the project.

    Args:
        flags: What `--allow` said.
        folder: Where pyproject.toml is; None is the working directory.

    Raises:
        UsageError: One is not the name of a package, or the file cannot be read.
    """
    path = (folder or Path()) / "pyproject.toml"
    project = _project(path).get("allow", [])
    if not isinstance(project, list) or not all(isinstance(name, str) for name in project):
        raise UsageError(f"{path}: tool.launcher.allow must be a list of packages, as in allow = ['timm']")
    for source, names in (("--allow", flags), (f"{path}: tool.launcher.allow", project)):
        for name in names:
            if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
                raise UsageError(f"{source}: '{brief(name)}' is not a package; write its name as one imports it")
    return tuple(dict.fromkeys([*flags, *project]))


def _project(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        whole = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read: {error}; mend the file, as [tool.launcher] may stand in it"
        ) from error
    section = whole.get("tool", {}).get("launcher", {}) if isinstance(whole.get("tool", {}), dict) else {}
    if not isinstance(section, dict):
        raise UsageError(f"{path}: tool.launcher must be a table; write [tool.launcher]")
    for key in section:
        if key not in _KEYS:
            known = hint(key, _KEYS, f"it has: {', '.join(_KEYS)}")
            raise UsageError(f"{path}: tool.launcher has no '{brief(key)}'{known}")
    return section


def create(name: str, into: Path | None = None) -> list[Path]:
    """Makes a project: a folder with a recipe, a model, a data set and a test.

    Args:
        name: Of the folder, and in the recipe.
        into: Where to make it; None is the working directory.

    Returns:
        The files written.

    Raises:
        UsageError: The name cannot be one, or something of that name exists.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        allowed = "letters, digits, '.', '_' and '-', at most 128, the first a letter or digit"
        raise UsageError(f"'{brief(name)}' cannot be a project's name; use {allowed}")
    folder, templates = (into or Path()) / name, _TEMPLATES
    names = sorted(path.name for path in templates.iterdir() if path.is_file() and path.name != "__init__.py")
    try:
        folder.mkdir()
        for file in names:
            text = (templates / file).read_text(encoding="utf-8")
            (folder / file).write_text(text.replace("name: NAME", f"name: {scalar(name)}"), encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{folder} exists; it is left as it is. Choose another name, or move it") from None
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror or error}") from error
    return [folder / file for file in names]
