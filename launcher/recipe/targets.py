"""From the name that a recipe says to the class or function that it means.

Importing a module runs it: only the user's own files, what lies on the list, and what the user allowed are
imported. Nothing here imports torch by itself; a target of torch does.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import importlib.util
import inspect
import linecache
import os
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from launcher.errors import LauncherError
from launcher.recipe.caller import option
from launcher.recipe.directory import directory, shortest
from launcher.recipe.policy import Trust, is_constant, is_installed, listed_packages, objection
from launcher.recipe.unchanged import check_unchanged
from launcher.text import brief, hint, suggestion, words_of
from launcher.version import PACKAGE

_WHEELS = {  # what to install for a module whose package has another name
    "cv2": "opencv-python",
    "google.protobuf": "protobuf",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
_PACKAGES = (  # which the index has under the name that is imported
    *("accelerate", "einops", "h5py", "matplotlib", "monai", "numpy", "pandas", "peft", "pyarrow", "safetensors"),
    *("scipy", "tensorboard", "tokenizers", "tqdm", "wandb"),
)
_FULL_NAME = "write a full name, as in 'package.module.Name', or 'my_file.py:Name'"


class RefusedError(LauncherError):
    """A name is one that a recipe may not name."""


def find_target(name: str, homes: Sequence[str], trust: Trust) -> Any:
    """The class or function that a name means.

    Args:
        name: `AdamW`, `torch.nn.Linear` or `my_model.py:Net`.
        homes: Modules in which a short name is looked up.
        trust: What it may be.

    Raises:
        RefusedError: A recipe may not name it.
        LauncherError: There is none, or its import fails.
    """
    if ".py:" in name:
        file, _, attribute = name.rpartition(":")
        module = _import_file(file, trust)
        check_unchanged(module, trust)
        thing = _attribute(module, attribute, file, private=True, trust=trust)
    elif "." not in name:
        thing = _short(name, homes)
    else:
        thing = _dotted(name, trust)
    if refused := objection(thing, trust):
        raise RefusedError(f"'{brief(name)}' is refused: {refused}; {_way_out(str(getattr(thing, '__module__', '')))}")
    return thing


def _way_out(module: str) -> str:
    """What to do about something of a module that a recipe may not name."""
    own = "name something in your own file (my_file.py:Name)"
    foreign = module and module.partition(".")[0] not in sys.stdlib_module_names
    return f"{own}, or allow its module with {option('allow', module)}" if foreign else own


def _short(name: str, homes: Sequence[str]) -> Any:
    known: list[str] = []
    for home in homes:
        module = _imported(home)
        thing = getattr(module, name, None)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            return _undeprecated(thing)
        known += [other for other, value in vars(module).items() if inspect.isclass(value)]
    if not homes:
        raise LauncherError(f"'{brief(name)}' has no package; {_FULL_NAME}")
    have = "have" if len(homes) > 1 else "has"
    raise LauncherError(f"{' and '.join(homes)} {have} no '{brief(name)}'{hint(name, known, _FULL_NAME)}")


def _undeprecated(thing: Any) -> Any:
    """What a class only stands for that warns of the place where it was looked up, as some at torchmetrics' root do."""
    is_stand_in = inspect.isclass(thing) and thing.__module__.rpartition(".")[2] == "_deprecated"
    return thing.__bases__[0] if is_stand_in else thing


def _dotted(name: str, trust: Trust) -> Any:
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise LauncherError(f"'{brief(name)}' is not a name; {_FULL_NAME}")
    own = _own_package(parts[0], trust)
    if not own and not trust.may_import(parts[0]):
        near = suggestion(parts[0], sorted(listed_packages()))
        raise RefusedError(_not_listed(name, f"package '{parts[0]}'", near or f"; {_way_out(parts[0])}"))
    module, rest = _imported(parts[0]), parts[1:]
    while len(rest) > 1 and _is_submodule(module, rest[0]):
        inner = f"{module.__name__}.{rest[0]}"
        if not own and not trust.may_import(inner):
            raise RefusedError(_not_listed(name, f"module '{inner}'", f"; {_way_out(inner)}"))
        module, rest = _imported(inner), rest[1:]
    if own:
        check_unchanged(module, trust)
    trusted = own or trust.allows(module.__name__)
    thing = _attribute(module, ".".join(rest), module.__name__, private=trusted, trust=trust)
    if not trusted and not isinstance(thing, types.ModuleType) and not hasattr(thing, "__module__"):
        _check_value(name, thing)
    return thing


def _check_value(name: str, thing: Any) -> None:
    if not is_constant(thing):
        allowed = "of a package's values only torch's types and numbers may be named"
        raise RefusedError(f"'{brief(name)}' is refused: {allowed}; write the value itself")


