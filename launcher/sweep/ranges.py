"""A range of numbers: `1e-4..1e-2:log`, `1..5`, `0..1:0.25`, `16..256:x2`.

    range  = NUMBER ".." NUMBER [":" ("log" | STEP | "x" FACTOR)]
    NUMBER = the recipe's own integer or float; where it has a point, a digit on both sides of it

Both ends belong to it. Two integers make integers, anything else real numbers; a step or a factor must hit the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

from launcher.text import short_exponent

Number = int | float
_NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(log|x{_NUMBER}|{_NUMBER}))?")
# what somebody may have meant as a number: other notations, or nothing at all
_LIKE = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|0x[0-9a-fA-F]+|0o[0-7]+|[-+]?\.?(?:inf|nan)|\$\{.*\}"
)
_MANY = 100  # from this factor between its ends on, a linear range is asked about
_MOST_DIGITS = 30
_MOST_VALUES = 1_000_000  # of a range with a step


class RangeError(ValueError):
    """A range that is none, in words: what is wrong, and what to write."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low: The least.
        high: The greatest.
        scale: `linear`, or `log`: as many from 1 to 10 as from 10 to 100.
        step: Between two neighbours; None where there is none.
        factor: The same, multiplied.
    """

    low: Number
    high: Number
    scale: str = "linear"
    step: Number | None = None
    factor: Number | None = None

    def __str__(self) -> str:
        if self.factor is not None:
            return f"{written(self.low)}..{written(self.high)}:x{written(self.factor)}"
        tail = ":log" if self.scale == "log" else f":{written(self.step)}" if self.step is not None else ""
        return f"{written(self.low)}..{written(self.high)}{tail}"

    @property
    def is_integer(self) -> bool:
        """Whether its values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def is_listed(self) -> bool:
        """Whether it has a step or a factor: its values are a list."""
        return self.step is not None or self.factor is not None

    @property
    def size(self) -> int | None:
        """How many values it has; None where it is real."""
        if self.is_listed:
            return len(self._values)
        return int(self.high) - int(self.low) + 1 if self.is_integer else None

    def value(self, index: int) -> Number:
        """The value of an index, counted from the low end."""
        if self.is_listed:
            return self._values[index]
        return int(self.low) + index

    def at(self, fraction: float) -> Number:
        """The value at a fraction of the way from the low end (0) to the high one (1), by its scale."""
        if self.is_listed:
            return self._values[min(int(fraction * len(self._values)), len(self._values) - 1)]
        if self.is_integer:
            return self._integer_at(fraction)
        if self.scale == "log":
            return self.within(math.exp(_between(math.log(self.low), math.log(self.high), fraction)))
        return self.within(_between(float(self.low), float(self.high), fraction))

    def within(self, value: float) -> float:
        """A real value in eight digits, which no learning rate exceeds, and never outside."""
        return min(max(float(f"{value:.8g}"), float(self.low)), float(self.high))

    def fraction(self, value: Number) -> float:
        """Where a value lies between the ends, 0 to 1: what `at` gives it for, roughly."""
        if self.is_listed:
            return (self.nearest(value) + 0.5) / len(self._values)
        if self.scale == "log":
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def nearest(self, value: Number) -> int:
        """The index of the listed value that lies nearest to another."""
        return min(range(len(self._values)), key=lambda index: abs(self._values[index] - value))

    def holds(self, value: Number) -> bool:
        """Whether a number is one of its values."""
        if not self.low <= value <= self.high:
            return False
        if self.is_listed:
            return value in self._values
        return not self.is_integer or float(value).is_integer()

    def _integer_at(self, fraction: float) -> int:
        """Each integer has a stretch of its own: half a number more at both ends."""
        low, high = int(self.low) - 0.5, int(self.high) + 0.5
        if self.scale == "log":
            value = math.exp(_between(math.log(low), math.log(high), fraction))
        else:
            value = _between(low, high, fraction)
        return min(max(round(value), int(self.low)), int(self.high))

    @cached_property
    def _values(self) -> Sequence[Number]:
        low, high = Decimal(str(self.low)), Decimal(str(self.high))
        values = [low]
        while values[-1] < high:
            last = values[-1]
            values.append(last + Decimal(str(self.step)) if self.step is not None else last * Decimal(str(self.factor)))
        return [int(value) if self.is_integer else float(value) for value in values]


def written(value: Number) -> str:
    """A number as people write it, with all its digits: `1e-5`, `0.25`, `8`."""
    return short_exponent(repr(value))


def _between(low: float, high: float, fraction: float) -> float:
    return low + (high - low) * fraction


