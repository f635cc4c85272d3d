"""A path in place of a recipe's set: what `launcher predict RUN PATH` reads, as the run read what it was trained on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.checkpoints.saved_run import CLASSES
from launcher.data.getitems import sample_of
from launcher.data.load import Part, evaluation_parts, fit_to_what_is_trained_on
from launcher.datasets import HubDataset, ImageFolder, NumpyArrays, Table, TextFile
from launcher.datasets.unlabelled import JSON_LINES, PIPED, JsonRows, Lines, Pictures, label_of
from launcher.errors import LauncherError, UsageError
from launcher.recipe.build import Builder, BuildError
from launcher.recipe.component import GIVEN, Component
from launcher.recipe.places import Origin
from launcher.recipe.schema import Recipe
from launcher.recipe.signature import parameters_of
from launcher.recipe.targets import told
from launcher.text import suggestion, told_by

_HOLDS_PATH = ("path", "root", "file", "files", "folder", "directory", "filename", "paths", "dir", "csv", "text")
_ENDINGS = ("_path", "_root", "_file", "_files", "_folder", "_directory", "_dir")


def with_data(recipe: Recipe, data: Any) -> Recipe:
    """The recipe with another test set, which may have only inputs, and no other that is evaluated."""
    test = Component(GIVEN, ("data", "test"), Origin(GIVEN), recipe.document.folder, given=data)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": test})})  # with its document


def with_path(recipe: Recipe, builder: Builder, path: Path, split: str | None, directory: Path) -> Recipe:
    """The recipe with what lies at a path as its test set.

    Args:
        recipe: Of the run.
        builder: Builds of it what must be known.
        path: A file or folder, absolute.
        split: The set that says how it is read; None is the test set, else the validation set, else the training set.
        directory: From where file names in JSON lines are.

    Raises:
        UsageError: There is nothing that can be read there.
    """
    if not path.exists():
        near = suggestion(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        raise UsageError(f"{path}: there is no such file or folder{near}")
    if path.name == PIPED and not path.read_bytes().strip():
        raise UsageError(f"{label_of(path)} is empty; write a JSON value on each line")
    fit_to_what_is_trained_on(builder, recipe.data, recipe.seed)
    template = _template(recipe, split)
    try:
        dataset = _opened(recipe, builder, template, path, directory)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(_told(error, path)) from error
    recipe = with_data(recipe, dataset)
    if isinstance(dataset, Lines) or (isinstance(dataset, JsonRows) and not dataset.is_uniform):  # of one length each
        recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"batch_size": 1})})
    return recipe


def _told(error: Exception, path: Path) -> str:
    """What is wrong with what lies at a path, which standard input has for this program alone."""
    words = str(error) or told_by(error)
    if path.name != PIPED:
        return words
    return words.replace(str(path), label_of(path)).replace(PIPED, label_of(path))


def _template(recipe: Recipe, split: str | None) -> Component:
    """The set whose way of reading is meant."""
    data = recipe.data
    sets: dict[Part, Component] = {}
    for part in evaluation_parts(data):
        section = getattr(data, part[0])
        sets[part] = data.train if isinstance(section, str) else section if not part[1] else section[part[1]]
    if split == "train":
        return data.train
    named = [part for part in sets if split in part or split == " ".join(part).strip()]
    if split is not None and not named:
        there = ", ".join([*(" ".join(part).strip() for part in sets), "train"])
        raise UsageError(f"no set is called {split}; there are: {there}")
    chosen = named or [part for part in sets if part[0] == "test"] or list(sets)
    return sets[chosen[0]] if chosen else data.train


def _opened(recipe: Recipe, builder: Builder, template: Component, path: Path, directory: Path) -> Any:
    target = None if template.given is not None else builder.resolve(template)
    if target is ImageFolder or _is_torchvision_s(target):
        return Pictures(path, directory, **_of_pictures(recipe, builder, template))
    if target is Table:
        return _table(recipe, builder, template, path)
    if target is TextFile:
        known = builder.build(recipe.data.train)
        context = builder.value(template.kwargs.get("context", 64), {})
        return Lines(path, known.characters, context)
    if path.suffix in JSON_LINES and target is not HubDataset and not _reads_json(template):
        return JsonRows(path, _sample(builder.build(template)), _names_inputs(recipe))
    return _own(builder, template, target, path)


def _is_torchvision_s(target: Any) -> bool:
    names = getattr(target, "__module__", ""), getattr(target, "__name__", "")
    return names == ("torchvision.datasets.folder", "ImageFolder")


def _built(builder: Builder, template: Component, arguments: Mapping[str, Any]) -> Any:
    """The template with other arguments.

    Raises:
        ValueError: It cannot be built of them; the recipe, which says only how it is read, is not at fault.
    """
    try:
        return builder.build(replace(template, path=("data", "test", "PATH"), args=(), kwargs=arguments))
    except BuildError as error:
        cause = error.__cause__ or error
        module = getattr(builder.resolve(template), "__module__", "")
        is_plain = module.startswith("launcher.datasets.") and isinstance(cause, OSError | ValueError)
        raise ValueError(str(cause) if is_plain else f"{template.target}: {told(cause)}") from error


def _of_pictures(recipe: Recipe, builder: Builder, template: Component) -> dict[str, Any]:
    """How the run read its pictures, and what their classes are called."""
    stated = {name: builder.value(item, {}) for name, item in _arguments(builder, template).items()}
    if (classes := stated.get("classes")) is None:
        classes = builder.computed.get(CLASSES) or getattr(builder.build(recipe.data.train), "classes", None)
    kept = {name: value for name, value in stated.items() if name in ("transform", "size", "mode", "corrupt")}
    return {"classes": classes, **kept}


def _table(recipe: Recipe, builder: Builder, template: Component, path: Path) -> Table:
    stated = _arguments(builder, template)
    settings = {name: builder.value(item, {}) for name, item in stated.items() if name in ("features", "dtype")}
    if settings.get("features") is None:
        settings["features"] = builder.build(recipe.data.train).features
    scale = builder.build(recipe.data.train).scaling if stated.get("scale") is True else stated.get("scale", False)
    table: Table = _built(builder, template, {**settings, "path": str(path), "target": None, "scale": scale})
    names = builder.value(stated.get("classes"), {})
    if names is None:
        names = builder.build(recipe.data.train).classes
    table.classes = None if isinstance(names, int) else names
    return table


def _own(builder: Builder, template: Component, target: Any, path: Path) -> Any:
    """A data set of any other class, with the path in the argument that holds one."""
    stated = _arguments(builder, template)
    known = list(dict.fromkeys([*stated, *(parameters_of(target) or {})]))
    name = next((name for name in _HOLDS_PATH if name in known), None)
    name = name or next((name for name in known if name.endswith(_ENDINGS)), None)
    if name is None:
        raise UsageError(
            f"{template.target} has no argument for a path ({', '.join(_HOLDS_PATH[:5])}, …), so {path.name} cannot be "
            "read as its data; give JSON lines of the model's inputs, or change its arguments: data.test.NAME=VALUE"
        )
    if target is NumpyArrays:
        stated.pop("classes", None)  # of targets
    if target is HubDataset:
        stated["split"] = "train"
    return _built(builder, template, {**stated, name: str(path)})


def _arguments(builder: Builder, template: Component) -> dict[str, Any]:
    """The arguments by name, whichever way they were written."""
    if template.given is not None:
        return {}
    names = list(parameters_of(builder.resolve(template)) or ())
    return {**dict(zip(names, template.args, strict=False)), **template.kwargs}


def _reads_json(template: Component) -> bool:
    """Whether the recipe's own data are JSON lines."""
    texts = [value for value in (*template.args, *template.kwargs.values()) if isinstance(value, str)]
    return any(Path(text).suffix in (*JSON_LINES, ".json") for text in texts)


def _sample(dataset: Any) -> Any:
    """A sample, to see of what types and shapes they are; None where none can be had."""
    try:
        return sample_of(dataset, 0)
    except LauncherError:
        raise
    except Exception:  # a stream, or one that is read whole batches at a time
        return next(iter(dataset), None) if hasattr(dataset, "__iter__") else None


def _names_inputs(recipe: Recipe) -> bool:
    inputs = recipe.batch.inputs
    keys = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, list) else ["whole"]
    return any(isinstance(key, str) for key in keys)
