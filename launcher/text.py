"""Words for people: what may be printed, cut to a line, counted, suggested."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any


def printable(text: str) -> str:
    """A text that is safe to print on one line: whatever is not printable, as its escape."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """A text of several lines that is safe to print: escapes in place of what is not, and only the first at the margin.

    What stands in files and messages of others may have line breaks: no line of theirs looks like one of ours.
    """
    first, *rest = text.split("\n")
    later = (printable(line) if line[:1] in ("", " ") else f"  {printable(line)}" for line in rest)
    return "\n".join([printable(first), *later])


_UNPRINTABLE = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable_block(text: str) -> str:
    """Whole lines of a file, as they are but for what moves a cursor or turns letters around: that as its escape."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")  # of what is redrawn each state is a line
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], lines)


def words_of(error: BaseException) -> str:
    """An exception's own words; what it is where they cannot be had."""
    try:
        return str(error)
    except BaseException as fault:  # its `__str__` is anybody's code
        return f"<its words cannot be had: {type(fault).__name__}>"


def told_by(error: BaseException) -> str:
    """An error in a line: its kind and its words."""
    return f"{type(error).__name__}: {brief(words_of(error))}"


def brief(text: str) -> str:
    """A text that is safe to print, in no more than 80 characters."""
    safe = printable(text)
    return safe if len(safe) <= 80 else f"{safe[:79]}…"


def spans(numbers: Iterable[int], most: int = 8) -> str:
    """Whole numbers in short: `1, 4-7, 9`."""
    intervals: list[list[int]] = []
    for number in sorted(numbers):
        if intervals and number == intervals[-1][-1] + 1:
            intervals[-1] = [intervals[-1][0], number]
        else:
            intervals.append([number])
    return ", ".join("-".join(map(str, interval)) for interval in intervals[:most]) + ", …" * (len(intervals) > most)


_LONGEST_WORD = 100  # to compare two takes a time that grows with the product of their lengths


def suggestion(word: str, known: Iterable[str | int], prefix: str = "") -> str:
    """Return `; did you mean 'lr'?` where something known is spelled alike, else nothing."""
    if len(word) > _LONGEST_WORD:
        return ""
    words = [text for other in islice(known, 300) if len(text := str(other)) <= _LONGEST_WORD]
    alike = [other for other in words if other.lower() == word.lower()]  # of Adam and AdamW, the second for `Adamw`
    near = alike or difflib.get_close_matches(word, words, n=1)
    return f"; did you mean '{prefix}{near[0]}'?" if near else ""


def hint(word: str, known: Iterable[str | int], rest: str) -> str:
    """Return `; did you mean 'lr'? It takes: …` where something known is spelled alike, else `; it takes: …`."""
    near = suggestion(word, known)
    return f"{near} {rest[0].upper()}{rest[1:]}" if near else f"; {rest}"


def number(value: Any) -> str:
    """Four significant digits, readable from 1e-30 to 1e30: `0.01230`, `1.000e-5`, `123.0`, `12345`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value == 0 or 1e4 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return short_exponent(f"{value:#.4g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3e}").rstrip(".")


def short(value: float) -> str:
    """Up to four significant digits, without zeros at the end: `0.001`, `3e-4`."""
    return short_exponent(f"{value:.4g}")


def short_exponent(text: str) -> str:
    """`1e-5` for `1e-05`."""
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def counted(number: int, noun: str) -> str:
    """`1 step`, `1,000 steps`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith(("s", "ch")) else "s")


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `13th`."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def duration(seconds: float) -> str:
    """`0:07`, `12:31`, `1:52:10`, `2 d 3:10`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def age(seconds: float) -> str:
    """How long ago, in its largest unit: `12 s`, `5 min`, `3 h`, `9 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def size(num_bytes: int) -> str:
    """`1.5 KiB`, `82.3 MiB` or `1.50 GiB`: whichever has digits to show."""
    power = next((place for place in range(1, 5) if num_bytes < 2 ** (10 * place + 10)), 5)
    return f"{num_bytes / 2 ** (10 * power):.{1 if power < 3 else 2}f} {'KMGTP'[power - 1]}iB"


def shapes(value: Any) -> str:
    """Tensors by type and shape, in the containers that they stand in: `float32 [2, 1, 8, 8], int64 [2]`."""
    text = _shapes(value)
    return text[1:-1] if isinstance(value, tuple | list) and text.startswith("(") else text


def _shapes(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _tensor_shape(value)
    if isinstance(value, Mapping):
        return _named_shapes({str(key): item for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value).__name__ + _named_shapes(dict(zip(value._fields, value, strict=True)))
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_shapes(item) for item in value[:6]) + (", …" if len(value) > 6 else "") + ")"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return type(value).__name__ + _named_shapes(fields)
    return type(value).__name__


def _named_shapes(items: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {_shapes(item)}" for name, item in items.items()) + "}"


def _tensor_shape(value: Any) -> str:
    kind = str(value.dtype).rpartition(".")[2]
    if getattr(value, "is_nested", False):
        rows = ", ".join(str(list(part.shape)) for part in value.unbind()[:6])
        return f"nested {kind} of {rows}{', …' if value.size(0) > 6 else ''}"
    layout = str(getattr(value, "layout", "torch.strided")).removeprefix("torch.")
    return f"{'' if layout == 'strided' else layout + ' '}{kind} {list(value.shape)}"


def flat(value: Any, separator: str = ".", key: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings and lists hold, each with its keys joined; an empty one is a value."""
    if isinstance(value, Mapping | list | tuple) and value:
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from flat(inner, separator, f"{key}{separator}{name}" if key else str(name))
    else:
        yield key, value
