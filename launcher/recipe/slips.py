"""Arguments of a call from Python that cannot be meant, said in a line before anything is begun."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from launcher.errors import UsageError
from launcher.recipe.caller import Keyword
from launcher.text import suggestion

_Arguments = ParamSpec("_Arguments")
_Given = TypeVar("_Given")
Output = Literal["auto", "quiet", "json"]
OUTPUTS: tuple[str, ...] = get_args(Output)
LENGTHS = ("train.epochs", "train.steps", "train.time")
_ALONE = ("model", "train", "loss", "optimizer", "global_batch_size", "epochs= or steps")  # what no recipe says


def hinting(function: Callable[_Arguments, _Given]) -> Callable[_Arguments, _Given]:
    """A function whose TypeError about an unknown keyword says which one may be meant."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def hinted(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Given:
        for name in options:
            if name not in known:
                near = _near(name, known)
                raise TypeError(f"{function.__name__}() got an unexpected keyword argument '{name}'{near}")
        return function(*arguments, **options)

    return hinted


def _near(name: str, known: Sequence[str]) -> str:
    """What may be meant by an unknown keyword: another one, or a key of the recipe."""
    from launcher.recipe.elsewhere import belongs_at, elsewhere_called  # with the schema
    from launcher.recipe.keys import all_keys

    if name in OUTPUTS and "output" in known:
        return f"; write output='{name}'"
    key = name if name in all_keys() else elsewhere_called((name,)) or belongs_at((name,), {})
    if key.rpartition(".")[2] in known:
        return f"; did you mean '{key.rpartition('.')[2]}'?"
    if key and "overrides" in known:
        return f"; it is a key of the recipe, which an override says: '{key}=…' behind the recipe (or None)"
    return suggestion(name, known)


def check_arguments(
    recipe: Any,
    overrides: Sequence[str],
    objects: Mapping[str, Any],
    numbers: Mapping[str, Any],
    switches: Mapping[str, Any],
    lists: Mapping[str, Any],
    output: str,
) -> None:
    """Looks at the arguments of `launcher.train`.

    Args:
        recipe: A file, a mapping, or None.
        overrides: `a.b=value`.
        objects: By keyword.
        numbers: By the key that each stands for.
        switches: By keyword, as what follows.
        lists: Of texts.
        output: What is shown.

    Raises:
        UsageError: Some are not what they must be.
    """
    stated = [Keyword(f"{key}={value}") for key, value in numbers.items() if value is not None]
    faults = [*_about_recipe(recipe), *_about_objects(objects), *_about_overrides(overrides, stated)]
    for key, value in numbers.items():
        if value is not None and (type(value) is not int or value < 1):
            faults.append(f"{key.rpartition('.')[2]}: {value!r} is not a whole number of at least 1")
    faults += [*_about_switches(switches), *_about_lists(lists)]
    if output not in OUTPUTS:
        faults.append(f"output: {output!r} is not allowed; write 'auto', 'quiet' or 'json'")
    if recipe is None and not faults:
        faults += _about_missing(overrides, objects, numbers)
    if faults:
        raise UsageError("\n".join(f"launcher.train: {fault}" for fault in faults))


def check_call(
    name: str, recipe: Any, overrides: Sequence[str], switches: Mapping[str, Any], lists: Mapping[str, Any]
) -> None:
    """Looks at the arguments of another call that begins with a recipe.

    Args:
        name: As in `launcher.check`.
        recipe: A file, or a mapping.
        overrides: `a.b=value`.
        switches: By keyword, as what follows.
        lists: Of texts.

    Raises:
        UsageError: Some are not what they must be.
    """
    faults = [*_about_recipe(recipe), *_about_overrides(overrides), *_about_switches(switches), *_about_lists(lists)]
    if recipe is None:
        faults.insert(0, "a recipe comes first: a file, or what would stand in it as a mapping")
    if faults:
        raise UsageError("\n".join(f"{name}: {fault}" for fault in faults))


