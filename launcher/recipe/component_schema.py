"""What an editor knows of components: the names after `_target_` in each slot, and the arguments of each."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.recipe.build import SLOTS, Slot
from launcher.recipe.component import Component
from launcher.recipe.component_syntax import LOSS_COUNTS, METRIC_INPUTS, OPTIONS
from launcher.recipe.places import Origin
from launcher.recipe.schema import COMPONENT_SCHEMA
from launcher.recipe.signature import hints_of, parameters_of, wrong_kind

_REFERENCE: dict[str, Any] = {"type": "string", "pattern": r"\$\{"}
_POSITIONS = {"description": "Positions or keys, as in [0], or by the names of a loss's or a function's arguments."}
_LENGTH = {
    "type": ["integer", "string"],
    "description": "Steps, or words such as '500 steps', '1 epoch' or '5%'.",
}
_OPTIONS: Mapping[str, dict[str, Any]] = {
    "_groups_": {
        "type": "object",
        "additionalProperties": {"type": "object"},
        "description": "Settings of some parameters by a pattern of their names: {'*.bias': {weight_decay: 0}}.",
    },
    "_params_": {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "description": "Which parameters this optimizer has: a pattern of names such as 'blocks.*', or several.",
    },
    "_layer_decay_": {
        "anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, _REFERENCE],
        "description": "Multiplies the learning rate once for each layer below the last.",
    },
    "_closure_": {"type": "boolean", "description": "Whether the optimizer calls the step itself, as LBFGS does."},
    "_adapt_": {
        "type": "object",
        "description": "Adapts a pretrained model: {_target_: peft.LoraConfig, …}, or {_ref_: my.py:adapt}.",
    },
    "_warmup_": {**_LENGTH, "description": f"How long the learning rate rises from 0. {_LENGTH['description']}"},
    "_every_": {
        **_LENGTH,
        "description": f"How often the schedule moves on, or a turn of train.step is taken. {_LENGTH['description']}",
    },
    "_monitor_": {
        "type": "string",
        "description": "The metric that ReduceLROnPlateau follows; without it, that of evaluate.best.",
    },
    "_share_": {"type": "string", "description": "Only these samples, of those of data.train: 20% of train."},
    "_per_": {"enum": [*LOSS_COUNTS], "description": "What the loss is a mean over; without it, it is measured."},
    "_weight_": {"type": ["number", "string"], "description": "By what this loss is multiplied in the sum of several."},
    "_outputs_": _POSITIONS,
    "_targets_": _POSITIONS,
    "_input_": {"enum": [*METRIC_INPUTS], "description": "What of the model's raw output the metric gets."},
    "_sets_": {"type": "array", "items": {"type": "string"}, "description": "On which evaluation sets it is measured."},
}


def option_told(name: str) -> list[str]:
    """A key of ours beside a component's arguments: where it stands, and what it means; empty where there is none."""
    slots = [slot for slot, options in OPTIONS.items() if name in options]
    return [f"{name}, beside the _target_ of {', '.join(slots)}", f"  {_OPTIONS[name]['description']}"] if slots else []


def component_told(name: str) -> list[str]:
    """A class that a recipe may name in short, of torch or torchmetrics: its first sentence and its arguments."""
    for slot in sorted(SLOTS, key=lambda slot: slot.path != "loss"):  # whose classes stand among modules too
        for home in slot.homes:
            target = getattr(importlib.import_module(home), name, None)
            if inspect.isclass(target) and _stands_for(slot, name, target):
                return [
                    f"{target.__module__}.{target.__qualname__}, for {slot.path}",
                    f"  {_summary(target)}",
                    *_told(target, slot),
                ]
    return []


def _told(target: type, slot: Slot) -> Iterator[str]:
    texts = _texts(target)
    parameters = {key: value for key, value in (parameters_of(target) or {}).items() if key != slot.handed}
    width = max(map(len, parameters), default=0)
    for key, parameter in parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            about = _argument(parameter, None, texts.get(key, ""), is_length=False)["description"]
            if about == "Required." and parameter.default is not parameter.empty:  # which no recipe writes like that
                about = f"Default: {parameter.default!r}."
            yield f"  {key:<{width}}  {about}"


def slot_schemas() -> dict[str, dict[str, Any]]:
    """The schema of a component in each slot, by its dotted key."""
    return {slot.path: _slot_schema(slot) for slot in SLOTS}


