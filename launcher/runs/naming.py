"""The runs and sweeps that a command line names: one way for every command.

A name is the path of a run's folder, of a folder that holds runs, the recipe's name, the beginning of either, `latest`,
or one of these with `@N`: the N-th run that it means, counted from the first that was started. Paths from here come
first; a recipe's name means its runs wherever they lie among all. A sweep is named as a run is, by its folder or as
NAME-sweep; which of its trials is meant where one run is wanted, `launcher.sweep.naming` says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.errors import UsageError
from launcher.runs.folder import read_json
from launcher.runs.reading import SWEEP_FILE, Run, find_runs, find_sweeps, finite, natural
from launcher.text import suggestion

LATEST = "latest"
TRIALS_FOLDER = "trials"  # of a sweep's
_MOST_SHOWN = 4
_SAVED = (".pth", ".pt", ".safetensors")  # who writes one of these means a file


class NoSuchRunError(UsageError):
    """A name means nothing."""


class NamedSweep(Run):
    """A sweep where runs are looked up by their names: NAME-sweep of its recipe, as old as its first start."""

    @property
    def name(self) -> str:
        """Its recipe's, and that it is a sweep."""
        return f"{Run(self.folder / TRIALS_FOLDER / '0000').recipe.get('name', self.folder.name)}-sweep"

    @property
    def started(self) -> float | None:
        """When it was begun, in unix time."""
        return finite(read_json(self.folder / SWEEP_FILE).get("created"))

    @property
    def trials(self) -> Sequence[Run]:
        """Its runs."""
        return list(find_runs(self.folder))


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / SWEEP_FILE).is_file()


def named_runs(texts: Iterable[str]) -> list[Run]:
    """All runs that a command line names, each once; of sweeps their trials, where no run is meant.

    Raises:
        UsageError: A name means none.
    """
    unique_runs: dict[Path, Run] = {}
    for text in texts:
        meant = _meant(text)
        runs = [run for run in meant if not isinstance(run, NamedSweep)]
        trials = (trial for sweep in meant if isinstance(sweep, NamedSweep) for trial in sweep.trials)
        unique_runs.update({run.folder.resolve(): run for run in runs or trials})
    return list(unique_runs.values())


def named_sweep(text: str) -> Path | None:
    """The folder of the sweep that a name means; None where it means runs, or several sweeps.

    Raises:
        UsageError: It means nothing.
    """
    meant = places_of(text)
    return meant[0].folder if len(meant) == 1 and isinstance(meant[0], NamedSweep) else None


def sweep_called(text: str) -> Path | None:
    """The folder of the sweep that a name means where only sweeps are asked for; None where it means none.

    Raises:
        UsageError: It means sweeps of several recipes.
    """
    try:
        return _only(text, _meant(text, NamedSweep)).folder
    except NoSuchRunError:
        return None


def place_of(text: str) -> Run:
    """The one run or sweep that a name means; of several of one recipe, the one that was started last.

    Raises:
        UsageError: It means none, or runs of several recipes.
    """
    return _only(text, _meant(text))


def _only(text: str, runs: Sequence[Run]) -> Run:
    recipes = sorted({run.name for run in runs})
    if len(recipes) > 1 and text != LATEST and _folder_of(text) is None:
        raise UsageError(f"{text}: may mean {_listed(recipes)}; write more of the name")
    return max(runs, key=_age)


def runs(name: str | os.PathLike[str] | None = None) -> list[Run]:
    """The runs of a folder or of a name, the newest first; None means all that `launcher runs` lists.

    Raises:
        UsageError: There is no such folder or run.
    """
    listed = _everything() if name is None else named_runs([os.fspath(name)])
    return sorted((run for run in listed if not isinstance(run, NamedSweep)), key=_age, reverse=True)


def is_saved(text: str) -> bool:
    """Whether a text is the path of something saved, of a checkpoint or weights, and of no folder that holds runs."""
    path = Path(text)
    if path.suffix in _SAVED:
        return True
    if not path.exists() or is_sweep(path):
        return False
    places = _in_folder(path)
    if not places and path.is_dir() and not any(file.suffix in (*_SAVED, ".json") for file in path.iterdir()):
        return not is_named(text)  # a folder of data may be called as the recipe is
    return not any(place.folder != path for place in places)


def places_of(text: str) -> Sequence[Run]:
    """All runs and sweeps that a name means, in the order in which they were started; at least one.

    Raises:
        UsageError: There is none.
    """
    return _meant(text)


