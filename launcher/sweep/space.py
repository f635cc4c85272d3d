"""The space of a sweep: which keys of a recipe vary, over what, and what a point of it is in the recipe's words."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from launcher.errors import Problem, RecipeError
from launcher.recipe.bases import sweep_section
from launcher.recipe.places import Problems
from launcher.recipe.several import holds_several, space_hint
from launcher.sweep.grammar import Alternative, SpaceError, plain, read_alternatives, section_words, segments
from launcher.sweep.ranges import Number, Range, is_asked_about
from launcher.sweep.record import Parameters, Settings
from launcher.text import brief

_NEVER = {
    "name": "a run's name",
    "track": "where numbers go",
    "launch": "how a run is started",
    "sweep": "the sweep itself",
}
_MOST_SEEDS = 1000
_LENGTHS = tuple(("train", name) for name in ("epochs", "steps", "time"))  # of which a recipe has one


@dataclass(frozen=True)
class Parameter:
    """One coordinate of a point, as methods see it.

    Attributes:
        name: In a point's `Parameters`; no other has it.
        key: The recipe's key, to be shown.
        range: Of a number; None where it is a choice.
        num_choices: Of a choice, whose value is an index; 0 where it is a number.
        choice: The parameter and its index where alone this one exists; None where it always does.
    """

    name: str
    key: str
    range: Range | None = None
    num_choices: int = 0
    choice: tuple[str, int] | None = None

    def exists_in(self, parameters: Parameters) -> bool:
        """Whether a point has it, as far as its choice is known."""
        return self.choice is None or parameters.get(self.choice[0]) == self.choice[1]


@dataclass(frozen=True)
class Dimension:
    """A key that varies.

    Attributes:
        key: Dotted, as the user wrote it.
        alternatives: At least one; a single one has a range.
        place: Where it was written, for messages: `space 'model.width=8,32'`, or a place in the recipe's file.
    """

    key: str
    alternatives: tuple[Alternative, ...]
    place: str = field(compare=False)

    @property
    def is_choice(self) -> bool:
        """Whether it has several alternatives: the first of its coordinates is which."""
        return len(self.alternatives) > 1

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Its coordinates: which alternative, and the numbers in each one's holes."""
        first = (Parameter(self.key, self.key, num_choices=len(self.alternatives)),) if self.is_choice else ()
        return (*first, *(parameter for index in range(len(self.alternatives)) for parameter in self.holes(index)))

    def holes(self, index: int) -> Iterator[Parameter]:
        """The coordinates that exist in an alternative."""
        for hole in self.alternatives[index].holes:
            below = "".join(f".{key}" for key in hole.keys)
            name = f"{self.key}#{index}{below}" if self.is_choice else f"{self.key}{below}"
            choice = (self.key, index) if self.is_choice else None
            yield Parameter(name, f"{self.key}{below}", hole.range, choice=choice)

    def chosen(self, parameters: Parameters) -> int:
        """Which alternative a point has."""
        return int(parameters[self.key]) if self.is_choice else 0

    def text(self, parameters: Parameters) -> str:
        """Its value at a point, as YAML."""
        index = self.chosen(parameters)
        return self.alternatives[index].filled([parameters[hole.name] for hole in self.holes(index)])

    def parts(self, parameters: Parameters) -> Iterator[tuple[str, Alternative | Number]]:
        """Its value at a point by key: the alternative, unless it is but a number, and each of its numbers."""
        index = self.chosen(parameters)
        holes = list(self.holes(index))
        if self.is_choice and [hole.key for hole in holes] != [self.key]:
            yield self.key, self.alternatives[index]
        yield from ((hole.key, parameters[hole.name]) for hole in holes)

    @property
    def size(self) -> int | None:
        """How many values it has; None where one is real."""
        sizes = [alternative.size for alternative in self.alternatives]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def at(self, index: int) -> dict[str, Number]:
        """The coordinates of one of its values; only where they can be counted."""
        for number, alternative in enumerate(self.alternatives):
            size = alternative.size or 0
            if index >= size:
                index -= size
                continue
            values: dict[str, Number] = {self.key: number} if self.is_choice else {}
            for parameter in reversed(list(self.holes(number))):
                assert parameter.range is not None
                index, inner = divmod(index, parameter.range.size or 1)
                values[parameter.name] = parameter.range.value(inner)
            return values
        raise IndexError(index)


