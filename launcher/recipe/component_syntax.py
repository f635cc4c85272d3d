"""The shape of components, as far as reading shows it: keys of ours, files of the user's, and nothing is imported."""

from __future__ import annotations

import ast
import difflib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launcher.errors import LauncherError, Problem, UsageError
from launcher.recipe.component import Component, components_in
from launcher.recipe.duration import Duration, share_of_train
from launcher.recipe.expressions import Expression
from launcher.recipe.places import Path, dotted
from launcher.recipe.policy import Trust
from launcher.recipe.project import own_code
from launcher.recipe.targets import own_file
from launcher.recipe.tree import Document
from launcher.text import brief

_OF_ANY = ("_target_", "_args_", "_partial_", "_ref_")
LOSS_COUNTS = ("sample", "element", "batch", "sum")


def _is_count(value: Any) -> str | None:
    return None if value in LOSS_COUNTS else f"is not allowed; one of: {', '.join(LOSS_COUNTS)}"


def _is_weight(value: Any) -> str | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    return None if fits else "is not a weight; write a number, as in 0.7"


def _are_picks(value: Any) -> str | None:
    """Positions or keys in a list, or by the name of an argument."""
    keys = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else None
    fits = keys is not None and all(isinstance(key, int | str) and not isinstance(key, bool) for key in keys)
    return None if fits else "must be positions or keys, as in [0], or by name of an argument, as in {input: 0, var: 1}"


