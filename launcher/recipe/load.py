"""*Reading*: from a file to a checked `Recipe`, with every mistake found at once and no torch imported."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from launcher.errors import Problem, RecipeError
from launcher.recipe.bases import read_document
from launcher.recipe.component import GIVEN, Component, with_components
from launcher.recipe.component_syntax import component_problems
from launcher.recipe.consistency import whole_problems
from launcher.recipe.elsewhere import belongs_at, elsewhere_called
from launcher.recipe.expressions import Expression
from launcher.recipe.places import MAX_PROBLEMS, Origin, Path, by_place, dotted
from launcher.recipe.sbatch import SLURM_TIME
from launcher.recipe.scalars import plain_scalar
from launcher.recipe.schema import INTERFACES, NAME_PATTERN, Recipe, fields_by_name, model_in
from launcher.recipe.several import space_hint
from launcher.recipe.signature import shown
from launcher.recipe.tree import Document
from launcher.text import brief, hint, printable, suggestion


def load_recipe(
    path: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    remove: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Recipe:
    """Reads a recipe and checks all that needs no import: keys, types, references, syntax of own files.

    Args:
        path: The YAML file, or its content as a mapping.
        overrides: `a.b=value`, applied after the file and its bases.
        remove: `a.b`, taken out.
        given: Objects in place of sections, by their dotted key (`model`, `data.train`).

    Raises:
        RecipeError: Everything that is wrong, each with its place.
    """
    document, problems = read_document(path, overrides, remove)
    if document is None:
        raise RecipeError(problems)
    tree = with_components(document.values, document, frozenset(fields_by_name()))
    for key, value in (given or {}).items():
        _hand_in(tree, document, key, value)
    recipe, new_problems = _checked(tree, document, _Said(problems, document))
    problems.extend(Problem(problem.where, problem.path, printable(problem.message)) for problem in new_problems)
    if problems:
        raise RecipeError(_first(problems))
    recipe._document = document
    return recipe


def _first(problems: Sequence[Problem]) -> list[Problem]:
    """As many as anybody would read, by their place."""
    rest = Problem("", "", f"only the first {MAX_PROBLEMS} mistakes are shown")
    return [*sorted(problems, key=by_place)[:MAX_PROBLEMS], *([rest] if len(problems) > MAX_PROBLEMS else [])]


def _hand_in(tree: dict[str, Any], document: Document, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            return  # which the schema refuses
    tree[name] = _handed(document, (*sections, name), value)


def _handed(document: Document, path: Path, value: Any) -> Any:
    """An object as a component; several by name as several; what a recipe could say itself as there."""
    document.origins[path] = Origin(GIVEN)
    if isinstance(value, Mapping) and ("_target_" in value or "_ref_" in value):
        return with_components(dict(value), document, path=path)
    if isinstance(value, Mapping):
        return {name: _handed(document, (*path, name), inner) for name, inner in value.items()}
    if isinstance(value, str) or (path[0] == "batch" and isinstance(value, int | list | None)):
        return value
    return Component(GIVEN, path, Origin(GIVEN), document.folder, given=value)


class _Said:
    """The places about which something was reported already: what else seems wrong there follows from it.

    Args:
        problems: Found before.
        document: Its texts that hold a reference still are those whose reference is wrong.
    """

    def __init__(self, problems: Sequence[Problem], document: Document):
        self.paths = {problem.path for problem in problems if problem.path}
        if problems:
            self.paths |= {dotted(path) for path in _unresolved(document.values)}
        self.above = {above for path in self.paths for above in _prefixes(path)}

    def covers(self, problem: Problem) -> bool:
        """Whether a problem is no news."""
        missing = problem.path in self.above and problem.message.startswith("is required")
        return missing or any(path in self.paths for path in _prefixes(problem.path))


def _prefixes(path: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b[0]`, of `a.b[0]`."""
    yield from (path[:index] for index, mark in enumerate(path) if mark in ".[")
    yield path


