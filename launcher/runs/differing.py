"""What differs between runs, in few words: `lr=0.01 seed=2`, as people tell their runs apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from launcher.recipe.component import GIVEN
from launcher.runs.reading import Run

_SAME_RUN = ("name", "base", "track", "launch", "slurm", "save")  # which decide nothing of what is learned
_DIGITS = (4, 6, 9)  # of a number that is shown
_MOST = 4  # keys of a label; of more differences nobody sees which one mattered


def differing(runs: Sequence[Run]) -> dict[Run, dict[str, str]]:
    """The values of each run in which it differs from another of its recipe's name, by keys as short as may be.

    A key has the same short form in all runs. Runs of one recipe that differ in nothing have nothing.
    """
    by_run = {run: dict(_values(run)) for run in runs}
    differing_keys: dict[str, None] = {}
    for name in dict.fromkeys(run.name for run in runs):
        group = [values for run, values in by_run.items() if run.name == name]
        for key in dict.fromkeys(key for values in group for key in values):
            if len({values.get(key) for values in group}) > 1:
                differing_keys[key] = None
    short = short_keys(list(differing_keys))
    return {run: {short[key]: values[key] for key in differing_keys if key in values} for run, values in by_run.items()}


def shown(differences: Mapping[Run, Mapping[str, str]]) -> dict[Run, dict[str, str]]:
    """The same for eyes: numbers with as few digits as tell them apart, 0.009 in place of 0.009000000000000001."""
    keys = dict.fromkeys(key for values in differences.values() for key in values)
    short = {key: _short({values[key] for values in differences.values() if key in values}) for key in keys}
    return {run: {key: short[key][value] for key, value in values.items()} for run, values in differences.items()}


def _short(values: Collection[str]) -> Mapping[str, str]:
    for digits in _DIGITS:
        rounded = {value: _rounded(value, digits) for value in values}
        if len(set(rounded.values())) == len(values):
            return rounded
    return {value: value for value in values}


def _rounded(value: str, digits: int) -> str:
    """A fraction with no more digits than these; what is none, or shorter, as it is."""
    with suppress(ValueError):
        return min(value, f"{float(value):.{digits}g}", key=len) if "." in value else value
    return value


def label_of(values: Mapping[str, str]) -> str:
    """The values of a run in one line; empty where there are none, or too many to tell it by."""
    return " ".join(f"{key}={value}" for key, value in values.items()) if len(values) <= _MOST else ""


def _values(run: Run) -> Sequence[tuple[str, str]]:
    values = [(key, value) for key, value in run.recipe.items() if key.partition(".")[0] not in _SAME_RUN]
    return [(key, value.removeprefix(f"{GIVEN}: ")) for key, value in values]  # an object is told by what it is called


def short_keys(keys: Sequence[str]) -> Mapping[str, str]:
    """For each key its last word, or as many as tell it from the others; of a component its section's."""
    tails = {key: key.removesuffix("._target_").split(".") for key in keys}

    def tail(key: str) -> str:
        for count in range(1, len(tails[key]) + 1):
            words = tails[key][-count:]
            is_alone = sum(other[-count:] == words for other in tails.values()) == 1
            if is_alone and not words[0].isdecimal():  # a place in a list says nothing by itself
                return ".".join(words)
        return key

    return {key: tail(key) for key in keys}
