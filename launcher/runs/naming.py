"""The runs that a command line names: one way for every command.

A name is the path of a run's folder, of a folder that holds runs, the recipe's name, the beginning of either, `latest`,
or one of these with `@N`: the N-th run that it means, counted from the first that was started. Paths from here come
first; a recipe's name means its runs wherever they lie among all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.errors import UsageError
from launcher.runs.reading import Run, find_runs, natural
from launcher.text import suggestion

LATEST = "latest"
_MOST_SHOWN = 4
_SAVED = (".pth", ".pt", ".safetensors")  # who writes one of these means a file


def named_runs(texts: Iterable[str]) -> list[Run]:
    """All runs that a command line names, each once.

    Raises:
        UsageError: A name means none.
    """
    unique_runs: dict[Path, Run] = {}
    for text in texts:
        unique_runs.update({run.folder.resolve(): run for run in _meant(text)})
    return list(unique_runs.values())


def named_run(text: str) -> Run:
    """The one run that a name means; of several of one recipe, the one that was started last.

    Raises:
        UsageError: It means none, or runs of several recipes.
    """
    runs = _meant(text)
    recipes = sorted({run.name for run in runs})
    if len(recipes) > 1 and text != LATEST and _folder_of(text) is None:
        raise UsageError(f"{text}: may mean {_listed(recipes)}; write more of the name")
    return max(runs, key=_age)


def runs(name: str | os.PathLike[str] | None = None) -> list[Run]:
    """The runs of a folder or of a name, the newest first; None means all that `launcher runs` lists.

    Raises:
        UsageError: There is no such folder or run.
    """
    listed = _all_runs() if name is None else named_runs([os.fspath(name)])
    return sorted(listed, key=_age, reverse=True)


def saved_place(text: str) -> Path:
    """What a name means to a command that reads what was saved: a path as it is, else the folder of the run.

    Raises:
        UsageError: It means none, or runs of several recipes.
    """
    path = Path(text)
    is_folder_of_runs = path.is_dir() and any(run.folder != path for run in find_runs(path))
    if path.suffix in _SAVED or (path.exists() and not is_folder_of_runs):
        return path
    return named_run(text).folder


def is_named(text: str) -> bool:
    """Whether a name means a run; it may mean something else, as a recipe."""
    try:
        return bool(_meant(text))
    except UsageError:
        return False


def _meant(text: str) -> Sequence[Run]:
    """The runs of a name, in the order in which they were started; at least one.

    Raises:
        UsageError: There is none.
    """
    if runs := _in_folder(Path(text)) if text else ():
        return runs
    name, _, ordinal = text.rpartition("@")
    if name and ordinal.isascii() and ordinal.isdigit():
        return [_numbered(text, _meant(name), int(ordinal))]
    everything = sorted(_all_runs(), key=_age)
    if text == LATEST and everything:
        return everything[-1:]
    roots = folders_of_runs()
    held = [run for root in roots if text for run in _in_folder(root / text)]
    of_recipe = [run for run in everything if run.name == text]
    matching = sorted({run.folder.resolve(): run for run in (*held, *of_recipe)}.values(), key=_age)
    matching = matching or [run for run in everything if _begins(run, text, roots)]
    if text and not matching and Path(text).is_dir():
        raise UsageError(f"{text}: there is no run in this folder{_known(everything)}")
    if not text or not matching:
        near = suggestion(text, dict.fromkeys([*(run.name for run in everything), LATEST] if everything else ()))
        raise UsageError(f"{text or repr(text)}: there is no such run or folder{near}{_known(everything)}")
    return matching


def _in_folder(place: Path) -> Sequence[Run]:
    """The runs in a folder, in the order in which they were started; none where there is no such folder."""
    return sorted(find_runs(place), key=_age) if place.is_dir() else ()


def _folder_of(text: str) -> Path | None:
    """The folder of that path, from here or from the folder of all runs; None where there is none."""
    places = (Path(text), *(root / text for root in folders_of_runs())) if text else ()
    return next((place for place in places if place.is_dir()), None)


def folders_of_runs() -> list[Path]:
    """Where runs lie that nobody has put elsewhere: in the working directory, and where the site file says."""
    from launcher.world.site import read_site

    return list(dict.fromkeys([Path("runs"), read_site()[0].root]))


def _all_runs() -> list[Run]:
    runs = {run.folder.resolve(): run for root in folders_of_runs() if root.is_dir() for run in find_runs(root)}
    return list(runs.values())


def _begins(run: Run, text: str, roots: Iterable[Path]) -> bool:
    """Whether a text is the beginning of a run's name, of its folder's, or of its path below the folder of runs."""
    paths = [os.path.relpath(run.folder, root) for root in roots]
    return any(word.startswith(text) for word in (run.name, run.folder.name, *paths))


def _numbered(text: str, runs: Sequence[Run], number: int) -> Run:
    if 1 <= number <= len(runs):
        return runs[number - 1]
    raise UsageError(f"{text}: there are {len(runs)}, from @1, the first that was started, to @{len(runs)}")


def _known(runs: Sequence[Run] | None = None) -> str:
    """The newest runs, so that one may be copied."""
    newest = sorted(_all_runs() if runs is None else runs, key=_age)[: -_MOST_SHOWN - 1 : -1]
    if not newest:
        return f"; there are none in {os.path.normpath(folders_of_runs()[-1])}"
    return f"; the newest are {_listed([os.path.normpath(run.folder) for run in newest])}; `launcher runs` lists all"


def _listed(words: Sequence[str]) -> str:
    shown = [re.sub(r"\s", "?", word) for word in words[:_MOST_SHOWN]]
    return ", ".join(shown) + ", …" * (len(words) > _MOST_SHOWN)


def _age(run: Run) -> tuple[float, list[tuple[int, str]]]:
    """Sorts the run that was started last to the end; the tasks of an array as they count."""
    return run.started or 0.0, natural(str(run.folder))