def _unresolved(value: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(value, str) and "${" in value:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _unresolved(inner, (*path, key))


def _checked(tree: dict[str, Any], document: Document, reported_places: _Said) -> tuple[Recipe, list[Problem]]:
    """The recipe, as far as its sections are right, and what is wrong."""
    problems = list(component_problems(tree, document))
    broken = {path.partition(".")[0] for path in (*reported_places.paths, *(problem.path for problem in problems))}
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        details = error.errors()
        broken |= {str(detail["loc"][0]) for detail in details if detail["loc"]}
        problems += islice(_schema_problems(details, tree, document), MAX_PROBLEMS + 1)
        recipe = _sections(tree, broken)
    problems += whole_problems(tree, recipe, broken, document)
    return recipe, _without_misspelt([problem for problem in problems if not reported_places.covers(problem)])


_MEANT = re.compile(r"unknown key; did you mean '([^']+)'")


def _without_misspelt(problems: Sequence[Problem]) -> list[Problem]:
    """Without the keys that are missing only since they are misspelt: whose unknown key says which is meant."""
    meant = set()
    for problem in problems:
        if match := _MEANT.match(problem.message):
            *above, _ = problem.path.split(".")
            is_beside = match[1] in fields_at(tuple(above))
            meant.add(".".join([*above, match[1]]) if is_beside else match[1])
    return [
        problem for problem in problems if problem.path not in meant or not problem.message.startswith("is required")
    ]


def _sections(tree: Mapping[str, Any], broken: Container[str]) -> Recipe:
    """The sections that are right, each by itself; the broken ones are no attributes of it."""
    sections: dict[str, Any] = {}
    for name, field in Recipe.model_fields.items():
        if name in tree and name not in broken:
            section = model_in(field.annotation)
            value = tree[name]
            if section is not None and value is not None:  # null where a section may be missing
                value = section.model_validate(value)
            sections[name] = value
    return Recipe.model_construct(None, **sections)


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a word or a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "literal_error": "{expected}",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
}
_PATTERNS = {
    NAME_PATTERN: "use letters, digits, '.', '_' and '-', at most 128, the first a letter or digit",
    INTERFACES: "write the name of a network interface, as in eth0 (ip addr lists them)",
    SLURM_TIME: "write minutes, 'hours:minutes:seconds' or 'days-hours', as in '12:30:00' or '1-00'",
}