def _own_package(name: str, trust: Trust) -> bool:
    """Whether a package or module of this name is a file of the user's project."""
    for folder in trust.homes:
        if any(map(trust.owns, _files_of(folder, name))):
            _check_shadows(name, folder, trust)
            _make_importable(folder, trust)
    spec = _find(name)  # of a package that is not part of another, finding is not importing
    if spec is None:
        return False
    places = [spec.origin, *(spec.submodule_search_locations or ())]
    return any(trust.owns(place) for place in places if place not in (None, "built-in", "frozen"))


def _files_of(folder: Path, name: str) -> list[Path]:
    """The file that a module or package of this name is in a folder, if one is there."""
    candidates = (folder / f"{name}.py", folder / name / "__init__.py")
    return [path for path in candidates if os.path.isfile(path)]  # which bears names of any length


def names_own_code(name: str, trust: Trust) -> bool:
    """Whether a name means something of the user's own files, as far as their names show; nothing is imported."""
    if ".py:" in name:
        return True
    first, *rest = name.split(".")
    return bool(rest) and any(trust.owns(file) for folder in trust.homes for file in _files_of(folder, first))


def _is_submodule(module: types.ModuleType, name: str) -> bool:
    """Whether a name is a module inside a package, not something that the package defines; nothing is imported."""
    full = f"{module.__name__}.{name}"
    return full in sys.modules or (hasattr(module, "__path__") and _find(full) is not None)


def _not_listed(name: str, what: str, remedy: str) -> str:
    return f"'{brief(name)}' is refused: the {what} is not on the list of what a recipe may name{remedy}"


def _attribute(thing: Any, name: str, of: str, *, private: bool, trust: Trust) -> Any:
    """What a dotted name means in a module; what begins with `_` is looked at only in code that the user trusts.

    A module that another has imported is looked into as little as under its own name.
    """
    for part in name.split("."):
        if part.startswith("__") or (part.startswith("_") and not private):
            raise RefusedError(f"'{brief(part)}' of {of} is refused: names that begin with '_' are private")
        if not private and isinstance(thing, types.ModuleType) and not trust.may_import(thing.__name__):
            raise RefusedError(_not_listed(f"{of}.{name}", f"module '{thing.__name__}'", f"; {_way_out('')}"))
        attribute = _got(thing, part, of)
        if attribute is _MISSING:
            known = [other for other in getattr(thing, "__dict__", {}) if not other.startswith("_")]
            raise LauncherError(f"{of} has no '{brief(part)}'{suggestion(part, known)}")
        thing = attribute
    return thing


_MISSING = object()


def _got(thing: Any, name: str, of: str) -> Any:
    try:
        return getattr(thing, name, _MISSING)
    except Exception as error:  # a package that imports its parts when they are asked for
        raise LauncherError(f"{of}.{brief(name)}: {told(error)}") from error


# ---------------------------------------------------------------------- importing


def _import_file(file: str, trust: Trust) -> types.ModuleType:
    """The module of a file of the user's; one inside a package under its full name, so that its imports work."""
    path = own_file(file, trust)
    root, names = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        root, names = root.parent, [root.name, *names]
    if not all(name.isidentifier() for name in names):
        raise LauncherError(f"'{brief(file)}' cannot be imported; name it in letters, digits and '_'")
    module = ".".join(names)
    _check_shadows(names[0], root, trust)
    known = sys.modules.get(module)
    other = getattr(known, "__file__", None)
    if known is not None and (other is None or Path(other).resolve() != path):
        raise LauncherError(f"'{file}' would hide the module '{module}' of {other}; give it another name")
    _make_importable(root, trust)
    return _imported(module)


def own_file(file: str, trust: Trust) -> Path:
    """Where a file of the user's is: beside or below the recipe, in its project, or where the project names it.

    Raises:
        LauncherError: There is none, or it is not part of the user's own code.
    """
    candidates = [folder / file for folder in (*trust.homes, directory()) if os.path.isfile(folder / file)]
    path = next(filter(trust.owns, candidates), None)
    if path is not None:
        return path.resolve()
    if not candidates:
        raise LauncherError(f"there is no file '{brief(file)}' beside the recipe or in the working directory")
    real = os.path.realpath(candidates[0])
    led = "" if real == os.path.abspath(candidates[0]) else f" (a link leads to {shortest(real)})"
    raise LauncherError(
        f"'{brief(file)}' is refused: it is not in your project{led}, which is what lies beside or below the recipe, "
        "or in the nearest folder above it with a pyproject.toml or .git where you work in that, and is not installed; "
        "copy it there, or name it in the working directory's pyproject.toml: [tool.launcher] code = ['FILE.py']"
    )


def _make_importable(folder: Path, trust: Trust) -> None:
    """Puts a folder of the user's first among those that modules are looked for in, as Python does for a script."""
    if str(folder) in sys.path:
        return
    for name in sorted(listed_packages() | {"accelerate", "launcher", "numpy"}):
        if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
            _check_shadows(name, folder, trust)
    sys.path.insert(0, str(folder))


