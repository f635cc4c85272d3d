"""`${a.b}`: references between the values of a recipe, and arithmetic over them.

A text with references is compiled to a small program for a stack: push a value, look a name up, apply an
operator, join texts. What the recipe says is put in while it is read. A program in which names remain,
because they mean something yet to be built or counted, is an `Expression`. Nothing is ever given to `eval`.
"""

from __future__ import annotations

import math
import numbers
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from launcher.errors import UsageError
from launcher.recipe.document import (
    MAX_VALUES,
    Node,
    Origin,
    Path,
    Problems,
    brief,
    dotted,
    plain_scalar,
    suggestion,
)
from launcher.recipe.secrets import holds_secret

# What only the run can compute, and what that depends on. `train.steps` may be stated in the recipe.
_NEEDS = {
    "train.steps": ("train.epochs", "train.steps_per_epoch"),
    "train.steps_per_epoch": ("data.train", "data.global_batch_size"),
    "scheduler.steps": ("train.steps", "scheduler._warmup_"),
}
COMPUTED = frozenset(_NEEDS)

Step = tuple[Literal["push", "name", "op", "join"], Any]
Program = tuple[Step, ...]

# Bounds on what a short recipe can grow into.
_MAX_STEPS = 200  # of a program
_MAX_PARENTHESES = 20  # inside each other
_MAX_CHAIN = 60  # values that wait for one another
_MAX_TEXT = 1_000_000  # characters written by joining
_MAX_BITS = 1000  # of an integer

_SECRET = re.compile(
    "KEY|TOKEN|SECRET|PASSW|PASSPHRASE|PASSCODE|CREDENTIAL|AUTH|COOKIE|PGPASS|DSN|.PWD$|WEBHOOK|PRIVATE", re.IGNORECASE
)


class _FromEnvironment(str):
    """A text that the environment's variables are part of, wherever it is referred to."""


class ExpressionError(UsageError):
    """A `${…}` comes to no value."""


class _ResolveError(Exception):
    """What is wrong with the value that is being resolved; reported at its place."""


class _CycleError(_ResolveError):
    """The value depends on itself."""


class _ReportedError(Exception):
    """The value depends on one whose mistake is reported already."""


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
        """Return the value.

        Args:
            lookup: Returns the value of each of `names`.

        Raises:
            ExpressionError: The arithmetic cannot be done; the message says where and why.
        """
        try:
            return _run(self.program, lookup)
        except _ResolveError as error:
            raise ExpressionError(f"{self.origin}: {self.text}: {error}") from None


_OPERATORS: dict[str, Callable[[Any, Any], int | float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
}


def _run(program: Program, lookup: Callable[[str], Any]) -> Any:
    stack: list[Any] = []
    for kind, what in program:
        if kind == "push":
            stack.append(what)
        elif kind == "name":
            stack.append(lookup(what))
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
        raise _ResolveError(f"{a} {symbol} {b} divides by zero") from None
    except OverflowError:
        result = math.inf
    grown = math.isinf(result) if isinstance(result, float) else result.bit_length() > _MAX_BITS
    if grown and not (math.isinf(a) or math.isinf(b)):
        raise _ResolveError(f"the result of '{symbol}' is too large a number")
    return result


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _ResolveError(f"{_show(value)} is not a number")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _spell(value: Any) -> str:
    """Return a word or number as it stands inside a longer text, spelled as in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | numbers.Real):
        return str(value)
    raise _ResolveError(f"{_show(value)} cannot stand inside a text; only words and numbers can")


def _show(value: object) -> str:
    """Return a value in a few words, for messages."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    if value is None or isinstance(value, bool):
        return "null" if value is None else _spell(value)
    if not isinstance(value, str | int | float):
        return f"an object of type {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


_PIECE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")


def _compile(text: str) -> Program:
    """Return the program of a text: of its one reference, or of all its parts, joined."""
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
        raise _ResolveError("a '${' has no '}' of its own; write ${a.b}, or '$${' for a plain '${'")
    if re.match(r"\s*[\w.]*:", inner):
        known = "write ${a.b} for a key of the recipe, ${env.NAME} for the environment"
        raise _ResolveError(f"'{brief(whole)}' is not known; {known}")
    try:
        return _Parser(inner).program()
    except _ResolveError as error:
        raise _ResolveError(f"'{brief(whole)}': {error}") from None


_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[^\W\d]\w*(?:\.\w+|\[\d+\])*)"
    r"|(?P<symbol>//|[-+*/()])|(?P<strange>\S))"
)