@dataclass(frozen=True)
class Space:
    """All that a sweep may try.

    Attributes:
        dimensions: The keys that vary, but for the seeds.
        fixed: Overrides that all trials have, as they were written.
        seeds: Of the repeats of each point; empty where there are none.
        words: All of it as overrides: reading them gives the same space.
        questions: What looks like a slip and is none for certain, a line each.
    """

    dimensions: tuple[Dimension, ...]
    fixed: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    questions: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The coordinates of its points; one that depends on a choice follows it."""
        return tuple(parameter for dimension in self.dimensions for parameter in dimension.parameters)

    @property
    def size(self) -> int | None:
        """How many points it has; None where a range is real."""
        sizes = [dimension.size for dimension in self.dimensions]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def point(self, index: int) -> dict[str, Number]:
        """A point by its number; the last key varies fastest. Only where points can be counted."""
        parts = []
        for dimension in reversed(self.dimensions):
            index, inner = divmod(index, dimension.size or 1)
            parts.append(dimension.at(inner))
        return {name: value for part in reversed(parts) for name, value in part.items()}

    def overrides(self, parameters: Parameters | None, seed: int | None = None) -> list[str]:
        """A point as changes to the recipe.

        Args:
            parameters: The point; None for the baseline.
            seed: The recipe's seed, where points are repeated.
        """
        changes = [] if parameters is None else [f"{each.key}={each.text(parameters)}" for each in self.dimensions]
        whole = [*self.fixed, *changes, *([] if seed is None else [f"seed={seed}"])]
        return sorted(whole, key=lambda word: not word.startswith("base="))  # what lies over the recipe, then changes

    def parts(self, parameters: Parameters) -> Iterator[tuple[str, Alternative | Number]]:
        """A point's values by key, the numbers of a component each by itself."""
        return (part for dimension in self.dimensions for part in dimension.parts(parameters))

    def shown(self, parameters: Parameters) -> dict[str, str]:
        """A point's values by key, in few words: of a component its target."""
        return {
            key: value.label if isinstance(value, Alternative) else short_number(value)
            for key, value in self.parts(parameters)
        }

    def numbers(self, parameters: Parameters) -> dict[str, Any]:
        """The same as plain values: numbers are numbers, and an alternative what it is, or a component's name."""
        return {key: value.plain if isinstance(value, Alternative) else value for key, value in self.parts(parameters)}

    @property
    def keys(self) -> list[str]:
        """The keys that `shown` may have, in order."""
        return list(dict.fromkeys(key for dimension in self.dimensions for key in _shown_keys(dimension)))


def _shown_keys(dimension: Dimension) -> Iterator[str]:
    alternatives = dimension.alternatives
    whole = [any(not hole.keys for hole in alternative.holes) for alternative in alternatives]
    if dimension.is_choice or any(whole):
        yield dimension.key
    yield from (hole.key for index in range(len(alternatives)) for hole in dimension.holes(index))


def short_number(value: Number) -> str:
    """A number in at most five digits."""
    return str(value) if isinstance(value, int) else f"{value:.5g}"


# ---------------------------------------------------------------------- reading


def space_of(settings: Settings) -> Space:
    """The space of a sweep that there is."""
    return read_space({}, settings.words)


def read_space(
    recipe: str | pathlib.Path | Mapping[str, Any], words: Sequence[str], remove: Sequence[str] = ()
) -> Space:
    """The space of a recipe's `sweep:` section and of the command line, which goes before it, key by key.

    Args:
        recipe: The recipe's file, or what would stand in it.
        words: Overrides; several alternatives or a range make a key vary, anything else is fixed.
        remove: Keys taken out of the recipe.

    Raises:
        RecipeError: All that is wrong with how it is written, each with its place.
    """
    problems = Problems()
    written = [_Written(word, f"space '{brief(word)}'") for word in words]
    stated = {segments(each.key) for each in written}
    section = [each for each in _of_section(recipe, words, remove, problems) if segments(each.key) not in stated]
    entries = [entry for entry in (_entry(each, problems) for each in (*section, *written)) if entry]
    _check_keys(entries, problems)
    if problems:
        raise RecipeError(problems)
    return _space(entries)


@dataclass(frozen=True)
class _Written:
    """A word of the command line, or of the section as one would write it there."""

    word: str
    place: str

    @property
    def key(self) -> str:
        return self.word.partition("=")[0]


@dataclass(frozen=True)
class _Entry:
    written: _Written
    alternatives: tuple[Alternative, ...]

    @property
    def is_fixed(self) -> bool:
        return len(self.alternatives) == 1 and not self.alternatives[0].holes


def _of_section(
    recipe: str | pathlib.Path | Mapping[str, Any], words: Sequence[str], remove: Sequence[str], problems: Problems
) -> Iterator[_Written]:
    """The keys of the recipe's own `sweep.space`."""
    for key, node in sweep_section(recipe, words, remove):
        try:
            yield _Written(section_words(key, node), str(node.key or node.origin))
        except SpaceError as error:
            problems.append(Problem(str(node.origin), f"sweep.space.{key}", str(error)))


