"""*Reading*: from a file to a checked `Recipe`, with every mistake found at once and no torch imported."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from launcher.errors import Problem, RecipeError
from launcher.recipe.component import GIVEN, Component, components_in, with_components
from launcher.recipe.compose import read_document
from launcher.recipe.document import Document, Origin, Path, dotted, hint
from launcher.recipe.references import Expression
from launcher.recipe.schema import Recipe

# keys of ours that stand beside a component's arguments, by the slot they belong to
OPTIONS = {
    "optimizer": {"_groups_"},
    "scheduler": {"_warmup_", "_every_"},
    "loss": {"_per_", "_weight_"},
    "evaluate.metrics": {"_input_"},
}
LOSS_COUNTS = ("sample", "element", "batch")


def load_recipe(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    remove: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Recipe:
    """Reads a recipe and checks all that needs no import: keys, types, references, syntax of own files.

    Args:
        path: The YAML file.
        overrides: `a.b=value`, applied after the file and its bases.
        remove: `a.b`, taken out.
        given: Objects in place of sections, by their dotted key (`model`, `data.train`).

    Raises:
        RecipeError: Everything that is wrong, each with its place.
    """
    document = read_document(path, overrides, remove)
    tree = with_components(_functions_as_components(document.values), document)
    for key, value in (given or {}).items():
        _hand_in(tree, document, key, value)
    problems = list(_component_problems(tree))
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        problems += [_problem(detail, document) for detail in error.errors()]
    if recipe is not None:
        problems += _unbuilt(recipe, document)
    if problems:
        raise RecipeError(sorted(problems, key=_place))
    assert recipe is not None
    recipe._document = document
    return recipe


def _unbuilt(recipe: Recipe, document: Document) -> Iterator[Problem]:
    """Keys whose work is yet to be built are refused: nothing that is asked for is silently left out."""
    asked: dict[Path, bool] = {
        ("train", "ema"): recipe.train.ema is not None,
        ("evaluate", "ranks"): recipe.evaluate.ranks == "all",
        ("evaluate", "timeout"): recipe.evaluate.timeout is not None,
        ("save", "background"): recipe.save.background,
        ("launch", "nodes"): recipe.launch.nodes > 1,
        ("launch", "max_restarts"): recipe.launch.max_restarts > 0,
        ("launch", "stall"): recipe.launch.stall is not None,
    }
    for name, metric in recipe.evaluate.metrics.items():
        asked["evaluate", "metrics", name, "_input_"] = "_input_" in metric.options
    for path, wanted in asked.items():
        if wanted:
            message = "this version does not do that yet; remove the key"
            yield Problem(str(document.origin(path)), dotted(path), message)


# functions of a user's own, which a recipe may name without `_ref_`
_FUNCTIONS = (("train", "step"), ("train", "count"), ("data", "weights"))


def _functions_as_components(values: dict[str, Any]) -> dict[str, Any]:
    """`train.step: my_task.py:step` is short for `{_ref_: my_task.py:step}`."""
    values = dict(values)
    for section, key in _FUNCTIONS:
        inner = values.get(section)
        said = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and isinstance(said, str) and ".py:" in said:
            values[section] = {**inner, key: {"_ref_": said}}
    return values


def _hand_in(tree: dict[str, Any], document: Document, key: str, value: Any) -> None:
    origin = Origin(GIVEN)
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    path: Path = (*sections, name)
    tree[name] = Component(GIVEN, path, origin, document.folder, given=value)
    document.origins[path] = origin


def _place(problem: Problem) -> tuple[str, int, int, str]:
    source, *numbers = problem.where.rsplit(":", 2)
    if len(numbers) == 2 and all(number.isdigit() for number in numbers):
        return source, int(numbers[0]), int(numbers[1]), problem.path
    return problem.where, 0, 0, problem.path


def _component_problems(tree: Mapping[str, Any]) -> Iterator[Problem]:
    for component in components_in(tree):
        if component.given is None:
            yield from _shape_problems(component, _options_at(component.path))
    for component in components_in(tree):
        for inner in component.walk():
            if inner.given is None:
                yield from _file_problems(inner)


def _options_at(path: Path) -> set[str]:
    name = dotted(path)
    return next((options for slot, options in OPTIONS.items() if f"{name}.".startswith(f"{slot}.")), set())


def _shape_problems(component: Component, options: set[str]) -> Iterator[Problem]:
    where, path = str(component.origin), dotted(component.path)
    if isinstance(component.target, Expression) or not isinstance(component.target, str) or not component.target:
        yield Problem(where, path, "_target_ must be a name, as in 'torch.nn.Linear' or 'my_model.py:Net'")
    if component.style == "reference" and (component.args or component.kwargs or component.options):
        yield Problem(where, path, "_ref_ is the thing itself and takes no arguments; use _target_ to call it")
    for key in sorted(set(component.options) - options):
        allowed = ", ".join(["_target_", "_args_", "_partial_", "_ref_", *sorted(options)])
        yield Problem(where, path, f"unknown key '{key}'; here may stand: {allowed}, and the target's arguments")
    per = component.options.get("_per_")
    if per is not None and per not in LOSS_COUNTS:
        yield Problem(where, f"{path}._per_", f"'{per}' is not allowed; one of: {', '.join(LOSS_COUNTS)}")
    for child in component.children():
        # a scheduler inside SequentialLR has no ramp of its own
        yield from _shape_problems(child, set())


def _file_problems(component: Component) -> Iterator[Problem]:
    """Own files must exist and be Python; nothing of them is run."""
    if not isinstance(component.target, str) or ".py:" not in component.target:
        return
    file, _, _name = component.target.rpartition(":")
    where, path = str(component.origin), f"{dotted(component.path)}._target_"
    found = next((base / file for base in (component.folder, component.folder.cwd()) if (base / file).is_file()), None)
    if found is None:
        yield Problem(where, path, f"there is no file '{file}' beside the recipe or in the working directory")
        return
    try:
        ast.parse(found.read_bytes(), filename=str(found))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        shown = (getattr(error, "text", None) or "").strip()
        yield Problem(where, path, f"{file}:{line}: {getattr(error, 'msg', error)}: {shown}; mend the file")


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a word or a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _problem(detail: ErrorDetails, document: Document) -> Problem:
    path = _path_in(detail["loc"], document.values)
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    where = str(document.key_origin(path))
    if kind == "extra_forbidden":
        return Problem(where, dotted(path), _unknown_key(path))
    if kind == "missing":
        return Problem(str(document.origin(path[:-1])), dotted(path), _missing(path))
    where = str(document.origin(path))
    if kind == "value_error":
        return Problem(where, dotted(path), _said(value) + str(context.get("error", detail["msg"])))
    if isinstance(value, Expression):
        return Problem(where, dotted(path), f"{value.text} is known when the data is opened; write a value here")
    if kind in _EXPECTED:
        return Problem(where, dotted(path), f"{_shown(value)} is not {_EXPECTED[kind]}")
    if kind == "literal_error":
        return Problem(where, dotted(path), f"{_shown(value)} is not allowed; one of: {context['expected']}")
    if kind == "string_pattern_mismatch":
        allowed = "letters, digits, '.', '_' and '-', at most 128, the first a letter or digit"
        return Problem(where, dotted(path), f"{_shown(value)} is not allowed; use {allowed}")
    return Problem(where, dotted(path), f"{_shown(value)}: {detail['msg'][0].lower()}{detail['msg'][1:]}")


def _path_in(loc: Iterable[int | str], values: Any) -> Path:
    """The part of pydantic's location that is a place in the recipe (it adds names of union members)."""
    path: list[int | str] = []
    steps = list(loc)
    for number, step in enumerate(steps):
        inside = isinstance(values, dict) and step in values
        inside = inside or (isinstance(values, list) and isinstance(step, int) and step < len(values))
        if inside:
            values = values[step]
        elif number < len(steps) - 1 or not isinstance(values, dict):
            continue
        path.append(step)
    return tuple(path)


def _said(value: Any) -> str:
    return f"{_shown(value)} " if isinstance(value, str | int | float) else ""


def _shown(value: Any) -> str:
    text = f"'{value}'" if isinstance(value, str) else {True: "true", False: "false", None: "null"}.get(value, "")
    text = text if isinstance(value, str | bool | None) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _fields_at(path: Path) -> list[str]:
    model: Any = Recipe
    for step in path:
        field = model.model_fields.get(str(step)) if model is not None else None
        if field is None:
            return []
        arguments = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((kind for kind in arguments if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return list(model.model_fields) if model is not None else []


def _unknown_key(path: Path) -> str:
    known = _fields_at(path[:-1])
    return f"unknown key{hint(str(path[-1]), known, 'here may stand: ' + ', '.join(known))}"


def _missing(path: Path) -> str:
    field = _fields_at(path[:-1])
    assert path[-1] in field, path
    examples = {
        "train": "{_target_: …}" if path[:-1] else "{epochs: 10}",
        "global_batch_size": "64",
        "data": "{train: {_target_: …}, global_batch_size: 64}",
    }
    return f"is required; write '{path[-1]}: {examples.get(str(path[-1]), '{_target_: …}')}'"