class _Parser:
    """Compiles numbers, names, + - * / // and parentheses to postfix order."""

    def __init__(self, text: str):
        if len(text) > 1000:
            raise _ResolveError("too long an expression")
        found = [(match.lastgroup, match[match.lastgroup or 0]) for match in _TOKEN.finditer(text)]
        self.tokens = found[::-1]
        self.steps: list[Step] = []
        self.nesting = 0

    def program(self) -> Program:
        strange = [text for kind, text in self.tokens if kind == "strange"]
        if strange:
            raise _ResolveError(f"{strange[-1]!r} is not known; only names, numbers and + - * / // ( ) are")
        self.sum()
        if self.tokens:
            raise _ResolveError(f"{self.tokens[-1][1]!r} is not expected; values are joined by + - * / //")
        if len(self.steps) > _MAX_STEPS:
            raise _ResolveError("too long an expression")
        if len(self.steps) > 1 and any(_is_variable(step) for step in self.steps):
            raise _ResolveError("an environment variable is text; there is no calculating with it")
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
            raise _ResolveError(f"a name or number is missing {f'before {text!r}' if text else 'at the end'}")

    def number(self, text: str) -> object:
        try:
            return plain_scalar(text)
        except ValueError as error:
            raise _ResolveError(str(error)) from None

    def parenthesis(self) -> None:
        self.nesting += 1
        if self.nesting > _MAX_PARENTHESES:
            raise _ResolveError("too many parentheses")
        self.sum()
        self.nesting -= 1
        if not self.accept(")"):
            raise _ResolveError("a ')' is missing")


def _is_variable(step: Step) -> bool:
    kind, what = step
    return kind == "name" and bool(re.match(r"env(\.|$)", what))


def resolve(root: Node, problems: Problems, environ: Mapping[str, str]) -> tuple[Node, dict[str, str]]:
    """Put in the values of all references of a recipe.

    Args:
        root: The recipe, after bases and overrides.
        problems: Receives every mistake.
        environ: The environment variables.

    Returns:
        The recipe without references, but for expressions; and the environment variables that it used.
    """
    resolver = _Resolver(root, problems, environ)
    return resolver.resolve((), root) or root, resolver.env


def _has_references(node: Node) -> bool:
    return isinstance(node.value, str) and "${" in node.value


def _later(name: str, node: Node) -> Node:
    """Return a node whose value will be known under a name."""
    return replace(node, value=Expression(f"${{{name}}}", node.origin, (name,), (("name", name),)))