def is_named(text: str) -> bool:
    """Whether a name means a run; it may mean something else, as a recipe."""
    try:
        return bool(_meant(text))
    except UsageError:
        return False


def _meant(text: str, kind: type[Run] = Run) -> Sequence[Run]:
    """The runs of a name, in the order in which they were started; at least one.

    Args:
        text: The name.
        kind: What is looked for: `NamedSweep`, or all.

    Raises:
        NoSuchRunError: There is none.
    """
    if runs := _in_folder(Path(text).expanduser(), kind) if text else ():
        return runs
    name, _, ordinal = text.rpartition("@")
    if name and ordinal.isascii() and ordinal.isdigit():
        return [_numbered(text, _meant(name, kind), int(ordinal))]
    everything = sorted(_everything(kind), key=_age)
    if text == LATEST and everything:
        return everything[-1:]
    roots = folders_of_runs()
    held = [run for root in roots if text for run in _in_folder(root / text, kind)]
    of_recipe = [run for run in everything if run.name == text]
    matching = sorted({run.folder.resolve(): run for run in (*held, *of_recipe)}.values(), key=_age)
    matching = matching or [run for run in everything if _begins(run, text, roots)]
    if text and not matching and Path(text).is_dir():
        raise NoSuchRunError(f"{text}: there is no run in this folder{_known(everything)}")
    if not text or not matching:
        near = suggestion(text, dict.fromkeys([*(run.name for run in everything), LATEST] if everything else ()))
        raise NoSuchRunError(f"{text or repr(text)}: there is no such run or folder{near}{_known(everything)}")
    return matching


def _in_folder(place: Path, kind: type[Run] = Run) -> Sequence[Run]:
    """The runs and sweeps in a folder, itself included, in the order in which they were started; none without one."""
    if is_sweep(place):
        return [NamedSweep(place)]
    places = [*find_runs(place), *map(NamedSweep, find_sweeps(place))] if place.is_dir() else []
    return sorted((each for each in places if isinstance(each, kind)), key=_age)


def _folder_of(text: str) -> Path | None:
    """The folder of that path, from here or from the folder of all runs; None where there is none."""
    places = (Path(text), *(root / text for root in folders_of_runs())) if text else ()
    return next((place for place in places if place.is_dir()), None)


def folders_of_runs() -> list[Path]:
    """Where runs lie that nobody has put elsewhere: in the working directory, and where the site file says."""
    from launcher.world.site import read_site

    return list(dict.fromkeys([Path("runs"), read_site()[0].root]))


def _everything(kind: type[Run] = Run) -> list[Run]:
    """All runs and sweeps that nobody has put elsewhere."""
    return list({run.folder.resolve(): run for root in folders_of_runs() for run in _in_folder(root, kind)}.values())


def _begins(run: Run, text: str, roots: Iterable[Path]) -> bool:
    """Whether a text is the beginning of a run's name, of its folder's, or of its path below the folder of runs."""
    paths = [os.path.relpath(run.folder, root) for root in roots]
    return any(word.startswith(text) for word in (run.name, run.folder.name, *paths))


def _numbered(text: str, runs: Sequence[Run], number: int) -> Run:
    if 1 <= number <= len(runs):
        return runs[number - 1]
    name = text.rpartition("@")[0]
    if len(runs) == 1:
        raise UsageError(f"{text}: there is only {name}@1")
    raise UsageError(f"{text}: there is none; there are {name}@1, the first that was started, to {name}@{len(runs)}")


def _known(runs: Sequence[Run] | None = None) -> str:
    """The newest runs, so that one may be copied."""
    newest = sorted(_everything() if runs is None else runs, key=_age)[: -_MOST_SHOWN - 1 : -1]
    if not newest:
        return f"; there are none in {os.path.normpath(folders_of_runs()[-1])}"
    verb = "are" if len(newest) > 1 else "is"
    return f"; the newest {verb} {_listed([os.path.normpath(run.folder) for run in newest])}; `launcher runs` lists all"


def _listed(words: Sequence[str]) -> str:
    shown = [re.sub(r"\s", "?", word) for word in words[:_MOST_SHOWN]]
    return ", ".join(shown) + ", …" * (len(words) > _MOST_SHOWN)


def _age(run: Run) -> tuple[float, list[tuple[int, str]]]:
    """Sorts the run that was started last to the end; the tasks of an array as they count."""
    return run.started or 0.0, natural(str(run.folder))
