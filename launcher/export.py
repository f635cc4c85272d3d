"""The weights of a run in another form, checked against the run's own on a real batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from launcher import checkpoints
from launcher.batch import BatchLayout
from launcher.errors import LauncherError, UsageError
from launcher.recipe.components import Workshop
from launcher.recipe.generated_code import check_arguments, check_names
from launcher.saved import find_saved


def export(path: Path, target: Path) -> str:
    """Writes the weights of a run or checkpoint as `.safetensors`, `.pth` or a `torch.export` program (`.pt2`).

    What was written is loaded again, and its outputs on a batch of two training samples are compared with those of
    the model that it came from.

    Args:
        path: A run's folder, or a checkpoint.
        target: The file to write; its suffix says the form.

    Returns:
        What was written and how it was checked, in a line.

    Raises:
        UsageError: There is no such form, or the file exists.
        LauncherError: The model cannot be exported, or what was written gives other outputs.
    """
    target = target.absolute()
    if target.suffix not in _FORMS:
        raise UsageError(f"--to {target.name}: the suffix says the form; one of: {', '.join(_FORMS)}")
    if not target.parent.is_dir():
        raise UsageError(f"--to {target}: there is no folder {target.parent}; make it first")
    if target.exists():
        raise UsageError(f"--to {target}: exists; it is left as it is")
    saved = find_saved(path)
    workshop = Workshop(saved.recipe, saved.allow)
    workshop.check()
    model = workshop.build(saved.recipe.model)
    model.load_state_dict(saved.weights())
    model.eval()
    args, kwargs = _batch(workshop)
    hidden = target.with_name(f".{target.name}.{os.getpid()}{target.suffix}")
    try:
        again = _FORMS[target.suffix](workshop, model, args, kwargs, hidden)
        distance = _distance(model, again, args, kwargs)
        sizes = _sizes(model, again, args, kwargs) if target.suffix == ".pt2" else ""
        hidden.replace(target)
    finally:
        hidden.unlink(missing_ok=True)
    size = target.stat().st_size / 2**20
    agreed = "bit-equal" if distance == 0 else f"within {distance:.1e}"
    form = target.suffix[1:]
    return f"{target}: {saved.label} as {form}, {size:.1f} MiB; outputs on a real batch are {agreed}{sizes}"


def _batch(workshop: Workshop) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model gets of two training samples."""
    from launcher.data import load_data
    from launcher.launch.world import World

    changed = workshop.recipe.model_copy(
        update={"data": workshop.recipe.data.model_copy(update={"workers": 0, "micro_batch_size": _SAMPLES})}
    )
    reader = Workshop(changed, workshop.allow)
    batches = next(iter(load_data(reader, World()).train.steps(0, 1)))
    args, kwargs, _ = BatchLayout(workshop.recipe.batch).split(batches[0].data)
    return tuple(args), dict(kwargs)


_SAMPLES = 2  # of the batch that is tried
Form = Callable[[Workshop, nn.Module, tuple[Any, ...], dict[str, Any], Path], Callable[..., Any]]


def _safetensors(workshop: Workshop, model: nn.Module, args: Any, kwargs: Any, path: Path) -> Callable[..., Any]:
    from safetensors.torch import load_model, save_model

    save_model(model, str(path))  # knows tied weights, which save_file refuses
    again = _another(workshop)
    load_model(again, str(path))
    return again.eval()


def _pth(workshop: Workshop, model: nn.Module, args: Any, kwargs: Any, path: Path) -> Callable[..., Any]:
    checkpoints.save_weights(path, model.state_dict())
    again = _another(workshop)
    again.load_state_dict(checkpoints.load_state(path))
    return again.eval()


def _program(workshop: Workshop, model: nn.Module, args: Any, kwargs: Any, path: Path) -> Callable[..., Any]:
    check_names(model)
    with torch.no_grad():
        check_arguments(kwargs, [args, kwargs, model(*args, **kwargs)])
    shapes = torch.export.ShapesCollection()
    for tensor in _tensors([args, kwargs]):
        if _is_batch(tensor):
            shapes[tensor] = {0: torch.export.Dim.AUTO}  # another size, unless the model allows only this one
    try:
        try:
            dynamic = shapes.dynamic_shapes(model, args, kwargs)
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
        except Exception:  # a model that asks for the size may be traced with one
            program = torch.export.export(model, args, kwargs, strict=False)
        torch.export.save(program, path)
        module: Callable[..., Any] = torch.export.load(path).module()
    except Exception as error:  # whatever the tracer trips over lies in the model
        raise LauncherError(
            f"torch.export cannot trace {type(model).__name__}: {str(error).splitlines()[0]}; export the weights "
            "instead: --to model.safetensors"
        ) from error
    return module


_FORMS: dict[str, Form] = {".safetensors": _safetensors, ".pth": _pth, ".pt2": _program}


def _is_batch(tensor: torch.Tensor) -> bool:
    return tensor.ndim > 0 and len(tensor) == _SAMPLES


def _sizes(model: nn.Module, again: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Whether a program takes batches of other sizes: found by giving it one sample, and three."""
    for rows in ([0], [0, 1, 0]):
        other = tree_map(
            lambda one, rows=rows: one[rows] if torch.is_tensor(one) and _is_batch(one) else one, (args, kwargs)
        )
        try:
            _distance(model, again, *other)
        except Exception:  # the program's own check of shapes, or what comes of them
            return (
                f"; it takes batches of {_SAMPLES} samples only: traced with another size, the model does not follow it"
            )
    return "; it takes batches of any size"


def _another(workshop: Workshop) -> nn.Module:
    """A second model of the recipe, with fresh weights."""
    model: nn.Module = Workshop(workshop.recipe, workshop.allow).build(workshop.recipe.model)
    return model


def _distance(model: nn.Module, again: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    with torch.no_grad():
        pairs = zip(_tensors(model(*args, **kwargs)), _tensors(again(*args, **kwargs)), strict=True)
        distance = max((float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    if not distance < 1e-3:
        raise LauncherError(f"what was written gives other outputs, by up to {distance:.3g}; nothing was kept")
    return distance


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]