def two_lengths(overrides: Sequence[str]) -> str | None:
    """What is wrong where one command or call states the length of a run in two ways, of which one would be lost."""
    stated: dict[str, str] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        if key in LENGTHS and value.strip() not in ("", "null", "~"):
            stated[key] = text.written if isinstance(text, Keyword) else text
    if len(stated) < 2:
        return None
    return f"{' and '.join(stated.values())} both say how long a run is; keep one"


def _about_overrides(overrides: Sequence[Any], stated: Sequence[str] = ()) -> Iterator[str]:
    for text in overrides:
        if not isinstance(text, str):
            remedy = f"write each by itself: {', '.join(map(repr, text))}" if isinstance(text, list | tuple) else ""
            yield f"{text!r} is not a change to the recipe; {remedy or 'write it as a text'}, as in 'optimizer.lr=0.1'"
    words = [text for text in overrides if isinstance(text, str)]
    if fault := two_lengths([*words, *stated]):
        yield fault


def _about_switches(switches: Mapping[str, Any]) -> Iterator[str]:
    strange = [(name, value) for name, value in switches.items() if not isinstance(value, bool)]
    yield from (f"{name}: {value!r} is neither True nor False" for name, value in strange)


def _about_lists(lists: Mapping[str, Any]) -> Iterator[str]:
    for name, value in lists.items():
        if isinstance(value, str):
            yield f"{name}: {value!r} is one text; write a list: {name}=[{value!r}]"
        elif not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
            yield f"{name}: {value!r} is not a list of texts"


def _about_recipe(recipe: Any) -> Iterator[str]:
    if recipe is not None and not isinstance(recipe, str | os.PathLike | Mapping):
        yield f"a recipe comes first, and this is a {type(recipe).__name__}; pass objects by keyword: model=…, train=…"
    elif isinstance(recipe, str) and "=" in recipe and not os.path.exists(recipe):
        yield f"'{recipe}' is an override, and a recipe comes first; without one write None before it"


_AS_OBJECTS = {  # what is passed where a recipe has a name
    "model": "the module itself",
    "optimizer": "a function of the parameters, as in torch.optim.Adam",
    "scheduler": "a function of the optimizer",
    "train": "the data set itself",
}


def _about_objects(objects: Mapping[str, Any]) -> Iterator[str]:
    for name, wanted in _AS_OBJECTS.items():
        if isinstance(value := objects[name], str):
            yield f"{name}: {value!r} is a name; pass {wanted}, or what a recipe says: {{'_target_': {value!r}}}"
    for name in ("train", "validation", "test"):
        if isinstance(objects[name], tuple):
            yield f"{name}: a tuple is not a data set; of tensors write torch.utils.data.TensorDataset(inputs, targets)"
    for name in ("metrics", "batch"):
        if objects[name] is not None and not isinstance(objects[name], Mapping):
            example = "{'accuracy': …}" if name == "metrics" else "{'inputs': [0], 'targets': [1]}"
            yield f"{name}: {type(objects[name]).__name__} is not a mapping; write {name}={example}"


def _about_missing(overrides: Sequence[str], objects: Mapping[str, Any], numbers: Mapping[str, Any]) -> Iterator[str]:
    """What nothing says where there is no recipe."""
    said = {text.partition("=")[0].rpartition(".")[2] for text in overrides}
    said |= {key.rpartition(".")[2] for key, value in numbers.items() if value is not None}
    said |= {name for name, thing in objects.items() if thing is not None}
    said |= {"epochs= or steps"} if said & {"epochs", "steps", "time"} else set()
    said |= {"loss"} if "step" in said else set()
    said |= {"global_batch_size"} if "batch_sampler" in said else set()
    if (missing := [name for name in _ALONE if name not in said]) and not any("base=" in text for text in overrides):
        yield f"without a recipe it needs {', '.join(f'{name}=' for name in missing)} as well"
