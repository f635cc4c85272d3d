"""How a space is written: `KEY=ALTERNATIVE,ALTERNATIVE,…`, in the recipe's own words.

    override    = KEY "=" alternative {"," alternative}      split only outside of brackets and quotes
    alternative = range | value                              a value is the recipe's own YAML; in quotes it is literal

A component, `{_target_: SGD, momentum: 0.5..0.9}`, may have ranges as arguments, at any depth of mappings; they exist
where it is chosen. Nowhere else within a value does a range stand. In a recipe's `sweep:` section a list holds the
alternatives, and a range may be a mapping `{from: 1e-4, to: 1e-2, scale: log}`.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import yaml

from launcher.recipe.places import Problems
from launcher.recipe.show import quoted, scalar
from launcher.recipe.tree import Node
from launcher.recipe.yaml import parse
from launcher.sweep.ranges import Number, Range, RangeError, made, read_range

_OPEN, _CLOSE = "[{", "]}"
_RANGE_KEYS = ("from", "to", "scale", "step", "factor")


class SpaceError(ValueError):
    """A space that cannot be read, in words: what is wrong, and what to write."""


@dataclass(frozen=True)
class Hole:
    """A range within an alternative.

    Attributes:
        keys: Where it stands below the dimension's key; empty where it is the whole alternative.
        range: Its numbers.
    """

    keys: tuple[str, ...]
    range: Range


@dataclass(frozen=True)
class Alternative:
    """One of the values that a key may have: a text of YAML with as many holes as it has ranges.

    Attributes:
        texts: What stands before, between and behind the holes.
        holes: The ranges.
    """

    texts: tuple[str, ...]
    holes: tuple[Hole, ...] = ()

    def __str__(self) -> str:
        return self.filled([str(hole.range) for hole in self.holes])

    def filled(self, numbers: Sequence[Number | str]) -> str:
        """Its text with a number in each hole."""
        written = [str(number) if isinstance(number, str | int) else repr(number) for number in numbers]
        return "".join(part for pair in zip(self.texts, [*written, ""], strict=True) for part in pair)

    @property
    def label(self) -> str:
        """In few words: of a component the last part of its target, and what else it says but for its ranges."""
        value = plain(str(self))
        if not isinstance(value, dict) or not isinstance(value.get("_target_", value.get("_ref_")), str):
            return str(self)
        ranged = {hole.keys[0] for hole in self.holes}
        rest = [f"{key}={words}" for key, words in value.items() if key not in ("_target_", "_ref_", *ranged)]
        return " ".join([re.split("[.:]", str(value.get("_target_", value.get("_ref_"))))[-1], *rest])

    @property
    def plain(self) -> Any:
        """What it is; of a list or a component its label."""
        value = plain(str(self))
        return self.label if isinstance(value, dict | list) else value

    @property
    def size(self) -> int | None:
        """How many values it has; None where a range is real."""
        size = 1
        for hole in self.holes:
            if hole.range.size is None:
                return None
            size *= hole.range.size
        return size


def read_alternatives(text: str) -> tuple[Alternative, ...]:
    """The alternatives of a key.

    Raises:
        SpaceError: One is empty or no value, or a range is none.
    """
    parts = split(text)
    for number, part in enumerate(parts):
        if not part and len(parts) > 1:
            where = "before the first comma" if not number else f"behind '{parts[number - 1]}'"
            raise SpaceError(f"an alternative is missing {where}; write null for none, or omit the comma")
    return tuple(_alternative(part) for part in parts)


def split(text: str) -> list[str]:
    """Cuts a text at its commas outside of brackets and quotes.

    Raises:
        SpaceError: A bracket or a quote stays open.
    """
    parts, begun, depth, quote = [], 0, 0, ""
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not _is_escaped(text, index) else quote
        elif char in "'\"" and _begins_value(text, index):
            quote = char
        elif char in _OPEN + _CLOSE:
            depth += 1 if char in _OPEN else -1
        elif char == "," and depth == 0:
            parts.append(text[begun:index].strip())
            begun = index + 1
    if quote or depth:
        what = (
            f"a quote {quote} is"
            if quote
            else "a bracket is"
            if depth > 0
            else "a closing bracket is too many, or one is"
        )
        raise SpaceError(f"{what} not closed; {_advice(text)}")
    return [*parts, text[begun:].strip()]


def _advice(text: str) -> str:
    return "put a value that holds one in quotes" if len(text) < 200 else "is the word cut off?"


def _begins_value(text: str, index: int) -> bool:
    """Whether a quote opens here: in the middle of a word it is a letter like any other."""
    before = text[:index].rstrip()
    return not before or (before[-1] in ",[{:" and (before[-1] != ":" or before != text[:index]))


def _is_escaped(text: str, index: int) -> bool:
    """Whether a closing quote is none: a backslash before it in double quotes."""
    backslashes = len(text[:index]) - len(text[:index].rstrip("\\"))
    return text[index] == '"' and backslashes % 2 == 1


def _alternative(text: str) -> Alternative:
    if text[:1] in ("'", '"'):
        return Alternative((text,))
    try:
        if found := read_range(text):
            return Alternative(("", ""), (Hole((), found),))
        if meant := _range_in_other_words(text):
            raise SpaceError(f"a range is written {meant} here; put a text that reads like one in quotes")
        return _component(text) if text[:1] in ("{", "[") else Alternative((text,))
    except RangeError as error:
        raise SpaceError(str(error)) from error


def _range_in_other_words(text: str) -> Range | None:
    """The range that is meant by `1e-4 .. 1e-2`, or by the mapping that a recipe's section has for one."""
    if text.startswith("{"):
        value = plain(text)
        return _range_of(value) if _is_range(value) else None
    return read_range("".join(text.split())) if re.search(r"[0-9]\s*\.\.\s*[-+0-9]", text) else None


