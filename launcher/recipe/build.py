"""*Components*: import what the recipe names, check that the arguments fit, and build it.

Nothing here imports torch by itself; a target of torch does.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError, Problem, RecipeError
from launcher.recipe.component import Component, components_in
from launcher.recipe.directory import directory, shortest
from launcher.recipe.duration import Duration
from launcher.recipe.expressions import Expression, FromEnvironment
from launcher.recipe.local_data import keep_to_data, opened, without_hub
from launcher.recipe.places import Key, by_place, dotted
from launcher.recipe.places import Path as KeyPath
from launcher.recipe.policy import (
    UNKNOWN,
    Trust,
    argument_objections,
    is_installed,
    is_load_dataset,
    is_trusted,
    loads_repository,
    may_load_models,
    style_objection,
)
from launcher.recipe.project import allowed_packages, own_code
from launcher.recipe.remote_paths import reached
from launcher.recipe.schema import Recipe
from launcher.recipe.signature import (
    Fitting,
    annotated,
    argument_problems,
    arguments_of,
    group_problems,
    leaves_open,
    parameters_of,
    shown,
    value_problems,
    wrong_kind,
)
from launcher.recipe.targets import RefusedError, find_target, names_own_code, told
from launcher.text import printable, words_of


@dataclass(frozen=True)
class Slot:
    """A place of the recipe where components stand.

    Attributes:
        path: The dotted key.
        homes: Modules in which short names are looked up.
        handed: The argument that the run passes in at any depth, an error to write.
        kind: What must come out, in words, for the check of the outermost component.
    """

    path: str
    homes: tuple[str, ...] = ()
    handed: str | None = None
    kind: str | None = None


_OWN_SAMPLERS = ("launcher.data.batch_samplers", "launcher.data.mixture")
SLOTS = (
    Slot("data.train", ("launcher.datasets",), kind="data set"),
    Slot("data.validation", ("launcher.datasets",), kind="data set"),
    Slot("data.test", ("launcher.datasets",), kind="data set"),
    Slot("data.collate", kind="function"),
    Slot("data.batch_sampler", (*_OWN_SAMPLERS, "torch.utils.data"), handed="data_source", kind="batch sampler"),
    Slot("data.on_device", ("launcher.data.mixing",), kind="function"),
    Slot("model", ("torch.nn", "launcher.models"), kind="model"),
    Slot("loss", ("torch.nn",), kind="loss"),
    Slot("optimizer", ("torch.optim",), handed="params", kind="optimizer"),
    Slot("scheduler", ("torch.optim.lr_scheduler",), handed="optimizer", kind="scheduler"),
    Slot("train.step", kind="function"),
    Slot("train.count", kind="function"),
    Slot("train.after_step", kind="function"),
    Slot("evaluate.after", kind="function"),
    Slot("batch.adapt", kind="function"),
    Slot("evaluate.metrics", ("torchmetrics.classification", "torchmetrics.text", "torchmetrics"), kind="metric"),
)

SAMPLES = "train.samples_per_epoch"  # computed as well; no recipe refers to it


def slot_of(component: Component) -> Slot:
    """The slot that a component stands in, however deep."""
    path = f"{dotted(component.path)}."
    return next((slot for slot in SLOTS if path.startswith((f"{slot.path}.", f"{slot.path}["))), Slot(path[:-1]))


class BuildError(LauncherError):
    """A component of the recipe could not be built; its cause carries the traceback."""

    exit_code = 2


class Builder:
    """Resolves, checks and builds the components of one recipe, each definition once per process.

    Args:
        recipe: The recipe read.
        allow: Packages whose objects it may name besides the list and those that the project allows.
        directory: The project's; None is the working directory.

    Raises:
        UsageError: One of them is not a package, or the project's pyproject.toml cannot be read.
    """

    def __init__(self, recipe: Recipe, allow: Sequence[str] = (), directory: Path | None = None):
        self._recipe = recipe
        self.directory = directory
        self.allow = allowed_packages(allow, directory)
        self.computed: dict[str, Any] = {}
        self.meant: dict[tuple[str | int, ...], Any] = {}  # what a reference means where it is not what was built
        self.adapted: dict[tuple[str | int, ...], Any] = {}  # models with an adapter around them
        self.finish: dict[tuple[str | int, ...], Callable[[Any], None]] = {}  # what is done to a thing once it is built
        self._built: dict[tuple[str | int, ...], Any] = {}
        self._targets: dict[tuple[str, str, Path], Any] = {}
        self._trusted: dict[tuple[Path, Path], Trust] = {}

    def for_recipe(self, recipe: Recipe) -> Builder:
        """The same objects, built or yet to be, for a recipe whose components are the same."""
        other = copy.copy(self)
        other._recipe = recipe
        other.__dict__.pop("_root_paths", None)
        return other

    def keeping(self, section: str) -> Builder:
        """Another that has built nothing yet but what stands in one section: for things that are thrown away."""
        other = self.another()
        other._built = {path: built for path, built in self._built.items() if path[:1] == (section,)}
        return other

    @property
    def folder(self) -> Path:
        """Where the recipe lies: its relative paths begin there."""
        return self._recipe.document.folder

    @property
    def defined(self) -> list[Component]:
        """The components under free names."""
        return list(components_in(self._recipe.define))

    def wrong(self, key: str | KeyPath, message: str, *, at_key: bool = False) -> RecipeError:
        """An error at a place of the recipe, to be raised.

        Args:
            key: As users write it where no part of it has a dot, else its parts.
            message: What is wrong, what is allowed, what to do.
            at_key: Whether the key itself is wrong, not its value.
        """
        document, path = self._recipe.document, tuple(key.split(".")) if isinstance(key, str) else key
        where = document.key_origin(path) if at_key else document.origin(path)
        return RecipeError([Problem(str(where), dotted(path), message)])

    # ------------------------------------------------------------------ checking

    def check(self) -> int:
        """Imports every target and binds its arguments.

        Returns:
            How many components there are.

        Raises:
            RecipeError: All that does not fit, each with its place; of what a recipe may not name alone, before any
                of the user's own code is imported.
        """
        components = [component for root in self._roots() for component in root.walk()]
        roots = {root.path for root in self._roots()}
        problems = [problem for component in components for problem in self._refusal(component)] or [
            problem for component in components for problem in self._problems(component, component.path in roots)
        ]
        if problems:
            raise RecipeError(sorted(problems, key=by_place))
        return len(components)

    def _roots(self) -> Iterator[Component]:
        for name in type(self._recipe).model_fields:
            section = getattr(self._recipe, name)
            yield from components_in(dict(section) if hasattr(section, "model_fields_set") else section)

    def _refusal(self, component: Component) -> Iterator[Problem]:
        """That a recipe may not name this, where that shows without the user's own code."""
        if component.given is not None or names_own_code(component.target, self._trust(component)):
            return
        try:
            self.resolve(component)
        except RefusedError as error:
            yield self._problem(component, _target_key(component), str(error), at_value=True)
        except LauncherError:  # told with all else that is wrong
            return

    def _problems(self, component: Component, outermost: bool) -> Iterator[Problem]:
        if component.given is not None:
            return
        slot = slot_of(component)
        try:
            target = self.resolve(component)
        except LauncherError as error:
            yield self._problem(component, _target_key(component), str(error), at_value=True)
            return
        component = self._as_meant(component, target)
        if outermost and slot.kind and (wrong := wrong_kind(component, target, slot.kind)):
            yield self._problem(component, _target_key(component), f"{component.target} {wrong}", at_value=True)
        trust = self._trust(component)
        if refused := style_objection(target, component.style, trust):
            yield self._problem(component, _target_key(component), f"{component.target}: {refused}", at_value=True)
        if component.style == "reference":
            return
        may_make = self._may_make(component)
        for argument, message, at_value in argument_problems(component, target, slot.handed, self._made, may_make):
            yield self._problem(component, argument, message, at_value)
        if outermost and slot.handed and (groups := component.options.get("_groups_")):
            fitting = Fitting(self._made, may_make=may_make)
            for pattern, name, message in group_problems(groups, target, slot.handed, fitting):
                yield self._problem(component, ("_groups_", pattern, name), message)
        for argument, message in argument_objections(target, _named(target, *self._known(component)), trust):
            yield self._problem(component, argument, message, at_value=True)

    def _as_meant(self, component: Component, target: Any) -> Component:
        """Where a function must stand: one that cannot be called with what is written is meant itself, with that bound.

        A function that can be called so makes what is meant.
        """
        wanted = slot_of(component).kind in ("loss", "function", "metric") and component.path in self._root_paths
        if not wanted or component.style != "call" or inspect.isclass(target) or not callable(target):
            return component
        return replace(component, style="partial") if leaves_open(component, target) else component

    @functools.cached_property
    def _root_paths(self) -> frozenset[KeyPath]:
        return frozenset(root.path for root in self._roots())

    def _may_make(self, component: Component) -> Callable[[type], bool]:
        """Whether a mapping may become an object of a class: of own ones, as their arguments need not be judged."""
        trust = self._trust(component)
        return lambda kind: is_trusted(kind.__module__, trust)

    def reached(self) -> Iterator[tuple[str, str]]:
        """The places of components that ask a server when they are built, and which, as far as the recipe tells.

        What own code asks is its own affair.
        """
        for component in (component for root in self._roots() for component in root.walk()):
            if component.given is not None or component.style != "call":
                continue
            target = self.resolve(component)
            parameters = parameters_of(target) or {}
            defaults = {
                name: parameter.default
                for name, parameter in parameters.items()
                if parameter.default is not parameter.empty
            }
            if server := reached(target, {**defaults, **arguments_of(component, parameters)}):
                yield dotted(component.path), server

    def unfit(self, component: Component, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What is wrong with evaluated settings of an optimizer's groups: the setting, and what."""
        yield from value_problems(settings, self.resolve(component), Fitting(self._made))

    def _problem(
        self, component: Component, key: str | tuple[Key, ...], message: str, at_value: bool = False
    ) -> Problem:
        keys = key if isinstance(key, tuple) else (key,) if key else ()
        document, path = self._recipe.document, (*component.path, *keys)
        where = document.origin(path) if at_value else document.key_origin(path)
        return Problem(str(where), dotted(path), printable(message))

    def _made(self, component: Component) -> type | None:
        """The class of what a component gives, where its target is a class."""
        if component.given is not None or component.style != "call":
            return None
        try:
            target = self.resolve(component)
        except LauncherError:
            return None
        return target if inspect.isclass(target) else None

    # ------------------------------------------------------------------ resolving

    def resolve(self, component: Component) -> Any:
        """The class or function that a component names.

        Raises:
            LauncherError: There is none, its import fails, or a recipe may not name it.
        """
        homes = slot_of(component).homes
        key = (component.target, slot_of(component).path, component.folder)
        if key not in self._targets:
            self._targets[key] = find_target(component.target, homes, self._trust(component))
        return self._targets[key]

    def own_folders(self) -> list[Path]:
        """Where the user's own code lies, as far as it has been resolved: beside the recipe, and what it names."""
        modules = {getattr(target, "__module__", None) for target in self._targets.values()}
        files = [getattr(sys.modules.get(name or ""), "__file__", None) for name in (*modules, "__main__")]
        own = [Path(file).resolve() for file in files if file]
        return list(dict.fromkeys([self.folder, *(file.parent for file in own if not is_installed(file))]))

    def _trust(self, component: Component) -> Trust:
        key = component.folder, self.directory or directory()
        if key not in self._trusted:
            own, places = own_code(*key)
            self._trusted[key] = Trust(own, self.allow, places)
        return self._trusted[key]

    # ------------------------------------------------------------------ building

    def build(self, component: Component, **handed: Any) -> Any:
        """Builds a component and all inside it; a second call gives the same object.

        Args:
            component: What to build.
            **handed: Arguments that the run passes in, at any depth, where a signature has them.

        Raises:
            BuildError: The target itself raised; the message names place, target and cause.
        """
        if component.given is not None:
            return component.given
        if component.path not in self._built:
            built = self._build(component, handed)
            self.finish.get(component.path, _left_alone)(built)
            self._built[component.path] = built
        return self._built[component.path]

    def another(self) -> Builder:
        """One that builds everything once more; what was passed in stays what it is."""
        other = copy.copy(self)
        other._built, other.adapted, other.meant = {}, {}, {}
        return other

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """What is built within is forgotten where it ends with an error."""
        kept = [(known, dict(known)) for known in (self._built, self.adapted, self.meant)]
        try:
            yield
        except BaseException:
            for known, before in kept:
                known.clear()
                known.update(before)
            raise

    @property
    def objects(self) -> list[Any]:
        """What has been built so far."""
        return list(self._built.values())

    def _build(self, component: Component, handed: Mapping[str, Any]) -> Any:
        target = self.resolve(component)
        if refused := style_objection(target, component.style, self._trust(component)):
            raise RecipeError([self._problem(component, _target_key(component), f"{component.target}: {refused}")])
        component = self._as_meant(component, target)
        is_bare = component.style == "partial" and not (component.args or component.kwargs)
        if component.style == "reference" or is_bare:
            return target
        self._refuse(component, target, *self._known(component))
        args = [self.value(item, handed) for item in component.args]
        kwargs = {name: self.value(item, handed) for name, item in component.kwargs.items()}
        self._refuse(component, target, args, kwargs)
        try:
            args, kwargs = self._annotated(component, target, args, kwargs)
            if component.style == "partial":
                return functools.partial(target, *args, **kwargs)
            kwargs.update({name: value for name, value in handed.items() if name in (parameters_of(target) or ())})
            return _called(target, args, kwargs)
        except Exception as error:
            where, path = component.origin, dotted(component.path)
            words = (
                _of_code(error) or f"{told(error)}{_found_beside(error, self.folder)}{_wants_a_tuple(error, component)}"
            )
            raise BuildError(printable(f"{where}: {path}: {component.target}: {words}")) from error

    def _annotated(
        self, component: Component, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments as what the target's parameters are annotated with."""
        may_make = self._may_make(component)
        positional = dict(zip(_positional(target), args, strict=False))
        made = list(annotated(target, positional, may_make).values())
        return [*made, *args[len(made) :]], annotated(target, kwargs, may_make)

    def as_annotated(self, component: Component, function: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluated arguments of a component as what another function of its target is annotated with."""
        return annotated(function, arguments, self._may_make(component))

    def _refuse(self, component: Component, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Judges the arguments: as they are written, and again when all their values are known."""
        problems = argument_objections(target, _named(target, args, kwargs), self._trust(component))
        if refusals := [self._problem(component, argument, message) for argument, message in problems]:
            raise RecipeError(refusals)

    def _known(self, component: Component) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments of a component as far as they are known before anything is built."""
        place, from_env = component.path, self._recipe.document.from_env
        args = _known(list(component.args), (*place, "_args_"), from_env)
        return args, {name: _known(value, (*place, name), from_env) for name, value in component.kwargs.items()}

    def value(self, item: Any, handed: Mapping[str, Any]) -> Any:
        """An argument as its target gets it: components built, expressions evaluated, durations in steps."""
        if isinstance(item, Component):
            built = self.build(item, **handed)
            return self.meant.get(item.path, built)
        if isinstance(item, Expression):
            return item.evaluate(self.lookup)
        if isinstance(item, Mapping):
            return {key: self.value(inner, handed) for key, inner in item.items()}
        if isinstance(item, list):
            return [self.value(inner, handed) for inner in item]
        if isinstance(item, str) and "optimizer" in handed and (duration := Duration.parse(item)):
            steps_per_epoch, samples = self.computed["train.steps_per_epoch"], self.computed.get(SAMPLES, 0)
            return duration.in_steps(steps_per_epoch, self.computed.get("train.steps"), samples)
        return item

    def lookup(self, name: str) -> Any:
        """What `${name}` stands for now: a computed number, something built, or a plain attribute of it.

        Raises:
            LauncherError: It is not known yet, what was built has no such attribute, or that is code.
        """
        if name in self.computed:
            return self.computed[name]
        value: Any = self._recipe
        steps = name.split(".")
        for number, step in enumerate(steps):
            inner = _inside(value, step)
            if inner is None:
                return self._attribute(value, steps[number:], name)
            value = inner
        return self.value(value, {})

    def _attribute(self, value: Any, rest: Sequence[str], name: str) -> Any:
        if not isinstance(value, Component | list | Mapping | str):
            raise LauncherError(f"${{{name}}} is not known here; it is computed when the data is opened")
        thing = self.value(value, {})
        for attribute in rest:
            thing = _plain_attribute(thing, attribute, name)
        return thing


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _left_alone(_: Any) -> None:
    """As most things are when they are built."""


def _positional(target: Any) -> list[str]:
    return [name for name, parameter in (parameters_of(target) or {}).items() if parameter.kind in _POSITIONAL]


def _target_key(component: Component) -> str:
    return "_ref_" if component.style == "reference" else "_target_"


def _known(value: Any, place: KeyPath, from_env: Container[KeyPath]) -> Any:
    """A value as far as it is known before anything is built; what the environment has a part in says so."""
    if isinstance(value, Component):
        return UNKNOWN if value.given is None else value.given
    if isinstance(value, Expression):
        return UNKNOWN
    if isinstance(value, Mapping):
        return {key: _known(inner, (*place, key), from_env) for key, inner in value.items()}
    if isinstance(value, list):
        return [_known(inner, (*place, number), from_env) for number, inner in enumerate(value)]
    return FromEnvironment(value) if isinstance(value, str) and place in from_env else value


def _named(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of a target's parameters; those by position that have none there as `_args_`."""
    names = _positional(target)
    nameless = {"_args_": list(args[len(names) :])} if len(args) > len(names) else {}
    return {**dict(zip(names, args, strict=False)), **nameless, **kwargs}


def _called(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Calls a target; what lies in data, or in a repository of models, runs nothing and asks nobody."""
    package = str(getattr(target, "__module__", "")).partition(".")[0]
    keep_to_data(package, may_load_models=may_load_models(target))
    if is_load_dataset(target):
        return opened(target, _named(target, args, kwargs))
    refusal = {"trust_remote_code": False} if loads_repository(target) else {}
    is_here = package == "transformers" and reached(target, _named(target, args, kwargs)) is None
    with without_hub() if is_here else nullcontext():
        return target(*args, **refusal, **kwargs)


def _of_code(error: Exception) -> str:
    """What to say where a repository of models holds code that transformers would have to run."""
    if "trust_remote_code" not in words_of(error):
        return ""
    return (
        "it holds Python of its own, which is not run; name a model that transformers has, or build it in your own file"
    )


def _found_beside(error: Exception, folder: Path) -> str:
    """What to say of a file that is missed in the working directory and lies beside the recipe."""
    name = getattr(error, "filename", None)
    if not isinstance(error, FileNotFoundError) or not isinstance(name, str) or not (folder / name).exists():
        return ""
    return f"; paths begin in the working directory, and beside the recipe there is {shortest(folder / name)}"


def _wants_a_tuple(error: Exception, component: Component) -> str:
    """What to say where a list is no tuple: code without annotations that says so when it is called."""
    given = [*component.args, *component.kwargs.values()]
    lists = [value for value in given if isinstance(value, list)]
    if not lists or not re.search(r"\b[Tt]uple\b", words_of(error)):
        return ""
    return f"; a list of a recipe is a list: {{_target_: builtins.tuple, _args_: [{shown(lists[0])}]}} is a tuple"


def _inside(value: Any, step: str) -> Any:
    """What the recipe itself says below a value; None where it says nothing."""
    if isinstance(value, Component):
        arguments = {**value.kwargs, **value.options, "_args_": list(value.args)}
        return arguments.get(step)
    if isinstance(value, list):
        return value[int(step)] if step.isdigit() and int(step) < len(value) else None
    if isinstance(value, Mapping):
        return value.get(step, value.get(int(step)) if step.isdigit() else None)
    return getattr(value, step, None) if step in getattr(type(value), "model_fields", ()) else None


def _plain_attribute(thing: Any, attribute: str, name: str) -> Any:
    """An attribute of something built: never private, and never code, which nobody meant to hand around."""
    if attribute.startswith("_"):
        raise LauncherError(f"${{{name}}}: private attributes cannot be referred to")
    if attribute == "size" and hasattr(thing, "__len__"):
        return len(thing)
    if not hasattr(thing, attribute):
        raise LauncherError(f"${{{name}}}: a {type(thing).__name__} has no attribute '{attribute}'")
    value = getattr(thing, attribute)
    if inspect.isroutine(value) or isinstance(value, type | types.ModuleType | functools.partial):
        raise LauncherError(f"${{{name}}}: '{attribute}' is code, not a value; name it with _ref_ if a recipe may")
    return value
