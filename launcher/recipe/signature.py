"""Whether a component's arguments fit the signature of its target, and its target the place where it stands."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import enum
import functools
import importlib
import inspect
import os
import pathlib
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.recipe.component import Component
from launcher.recipe.duration import Duration
from launcher.recipe.expressions import Expression
from launcher.recipe.several import space_hint
from launcher.text import brief, hint

Parameters = Mapping[str, inspect.Parameter]
_BASES = {  # what a class must be for its slot
    "model": ("torch.nn.Module",),
    "optimizer": ("torch.optim.Optimizer",),
    "scheduler": ("torch.optim.lr_scheduler.LRScheduler",),
    "metric": ("torchmetrics.Metric", "torchmetrics.MetricCollection"),
}


def wrong_kind(component: Component, target: Any, kind: str) -> str | None:
    """Why a target cannot stand for a kind of thing; None where it can. Functions are taken at their word.

    Args:
        component: How the recipe uses the target.
        target: What its name came to.
        kind: `model`, `optimizer`, `scheduler`, `metric`, `data set`, `loss`, or `function` for any callable.
    """
    if kind == "metric" and _is_function(component, target):
        return None
    wants_callable = kind in ("loss", "function")
    if component.style == "partial":
        return None if wants_callable else f"gives a function and not the {kind}; remove _partial_"
    if component.style == "reference" and not wants_callable:
        made = None if inspect.isclass(target) or inspect.isroutine(target) else type(target)
        return _not_a(kind, made) if made else f"is not called, so there is no {kind}; write _target_ in place of _ref_"
    if not callable(target):
        return "cannot be called"
    return _not_a(kind, target) if inspect.isclass(target) and component.style == "call" else None


def _is_function(component: Component, target: Any) -> bool:
    """Whether a component stands for a function `(outputs, targets) -> number`, not for what it gives."""
    return inspect.isroutine(target) and component.style in ("reference", "partial")


def _not_a(kind: str, made: type) -> str | None:
    """Why objects of a class are not of a kind."""
    if kind == "data set":
        fits = hasattr(made, "__iter__") or (hasattr(made, "__getitem__") and hasattr(made, "__len__"))
        return None if fits else "is not a data set: it has neither __getitem__ with __len__ nor __iter__"
    if kind == "batch sampler":
        return (
            None
            if hasattr(made, "__iter__")
            else "is not a batch sampler: it has no __iter__ that gives lists of indices"
        )
    if kind in ("loss", "function"):
        callable_ = any("__call__" in base.__dict__ for base in made.__mro__)  # the class itself always is
        return None if callable_ else f"is not a {kind}: its objects cannot be called"
    if any(issubclass(made, _class(name)) for name in _BASES[kind]):
        return None
    return f"is not a{'n' * (kind[0] in 'aeiou')} {kind}: it is not a {_BASES[kind][0]}"


def _class(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    kind: type = getattr(importlib.import_module(module), attribute)
    return kind


# ---------------------------------------------------------------------- names of arguments


def parameters_of(target: Any) -> Parameters | None:
    """What a callable takes, by name; None where it does not say."""
    if isinstance(target, type | types.FunctionType):  # no other thing is to be kept, or need be hashable
        return _known_parameters(target)
    return _parameters(target)


@functools.lru_cache(maxsize=1024)
def _known_parameters(target: Hashable) -> Parameters | None:
    return _parameters(target)


def _parameters(target: Any) -> Parameters | None:
    try:
        return inspect.signature(target).parameters
    except (ValueError, TypeError):
        return None


def arguments_of(component: Component, parameters: Parameters) -> dict[str, Any]:
    """The arguments of a component by the names of its target's parameters."""
    named = dict(zip(_positional(parameters), component.args, strict=False))
    return {**named, **component.kwargs}


def argument_problems(
    component: Component,
    target: Any,
    handed: str | None,
    made: Callable[[Component], type | None],
    may_make: Callable[[type], bool] = lambda kind: False,
) -> Iterator[tuple[str, str, bool]]:
    """What does not fit.

    Args:
        component: The arguments as the recipe says them.
        target: What gets them.
        handed: The argument that the run passes in wherever a signature has it, which the recipe must not write.
        made: The class of what a nested component gives, where that is known.
        may_make: Whether a recipe may have an object of a class made of a mapping.

    Yields:
        The argument (empty for the component as a whole), what is wrong, and whether that is its value.
    """
    parameters = parameters_of(target)
    if parameters is None:
        return
    given = handed if handed in parameters else None
    for name, message in (
        *_unknown_names(component, target, parameters, given),
        *_binding(component, target, parameters, given),
    ):
        yield name, message, False
    # a scheduler's lengths may be written in words
    fitting = Fitting(made, durations=handed == "optimizer", may_make=may_make)
    arguments = arguments_of(component, parameters)
    for name, message in value_problems(
        {key: value for key, value in arguments.items() if key != given}, target, fitting
    ):
        yield name, message, True