def _schema_problems(details: Iterable[ErrorDetails], tree: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """One problem for each place: a value that is none of several kinds is wrong once."""
    places: dict[Path, list[ErrorDetails]] = {}
    for detail in details:
        places.setdefault(_path_in(detail, tree), []).append(detail)
    above = {path[:end] for path in places for end in range(len(path))}
    for path, errors in places.items():
        if path in above:
            continue  # of two kinds it is one, with a fault inside, and of course not the other
        where, message = _schema_fault(path, errors, document)
        yield Problem(str(where), dotted(path), message)


def _schema_fault(path: Path, errors: Sequence[ErrorDetails], document: Document) -> tuple[Origin, str]:
    first = errors[0]
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return document.key_origin(path), _unknown_key(path, document.values)
    if kind == "missing":
        return document.origin(path[:-1]), _missing(path)
    if kind == "value_error":
        return document.origin(path), kind_fault(errors) + space_hint(value)
    if isinstance(value, Expression):
        return document.origin(path), f"{brief(value.text)} is known when the data is opened; write a value here"
    if kind == "string_pattern_mismatch":
        return document.origin(path), f"{shown(value)} is not allowed; {_PATTERNS[str(context['pattern'])]}"
    message = kind_fault(errors)
    if not any(error["type"] in _EXPECTED for error in errors):
        return document.origin(path), message
    likely = _of_other_frameworks(path, value) or _likely(errors, value)
    return document.origin(path), f"{message}{_about_quotes(value, kind) or _as_whole(path, value, kind) or likely}"


def kind_fault(errors: Sequence[ErrorDetails]) -> str:
    """What is wrong with a value that is of none of the kinds that it may be of."""
    first, value = errors[0], errors[0]["input"]
    if first["type"] == "value_error":
        prefix = f"{shown(value)} " if isinstance(value, str | int | float) else ""
        return prefix + str(first.get("ctx", {}).get("error", first["msg"]))
    expected = [
        _EXPECTED[error["type"]].format(**error.get("ctx", {})) for error in errors if error["type"] in _EXPECTED
    ]
    if not expected:
        return f"{shown(value)}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return f"{shown(value)} is not {' or '.join(dict.fromkeys(expected))}"


_PRECISIONS = {
    "no": {"32", "32-true", "fp32", "float32", "float", "full", "none", "tf32", "64", "float64"},
    "bf16": {"bfloat16", "bf16-mixed", "bfloat", "torch.bfloat16"},
    "fp16": {"16", "16-mixed", "float16", "half", "fp16-mixed", "mixed", "torch.float16"},
}  # what other frameworks call them


def _of_other_frameworks(path: Path, value: Any) -> str:
    names = _PRECISIONS if path == ("device", "precision") else {}
    ours = next((name for name, others in names.items() if str(value).lower() in others), None)
    return f"; did you mean '{ours}'?" if ours else ""


def _likely(errors: Sequence[ErrorDetails], value: Any) -> str:
    """Which of the words that a key may have is meant."""
    choices = [str(error.get("ctx", {}).get("expected", "")) for error in errors if error["type"] == "literal_error"]
    words = [word for choice in choices for word in re.findall(r"'([^']+)'", choice)]
    return suggestion(value, words) if isinstance(value, str) else ""


def _as_whole(path: Path, value: Any, kind: str) -> str:
    """What to write for a section, or a list, of which only the chief or the one value was written."""
    if path == ("evaluate", "early_stop") and isinstance(value, int) and not isinstance(value, bool):
        return f"; write {{patience: {value}}}"
    if path == ("evaluate", "best") and isinstance(value, str):
        mode = "min" if value == "loss" else "max}, or {mode: min"  # which of them nobody knows by a name
        return f"; write {{metric: {brief(value)}, mode: {mode}}}"
    if kind == "list_type" and isinstance(value, int | float | str) and not isinstance(value, bool):
        return f"; write [{shown(value)}]"
    return ""


def _about_quotes(value: Any, kind: str) -> str:
    """What to do where a number was meant as a word, or a word as a number."""
    if kind == "string_type" and isinstance(value, int | float):
        return "; put it in quotes"
    if several := space_hint(value):
        return several
    if not isinstance(value, str) or not value:
        return ""
    with contextlib.suppress(ValueError):
        return "" if isinstance(plain_scalar(value), str) else "; remove the quotes"
    return ""


def _path_in(detail: ErrorDetails, values: Any) -> Path:
    """The part of pydantic's location that is a place in the recipe (it adds names of union members)."""
    path: list[int | str] = []
    for step in detail["loc"]:
        inside = isinstance(values, dict) and step in values
        if inside or (isinstance(values, list) and isinstance(step, int) and step < len(values)):
            values = values[step]
            path.append(step)
    return (*path, detail["loc"][-1]) if detail["type"] == "missing" else tuple(path)


def fields_at(path: Path) -> list[str]:
    """The keys that the schema knows in a section; none where names are free, or a component's arguments stand."""
    model: type[BaseModel] | None = Recipe
    for step in path:
        field = model.model_fields.get(str(step)) if model is not None else None
        model = model_in(field.annotation) if field is not None else None
    return list(model.model_fields) if model is not None else []


def _unknown_key(path: Path, tree: Any) -> str:
    known = fields_at(path[:-1])
    allowed = "allowed keys: " + ", ".join(known)
    meant = elsewhere_called(path) or ("" if suggestion(str(path[-1]), known) else belongs_at(path, tree))
    if meant:
        return f"unknown key; did you mean '{meant}'? A{allowed[1:]}"
    return f"unknown key{hint(str(path[-1]), known, allowed)}"


def _missing(path: Path) -> str:
    field = fields_at(path[:-1])
    assert path[-1] in field, path
    examples = {
        "train": "{_target_: …}" if path[:-1] else "{epochs: 10}",
        "data": "{train: {_target_: …}, global_batch_size: 64}",
        **dict.fromkeys(("model", "optimizer"), "{_target_: …}"),
    }
    return f"is required; write '{path[-1]}: {examples.get(str(path[-1]), '…')}'"
