"""Files that weights or programs are written to: each form writes one, and gives what loads it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.compare import Batch, distance, tensors
from launcher.checkpoints.safe_files import export_safetensors
from launcher.checkpoints.weights import read_weights
from launcher.errors import LauncherError
from launcher.internals import tree_map
from launcher.model.adapt import Built
from launcher.model.own_gradients import OwnGradients
from launcher.recipe.generated_code import check_arguments, check_names

SAMPLES = 2  # of the batch that is tried
Fresh = Callable[[], Built]  # another model of the recipe
Form = Callable[[Built, Fresh, Batch, Path], Callable[..., Any]]


def _safetensors(model: Built, fresh: Fresh, batch: Batch, path: Path) -> Callable[..., Any]:
    export_safetensors(path, model.state_dict())
    return _taken_up(fresh(), read_weights(path))


def _taken_up(again: Built, state: Mapping[str, Any]) -> nn.Module:
    """A model with weights."""
    again.load_state_dict(state)
    return again.module.eval()


def _pth(model: Built, fresh: Fresh, batch: Batch, path: Path) -> Callable[..., Any]:
    checkpoints.save_weights(path, model.state_dict())
    return _taken_up(fresh(), checkpoints.load_state(path))


def _program(model: Built, fresh: Fresh, batch: Batch, path: Path) -> Callable[..., Any]:
    module, args, kwargs = model.module, batch.args, dict(batch.kwargs)
    check_names(module)
    check_arguments(kwargs, [args, kwargs, _given(module, batch)])
    shapes = torch.export.ShapesCollection()
    for tensor in tensors([args, kwargs]):
        if _is_batch(tensor):
            shapes[tensor] = {0: torch.export.Dim.AUTO}  # another size, unless the model allows only this one
    try:
        try:
            dynamic = shapes.dynamic_shapes(module, args, kwargs)
            program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
        except Exception:  # a model that asks for the size may be traced with one
            program = torch.export.export(module, args, kwargs, strict=False)
        torch.export.save(program, path)
        again: Callable[..., Any] = torch.export.load(path).module()
    except Exception as error:  # whatever the tracer trips over lies in the model
        raise LauncherError(
            f"torch.export cannot trace {type(module).__name__}: {str(error).splitlines()[0]}; export the weights "
            "instead: --to model.safetensors"
        ) from error
    return again


def _given(module: nn.Module, batch: Batch) -> Any:
    """What a model gives that is to become a program.

    Raises:
        LauncherError: It takes gradients of its own, which no tracer follows.
    """
    own = OwnGradients()
    given = own.call(module, partial(module, *batch.args, **batch.kwargs))
    if own.are_taken:
        message = f"{type(module).__name__} takes gradients when it is called, which a program cannot; export the "
        raise LauncherError(f"{message}weights instead: --to model.safetensors")
    return given


def _onnx(model: Built, fresh: Fresh, batch: Batch, path: Path) -> Callable[..., Any]:
    from launcher.checkpoints.onnx import write_onnx

    check_names(model.module)
    _given(model.module, batch)
    return write_onnx(model.module, batch, path)


WHOLE_STATES = (".safetensors", ".pth")  # of which one tensor after the other can be written
SUFFIXES: dict[str, Form] = {".safetensors": _safetensors, ".pth": _pth, ".pt2": _program, ".onnx": _onnx}
PROGRAMS = (".pt2", ".onnx")  # of which it is tried whether they take batches of any size


def _is_batch(tensor: torch.Tensor) -> bool:
    return tensor.ndim > 0 and len(tensor) == SAMPLES


def sizes(model: nn.Module, again: Callable[..., Any], batch: Batch) -> str:
    """Whether a program takes batches of other sizes: found by giving it one sample, and three."""
    for rows in ([0], [0, 1, 0]):
        args, kwargs = tree_map(partial(_of_rows, rows), (batch.args, dict(batch.kwargs)))
        try:
            distance(model, again, replace(batch, args=args, kwargs=kwargs))
        except Exception:  # the program's own check of shapes, or what comes of them
            return (
                f"; it takes batches of {SAMPLES} samples only: traced with another size, the model does not follow it"
            )
    return "; it takes batches of any size"


def _of_rows(rows: list[int], value: Any) -> Any:
    return value[rows] if torch.is_tensor(value) and _is_batch(value) else value