def value_problems(arguments: Mapping[str, Any], target: Any, fitting: Fitting) -> Iterator[tuple[str, str]]:
    """Values that are not of the kind that the parameters of a target are annotated with.

    Args:
        arguments: By name; names that it does not take are ignored.
        target: Whose parameters they are.
        fitting: Knows what nested components give.

    Yields:
        The argument, and what is wrong with it.
    """
    parameters = parameters_of(target) or {}
    hints = hints_of(target)
    for name, value in arguments.items():
        if name not in hints or (value is None and parameters[name].default is None):
            continue
        if not fitting.fits(value, hints[name]):
            inner = next(fitting.inner_problems(value, hints[name]), None)
            expects = f"{name_of(target)} expects {_words(hints[name])}{_remedy(value, hints[name])}"
            yield name, inner or f"{shown(value)} does not fit: {expects}"


def group_problems(
    groups: Mapping[str, Mapping[str, Any]], target: Any, handed: str, fitting: Fitting
) -> Iterator[tuple[str, str, str]]:
    """What is wrong with the settings of groups of parameters, which are those of their optimizer.

    Args:
        groups: Settings by the pattern of the parameters' names.
        target: The optimizer's class; what a function makes has settings of its own, known when it is made.
        handed: The argument that the run passes in.
        fitting: Knows what nested components give.

    Yields:
        The pattern, the setting, and what is wrong with it.
    """
    parameters = parameters_of(target) or {}
    kinds = {parameter.kind for parameter in parameters.values()}
    known = [name for name in parameters if name != handed]
    for pattern, settings in groups.items():
        for name in settings:
            if inspect.isclass(target) and inspect.Parameter.VAR_KEYWORD not in kinds and name not in known:
                listed = f"a group may set: {', '.join(known)}"
                yield pattern, name, f"{name_of(target)} takes no '{brief(name)}'{hint(name, known, listed)}"
        own = {name: value for name, value in settings.items() if name != handed}
        for name, message in value_problems(own, target, fitting):
            yield pattern, name, message


def _unknown_names(
    component: Component, target: Any, parameters: Parameters, given: str | None
) -> Iterator[tuple[str, str]]:
    takes = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    writable = [name for name in takes if name != given]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in component.kwargs:
        if name == given:
            yield name, f"'{name}' is passed in by the run; remove it"
        elif name not in takes and not open_ended and not _passes_on(target, name, writable):
            listed = f"it takes: {', '.join(writable) or 'no arguments by name'}"
            yield name, f"{name_of(target)} takes no '{brief(name)}'{hint(name, writable, listed)}"


_MISSPELT = 0.8  # how much alike two names must be for one to be the other's slip


def _passes_on(target: Any, name: str, known: Sequence[str]) -> bool:
    """Whether `**kwargs` that a decorator hides from the signature take a name, as those of transformers' configs do.

    It is looked up in the classes' own attributes and in what the base classes take; of any other name, only one that
    is nearly another's is taken for a slip.
    """
    maker = _maker(target) if inspect.isclass(target) else target
    hidden = [inner.kind for inner in (_own_parameters(maker) or {}).values()]
    if maker in (object.__init__, object.__new__) or inspect.Parameter.VAR_KEYWORD not in hidden:
        return False
    further = _taken_by_bases(target) if inspect.isclass(target) else set()
    return name in further or not difflib.get_close_matches(name, {*known, *further}, n=1, cutoff=_MISSPELT)


def _own_parameters(function: Any) -> Parameters | None:
    """What the outermost function takes, whatever it says that it wraps."""
    try:
        return inspect.signature(function, follow_wrapped=False).parameters
    except (ValueError, TypeError):
        return None