class _Resolver:
    """Resolves each value once, on demand, and knows which ones it is in the middle of."""

    def __init__(self, root: Node, problems: Problems, environ: Mapping[str, str]):
        self.root, self.problems, self.environ = root, problems, environ
        self.env: dict[str, str] = {}
        self.done: dict[Path, Node | None] = {}  # None: its mistake is reported
        self.checked: set[str] = set()
        self.chain: list[Path] = []
        self.copied = 0  # values
        self.written = 0  # characters

    def resolve(self, path: Path, node: Node) -> Node | None:
        """Return what stands at a path, without references; None if that cannot be told."""
        if path in self.done:
            return self.done[path]
        resolved: Node | None = None
        self.chain.append(path)
        try:
            resolved = self.text(node) if _has_references(node) else self.container(path, node)
        except _ResolveError as error:
            self.problems.add(node.origin, path, str(error))
        except _ReportedError:
            pass
        self.chain.pop()
        self.done[path] = resolved
        return resolved

    def container(self, path: Path, node: Node) -> Node:
        children = [(key, self.resolve((*path, key), child) or child) for key, child in node.items()]
        node = node.with_items(children)
        if excess := node.excess():
            raise _ResolveError(f"with its references this is {excess}")
        return node

    def text(self, node: Node) -> Node:
        """Return what a text with references in it comes to."""
        assert isinstance(node.value, str)
        program = _compile(node.value)
        if len(program) == 1 and program[0][0] == "name":
            value = self.lookup(program[0][1]).value
            if isinstance(value, Expression):
                value = replace(value, text=node.value, origin=node.origin)
        else:
            value = self.calculate(program, node.value, node.origin)
        known = _known_text(value)
        if isinstance(known, _FromEnvironment) and (fault := _no_path(known)):
            raise _ResolveError(f"the environment is for paths, and this {fault}; write the value itself")
        return replace(node, value=value)

    def calculate(self, program: Program, text: str, origin: Origin) -> str | int | float | Expression:
        """Put into a program what the recipe knows of its names, and run it if that is all of them."""
        arithmetic = program[-1][0] == "op"
        steps = [step for kind, what in program for step in self.bound((kind, what), arithmetic)]
        if len(steps) > _MAX_STEPS:
            raise _ResolveError("too long an expression, with those that it refers to")
        names = tuple(dict.fromkeys(what for kind, what in steps if kind == "name"))
        is_environment = any(isinstance(what, _FromEnvironment) for _, what in steps)
        if is_environment and not COMPUTED.issuperset(names):  # which are numbers
            later = f"'{names[0]}' is known when the data is opened; write one of the two itself"
            raise _ResolveError(f"the environment's variables are known now, and {later}")
        if names:
            return Expression(text, origin, names, tuple(steps))
        result = _run(tuple(steps), str)
        assert isinstance(result, str | int | float)
        self.written += len(result) if isinstance(result, str) else 0
        if self.written > _MAX_TEXT:
            raise _ResolveError(f"the references write more than {_MAX_TEXT:,} characters")
        return _FromEnvironment(result) if is_environment else result

    def bound(self, step: Step, arithmetic: bool) -> Program:
        """Return a step with its name, if it is one, replaced by what the recipe says."""
        kind, name = step
        if kind != "name":
            return (step,)
        value = self.lookup(name).value
        if isinstance(value, Expression):
            return value.program
        if arithmetic and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise _ResolveError(f"'{name}' is {_show(value)}, not a number")
        if not isinstance(value, str | int | float):
            raise _ResolveError(f"'{name}' is {_show(value)}; only words and numbers can stand inside a text")
        return (("push", value),)

    def lookup(self, name: str) -> Node:
        """Return what a name means: a resolved value, or an expression of that one name."""
        if len(self.chain) > _MAX_CHAIN:
            raise _ResolveError(f"a chain of more than {_MAX_CHAIN} references; refer to the value itself")
        if _is_variable(("name", name)):
            return replace(self.root, value=self.variable(name.removeprefix("env").removeprefix(".")))
        if name in COMPUTED and not (name == "train.steps" and self.states_steps()):
            self.check_needs(name)
            return _later(name, self.root)
        try:
            return self.walk(name.split("."))
        except _CycleError as error:
            if self.stated(name) is not None:
                raise
            # a slip in what the run computes looks like a part of the component that it stands in
            raise _CycleError(f"{error}{suggestion(name, COMPUTED)}") from None

    def stated(self, name: str) -> Node | None:
        """What the recipe says under a dotted name."""
        node: Node | None = self.root
        for segment in name.split("."):
            found = node.find(segment) if node else None
            node = found[1] if found else None
        return node

    def states_steps(self) -> bool:
        steps = self.stated("train.steps")
        return steps is not None and steps.value is not None

    def check_needs(self, name: str) -> None:
        """Find the cycle, if there is one, through what a computed value needs."""
        if name in self.checked:
            return
        self.chain.append((name,))
        try:
            for need in _NEEDS[name]:
                self.check_need(need)
        finally:
            self.chain.pop()
        self.checked.add(name)

    def check_need(self, name: str) -> None:
        if name not in COMPUTED and self.stated(name) is None:
            return  # nothing to wait for
        try:
            self.lookup(name)
        except _CycleError:
            raise
        except (_ResolveError, _ReportedError):
            pass  # what is missing or wrong there is reported elsewhere

    def variable(self, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise _ResolveError("an environment variable is written ${env.NAME}")
        if _SECRET.search(name):
            raise _ResolveError(f"{name} looks like a secret; recipes read none, libraries do so themselves")
        if name not in self.environ:
            raise _ResolveError(f"the environment has no variable {name}; set it, or write the path itself")
        value = self.environ[name]
        if not value.isprintable():
            raise _ResolveError(f"the environment variable {name} is not printable text")
        self.env[name] = value
        return _FromEnvironment(value)

    def walk(self, segments: Sequence[str]) -> Node:
        """Follow a dotted name from the top of the recipe."""
        path: Path = ()
        node, settled = self.root, False
        for position, segment in enumerate(segments):
            if not settled and _has_references(node):
                node, settled = self.settle(path, node), True
            if isinstance(node.value, Expression):
                return self.beyond(node.value, segments[position:])
            found = node.find(segment)
            if found is None:
                later = self.below(path, node, segments[position:])
                if not settled:
                    self.settle(path, node)  # for the cycle that only building it would show
                return later
            path, node = (*path, found[0]), found[1]
        resolved = node if settled else self.settle(path, node)
        return self.share(path, resolved)

    def settle(self, path: Path, node: Node) -> Node:
        """Return the resolved value at a path.

        Raises:
            _CycleError: It is waiting for the very value that asks.
            _ReportedError: It has a mistake of its own.
        """
        if path in self.chain:
            cycle = (*self.chain[self.chain.index(path) :], path)
            raise _CycleError(f"refers to itself: {' → '.join(dotted(step) for step in cycle)}")
        resolved = self.resolve(path, node)
        if resolved is None:
            raise _ReportedError
        return resolved

    def beyond(self, value: Expression, rest: Sequence[str]) -> Node:
        """Return what lies below a value that refers to a component."""
        (kind, name), *others = value.program
        if kind != "name" or others or name in COMPUTED:
            raise _ResolveError(f"'{brief(value.text)}' is a number or a text; it has no '{rest[0]}'")
        return self.walk([*name.split("."), *rest])

    def below(self, path: Path, node: Node, rest: Sequence[str]) -> Node:
        """Return what is no key of a value: an attribute of what it builds, or the length of that."""
        length = list(rest) == ["size"] and isinstance(node.value, str | list | dict)
        if length or (isinstance(node.value, dict) and ("_target_" in node.value or "_ref_" in node.value)):
            return _later(_name((*path, *rest)), node)
        raise _ResolveError(self.unknown(path, node, rest))

    def unknown(self, path: Path, node: Node, rest: Sequence[str]) -> str:
        """Return in words that a value has no such key, and which one may be meant."""
        segment, name = rest[0], dotted((*path, *rest))
        if isinstance(node.value, list):
            return f"'{dotted(path)}' has {len(node.value)} items, counted from 0; there is no '{segment}'"
        if not isinstance(node.value, dict):
            return f"'{dotted(path)}' is {_show(node.value)}; it has no '{segment}'"
        prefix = f"{dotted(path)}." if path else ""
        near = suggestion(segment, node.value, prefix)
        elsewhere = next(_ending(self.root, rest[-1]), None)
        if len(rest) == 1 and elsewhere:
            near = f"; did you mean '{elsewhere}'?"
        if name.isupper() and not path:
            near = f"; for the environment write ${{env.{name}}}"
        return f"the recipe does not state '{name}'{near or '; state it, as defaults cannot be referred to'}"

    def share(self, path: Path, node: Node) -> Node:
        """Return a copy of a value in which each component is a reference to the one object it stands for."""
        self.copied += node.size
        if self.copied > MAX_VALUES:
            raise _ResolveError(f"the references copy more than {MAX_VALUES:,} values; refer to smaller parts")
        return _shared(path, node)


def _known_text(value: object) -> object:
    """Return what is known at reading of a text; of the environment where a part of it is."""
    if not isinstance(value, Expression):
        return value
    pieces = [what for kind, what in value.program if kind == "push"]
    text = "".join(map(str, pieces))
    return _FromEnvironment(text) if any(isinstance(one, _FromEnvironment) for one in pieces) else text


def _no_path(text: str) -> str | None:
    """Return why a text with the environment's variables in it is no path; it goes into files, and to nobody else."""
    if "/" not in text:
        return "has no '/'"
    if any(mark in text for mark in ("://", "::", "@")) or not text.isprintable():
        return "is an address, or holds a user's name, and no path"
    return "looks like it holds a secret, which is none" if holds_secret(text) else None


def _shared(path: Path, node: Node) -> Node:
    if node.states_component():
        return _later(_name(path), node)
    return node.with_items([(key, _shared((*path, key), child)) for key, child in node.items()])


def _name(path: Path) -> str:
    """Return the dotted name of a path, as expressions hold it: `define.transforms.0`."""
    if not all(re.fullmatch(r"\w+", str(key)) for key in path):
        raise _ResolveError(f"'{dotted(path)}' cannot be referred to; name it in letters, digits and '_'")
    return ".".join(str(key) for key in path)


def _ending(node: Node, last: str, path: Path = ()) -> Iterator[str]:
    """Yield the dotted names that end in a key."""
    for key, child in node.items():
        if key == last:
            yield dotted((*path, key))
        yield from _ending(child, last, (*path, key))
