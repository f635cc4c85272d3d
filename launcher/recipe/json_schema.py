"""The schema of recipes as JSON Schema, for editors: completion, hover text, and mistakes underlined while typing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from launcher.recipe.duration import Duration
from launcher.recipe.schema import COMPONENT_SCHEMA, Recipe

_REFERENCE = {"type": "string", "pattern": r"\$\{"}


def editor_schema(trackers: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The same, with what is known of components and trackers; imports torch, whose classes it names.

    Args:
        trackers: What a recipe may say to each.
    """
    from launcher.recipe.component_schema import slot_schemas

    schema = recipe_schema()
    definitions = schema["$defs"]
    for path, component in slot_schemas().items():
        section, _, key = path.rpartition(".")
        properties = definitions[section.capitalize()]["properties"] if section else schema["properties"]
        properties[key] = _with_component(properties[key], path)
        definitions[f"Component.{path}"] = component
    inner = {"propertyNames": {}, "type": ["object", "null"]}
    for name, settings in trackers.items():
        tracker = {**inner, "description": f"Also send numbers to {name}.", "propertyNames": {"enum": [*settings]}}
        definitions["Track"]["properties"][name] = tracker | {"properties": {key: {} for key in settings}}
    return schema


def _with_component(schema: Any, slot: str) -> Any:
    """The same, with that slot's components."""
    if isinstance(schema, list):
        return [_with_component(item, slot) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    inner = {key: _with_component(item, slot) for key, item in schema.items()}
    return {**inner, "$ref": f"#/$defs/Component.{slot}"} if schema.get("$ref") == "#/$defs/Component" else inner


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe file. What a recipe with `base` omits may be in its base."""
    schema = Recipe.model_json_schema(schema_generator=_Generator)
    schema["$defs"]["Component"] = {**COMPONENT_SCHEMA, "title": "Component"}
    required = {name: definition.pop("required", []) for name, definition in schema["$defs"].items()}
    alone = {
        "required": schema.pop("required"),
        "properties": {"data": {"required": required["Data"]}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "if": {"not": {"required": ["base"]}},
        "then": alone,
    }


class _Generator(GenerateJsonSchema):
    """Says what a file may hold, not what it becomes: references stand for numbers, and words for durations."""

    def generate(self, schema: CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        tidied = _tidied(super().generate(schema, mode))
        assert isinstance(tidied, dict)
        return tidied

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _or_reference(super().int_schema(schema))

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        json_schema = super().str_schema(schema)
        return _or_reference(json_schema) if "pattern" in json_schema else json_schema

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return _or_reference(super().float_schema(schema))

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return _or_reference(super().bool_schema(schema))

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return _or_reference(super().literal_schema(schema))

    def encode_default(self, dft: Any) -> Any:
        return dft.text if isinstance(dft, Duration) else super().encode_default(dft)


def _or_reference(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {"oneOf": [schema, _REFERENCE]}  # editors show all of an `anyOf` in a hover


def _tidied(schema: Any) -> Any:
    """Without pydantic's titles, and with one definition of what a component is."""
    if isinstance(schema, list):
        return [_tidied(item) for item in schema if item != _REFERENCE or {"type": "string"} not in schema]
    if not isinstance(schema, Mapping):
        return schema
    if all(schema.get(key) == item for key, item in COMPONENT_SCHEMA.items()):
        rest = {key: item for key, item in schema.items() if key not in COMPONENT_SCHEMA}
        return {"$ref": "#/$defs/Component", **rest}
    return {key: _tidied(item) for key, item in schema.items() if key != "title" or not isinstance(item, str)}