def _taken_by_bases(kind: type) -> set[str]:
    """The arguments of the base classes, and the attributes that may be set, other names of theirs included."""
    taken: set[str] = set()
    for base in kind.__mro__[:-1]:
        own = vars(base)
        taken |= {name for name in own.get("__annotations__", {}) if not name.startswith("_")}
        taken |= {name for name, value in own.items() if isinstance(value, property) and value.fset is not None}
        taken |= set(own["attribute_map"]) if isinstance(own.get("attribute_map"), Mapping) else set()
        taken |= set(_own_parameters(own["__init__"]) or ()) - {"self"} if "__init__" in own else set()
    return taken


def _positional(parameters: Parameters) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in parameters.items() if parameter.kind in kinds]


def _binding(component: Component, target: Any, parameters: Parameters, given: str | None) -> Iterator[tuple[str, str]]:
    """Positional arguments that are too many or said twice, and required ones that are missing."""
    positional = [name for name in _positional(parameters) if name != given]
    variadic = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    if len(component.args) > len(positional) and not variadic:
        count = f"{len(positional)} positional argument{'s' * (len(positional) != 1)}"
        yield "_args_", f"{name_of(target)} takes {count}, not {len(component.args)}"
    filled = set(positional[: len(component.args)])
    for name in sorted(filled & set(component.kwargs)):
        yield name, f"{name_of(target)} gets '{name}' twice: in _args_ and by name"
    if component.style == "partial":
        return
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if required and name not in (*component.kwargs, *filled, given):
            itself = f", or {{_ref_: {component.target}}} for the function itself" if inspect.isroutine(target) else ""
            what = '"${model}"' if name == "model" and component.path[:1] == ("optimizer",) else "…"
            yield "", f"{name_of(target)} needs '{name}'; write '{name}: {what}'{itself}"


def leaves_open(component: Component, target: Any) -> bool:
    """Whether a function needs more arguments than a component writes."""
    parameters = parameters_of(target)
    if parameters is None:
        return False
    filled = {*_positional(parameters)[: len(component.args)], *component.kwargs}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(
        parameter.default is parameter.empty and parameter.kind not in variadic and name not in filled
        for name, parameter in parameters.items()
    )


def name_of(target: Any) -> str:
    """What to call a target."""
    return str(getattr(target, "__qualname__", None) or type(target).__name__)


# ---------------------------------------------------------------------- types of arguments


def hints_of(target: Any) -> Mapping[str, Any]:
    """The annotations of a target's parameters, evaluated; those that cannot be say nothing, and the call will."""
    parameters = parameters_of(target) or {}
    function = inspect.unwrap(_maker(target) if inspect.isclass(target) else target)
    names = {**vars(collections.abc), **vars(typing), **getattr(function, "__globals__", {})}
    hints = {}
    for name, parameter in parameters.items():
        if parameter.annotation is parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        try:  # of code that is imported anyway; what is imported for type checkers only has no value here
            hints[name] = (
                eval(parameter.annotation, names) if isinstance(parameter.annotation, str) else parameter.annotation
            )
        except Exception:
            continue
    return hints


def _maker(target: type) -> Any:
    """The function whose signature a class shows."""
    made, filled = inspect.getattr_static(target, "__new__"), inspect.getattr_static(target, "__init__")
    has_own_new = filled is inspect.getattr_static(object, "__init__")
    function = made if has_own_new else filled
    return function.__func__ if isinstance(function, staticmethod) else function


_SEQUENCES = (
    *(list, tuple, set, frozenset),
    *(collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection),
)
_MAPPINGS = (dict, collections.abc.Mapping)
_PLAIN = (int, float, bool, str)


