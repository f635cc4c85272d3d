"""A model as an ONNX program, which onnxruntime runs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.checkpoints.compare import Batch, tensors
from launcher.datasets.files import needed
from launcher.errors import LauncherError


class _Plain(nn.Module):
    """A model that gets and gives tensors in order, without the kinds of results that ONNX does not know."""

    def __init__(self, model: nn.Module, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cut = len(values) - len(self.names)
        named = dict(zip(self.names, values[cut:], strict=True))
        return tuple(tensors(self.model(*values[:cut], **named)))


def write_onnx(model: nn.Module, batch: Batch, path: Path) -> Callable[..., Any]:
    """Writes the program, and gives it as onnxruntime runs it.

    The batch may have another size, and so may each dimension of which the model itself takes another: lengths of
    sequences, heights of pictures, but no channels. The names of classes stand in its metadata, as `classes`.

    Raises:
        LauncherError: A package is missing, or the model cannot be traced.
    """
    runtime = needed("onnxruntime", "onnx", "ONNX")
    for package in ("onnx", "onnxscript"):
        needed(package, "onnx", "ONNX")
    values = (*batch.args, *batch.kwargs.values())
    strange = [type(value).__name__ for value in values if not torch.is_tensor(value)]
    if strange:
        raise LauncherError(f"ONNX: the model's inputs are tensors there, and one of the batch is a {strange[0]}")
    plain = _Plain(model, list(batch.kwargs))
    with _without_cache(model), _quietly():
        try:
            program = torch.onnx.export(
                plain,
                values,
                input_names=[*(f"input_{number}" for number, _ in enumerate(batch.args)), *batch.kwargs],
                dynamo=True,
                dynamic_shapes=(_free_dimensions(plain, values),),
                verbose=False,
            )
            assert program is not None
            if batch.classes:
                program.model.metadata_props["classes"] = json.dumps(list(batch.classes))
            program.save(str(path))
        except Exception as error:  # whatever the tracer trips over lies in the model
            words = " ".join(str(error).split())[:300]
            remedy = "export the weights instead: --to model.safetensors"
            raise LauncherError(f"ONNX: {type(model).__name__} cannot be traced: {words}; {remedy}") from error
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def call(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        given = [*args, *kwargs.values()]
        own = {name: value.cpu().numpy() for name, value in zip(names, given, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, own)]

    return call


def _free_dimensions(model: nn.Module, values: Sequence[torch.Tensor]) -> tuple[dict[int, Any], ...]:
    """Of each input the dimensions that may have another size; inputs of one length are changed together."""
    found = {(place, tensor.shape[place]) for tensor in values for place in range(1, tensor.ndim)}
    free = {(place, size) for place, size in found if _takes_another(model, values, place, size)}
    places = [
        [place for place, size in enumerate(value.shape) if not place or (place, size) in free] for value in values
    ]
    return tuple(dict.fromkeys(of_one, torch.export.Dim.AUTO) for of_one in places)


def _takes_another(model: nn.Module, values: Sequence[torch.Tensor], place: int, size: int) -> bool:
    """Whether a model can be called with one more, or one less, where its inputs have this size."""
    for numbers in ([*range(size), size - 1], list(range(size - 1))):
        changed = [
            value.index_select(place, torch.tensor(numbers, device=value.device))
            if numbers and value.ndim > place and value.shape[place] == size
            else value
            for value in values
        ]
        try:
            with torch.no_grad():
                model(*changed)
        except Exception:  # the model's own check of shapes, or what comes of them
            continue
        return bool(numbers)
    return False


@contextlib.contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    """Language models give what they keep for the next token too, which is not a tensor."""
    config = getattr(model, "config", None)
    kept = getattr(config, "use_cache", None)
    if kept is None:
        yield
        return
    config.use_cache = False  # type: ignore[union-attr]  # it has one
    try:
        yield
    finally:
        config.use_cache = kept  # type: ignore[union-attr]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter tells of packages that it would like to have, and of its own deprecations."""
    level, logger = logging.getLogger("torch.onnx").level, logging.getLogger("torch.onnx")
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
