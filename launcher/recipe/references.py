"""`${a.b}`: references between the values of a recipe, and arithmetic over them.

A text with references is compiled to a small program for a stack: push a value, look a name up, apply an
operator, join texts. What the recipe says is put in while it is read. A program in which names remain,
because they mean something yet to be built or counted, is an `Expression`. Nothing is ever given to `eval`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from launcher.recipe.expressions import (
    MAX_STEPS,
    Expression,
    FromEnvironment,
    Program,
    ResolveError,
    Step,
    calculated,
    compiled,
    is_variable,
    shown,
)
from launcher.recipe.places import Origin, Path, Problems, dotted
from launcher.recipe.secrets import holds_secret
from launcher.recipe.tree import MAX_VALUES, Node
from launcher.text import brief, suggestion

# What only the run can compute, and what that depends on. `train.steps` may be stated in the recipe.
_NEEDS = {
    "train.steps": ("train.epochs", "train.steps_per_epoch"),
    "train.steps_per_epoch": ("data.train", "data.global_batch_size"),
    "scheduler.steps": ("train.steps", "scheduler._warmup_"),
}
COMPUTED = frozenset(_NEEDS)

_MAX_CHAIN = 60  # values that wait for one another
_MAX_TEXT = 1_000_000  # characters written by joining

_SECRET = re.compile(
    "KEY|TOKEN|SECRET|PASSW|PASSPHRASE|PASSCODE|CREDENTIAL|AUTH|COOKIE|PGPASS|DSN|.PWD$|WEBHOOK|PRIVATE", re.IGNORECASE
)


class _CycleError(ResolveError):
    """The value depends on itself."""


class _ReportedError(Exception):
    """The value depends on one whose mistake is reported already."""


def resolve(root: Node, problems: Problems, environ: Mapping[str, str]) -> tuple[Node, dict[str, str]]:
    """Puts in the values of all references of a recipe.

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
    """A node whose value will be known under a name."""
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
        """What stands at a path, without references; None if that cannot be told."""
        if path in self.done:
            return self.done[path]
        resolved: Node | None = None
        self.chain.append(path)
        try:
            resolved = self.text(node) if _has_references(node) else self.container(path, node)
        except ResolveError as error:
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
            raise ResolveError(f"with its references this is {excess}")
        return node

    def text(self, node: Node) -> Node:
        """What a text with references in it comes to."""
        assert isinstance(node.value, str)
        program = compiled(node.value)
        if len(program) == 1 and program[0][0] == "name":
            value = self.lookup(program[0][1]).value
            if isinstance(value, Expression):
                value = replace(value, text=node.value, origin=node.origin)
        else:
            value = self.calculate(program, node.value, node.origin)
        known = _known_text(value)
        if isinstance(known, FromEnvironment) and (fault := _no_path(known)):
            raise ResolveError(f"the environment is for paths, and this {fault}; write the value itself")
        return replace(node, value=value)

    def calculate(self, program: Program, text: str, origin: Origin) -> str | int | float | Expression:
        """Puts into a program what the recipe knows of its names, and run it if that is all of them."""
        arithmetic = program[-1][0] == "op"
        steps = [step for kind, what in program for step in self.bound((kind, what), arithmetic)]
        if len(steps) > MAX_STEPS:
            raise ResolveError("too long an expression, with those that it refers to")
        names = tuple(dict.fromkeys(what for kind, what in steps if kind == "name"))
        is_environment = any(isinstance(what, FromEnvironment) for _, what in steps)
        if is_environment and not COMPUTED.issuperset(names):  # which are numbers
            later = f"'{names[0]}' is known when the data is opened; write one of the two itself"
            raise ResolveError(f"the environment's variables are known now, and {later}")
        if names:
            return Expression(text, origin, names, tuple(steps))
        result = calculated(tuple(steps), str)
        assert isinstance(result, str | int | float)
        self.written += len(result) if isinstance(result, str) else 0
        if self.written > _MAX_TEXT:
            raise ResolveError(f"the references write more than {_MAX_TEXT:,} characters")
        return FromEnvironment(result) if is_environment else result

    def bound(self, step: Step, arithmetic: bool) -> Program:
        """A step with its name, if it is one, replaced by what the recipe says."""
        kind, name = step
        if kind != "name":
            return (step,)
        value = self.lookup(name).value
        if isinstance(value, Expression):
            return value.program
        if arithmetic and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ResolveError(f"'{name}' is {shown(value)}, not a number")
        if not isinstance(value, str | int | float):
            raise ResolveError(f"'{name}' is {shown(value)}; only words and numbers can be inside a text")
        return (("push", value),)

    def lookup(self, name: str) -> Node:
        """What a name means: a resolved value, or an expression of that one name."""
        if len(self.chain) > _MAX_CHAIN:
            raise ResolveError(f"a chain of more than {_MAX_CHAIN} references; refer to the value itself")
        if is_variable(("name", name)):
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
            entry = node.find(segment) if node else None
            node = entry[1] if entry else None
        return node

    def states_steps(self) -> bool:
        steps = self.stated("train.steps")
        return steps is not None and steps.value is not None

    def check_needs(self, name: str) -> None:
        """Finds the cycle, if there is one, through what a computed value needs."""
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
        except (ResolveError, _ReportedError):
            pass  # what is missing or wrong there is reported elsewhere

    def variable(self, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ResolveError("an environment variable is written ${env.NAME}")
        if _SECRET.search(name):
            raise ResolveError(f"{name} looks like a secret; recipes read none, libraries do so themselves")
        if name not in self.environ:
            raise ResolveError(f"the environment has no variable {name}; set it, or write the path itself")
        value = self.environ[name]
        if not value.isprintable():
            raise ResolveError(f"the environment variable {name} is not printable text")
        self.env[name] = value
        return FromEnvironment(value)

    def walk(self, segments: Sequence[str]) -> Node:
        """Follows a dotted name from the top of the recipe."""
        path: Path = ()
        node, settled = self.root, False
        for position, segment in enumerate(segments):
            if not settled and _has_references(node):
                node, settled = self.settle(path, node), True
            if isinstance(node.value, Expression):
                return self.beyond(node.value, segments[position:])
            entry = node.find(segment)
            if entry is None:
                later = self.below(path, node, segments[position:])
                if not settled:
                    self.settle(path, node)  # for the cycle that only building it would show
                return later
            path, node = (*path, entry[0]), entry[1]
        resolved = node if settled else self.settle(path, node)
        return self.share(path, resolved)

    def settle(self, path: Path, node: Node) -> Node:
        """The resolved value at a path.

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
        """What lies below a value that refers to a component."""
        (kind, name), *others = value.program
        if kind != "name" or others or name in COMPUTED:
            raise ResolveError(f"'{brief(value.text)}' is a number or a text; it has no '{rest[0]}'")
        return self.walk([*name.split("."), *rest])

    def below(self, path: Path, node: Node, rest: Sequence[str]) -> Node:
        """What is not a key of a value: an attribute of what it builds, or the length of that."""
        length = list(rest) == ["size"] and isinstance(node.value, str | list | dict)
        if length or (isinstance(node.value, dict) and ("_target_" in node.value or "_ref_" in node.value)):
            return _later(_name((*path, *rest)), node)
        raise ResolveError(self.unknown(path, node, rest))

    def unknown(self, path: Path, node: Node, rest: Sequence[str]) -> str:
        """In words that a value has no such key, and which one may be meant."""
        segment, name = rest[0], dotted((*path, *rest))
        if isinstance(node.value, list):
            return f"'{dotted(path)}' has {len(node.value)} items, counted from 0; there is no '{segment}'"
        if not isinstance(node.value, dict):
            return f"'{dotted(path)}' is {shown(node.value)}; it has no '{segment}'"
        prefix = f"{dotted(path)}." if path else ""
        near = suggestion(segment, node.value, prefix)
        elsewhere = next(_ending(self.root, rest[-1]), None)
        if len(rest) == 1 and elsewhere:
            near = f"; did you mean '{elsewhere}'?"
        if name.isupper() and not path:
            near = f"; for the environment write ${{env.{name}}}"
        return f"the recipe does not state '{name}'{near or '; state it, as defaults cannot be referred to'}"

    def share(self, path: Path, node: Node) -> Node:
        """A copy of a value in which each component is a reference to the one object it stands for."""
        self.copied += node.size
        if self.copied > MAX_VALUES:
            raise ResolveError(f"the references copy more than {MAX_VALUES:,} values; refer to smaller parts")
        return _shared(path, node)


def _known_text(value: object) -> object:
    """What is known at reading of a text; of the environment where a part of it is."""
    if not isinstance(value, Expression):
        return value
    pieces = [what for kind, what in value.program if kind == "push"]
    text = "".join(map(str, pieces))
    return FromEnvironment(text) if any(isinstance(piece, FromEnvironment) for piece in pieces) else text


def _no_path(text: str) -> str | None:
    """Why a text with the environment's variables in it is not a path; it goes into files, and to nobody else."""
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
    """The dotted name of a path, as expressions hold it: `define.transforms.0`."""
    if not all(re.fullmatch(r"\w+", str(key)) for key in path):
        raise ResolveError(f"'{dotted(path)}' cannot be referred to; name it in letters, digits and '_'")
    return ".".join(str(key) for key in path)


def _ending(node: Node, last: str, path: Path = ()) -> Iterator[str]:
    """Yields the dotted names that end in a key."""
    for key, child in node.items():
        if key == last:
            yield dotted((*path, key))
        yield from _ending(child, last, (*path, key))