def _is_length(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return None
    duration = Duration.parse(value) if isinstance(value, str) else None
    fits = duration is not None and duration.unit in ("epochs", "steps", "samples", "percent")
    return None if fits else "is not a length; write '500 steps', '1 epoch' or '5%'"


def _is_number_of_steps(value: Any) -> str | None:
    return None if number_of_steps(value) else "is not a number of steps; write 5 or '5 steps'"


def number_of_steps(value: Any) -> int | None:
    """How many steps `5` or '5 steps' are; None where it is neither."""
    duration = Duration.parse(value) if isinstance(value, str) else None
    if duration is not None:
        value = int(duration.amount) if duration.unit == "steps" else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _is_metric(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "is not a metric; write its name, as in loss or accuracy"


def _are_groups(value: Any) -> str | None:
    fits = isinstance(value, Mapping) and value and all(isinstance(settings, Mapping) for settings in value.values())
    return None if fits else "must be patterns with their settings, as in {'*.bias': {weight_decay: 0}}"


def _are_patterns(value: Any) -> str | None:
    """A pattern, or several in a list."""
    patterns = value if isinstance(value, list) else [value]
    fits = patterns and all(isinstance(pattern, str) and pattern.strip() for pattern in patterns)
    return None if fits else "must be a pattern of names, as in 'blocks.*' or 'dim>=2', or several in a list"


def _is_share(value: Any) -> str | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    return None if fits else "must be a number above 0 and up to 1, as in 0.75"


def _is_switch(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _is_adapter(value: Any) -> str | None:
    return None if isinstance(value, Component) else "must be {_target_: peft.LoraConfig, …}, or {_ref_: my.py:adapt}"


def _is_share_of_train(value: Any) -> str | None:
    return None if isinstance(value, str) and share_of_train(value) else "is not a share; write '20% of train'"


METRIC_INPUTS = ("probabilities", "classes", "logits", "text")


def _is_input(value: Any) -> str | None:
    return None if value in METRIC_INPUTS else f"is not allowed; one of: {', '.join(METRIC_INPUTS)}"


def _are_sets(value: Any) -> str | None:
    fits = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    return None if fits else "must be a list of names of evaluation sets, as in [clean]"


# keys of ours that stand beside a component's arguments, by the slot they belong to, and what they may hold
OPTIONS: dict[str, dict[str, Callable[[Any], str | None]]] = {
    "data.validation": {"_share_": _is_share_of_train},
    "model": {"_adapt_": _is_adapter},
    "optimizer": {
        "_groups_": _are_groups,
        "_params_": _are_patterns,
        "_layer_decay_": _is_share,
        "_closure_": _is_switch,
    },
    "scheduler": {"_warmup_": _is_length, "_every_": _is_length, "_monitor_": _is_metric},
    "loss": {"_per_": _is_count, "_weight_": _is_weight, "_outputs_": _are_picks, "_targets_": _are_picks},
    "train.step": {"_every_": _is_number_of_steps},
    "evaluate.metrics": {
        "_input_": _is_input,
        "_sets_": _are_sets,
        "_outputs_": _are_picks,
        "_targets_": _are_picks,
    },
}


def component_problems(tree: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """What is wrong with the components of a recipe, before anything is imported."""
    for component in components_in(tree):
        yield from _shape(component, _options_at(component.path), document)
        for inner in component.walk():
            yield from _own_file(inner, document)


def _options_at(path: Path) -> Mapping[str, Callable[[Any], str | None]]:
    name = dotted(path)
    return next((options for slot, options in OPTIONS.items() if f"{name}.".startswith(f"{slot}.")), {})


def _shape(
    component: Component, options: Mapping[str, Callable[[Any], str | None]], document: Document
) -> Iterator[Problem]:
    if component.given is not None:
        return
    if isinstance(component.target, Expression) or not isinstance(component.target, str) or not component.target:
        message = "_target_ must be a name, as in 'torch.nn.Linear' or 'my_model.py:Net'"
        yield Problem(str(component.origin), dotted(component.path), message)
    strange = set(component.options) - {"_target_", *options}
    if component.style == "reference" and (component.args or component.kwargs or strange):
        message = "_ref_ is the thing itself and takes no arguments; use _target_ to call it"
        yield Problem(str(component.origin), dotted(component.path), message)
    for key, value in component.options.items():
        path = (*component.path, key)
        if fault := _option_fault(key, value, options):
            yield Problem(str(document.key_origin(path)), dotted(path), fault)
    for child in component.children():
        yield from _shape(child, {}, document)  # a scheduler inside SequentialLR has no ramp of its own


def _option_fault(key: str, value: Any, options: Mapping[str, Callable[[Any], str | None]]) -> str | None:
    if key == "_target_":
        return "cannot be combined with _ref_; keep _ref_ for the thing itself, or _target_ to call it"
    if key == "_partial_":
        return "must be true or false"
    if key == "_args_":
        return "must be a list"
    if key not in options:
        known = [*_OF_ANY, *sorted(options)]
        words = {other.strip("_"): other for other in known}  # or everything would look alike
        near = difflib.get_close_matches(key.strip("_"), words, n=1)
        meant = f"; did you mean '{words[near[0]]}'? Allowed" if near else "; allowed"
        return f"unknown key{meant} keys: {', '.join(known)}, and the arguments"
    fault = options[key](value)
    if fault is None or not isinstance(value, str | int | float):
        return fault
    return f"'{brief(str(value))}' {fault}"


def _own_file(component: Component, document: Document) -> Iterator[Problem]:
    """A file of the user's must exist and be Python; nothing of it is run."""
    if component.given is not None or not isinstance(component.target, str) or ".py:" not in component.target:
        return
    key = "_ref_" if component.style == "reference" else "_target_"
    path = (*component.path, key)
    try:
        _parse(component)
    except UsageError:  # of the project, and not of this component
        raise
    except LauncherError as error:
        yield Problem(str(document.origin(path)), dotted(path), str(error))


@functools.lru_cache(maxsize=64)
def _check_syntax(code: bytes, name: str) -> None:
    """Many components stand in one file, and a process may read many recipes: a file is parsed once."""
    ast.parse(code, filename=name)


def _parse(component: Component) -> None:
    file, _, name = component.target.rpartition(":")
    own, places = own_code(component.folder)
    path = own_file(file, Trust(own, places=places))
    try:
        _check_syntax(path.read_bytes(), str(path))
    except SyntaxError as error:
        place = f":{error.lineno}" if error.lineno else ""
        text = f": {brief(error.text.strip())}" if error.text else ""
        raise LauncherError(f"{brief(file)}{place}: {error.msg}{text}; fix the file") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise LauncherError(f"{brief(file)}: {error}; fix the file") from error
    if not all(part.isidentifier() for part in name.split(".")):
        raise LauncherError(f"'{brief(name)}' is not a name; write {file}:Name")
