"""Arithmetic over numbers inside `${…}`: parsed once, run without `eval`."""

from __future__ import annotations

import math
import numbers
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.errors import UsageError
from launcher.recipe.places import Origin
from launcher.recipe.scalars import plain_scalar
from launcher.text import brief

Step = tuple[Literal["push", "name", "op", "join"], Any]
Program = tuple[Step, ...]
# Bounds on what a short recipe can grow into.
MAX_STEPS = 200  # of a program
_MAX_PARENTHESES = 20  # inside each other
_MAX_BITS = 1000  # of an integer


class ExpressionError(UsageError):
    """A `${…}` comes to no value."""


class FromEnvironment(str):
    """A text that the environment's variables are part of, wherever it is referred to."""


class ResolveError(Exception):
    """What is wrong with the value that is being resolved; reported at its place."""


@dataclass(frozen=True)
class Expression:
    """A text with a `${…}` whose value the recipe alone does not tell.

    Attributes:
        text: As written: `${train.steps - 500}`.
        origin: Where it stands.
        names: What it needs: computed values, components, and attributes of those.
        program: How it is evaluated.
    """

    text: str
    origin: Origin
    names: tuple[str, ...]
    program: Program = field(repr=False)

    def evaluate(self, lookup: Callable[[str], Any]) -> Any:
        """The value.

        Args:
            lookup: Returns the value of each of `names`.

        Raises:
            ExpressionError: The arithmetic cannot be done; the message says where and why.
        """
        try:
            return calculated(self.program, lookup)
        except ResolveError as error:
            raise ExpressionError(f"{self.origin}: {self.text}: {error}") from None


_OPERATORS: dict[str, Callable[[Any, Any], int | float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
}


def calculated(program: Program, lookup: Callable[[str], Any]) -> Any:
    """What a program comes to, with the value of each of its names.

    Of what was built only numbers can be part of a text: its words are those of a file, which a text could carry away.
    """
    stack: list[Any] = []
    joins = any(kind == "join" for kind, _ in program)
    for kind, what in program:
        if kind == "push":
            stack.append(what)
        elif kind == "name":
            stack.append(_number_inside(what, lookup(what)) if joins else lookup(what))
        elif kind == "op":
            right, left = stack.pop(), stack.pop()
            stack.append(_apply(what, left, right))
        else:
            stack[-what:] = ["".join(_spell(value) for value in stack[-what:])]
    (value,) = stack
    return value


def _apply(symbol: str, left: Any, right: Any) -> int | float:
    a, b = _number(left), _number(right)
    try:
        result = _OPERATORS[symbol](a, b)
    except ZeroDivisionError:
        raise ResolveError(f"{a} {symbol} {b} divides by zero") from None
    except OverflowError:
        result = math.inf
    grown = math.isinf(result) if isinstance(result, float) else result.bit_length() > _MAX_BITS
    if grown and not (math.isinf(a) or math.isinf(b)):
        raise ResolveError(f"the result of '{symbol}' is too large a number")
    return result


def _number_inside(name: str, value: Any) -> Any:
    if isinstance(value, numbers.Real):
        return value
    what = "a text" if isinstance(value, str) else shown(value)  # whose words may be those of a file
    raise ResolveError(f"'{name}' is {what}, and cannot be inside a text; of what is built only numbers can")


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ResolveError(f"{shown(value)} is not a number")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _spell(value: Any) -> str:
    """A word or number as it stands inside a longer text, spelled as in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | numbers.Real):
        return str(value)
    raise ResolveError(f"{shown(value)} cannot be inside a text; only words and numbers can")


def shown(value: object) -> str:
    """A value in a few words, for messages."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    if value is None or isinstance(value, bool):
        return "null" if value is None else _spell(value)
    if not isinstance(value, str | int | float):
        return f"an object of type {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


_PIECE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")


def compiled(text: str) -> Program:
    """The program of a text: of its one reference, or of all its parts, joined."""
    parts: list[Program] = []
    end = 0
    for match in _PIECE.finditer(text):
        parts += [(("push", text[end : match.start()]),), _compile_piece(match)]
        end = match.end()
    parts = [part for part in (*parts, (("push", text[end:]),)) if part != (("push", ""),)]
    if len(parts) == 1:
        return parts[0]
    return (*(step for part in parts for step in part), ("join", len(parts)))


def _compile_piece(match: re.Match[str]) -> Program:
    whole, inner = match[0], match[1]
    if whole == "$${":
        return (("push", "${"),)
    if inner is None:
        raise ResolveError("a '${' has no '}' of its own; write ${a.b}, or '$${' for a plain '${'")
    if re.match(r"\s*[\w.]*:", inner):
        known = "write ${a.b} for a key of the recipe, ${env.NAME} for the environment"
        raise ResolveError(f"'{brief(whole)}' is not known; {known}")
    try:
        return _Parser(inner).program()
    except ResolveError as error:
        raise ResolveError(f"'{brief(whole)}': {error}") from None


_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[^\W\d]\w*(?:\.\w+|\[\d+\])*)"
    r"|(?P<symbol>//|[-+*/()])|(?P<strange>\S))"
)