@dataclass(frozen=True)
class Fitting:
    """Whether values of the recipe can be meant by annotations; what neither says plainly is let through.

    Attributes:
        made: The class of what a nested component gives, where that is known.
        durations: Whether words such as `30 epochs` may replace a whole number.
        may_make: Whether a recipe may have an object of a class made of a mapping.
    """

    made: Callable[[Component], type | None]
    durations: bool = False
    may_make: Callable[[type], bool] = lambda kind: False

    def fits(self, value: Any, hint: Any) -> bool:
        """Whether a value (plain, a component, or an expression) fits an annotation."""
        return isinstance(value, Expression) or any(self._fits_one(value, option) for option in _options(hint))

    def _fits_one(self, value: Any, option: Any) -> bool:
        origin = typing.get_origin(option) or option
        if isinstance(value, Component):
            return self._component_fits(value, origin)
        if option is float:
            return isinstance(value, int | float) and not isinstance(value, bool)
        if option is int:
            words = self.durations and isinstance(value, str) and Duration.parse(value) is not None
            return words or (isinstance(value, int) and not isinstance(value, bool))
        if origin is typing.Literal:
            return any(value == literal and type(value) is type(literal) for literal in typing.get_args(option))
        if option in (bool, str, type(None)):
            return isinstance(value, option)
        if origin in _SEQUENCES:
            return isinstance(value, list) and self._items_fit(value, option)
        if origin in _MAPPINGS:
            return isinstance(value, Mapping)
        if _is_enum(origin):
            return _member(origin, value) is not None
        if _is_path(origin):
            return isinstance(value, str)
        if _is_record(origin):
            return (
                isinstance(value, Mapping) and self.may_make(origin) and not any(self._record_problems(value, origin))
            )
        return not _needs_an_object(origin)

    def inner_problems(self, value: Any, hint: Any) -> Iterator[str]:
        """What is wrong inside a mapping of which an object of a class is to be made."""
        for option in _options(hint):
            if isinstance(value, Mapping) and _is_record(option) and self.may_make(option):
                yield from self._record_problems(value, option)

    def _record_problems(self, value: Mapping[str, Any], kind: type) -> Iterator[str]:
        parameters = parameters_of(kind) or {}
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name in value:
            if name not in parameters and not open_ended:
                listed = f"it takes: {', '.join(parameters)}"
                yield f"{name_of(kind)} takes no '{brief(str(name))}'{hint(str(name), parameters, listed)}"
        missing = [
            name for name, parameter in parameters.items() if parameter.default is parameter.empty and name not in value
        ]
        if missing and not open_ended:
            yield f"{name_of(kind)} needs '{missing[0]}'; write '{missing[0]}: …'"
        for name, message in value_problems(value, kind, self):
            yield f"{brief(str(name))}: {message}"

    def _items_fit(self, items: list[Any], option: Any) -> bool:
        inner = typing.get_args(option)
        if typing.get_origin(option) is tuple and inner and inner[-1] is not Ellipsis:
            return len(items) == len(inner) and all(map(self.fits, items, inner))
        return not inner or all(self.fits(item, inner[0]) for item in items)

    def _component_fits(self, component: Component, origin: Any) -> bool:
        if origin is type:
            return component.style == "reference"
        made = self.made(component)
        needed = (*_PLAIN, tuple, list, dict)
        known = inspect.isclass(origin) and (origin in needed or _is_torch(origin) or _is_exact(origin))
        if made is None or not known:
            return True
        return issubclass(made, origin)


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the annotation itself where it is none."""
    if isinstance(hint, typing.NewType):
        return _options(hint.__supertype__)
    if typing.get_origin(hint) is typing.Annotated:
        return _options(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(inner for option in typing.get_args(hint) for inner in _options(option))
    return (type(None) if hint is None else hint,)


def _is_enum(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, enum.Enum)


def _is_path(kind: Any) -> bool:
    return kind is os.PathLike or (inspect.isclass(kind) and issubclass(kind, pathlib.PurePath))


def _is_record(kind: Any) -> bool:
    """Whether objects of a class are made of named values: a dataclass, a named tuple, or a model of pydantic's."""
    if not inspect.isclass(kind):
        return False
    is_named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return dataclasses.is_dataclass(kind) or is_named_tuple or hasattr(kind, "model_validate")


def _is_exact(kind: type) -> bool:
    return _is_enum(kind) or _is_path(kind) or _is_record(kind)