def _check_shadows(name: str, folder: Path, trust: Trust) -> None:
    """Refuses a file or package of the user's that has the name of an installed module."""
    ours = folder / f"{name}.py" if (folder / f"{name}.py").is_file() else folder / name
    other = _installed_module(name, trust)
    if other is not None and not (folder / name / "__init__.py").resolve() == Path(other).resolve():
        raise LauncherError(f"'{shortest(str(ours))}' would hide the module '{name}' of {other}; give it another name")


def _installed_module(name: str, trust: Trust) -> str | None:
    """Where a module of this name is that is not the user's; None where there is none."""
    if name == "launcher":
        return str(PACKAGE / "__init__.py")
    if name in sys.stdlib_module_names:
        spec = _find(name) if name in sys.builtin_module_names else _find_outside(name, trust)
        return (spec.origin if spec else None) or "Python itself"
    spec = _find_outside(name, trust)
    return spec.origin if spec and spec.origin and not trust.owns(spec.origin) else None


def _find_outside(name: str, trust: Trust) -> importlib.machinery.ModuleSpec | None:
    # what lies in the working directory is found last of all, and hides nobody by being hidden
    own = {str(folder) for folder in (*trust.own, *trust.homes, directory().resolve())}
    places = [place for place in sys.path if place and os.path.realpath(place) not in own]
    return importlib.machinery.PathFinder.find_spec(name, places)


def _find(module: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def _imported(module: str) -> types.ModuleType:
    """A module, imported; what goes wrong in it is told in one line.

    Raises:
        LauncherError: It is missing, imports what is missing, or fails.
    """
    try:
        with _parsers_explained():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        place = "" if missing == module else f"{place_of(error)}: "
        raise LauncherError(f"{place}no module named '{missing}'; {_remedy(missing)}") from error
    except SyntaxError as error:
        text = (error.text or "").strip()
        file = shortest(error.filename or module)
        raise LauncherError(f"{file}:{error.lineno}: {error.msg}: {brief(text)}; fix the file") from error
    except SystemExit as error:
        raise LauncherError(f"importing {module}: {_leaving(error)}") from error
    except Exception as error:
        raise LauncherError(f"importing {module}: {told(error)}") from error


def _leaving(error: SystemExit) -> str:
    """Why a script ends when it is imported, and what to do."""
    place = f" ({place_of(error)})" if place_of(error) else ""
    parses = isinstance(error, _ParsedError)
    what = f"parses the command line when it is imported: {error}" if parses else f"ends the process{place}"
    return f"it {what}; move what a recipe names to a file of its own, or the script under if __name__ == '__main__'"


class _ParsedError(SystemExit):
    """A module that is imported has read this program's command line for its own."""


@contextmanager
def _parsers_explained() -> Iterator[None]:
    """Has argparse raise what it would print, with the usage of a script that nobody has called."""

    def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        error = _ParsedError(2)
        frames = traceback.extract_stack()
        place = next((frame for frame in reversed(frames) if not is_installed(Path(frame.filename))), None)
        line = f" ({shortest(place.filename)}:{place.lineno}: {brief(place.line or '')})" if place else ""
        error.args = (f"{message}{line}",)
        raise error

    before = argparse.ArgumentParser.error
    argparse.ArgumentParser.error = refuse  # type: ignore[method-assign,assignment]  # a public method, put back
    try:
        yield
    finally:
        argparse.ArgumentParser.error = before  # type: ignore[method-assign]


def _remedy(missing: str) -> str:
    """What to do about a module that is not there.

    Only packages that we know are named for pip: of any other word, a user's own `utils` say, the package index may
    have a stranger's package.
    """
    package = missing.partition(".")[0]
    known = {*_PACKAGES, *listed_packages()} - {"launcher"}
    wheel = _WHEELS.get(missing, _WHEELS.get(package, package if package in known else ""))
    if wheel:
        return f"install it: pip install {wheel}"
    return "if it is your own file, put it beside the recipe; else install the package that brings it"


def told(error: BaseException) -> str:
    """An error of somebody else's code in one line: its kind, its words, and the line that raised it."""
    if isinstance(error, LauncherError):  # of ours, whose words say all
        return " ".join(str(error).split())
    words = " ".join(words_of(error).split())
    words = f": {words[:400]}" if words else ""
    place = place_of(error)
    return f"{type(error).__name__}{words}{f' ({place})' if place else ''}"


def place_of(error: BaseException) -> str:
    """The user's line that an error comes from, or that led into the library where it was raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.exists(frame.filename)]
    frame = next((frame for frame in reversed(frames) if not is_installed(Path(frame.filename))), None)
    if frame is None:
        return ""
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{shortest(frame.filename)}:{frame.lineno}{f': {brief(line)}' if line else ''}"
