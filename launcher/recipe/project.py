"""A user's project: making one, and what its pyproject.toml says for all its recipes."""

from __future__ import annotations

import functools
import re
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.recipe.directory import directory
from launcher.text import brief, hint

_KEYS = ("allow", "code", "bases")
_TEMPLATES = Path(__file__).parent / "templates"
SITE_VARIABLE = "LAUNCHER_SITE"
SITE_PLACES = (Path("~/.config/launcher/site.yaml"), Path("/etc/launcher/site.yaml"))


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


def named_paths(key: str, folder: Path | None = None) -> tuple[Path, ...]:
    """The files and folders of a list in [tool.launcher] of the working directory's pyproject.toml, resolved.

    Args:
        key: `code`, what may be called by a recipe that lies elsewhere; or `bases`, what such a recipe may build on.
        folder: Where pyproject.toml is; None is the working directory.

    Raises:
        UsageError: It is not a list of paths, or the file cannot be read.
    """
    path = (folder or Path()) / "pyproject.toml"
    listed = _project(path).get(key, [])
    if not isinstance(listed, list) or not all(isinstance(entry, str) and entry for entry in listed):
        raise UsageError(f"{path}: tool.launcher.{key} must be a list of files and folders, as in {key} = ['src']")
    return tuple((path.parent / Path(entry).expanduser()).resolve() for entry in listed)


def own_code(recipe_folder: Path, working: Path | None = None) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Whose Python files a recipe may call: those beside or below it, of its project, and those that are named.

    Args:
        recipe_folder: The recipe's, or that of the base that names the file.
        working: Where the user works; None is the working directory.

    Returns:
        Folders and files that are the user's own; and the folders in which names are looked up.

    Raises:
        UsageError: The working directory's pyproject.toml cannot be read.
    """
    folder, here = recipe_folder.resolve(), (working or directory()).resolve()
    named = named_paths("code", here)
    project = project_of(folder)
    own: list[Path] = [folder]
    places = [folder]
    if project is not None and here.is_relative_to(project):
        own, places = [project], [folder, here, project]
    elif _is_anybodys(folder):
        own = []
    elif _holds_home(folder):  # all of one's files lie below
        own = sorted(file.resolve() for file in folder.glob("*.py"))
    places += [path for path in (here, *named) if named and path.is_dir()]
    return tuple(dict.fromkeys((*own, *named))), tuple(dict.fromkeys(places))


def project_of(folder: Path) -> Path | None:
    """The nearest folder, this one or above it, with a pyproject.toml or .git; None where there is none.

    The home folder is none, though some keep it under git: not all that lies in it belongs together.
    """
    for place in (folder, *folder.parents):
        if _holds_home(place) or _is_anybodys(place):
            return None
        if (place / "pyproject.toml").is_file() or (place / ".git").exists():
            return place
    return None


def _is_anybodys(folder: Path) -> bool:
    """Whether what lies in a folder may be from anybody: one like /tmp, or where a browser puts downloads."""
    try:
        shared = bool(folder.stat().st_mode & stat.S_ISVTX and folder.stat().st_mode & stat.S_IWOTH)
    except OSError:
        shared = False
    home = _home()
    return shared or (home is not None and folder == (home / "Downloads").resolve())


def _home() -> Path | None:
    """The user's home folder; None in a container whose user has none."""
    try:
        return Path.home().resolve()
    except RuntimeError:
        return None


def _holds_home(folder: Path) -> bool:
    home = _home()
    return home is not None and home.is_relative_to(folder)


def is_own_recipe(path: Path, recipe: Path) -> bool:
    """Whether a recipe may build on a file without its being named: one below it, of its project, below the working
    directory where the recipe is too, or of the package.

    Args:
        path: The base, resolved.
        recipe: The recipe that leads to it.
    """
    from launcher.recipe.shipped import folder as shipped_recipes

    folder, here = recipe.parent.resolve(), directory().resolve()
    is_below = folder.is_relative_to(here) and not (_is_anybodys(here) or _holds_home(here))
    places = (folder, project_of(folder), shipped_recipes().resolve(), here if is_below else None)
    return any(place is not None and path.is_relative_to(place) for place in places)


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, time_ns: int, size: int) -> dict[str, Any]:
    """A file as it was at a time: it is asked for once for each component."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _project(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        state = path.stat()
        whole = _parsed(path.absolute(), state.st_mtime_ns, state.st_size)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; fix the file, as it may hold [tool.launcher]") from error
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
    from launcher.recipe.schema import NAME_PATTERN  # pydantic, which reading does not need
    from launcher.recipe.show import scalar

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
        raise UsageError(f"{folder} exists already; choose another name, or move it") from None
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror or error}") from error
    return [folder / file for file in names]