class _Parser:
    """Compiles numbers, names, + - * / // and parentheses to postfix order."""

    def __init__(self, text: str):
        if len(text) > 1000:
            raise ResolveError("too long an expression")
        tokens = [(match.lastgroup, match[match.lastgroup or 0]) for match in _TOKEN.finditer(text)]
        self.tokens = tokens[::-1]
        self.steps: list[Step] = []
        self.nesting = 0

    def program(self) -> Program:
        strange = [text for kind, text in self.tokens if kind == "strange"]
        if strange:
            raise ResolveError(f"{strange[-1]!r} is not known; only names, numbers and + - * / // ( ) are")
        self.sum()
        if self.tokens:
            raise ResolveError(f"{self.tokens[-1][1]!r} is not expected; values are joined by + - * / //")
        if len(self.steps) > MAX_STEPS:
            raise ResolveError("too long an expression")
        if len(self.steps) > 1 and any(is_variable(step) for step in self.steps):
            raise ResolveError("an environment variable is text; there is no calculating with it")
        return tuple(self.steps)

    def accept(self, *symbols: str) -> str | None:
        return self.tokens.pop()[1] if self.tokens and self.tokens[-1][1] in symbols else None

    def sum(self) -> None:
        self.product()
        while symbol := self.accept("+", "-"):
            self.product()
            self.steps.append(("op", symbol))

    def product(self) -> None:
        self.factor()
        while symbol := self.accept("*", "/", "//"):
            self.factor()
            self.steps.append(("op", symbol))

    def factor(self) -> None:
        negative = False
        while sign := self.accept("+", "-"):
            negative ^= sign == "-"
        if negative:
            self.steps.append(("push", 0))
        self.operand()
        if negative:
            self.steps.append(("op", "-"))

    def operand(self) -> None:
        kind, text = self.tokens.pop() if self.tokens else ("end", "")
        if kind == "number":
            self.steps.append(("push", self.number(text)))
        elif kind == "name":
            self.steps.append(("name", re.sub(r"\[(\d+)\]", r".\1", text)))
        elif text == "(":
            self.parenthesis()
        else:
            raise ResolveError(f"a name or number is missing {f'before {text!r}' if text else 'at the end'}")

    def number(self, text: str) -> object:
        try:
            return plain_scalar(text)
        except ValueError as error:
            raise ResolveError(str(error)) from None

    def parenthesis(self) -> None:
        self.nesting += 1
        if self.nesting > _MAX_PARENTHESES:
            raise ResolveError("too many parentheses")
        self.sum()
        self.nesting -= 1
        if not self.accept(")"):
            raise ResolveError("a ')' is missing")


def is_variable(step: Step) -> bool:
    """Whether a step means a variable of the environment."""
    kind, what = step
    return kind == "name" and bool(re.match(r"env(\.|$)", what))
