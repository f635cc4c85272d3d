"""A model as an ONNX program, which onnxruntime runs."""

from __future__ import annotations

import contextlib
import io
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

    Every dimension may have another size where the model allows it: batches, and lengths of sequences.

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
    with _without_cache(model), _quietly():
        try:
            program = torch.onnx.export(
                _Plain(model, list(batch.kwargs)),
                values,
                input_names=[*(f"input_{number}" for number, _ in enumerate(batch.args)), *batch.kwargs],
                dynamo=True,
                dynamic_shapes=(tuple(map(_any_size, values)),),
                verbose=False,
            )
            assert program is not None
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


def _any_size(tensor: torch.Tensor) -> dict[int, Any]:
    return dict.fromkeys(range(tensor.ndim), torch.export.Dim.AUTO)


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
