"""*Components*: import what the recipe names, check that the arguments fit, and build it.

Nothing here imports torch by itself; a target of torch does.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError, Problem, RecipeError
from launcher.recipe.allowed import may_import, objection
from launcher.recipe.component import Component, components_in
from launcher.recipe.document import dotted, hint, suggestion
from launcher.recipe.duration import Duration
from launcher.recipe.references import Expression
from launcher.recipe.schema import Recipe


@dataclass(frozen=True)
class Slot:
    """A place of the recipe where components stand.

    Attributes:
        path: The dotted key.
        homes: Modules in which short names are looked up.
        handed: The argument that the run hands in at any depth, an error to write.
        kind: What must come out, in words, for the check of the outermost component.
    """

    path: str
    homes: tuple[str, ...] = ()
    handed: str | None = None
    kind: str | None = None


SLOTS = (
    Slot("data.train", ("launcher.datasets",), kind="data set"),
    Slot("data.validation", ("launcher.datasets",), kind="data set"),
    Slot("data.test", ("launcher.datasets",), kind="data set"),
    Slot("data.collate"),
    Slot("model", ("torch.nn", "launcher.models"), kind="model"),
    Slot("loss", ("torch.nn",), kind="loss"),
    Slot("optimizer", ("torch.optim",), handed="params", kind="optimizer"),
    Slot("scheduler", ("torch.optim.lr_scheduler",), handed="optimizer", kind="scheduler"),
    Slot("evaluate.metrics", ("torchmetrics", "torchmetrics.classification", "torchmetrics.text"), kind="metric"),
)


def slot_of(component: Component) -> Slot:
    """The slot that a component stands in, however deep."""
    path = f"{dotted(component.path)}."
    return next((slot for slot in SLOTS if path.startswith((f"{slot.path}.", f"{slot.path}["))), Slot(path[:-1]))


class BuildError(LauncherError):
    """A component of the recipe could not be built; its cause carries the traceback."""

    exit_code = 2


class Workshop:
    """Resolves, checks and builds the components of one recipe, each definition once per process.

    Args:
        recipe: The recipe read.
        allow: Further packages whose objects a recipe may name.
    """

    def __init__(self, recipe: Recipe, allow: tuple[str, ...] = ()):
        self.recipe = recipe
        self.allow = allow
        self.computed: dict[str, int] = {}
        self._built: dict[tuple[str | int, ...], Any] = {}
        self._targets: dict[tuple[str, str, Path], Any] = {}

    # ------------------------------------------------------------------ checking

    def check(self) -> None:
        """Imports every target and binds its arguments.

        Raises:
            RecipeError: All that does not fit, each with its place.
        """
        problems = [problem for root in self._roots() for problem in self._problems(root, outermost=True)]
        if problems:
            raise RecipeError(problems)

    def _roots(self) -> Iterator[Component]:
        recipe = self.recipe
        for section in (recipe.define, {name: getattr(recipe, name) for name in type(recipe).model_fields}):
            for value in section.values():
                fields = value if not hasattr(value, "model_fields_set") else dict(value)
                yield from components_in(fields)

    def _problems(self, component: Component, outermost: bool) -> Iterator[Problem]:
        if component.given is not None:
            return
        where, path = str(component.origin), dotted(component.path)
        try:
            target = self.resolve(component)
        except LauncherError as error:
            yield Problem(where, f"{path}._target_", str(error))
            return
        slot = slot_of(component)
        if outermost and component.style == "call" and (wrong := _wrong_kind(target, slot.kind)):
            yield Problem(where, f"{path}._target_", f"{component.target} {wrong}")
        if component.style != "reference":
            for argument, message in _argument_problems(component, target, slot):
                place = self.recipe.document.key_origin((*component.path, argument)) if argument else component.origin
                yield Problem(str(place), f"{path}.{argument}" if argument else path, message)
        for child in component.children():
            yield from self._problems(child, outermost=False)

    # ------------------------------------------------------------------ resolving

    def resolve(self, component: Component) -> Any:
        """The class or function that a component names.

        Raises:
            LauncherError: There is none, its import fails, or a recipe may not name it.
        """
        key = (component.target, slot_of(component).path, component.folder)
        if key not in self._targets:
            self._targets[key] = self._resolve(component)
        return self._targets[key]

    def _resolve(self, component: Component) -> Any:
        target, own = component.target, self._own_folders(component)
        if ".py:" in target:
            file, _, name = target.rpartition(":")
            return _attribute(_import_file(file, own), name, file)
        if "." not in target:
            return self._short(target, slot_of(component).homes)
        module, name = _split(target, own, self.allow)
        thing = _attribute(module, name, module.__name__)
        refused = objection(thing, own, self.allow)
        if refused:
            top = target.partition(".")[0]
            raise LauncherError(
                f"'{target}' is refused: {refused}; name a class of your own file (my_code.py:Name), "
                f"or allow the package with --allow {top}"
            )
        return thing

    def _short(self, name: str, homes: tuple[str, ...]) -> Any:
        known: list[str] = []
        for home in homes:
            module = _imported(home)
            thing = getattr(module, name, None)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                return thing
            known += [other for other, thing in vars(module).items() if inspect.isclass(thing)]
        if not homes:
            raise LauncherError(f"'{name}' has no package; write it in full, as in 'package.module.{name}'")
        raise LauncherError(
            f"{' and '.join(homes)} have no '{name}'"
            + hint(name, known, "write a full name, as in 'package.module.Name', or 'my_file.py:Name'")
        )

    def _own_folders(self, component: Component) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((component.folder.resolve(), Path.cwd().resolve())))

    # ------------------------------------------------------------------ building

    def build(self, component: Component, **handed: Any) -> Any:
        """Builds a component and all inside it; a second call gives the same object.

        Args:
            component: What to build.
            **handed: Arguments that the run hands in, at any depth, where a signature has them.

        Raises:
            BuildError: The target itself raised; the message names place, target and cause.
        """
        if component.given is not None:
            return component.given
        if component.path not in self._built:
            self._built[component.path] = self._build(component, handed)
        return self._built[component.path]

    def _build(self, component: Component, handed: Mapping[str, Any]) -> Any:
        target = self.resolve(component)
        if component.style == "reference":
            return target
        args = [self.value(item, handed) for item in component.args]
        kwargs = {name: self.value(item, handed) for name, item in component.kwargs.items()}
        if component.style == "call":
            kwargs.update({name: value for name, value in handed.items() if name in _parameters(target)})
        if component.style == "partial":
            return functools.partial(target, *args, **kwargs)
        try:
            return target(*args, **kwargs)
        except Exception as error:
            where, path = component.origin, dotted(component.path)
            raise BuildError(f"{where}: {path}: {component.target}: {type(error).__name__}: {error}") from error

    def value(self, item: Any, handed: Mapping[str, Any]) -> Any:
        """An argument as its target gets it: components built, expressions evaluated, durations in steps."""
        if isinstance(item, Component):
            return self.build(item, **handed)
        if isinstance(item, Expression):
            return item.evaluate(self.lookup)
        if isinstance(item, Mapping):
            return {key: self.value(inner, handed) for key, inner in item.items()}
        if isinstance(item, list):
            return [self.value(inner, handed) for inner in item]
        if isinstance(item, str) and "optimizer" in handed and (duration := Duration.parse(item)):
            return duration.in_steps(self.computed["train.steps_per_epoch"], self.computed.get("train.steps"))
        return item

    def lookup(self, name: str) -> Any:
        """What `${name}` stands for now: a computed number, or a plain attribute of what was built.

        Raises:
            LauncherError: It is not known yet, or what was built has no such attribute.
        """
        if name in self.computed:
            return self.computed[name]
        component, rest = self._component_at(name)
        if component is None:
            raise LauncherError(f"${{{name}}} is not known here; it is computed when the data is opened")
        thing = self.build(component)
        for attribute in rest:
            if attribute.startswith("_"):
                raise LauncherError(f"${{{name}}}: private attributes cannot be referred to")
            if attribute == "size":
                thing = len(thing)
            elif hasattr(thing, attribute):
                thing = getattr(thing, attribute)
            else:
                raise LauncherError(f"${{{name}}}: {component.target} has no attribute '{attribute}'")
        return thing

    def _component_at(self, name: str) -> tuple[Component | None, list[str]]:
        steps = name.split(".")
        value: Any = self.recipe
        for number, step in enumerate(steps):
            value = value.get(step) if isinstance(value, Mapping) else getattr(value, step, None)
            if isinstance(value, Component):
                return value, steps[number + 1 :]
        return None, []


# ---------------------------------------------------------------------- importing


def _imported(module: str) -> types.ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise LauncherError(
            f"importing {module}: no module named '{missing}'; install it: pip install {missing}"
        ) from error
    except Exception as error:
        raise LauncherError(f"importing {module}: {type(error).__name__}: {error}") from error


def _import_file(file: str, own: tuple[Path, ...]) -> types.ModuleType:
    path = next((folder / file for folder in own if (folder / file).is_file()), None)
    if path is None:
        raise LauncherError(f"there is no file '{file}' beside the recipe or in the working directory")
    path = path.resolve()
    root, names = path.parent, [path.stem]
    while (root / "__init__.py").is_file():  # a package: relative imports and worker pickling need its full name
        root, names = root.parent, [root.name, *names]
    module = ".".join(names)
    known = sys.modules.get(module) or _find(module)
    other = getattr(known, "__file__", None) or getattr(known, "origin", None)
    if known is not None and (other is None or Path(other).resolve() != path):
        raise LauncherError(f"'{file}' would hide the module '{module}' of {other}; give the file another name")
    if known is None:
        sys.path.insert(0, str(root))
    return _imported(module)


def _find(module: str) -> Any:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def _split(target: str, own: tuple[Path, ...], allow: tuple[str, ...]) -> tuple[types.ModuleType, str]:
    """The longest importable module of a dotted name, and the rest."""
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        raise LauncherError(f"'{target}' is not a name; write it as in 'package.module.Name' or 'my_file.py:Name'")
    if not may_import(target.rpartition(".")[0], own, allow) and not may_import(parts[0], own, allow):
        raise LauncherError(
            f"'{target}' is refused: the package '{parts[0]}' is not on the list of what a recipe may name; "
            f"allow it with --allow {parts[0]}, or put the code into a file of your own"
        )
    for folder in own:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        if module in sys.modules or _find(module) is not None:
            return _imported(module), ".".join(parts[end:])
    raise LauncherError(f"no module named '{parts[0]}'; install it: pip install {parts[0]}")


def _attribute(thing: Any, name: str, of: str) -> Any:
    for part in name.split("."):
        if not hasattr(thing, part):
            known = [other for other in vars(thing) if not other.startswith("_")] if hasattr(thing, "__dict__") else []
            raise LauncherError(f"{of} has no '{part}'{suggestion(part, known)}")
        thing = getattr(thing, part)
    return thing


# ---------------------------------------------------------------------- fitting


def _wrong_kind(target: Any, kind: str | None) -> str | None:
    """Why a target cannot fill its slot; functions are taken at their word."""
    if not callable(target):
        return "cannot be called"
    if not inspect.isclass(target) or kind is None:
        return None
    if kind == "data set":
        fits = hasattr(target, "__iter__") or (hasattr(target, "__getitem__") and hasattr(target, "__len__"))
        return None if fits else "is no data set: it has neither __getitem__ with __len__ nor __iter__"
    if kind == "loss":
        return None if callable(getattr(target, "__call__", None)) else "is no loss: its objects cannot be called"  # noqa: B004
    base = {
        "model": ("torch.nn", "Module"),
        "optimizer": ("torch.optim", "Optimizer"),
        "scheduler": ("torch.optim.lr_scheduler", "LRScheduler"),
        "metric": ("torchmetrics", "Metric"),
    }[kind]
    bases = [getattr(importlib.import_module(base[0]), base[1])]
    if kind == "metric":
        bases.append(importlib.import_module("torchmetrics").MetricCollection)
    if issubclass(target, tuple(bases)):
        return None
    return f"is no {kind}: it is not a {base[0]}.{base[1]}"


@functools.lru_cache(maxsize=256)
def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (ValueError, TypeError):
        return {}


def _argument_problems(component: Component, target: Any, slot: Slot) -> Iterator[tuple[str, str]]:
    parameters = _parameters(target)
    if not parameters and not inspect.isclass(target):
        return
    handed = {slot.handed} & set(parameters) if slot.handed else set()
    takes = [name for name, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    writable = [name for name in takes if name not in handed]
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for name in component.kwargs:
        if name in handed:
            yield name, f"'{name}' is handed in by the run; remove it"
        elif name not in takes and not open_ended:
            shown = ", ".join(writable) or "no arguments"
            yield name, f"{_name(target)} takes no '{name}'{hint(name, writable, f'it takes: {shown}')}"
    yield from _binding_problems(component, target, parameters, handed)
    hints = _hints(target)
    for name, value in component.kwargs.items():
        if name in takes and slot.handed == "optimizer" and isinstance(value, str) and Duration.parse(value):
            continue
        if name in takes and name in hints and not _fits(value, hints[name]):
            yield name, f"'{value}' does not fit: {_name(target)} expects {_annotation(hints[name])}"


def _binding_problems(
    component: Component, target: Any, parameters: Mapping[str, inspect.Parameter], handed: set[str]
) -> Iterator[tuple[str, str]]:
    positional = [
        name
        for name, one in parameters.items()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) and name not in handed
    ]
    variadic = any(one.kind is one.VAR_POSITIONAL for one in parameters.values())
    if len(component.args) > len(positional) and not variadic:
        yield (
            "_args_",
            f"{_name(target)} takes {len(positional)} positional arguments, not {len(component.args)}",
        )
    filled = set(positional[: len(component.args)])
    for name in filled & set(component.kwargs):
        yield name, f"{_name(target)} gets '{name}' twice: in _args_ and by name"
    if component.style == "partial":
        return
    for name, one in parameters.items():
        required = one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        if required and name not in (*component.kwargs, *filled, *handed):
            yield "", f"{_name(target)} needs '{name}'; write '{name}: …'"


def _name(target: Any) -> str:
    return str(getattr(target, "__qualname__", target))


def _hints(target: Any) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # an annotation that cannot be evaluated says nothing; the call itself will
        return {}


_PLAIN = (int, float, bool, str, list, type(None))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value can be meant by an annotation of plain types; anything else is let through."""
    if isinstance(value, Component | Expression) or not isinstance(value, _PLAIN):
        return True
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return any(_fits_one(value, option) for option in options)


def _fits_one(value: Any, option: Any) -> bool:
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(option) is typing.Literal:
        return value in typing.get_args(option)
    if option in (bool, str, type(None)):
        return isinstance(value, option)
    if isinstance(value, str | int | float | bool | None):
        # a class of torch's own (Tensor, dtype, Module) cannot be meant by a word or a number
        return not (inspect.isclass(option) and option.__module__.partition(".")[0] == "torch")
    return True


def _annotation(hint: Any) -> str:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return " or ".join(getattr(option, "__name__", str(option)) for option in options)