def _entry(written: _Written, problems: Problems) -> _Entry | None:
    key, equals, text = written.word.partition("=")
    section = segments(key)[0]
    try:
        if not equals or not key:
            raise SpaceError("a key that varies is written a.b=1,2 or a.b=0.1..0.9")
        entry = _Entry(written, read_alternatives(text.strip()))
        if entry.is_fixed and "|" in text and (space_hint(text) or holds_several(text)):
            commas = text.strip().replace("|", ",")
            raise SpaceError(f"alternatives are separated by commas, as in {key}={commas}; put a text in quotes")
        if not entry.is_fixed and section in _NEVER:
            raise SpaceError(f"'{section}' says {_NEVER[section]}, which is the sweep's to say; vary another key")
        _check_values(entry)
    except SpaceError as error:
        problems.append(Problem(written.place, "", str(error)))
        return None
    return entry


def _check_values(entry: _Entry) -> None:
    """Refuses what stands there twice."""
    known: dict[Any, str] = {}
    values = []
    for alternative in entry.alternatives if len(entry.alternatives) > 1 else ():
        value, text = plain(str(alternative)), str(alternative)
        if (other := known.get(_identity(value))) is not None:
            message = f"'{other}' and '{text}' are one value" if other != text else f"'{text}' is there twice"
            raise SpaceError(f"{message}; omit one")
        known[_identity(value)] = text
        values.append((value, text))
    ranges = [alternative.holes[0].range for alternative in entry.alternatives if _is_range(alternative)]
    for value, text in values:
        inside = [
            span
            for span in ranges
            if isinstance(value, int | float) and not isinstance(value, bool) and span.holds(value)
        ]
        if inside:
            raise SpaceError(f"'{text}' is within {inside[0]}; omit it")


def _is_range(alternative: Alternative) -> bool:
    return len(alternative.holes) == 1 and not alternative.holes[0].keys


def is_same(value: Any, other: Any) -> bool:
    """Whether two values are one: 8 and 8.0 are, 1 and true are not."""
    return bool(_identity(value) == _identity(other))


def _identity(value: Any) -> Any:
    """What values that are one have in common."""
    if isinstance(value, Mapping):
        return "mapping", frozenset((key, _identity(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return "list", tuple(map(_identity, value))
    return isinstance(value, bool), value


def _check_keys(entries: Sequence[_Entry], problems: Problems) -> None:
    """Refuses a key that is set twice, and one that lies in another that varies."""
    for number, entry in enumerate(entries):
        path = segments(entry.written.key)
        for other in entries[:number]:
            above = segments(other.written.key)
            if entry.is_fixed and other.is_fixed:
                continue  # the later one wins, as in `launcher train`
            if path == above:
                problems.append(Problem(entry.written.place, "", f"'{entry.written.key}' is set twice; keep one"))
            elif path in _LENGTHS and above in _LENGTHS:
                message = f"'{entry.written.key}' takes the place of '{other.written.key}'; keep one"
                problems.append(Problem(entry.written.place, "", message))
            elif (path[: len(above)] == above and not other.is_fixed) or (
                above[: len(path)] == path and not entry.is_fixed
            ):
                outer, inner = sorted((entry.written.key, other.written.key), key=len)
                message = f"'{inner}' lies in '{outer}', which varies; write it inside of its alternatives"
                problems.append(Problem(entry.written.place, "", message))


def _space(entries: Sequence[_Entry]) -> Space:
    varying = [entry for entry in entries if not entry.is_fixed]
    seeds: tuple[int, ...] = ()
    dimensions = []
    for entry in varying:
        if entry.written.key == "seed":
            seeds = _seeds(entry)
        else:
            dimensions.append(Dimension(entry.written.key, entry.alternatives, entry.written.place))
    return Space(
        tuple(dimensions),
        tuple(entry.written.word for entry in entries if entry.is_fixed),
        seeds,
        tuple(entry.written.word for entry in entries),
        tuple(question for dimension in dimensions for question in _questions(dimension)),
    )


def _seeds(entry: _Entry) -> tuple[int, ...]:
    """The seeds of the repeats.

    Raises:
        RecipeError: They are no whole numbers, or more than anybody repeats.
    """
    dimension = Dimension("seed", entry.alternatives, entry.written.place)
    size, message = dimension.size, ""
    if size is None or size > _MOST_SEEDS:
        message = f"a point is repeated with at most {_MOST_SEEDS:,} seeds, whole numbers; write seed=0..4"
    else:
        values = [plain(dimension.text(dimension.at(index))) for index in range(size)]
        if all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
            return tuple(values)
        message = "seeds are whole numbers from 0 on; write seed=0..4 or seed=1,2,3"
    raise RecipeError([Problem(entry.written.place, "seed", message)])


def _questions(dimension: Dimension) -> Iterator[str]:
    for alternative in dimension.alternatives:
        for hole in alternative.holes:
            if is_asked_about(hole.range):
                yield (
                    f"{dimension.key}={hole.range} is linear: half of its values lie above "
                    f"{short_number((hole.range.low + hole.range.high) / 2)}; did you mean {hole.range}:log?"
                )