def _member(kind: type[enum.Enum], value: Any) -> enum.Enum | None:
    """The member of an `Enum` that a name means, or else a value; None where none is."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    return next((member for member in kind if type(member.value) is type(value) and member.value == value), None)


# ---------------------------------------------------------------------- values as they are annotated


def annotated(target: Any, arguments: Mapping[str, Any], may_make: Callable[[type], bool]) -> dict[str, Any]:
    """The arguments of a target as what they are annotated with: `RELU` as `Act.RELU`, a text as a `Path`, a mapping
    as a dataclass, a list as a tuple. What fits as it is, or not at all, stays.

    Args:
        target: Whose arguments.
        arguments: By name, built.
        may_make: Whether a recipe may have an object of a class made of a mapping.
    """
    hints = hints_of(target)
    return {
        name: as_annotated(value, hints[name], may_make) if name in hints else value
        for name, value in arguments.items()
    }


def as_annotated(value: Any, hint: Any, may_make: Callable[[type], bool]) -> Any:
    """A value as what an annotation says; see `annotated`."""
    options = _options(hint)
    if any(_is_one(value, option) for option in options if not typing.get_args(option)):
        return value
    for option in sorted(options, key=lambda option: not _is_one(value, typing.get_origin(option))):
        made = _made_of(value, option, may_make)
        if made is not _UNFIT:
            return made
    return value


_UNFIT = object()


def _is_one(value: Any, kind: Any) -> bool:
    try:
        return inspect.isclass(kind) and isinstance(value, kind)
    except TypeError:  # of a protocol, or Any, which nobody can ask for
        return False


def _made_of(value: Any, option: Any, may_make: Callable[[type], bool]) -> Any:
    """What an annotation that is not a union makes of a value; `_UNFIT` where it makes nothing."""
    origin, inner = typing.get_origin(option) or option, typing.get_args(option)
    if _is_enum(origin):
        member = _member(origin, value)
        return _UNFIT if member is None else member
    if _is_path(origin) and isinstance(value, str):
        return pathlib.Path(value) if origin is os.PathLike else origin(value)
    if _is_record(origin) and isinstance(value, Mapping) and may_make(origin):
        fields = {str(key): field for key, field in value.items()}
        is_model = hasattr(origin, "model_validate")
        return origin.model_validate(fields) if is_model else origin(**annotated(origin, fields, may_make))
    if origin in _SEQUENCES and isinstance(value, list):
        kinds = _kinds(inner, len(value))
        items = [as_annotated(entry, kind, may_make) for entry, kind in zip(value, kinds, strict=True)]
        return origin(items) if origin in (tuple, set, frozenset) else items
    if origin in _MAPPINGS and isinstance(value, Mapping) and len(inner) == 2:
        return {key: as_annotated(entry, inner[1], may_make) for key, entry in value.items()}
    return _UNFIT


def _kinds(inner: Sequence[Any], count: int) -> list[Any]:
    """The annotation of each item of a list."""
    if len(inner) == count and Ellipsis not in inner and count > 1:
        return list(inner)
    return [inner[0] if inner else Any] * count


def _is_torch(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _needs_an_object(origin: Any) -> bool:
    """Whether an annotation means a function, or an object of a class of torch's: no plain value is one."""
    return origin in (collections.abc.Callable, type) or (inspect.isclass(origin) and _is_torch(origin))


def shown(value: Any) -> str:
    """A value of the recipe in a few words, for messages."""
    if isinstance(value, Component):
        return f"{{_target_: {brief(str(value.target))}}}"
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        items = f"[{', '.join(map(shown, value[:8]))}]"
        return items if len(value) <= 8 and len(items) <= 40 else "a list"
    if isinstance(value, Mapping):
        return "a mapping"
    return f"'{brief(value)}'" if isinstance(value, str) else brief(str(value))


_NAMES = {str: "a word", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def _words(hint: Any) -> str:
    """An annotation as a person writes it."""
    return " or ".join(dict.fromkeys(_word(option) for option in _options(hint)))


def _word(option: Any) -> str:
    origin, inner = typing.get_origin(option) or option, typing.get_args(option)
    if option in _NAMES:
        return _NAMES[option]
    if origin is typing.Literal:
        return " or ".join(shown(literal) for literal in inner)
    if origin is collections.abc.Callable:
        return "a function"
    if origin is type:
        return "a class"
    if _is_enum(origin):
        return f"{origin.__name__}, one of {', '.join(list(origin.__members__)[:20])}"
    if _is_record(origin):
        return f"a {origin.__name__}, {{{', '.join(f'{name}: …' for name in list(parameters_of(origin) or ())[:12])}}}"
    if origin in _MAPPINGS:
        return "a mapping"
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)}: {', '.join(map(_words, inner))}"
    if origin in _SEQUENCES:
        return f"a list, each {_words(inner[0])}" if inner else "a list"
    return str(getattr(option, "__name__", option))


def _remedy(value: Any, hint: Any) -> str:
    """What to write where plain words or numbers were meant to be an object."""
    names = {getattr(option, "__name__", "") for option in _options(hint)}
    if "dtype" in names and isinstance(value, str):
        return f"; write {{_ref_: torch.{value.removeprefix('torch.')}}}"
    if "Tensor" in names and isinstance(value, list):
        return f"; write {{_target_: torch.tensor, _args_: [{shown(value)}]}}"
    wanted = [typing.get_origin(option) or option for option in _options(hint)]
    if isinstance(value, str) and (collections.abc.Callable in wanted or type in wanted):
        return f"; write {{_ref_: {brief(value)}}}"
    return space_hint(value)