def read_range(text: str) -> Range | None:
    """The range that a text is as a whole; None where it is a value.

    Raises:
        RangeError: It is neither: what was meant as a range is none.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        if words := _fault_of_what_looks_like_one(text):
            raise RangeError(words)
        return None
    low, high = _number(match[1]), _number(match[2])
    return made(low, high, match[3] or "")


def made(low: Number, high: Number, tail: str = "") -> Range:
    """A range of its parts, checked.

    Args:
        low: The least.
        high: The greatest.
        tail: `log`, a step, `x` and a factor, or nothing.

    Raises:
        RangeError: It is empty, or its step misses the end.
    """
    text = f"{written(low)}..{written(high)}"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RangeError(f"{text} has no end; write numbers, as in 1e-4..1e-2:log")
    if low == high:
        raise RangeError(f"{text} is one value; write {written(low)}")
    if low > high:
        raise RangeError(f"{text} is empty; write {written(high)}..{written(low)}{f':{tail}' if tail else ''}")
    if tail == "log":
        if low <= 0:
            raise RangeError(f"{text}:log: {written(low)} has no logarithm; begin above 0, as in 1e-5..{written(high)}")
        return Range(low, high, "log")
    if tail.startswith("x"):
        return _by_factor(low, high, _number(tail[1:]))
    return _by_step(low, high, _number(tail)) if tail else Range(low, high)


def _by_step(low: Number, high: Number, step: Number) -> Range:
    words = f"{written(low)}..{written(high)}:{written(step)}"
    if step <= 0:
        raise RangeError(f"{words}: a step is more than 0")
    if isinstance(low, int) and isinstance(high, int) and not isinstance(step, int):
        low, high = float(low), float(high)
    exact = Decimal(str(step))
    count, rest = divmod(Decimal(str(high)) - Decimal(str(low)), exact)
    if count > _MOST_VALUES:
        raise RangeError(f"{words} has {int(count) + 1:,} values; omit the step")
    if rest:
        last = Decimal(str(low)) + count * exact
        raise RangeError(f"{words} misses its end: its last value is {last}; end at {last} or {last + exact}")
    return Range(low, high, step=step)


def _by_factor(low: Number, high: Number, factor: Number) -> Range:
    words = f"{written(low)}..{written(high)}:x{written(factor)}"
    if factor <= 1 or low <= 0:
        raise RangeError(f"{words}: a factor is more than 1, and multiplies from above 0")
    exact, last = Decimal(str(factor)), Decimal(str(low))
    if math.log(high / low) / math.log(factor) > _MOST_VALUES:
        raise RangeError(f"{words} has more than {_MOST_VALUES:,} values; omit the factor, and write :log")
    while last * exact <= Decimal(str(high)):
        last *= exact
    if last != Decimal(str(high)):
        raise RangeError(f"{words} misses its end: its last value is {last}; end at {last} or {last * exact}")
    if isinstance(low, int) and isinstance(high, int) and not isinstance(factor, int):
        low, high = float(low), float(high)
    return Range(low, high, "log", factor=factor)


def _number(text: str) -> Number:
    if len(text) > _MOST_DIGITS:
        raise RangeError(f"a number of {len(text)} characters; write at most {_MOST_DIGITS}")
    return int(text) if re.fullmatch(r"[-+]?[0-9]+", text) else float(text)


def _fault_of_what_looks_like_one(text: str) -> str | None:
    """Why a text that was surely meant as a range is none, and what to write; None where it was not."""
    left, dots, right = text.partition("..")
    if not dots or re.search(r"[\s/]", text.partition(":")[0]):
        return None
    right, _, tail = right.partition(":")
    sides = [side for side in (left, right) if side]
    if not sides or not all(_LIKE.fullmatch(side) for side in sides):
        return None
    for side in (left, right):
        if re.fullmatch(_NUMBER, side):
            continue
        return f"{text}: {_about_side(side)}; write a range as 1e-4..1e-2:log, or a text in quotes"
    return f"{text}: behind the colon stands '{tail}'; write log, a step as in {left}..{right}:2, or x2 for a factor"


def _about_side(side: str) -> str:
    if not side:
        return "one end is missing"
    if "${" in side:
        return "an end cannot be a reference"
    if "_" in side:
        return f"'{side}' is not a number of a recipe; it is {side.replace('_', '')}"
    if side[:2] in ("0x", "0o"):
        return f"'{side}' is written in digits here: {int(side, 0)}"
    if side.startswith("."):
        return f"'{side}' needs a digit before the point: 0{side}"
    if side.endswith("nan"):
        return f"'{side}' is not a number"
    return f"'{side}' needs a digit behind the point: {side}0" if side.endswith(".") else f"'{side}' has no end"


def is_asked_about(range: Range) -> bool:
    """Whether a linear range spans so much that `:log` may have been forgotten."""
    return range.scale == "linear" and not range.is_listed and range.low > 0 and range.high / range.low >= _MANY