def _component(text: str) -> Alternative:
    """A mapping or a list, with the ranges among a component's arguments as holes.

    Raises:
        SpaceError: A range stands elsewhere in it.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return Alternative((text,))  # reading it as a recipe says what is wrong
    texts, holes, begun = [], [], 0
    for keys, node, found in _ranges(root, (), False):
        texts.append(text[begun : node.start_mark.index])
        holes.append(Hole(keys, found))
        begun = node.end_mark.index
    return Alternative((*texts, text[begun:]), tuple(holes))


def _ranges(node: Any, keys: tuple[str, ...], in_component: bool) -> Iterator[tuple[tuple[str, ...], Any, Range]]:
    if isinstance(node, yaml.MappingNode):
        inside = in_component or any(key.value == "_target_" for key, _ in node.value)
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield from _ranges(value, (*keys, key.value), inside)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _ranges(value, (*keys, str(index)), False)
    elif isinstance(node, yaml.ScalarNode) and node.style is None and (found := read_range(node.value)):
        if not in_component:
            raise SpaceError(
                f"{node.value} stands within a value, and a range is a whole alternative or a component's argument: "
                f"vary its key by itself, as in a.b.0={node.value}, or put a text that reads like a range in quotes"
            )
        yield keys, node, found


# ---------------------------------------------------------------------- the section


def section_words(key: str, node: Node) -> str:
    """What a key of the `sweep:` section says, as one would write it on the command line.

    Raises:
        SpaceError: It is not a space.
    """
    if isinstance(node.value, list):
        if not node.value:
            raise SpaceError("an empty list has no alternatives; write [8, 32]")
        return f"{key}={','.join(_item_words(item) for item in node.value)}"
    if isinstance(node.value, str):
        return f"{key}={node.value}"
    return f"{key}={_item_words(node)}"


def _item_words(node: Node) -> str:
    """One alternative."""
    value = node.plain()
    return str(_range_of(value)) if _is_range(value) else flow(value)


def _is_range(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a mapping is a range: `{from: 1e-4, to: 1e-2, scale: log}`."""
    return isinstance(value, dict) and "from" in value and set(value) <= set(_RANGE_KEYS)


def flow(value: Any, in_component: bool = False, depth: int = 0) -> str:
    """A value as YAML on one line; a range stays bare where one is allowed."""
    if isinstance(value, Mapping):
        if in_component and _is_range(value):
            return str(_range_of(value))
        inside = in_component or "_target_" in value
        items = (f"{scalar(key)}: {flow(child, inside, depth + 1)}" for key, child in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list):
        return f"[{', '.join(flow(child, False, depth + 1) for child in value)}]"
    if isinstance(value, str) and (in_component or not depth) and _reads_as_range(value):
        return value
    needs_quotes = isinstance(value, str) and depth and (":" in value or _reads_as_range(value))
    return quoted(value) if needs_quotes else scalar(value)


def _reads_as_range(text: str) -> bool:
    try:
        return read_range(text) is not None
    except RangeError:
        return True  # to be complained of


def _range_of(stated: Mapping[str, Any]) -> Range:
    wrong = [key for key, value in stated.items() if key != "scale" and not _is_number(value)]
    if wrong:
        raise SpaceError(f"'{wrong[0]}: {stated[wrong[0]]}' is not a number")
    if "to" not in stated:
        raise SpaceError("a range has two ends; write {from: 1e-4, to: 1e-2, scale: log}")
    if stated.get("scale", "linear") not in ("linear", "log"):
        raise SpaceError(f"'scale: {stated['scale']}' is neither linear nor log")
    tails = [f"{stated['step']}"] if "step" in stated else []
    tails += [f"x{stated['factor']}"] if "factor" in stated else ["log"] if stated.get("scale") == "log" else []
    if len(tails) > 1:
        raise SpaceError("a range has a step, or a factor, or a logarithmic scale; keep one")
    try:
        return made(stated["from"], stated["to"], "".join(tails))
    except RangeError as error:
        raise SpaceError(str(error)) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(text: str) -> Any:
    """What a value is; what cannot be read is its own text, and reading it as a recipe says why."""
    node = parse(text, "", pathlib.Path(), Problems(), at=("value",))
    return text if node is None else node.plain()


def segments(key: str) -> tuple[str, ...]:
    """The parts of `a.b[0]`, which is `a.b.0`."""
    return tuple(re.sub(r"\[(\d+)\]", r".\1", key).split("."))