def _slot_schema(slot: Slot) -> dict[str, Any]:
    targets = dict(_targets(slot))
    options = {name: _OPTIONS.get(name, {}) for name in OPTIONS.get(slot.path, {})}
    target = COMPONENT_SCHEMA["properties"]["_target_"]  # type: ignore[index]  # ours
    if not targets:
        return {**COMPONENT_SCHEMA, "properties": {**COMPONENT_SCHEMA["properties"], **options}}  # type: ignore[dict-item]
    named = {"anyOf": [{"enum": list(targets)}, {"type": "string"}]}
    properties = {**COMPONENT_SCHEMA["properties"], "_target_": named, **options}  # type: ignore[dict-item]
    known = [_of_target(name, made, slot, [*properties]) for name, made in targets.items()]
    other = {"if": {"properties": {"_target_": {"enum": list(targets)}}}, "else": {"properties": {"_target_": target}}}
    return {**COMPONENT_SCHEMA, "properties": properties, "allOf": [*known, other]}


def _targets(slot: Slot) -> Iterator[tuple[str, Any]]:
    """What the short names of a slot mean, each once; the first home wins."""
    known: set[str] = set()
    for home in slot.homes:
        module = importlib.import_module(home)
        for name in sorted(getattr(module, "__all__", None) or vars(module)):
            thing = getattr(module, name, None)
            if name not in known and inspect.isclass(thing) and _stands_for(slot, name, thing):
                known.add(name)
                yield name, thing


def _stands_for(slot: Slot, name: str, thing: type) -> bool:
    if name.startswith("_") or inspect.isabstract(thing) or name in ("Module", "Optimizer", "LRScheduler", "Metric"):
        return False
    if slot.kind == "loss" and not name.endswith("Loss"):
        return False
    probe = Component(name, (slot.path,), Origin(""), Path())
    return slot.kind is None or wrong_kind(probe, thing, slot.kind) is None


def _of_target(name: str, target: Any, slot: Slot, ours: list[str]) -> dict[str, Any]:
    """What is allowed beside one `_target_`."""
    parameters = parameters_of(target) or {}
    kinds = [parameter.kind for parameter in parameters.values()]
    texts, hints = _texts(target), hints_of(target)
    arguments = {
        key: _argument(parameter, hints.get(key), texts.get(key, ""), is_length=slot.path == "scheduler")
        for key, parameter in parameters.items()
        if key != slot.handed and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    shape: dict[str, Any] = {"properties": {"_target_": {"description": _summary(target)}, **arguments}}
    if inspect.Parameter.VAR_KEYWORD not in kinds and parameters:
        message = f"{name} takes: {', '.join(arguments)}; allowed keys: {', '.join(ours)}."
        shape["propertyNames"] = {"enum": [*ours, *arguments], "errorMessage": message}
    return {"if": {"properties": {"_target_": {"const": name}}, "required": ["_target_"]}, "then": shape}


def _argument(parameter: inspect.Parameter, hint: Any, text: str, is_length: bool) -> dict[str, Any]:
    about = _sentence(text) if text else ""
    if "efault" not in about and (default := _default(parameter.default)):
        about = f"{about} Default: {default}."
    return {"description": about.strip() or "Required.", **_kind(hint, is_length)}


def _default(value: Any) -> str:
    """As a recipe writes it; empty where there is none, or where none can be written."""
    if value is inspect.Parameter.empty or not isinstance(value, str | int | float | bool | None):
        return ""
    return json.dumps(value) if isinstance(value, bool | None) else str(value)


_KINDS = {bool: "boolean", int: "integer", float: "number"}


def _kind(hint: Any, is_length: bool) -> dict[str, Any]:
    """What is certain of a type: numbers and truth values; a scheduler's numbers may be durations."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    plain = [_KINDS[option] for option in options if isinstance(option, type) and option in _KINDS]
    if not plain or is_length or any(option is str or option is typing.Any for option in options):
        return {}
    return {"anyOf": [{"type": [*dict.fromkeys(plain), "null", "object", "array"]}, _REFERENCE]}


def _summary(target: Any) -> str:
    text = inspect.getdoc(target) or ""
    return _sentence(text.partition("\n\n")[0]) or f"{target.__module__}.{target.__qualname__}."


def _sentence(text: str) -> str:
    """The first sentence, without markup."""
    plain = re.sub(
        r":[a-z]+:`~?\.?([^`]*)`|`+([^`<]*?)(?: <[^`]*>)?`+_{0,2}",
        lambda match: match[1] or match[2] or "",
        " ".join(text.split()),
    )
    first = re.split(r"(?<=[.!?])\s+(?=[A-Z])", plain.replace("**", ""), maxsplit=1)[0].strip()
    return f"{first[0].upper()}{first[1:].rstrip('.:;')}." if first else ""


def _texts(target: Any) -> dict[str, str]:
    """What a docstring says of each argument, in Google's form or torch's."""
    doc = "\n".join(filter(None, [inspect.getdoc(target), inspect.getdoc(getattr(target, "__init__", None))]))
    found = re.finditer(r"^(\s+)\*{0,2}(\w+)(?: \([^)\n]*\))?: *(.+(?:\n\1\s+\S.*)*)", doc, re.MULTILINE)
    return {match[2]: match[3] for match in reversed(list(found))}
