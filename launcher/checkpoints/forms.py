"""Files that weights or programs are written to: each form writes one, and gives what loads it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.compare import Batch, distance, own_copy, tensors
from launcher.checkpoints.programs import quietly, traced, unfit
from launcher.checkpoints.real_batch import SAMPLES
from launcher.checkpoints.safe_files import export_safetensors
from launcher.checkpoints.weights import read_weights
from launcher.model.adapt import Built
from launcher.model.kinds import class_of
from launcher.recipe.generated_code import check_arguments, check_names

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
    with torch.no_grad():
        check_arguments(kwargs, [args, kwargs, module(*own_copy(args), **own_copy(kwargs))])
    program = traced(f"torch.export: {class_of(module).__name__}", module, args, kwargs, list(_free_dimensions(batch)))
    with quietly():
        try:
            torch.export.save(program, path)
            again: Callable[..., Any] = torch.export.load(path).module()
        except Exception as error:  # it holds what cannot be written
            raise unfit(f"torch.export: {class_of(module).__name__} cannot be saved", error) from error
    return again


def _free_dimensions(batch: Batch) -> Iterator[tuple[torch.Tensor, Sequence[int]]]:
    """Which dimensions of what a model is called with change with the number of samples."""
    own = tensors([batch.args, batch.kwargs])
    other = tensors([batch.others[0].args, batch.others[0].kwargs]) if batch.others else []
    for number, tensor in enumerate(own):
        if len(own) == len(other) and tensor.ndim == other[number].ndim:
            sizes = zip(tensor.shape, other[number].shape, strict=True)
            yield tensor, [place for place, (size, another) in enumerate(sizes) if size != another]
        elif tensor.ndim and len(tensor) == SAMPLES:
            yield tensor, [0]


def _onnx(model: Built, fresh: Fresh, batch: Batch, path: Path) -> Callable[..., Any]:
    from launcher.checkpoints.onnx import write_onnx

    check_names(model.module)
    return write_onnx(model.module, batch, path)


WHOLE_STATES = (".safetensors", ".pth")  # of which one tensor after the other can be written
SUFFIXES: dict[str, Form] = {".safetensors": _safetensors, ".pth": _pth, ".pt2": _program, ".onnx": _onnx}
PROGRAMS = (".pt2", ".onnx")  # of which it is tried whether they take batches of any size


def sizes(model: nn.Module, again: Callable[..., Any], batch: Batch) -> str:
    """Whether a program takes batches of other sizes: found by giving it some."""
    if not batch.others:
        return f"; it was tried on a batch of {SAMPLES} samples only"
    try:
        for other in batch.others:
            distance(model, again, other)
    except Exception:  # the program's own check of shapes, or what comes of them
        return f"; it takes batches of {SAMPLES} samples only: traced with another size, the model does not follow it"
    return "; it takes batches of any size"
