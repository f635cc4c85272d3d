"""A model as an ONNX program, which onnxruntime runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher import internals
from launcher.checkpoints.compare import Batch, draws, outputs, tensors
from launcher.checkpoints.programs import WEIGHTS, quietly, traced, unfit
from launcher.datasets.files import needed
from launcher.errors import LauncherError
from launcher.model.kinds import class_of
from launcher.text import size

_LARGEST = 2**31 - 2**20  # bytes of one file, in which there is more than weights
_TENSOR = object()  # where one stands among what a model is called with


class _Plain(nn.Module):
    """A model that gets and gives tensors in order, without the kinds of containers that ONNX does not know."""

    def __init__(self, model: nn.Module, batch: Batch):
        super().__init__()
        self.model, self.config = model, getattr(model, "config", None)
        given = batch.args, dict(batch.kwargs)
        self.form = internals.tree_map(lambda leaf: _TENSOR if torch.is_tensor(leaf) else leaf, given)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left = iter(values)
        args, kwargs = internals.tree_map(lambda leaf: next(left) if leaf is _TENSOR else leaf, self.form)
        return tuple(tensors(self.model(*args, **kwargs)))


def write_onnx(model: nn.Module, batch: Batch, path: Path) -> Callable[..., Any]:
    """Writes the program, and gives it as onnxruntime runs it.

    The batch may have another size, and so may each dimension of which the model itself takes another: lengths of
    sequences, heights of pictures, but no channels. The names of classes stand in its metadata, as `classes`.

    Raises:
        LauncherError: A package is missing, the model cannot be traced, or onnxruntime cannot run it.
    """
    runtime = needed("onnxruntime", "onnx", "ONNX")
    for package in ("onnx", "onnxscript"):
        needed(package, "onnx", "ONNX")
    _check(model, batch)
    values, plain = _values(batch.args, batch.kwargs), _Plain(model, batch)
    program = traced(f"ONNX: {class_of(model).__name__}", plain, tuple(values), {}, _free_dimensions(plain, values))
    with quietly():
        try:
            written = torch.onnx.export(
                program, (), input_names=list(_names(batch)), dynamo=True, verbose=False, external_data=False
            )
            assert written is not None
            if batch.classes:
                written.model.metadata_props["classes"] = json.dumps(list(batch.classes))
            written.save(str(path))
        except Exception as error:  # an operation that ONNX does not have
            raise unfit(f"ONNX: {class_of(model).__name__} cannot be written", error) from error
    return _run_by(runtime, model, path)


def _check(model: nn.Module, batch: Batch) -> None:
    """Refuses what cannot be written, or not be compared.

    Raises:
        LauncherError: It is so.
    """
    name = class_of(model).__name__
    stored = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if stored > _LARGEST:
        raise LauncherError(f"ONNX: one file holds 2 GiB at most, and {name} has {size(stored)}; {WEIGHTS}")
    if any(tensor.is_complex() for tensor in (*_values(batch.args, batch.kwargs), *outputs(model, batch))):
        raise LauncherError(
            f"ONNX: {name} gets or gives complex numbers, which ONNX does not have; use torch.view_as_real in its "
            "forward, or write --to model.pt2"
        )
    if draws(model, batch):
        raise LauncherError(
            f"ONNX: {name} draws random numbers in eval mode too, and onnxruntime draws others, so that nothing can be "
            "compared; have it draw none where self.training is False, or write --to model.pt2"
        )


def _run_by(runtime: Any, model: nn.Module, path: Path) -> Callable[..., Any]:
    """The program in a file, as onnxruntime runs it.

    Raises:
        LauncherError: It cannot.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    options.intra_op_num_threads = torch.get_num_threads()  # else it says of each processor that it may not have it
    wide = any(tensor.dtype == torch.float64 for tensor in model.state_dict().values() if torch.is_tensor(tensor))
    remedy = "it has few operations for float64: train in float32, or write --to model.pt2" if wide else WEIGHTS
    what = f"ONNX: onnxruntime cannot run {class_of(model).__name__}"
    try:
        session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # an operation that it does not have
        raise unfit(what, error, remedy) from error
    names = [value.name for value in session.get_inputs()]

    def call(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        try:
            own = {name: value.cpu().numpy() for name, value in zip(names, _values(args, kwargs), strict=True)}
            return [torch.from_numpy(value) for value in session.run(None, own)]
        except Exception as error:  # of the same, while it runs; and types that NumPy does not have
            raise unfit(what, error, remedy) from error

    return call


def _values(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors that a model is called with, in order."""
    leaves: list[Any] = []
    internals.tree_map(leaves.append, (args, dict(kwargs)))
    return [leaf for leaf in leaves if torch.is_tensor(leaf)]


def _names(batch: Batch) -> Iterator[str]:
    """What inputs are called: by their names, or `input_0`; those inside another after that, as in `input_0_mask`."""
    for place, value in enumerate(batch.args):
        yield from _within(f"input_{place}", value)
    for name, value in batch.kwargs.items():
        yield from _within(name, value)


def _within(name: str, value: Any) -> Iterator[str]:
    if torch.is_tensor(value):
        yield name
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield from _within(f"{name}_{key}", inner)


def _free_dimensions(model: nn.Module, values: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, Sequence[int]]]:
    """Of each input the dimensions that may have another size; inputs of one length are changed together."""
    sizes = {(place, tensor.shape[place]) for tensor in values for place in range(1, tensor.ndim)}
    free = {(place, size) for place, size in sizes if _takes_another(model, values, place, size)}
    return [
        (value, [place for place, size in enumerate(value.shape) if not place or (place, size) in free])
        for value in values
    ]


def _takes_another(model: nn.Module, values: Sequence[torch.Tensor], place: int, size: int) -> bool:
    """Whether a model can be called with one more, or one less, where its inputs have this size."""
    for numbers in ([*range(size), size - 1], list(range(size - 1))):
        changed = [
            value.index_select(place, torch.tensor(numbers, device=value.device))
            if numbers and value.ndim > place and value.shape[place] == size
            else value.clone()
            for value in values
        ]
        try:
            with torch.no_grad():
                model(*changed)
        except Exception:  # the model's own check of shapes, or what comes of them
            continue
        return bool(numbers)
    return False
