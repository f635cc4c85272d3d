"""What programs of either form have in common: how a model is traced, and what is said where it cannot be."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from launcher import internals
from launcher.checkpoints.compare import Batch, own_copy
from launcher.errors import LauncherError
from launcher.model.kinds import class_of
from launcher.model.own_gradients import OwnGradients
from launcher.recipe.raised import chain_of

_DECORATION = r"\x1b\[[0-9;]*m|\[ONNXRuntimeError\] : \d+ : \w+ : "  # colours, numbers of faults
_LONG = 150
WEIGHTS = "export the weights instead: --to model.safetensors"
_PLAIN = (torch.Tensor, bool, int, float, complex, str, type(None), torch.dtype, torch.device)
_LOUD = ("torch", "torch.onnx", "torch.export", "torch._export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")


def check_program(form: str, model: nn.Module, batch: Batch) -> None:
    """Refuses a model whose forward is never called, and one that gets what no program is given.

    Raises:
        LauncherError: It is such a one.
    """
    name = class_of(model).__name__
    if batch.parts is not None:
        called = ", ".join(list(batch.parts)[:4]) + (", …" if len(batch.parts) > 4 else "")
        raise LauncherError(
            f"{form}: a program is of a model's forward, and train.step calls parts of {name} alone ({called}); name "
            f"one of them, --part {next(iter(batch.parts))}, or say in batch.inputs what its forward gets of a batch"
        )
    own, leaves = OwnGradients(), list[Any]()
    internals.tree_map(leaves.append, (batch.args, dict(batch.kwargs)))
    strange = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, _PLAIN)]
    if strange:
        raise LauncherError(
            f"{form}: a program is given tensors, in lists and mappings at most, and {name} gets a {strange[0]}; name "
            f"its tensors in batch.inputs, for a forward that takes them, or {WEIGHTS}"
        )
    args, kwargs = own_copy((batch.args, dict(batch.kwargs)))
    own.call(model, lambda: model(*args, **kwargs))
    if own.are_taken:
        raise LauncherError(f"{form}: {name} takes gradients when it is called, which a program cannot; {WEIGHTS}")


def traced(
    what: str,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    free: Sequence[tuple[torch.Tensor, Sequence[int]]],
) -> torch.export.ExportedProgram:
    """A model as a program.

    Args:
        what: What it is to be, and of which model, for messages.
        model: In eval mode.
        args: What it is called with.
        kwargs: The same, by name.
        free: Tensors among these, with the dimensions that may have another size, unless the model allows only one.

    Raises:
        LauncherError: It cannot be traced.
    """
    shapes = torch.export.ShapesCollection()
    for tensor, dimensions in free:
        shapes[tensor] = dict.fromkeys(dimensions, torch.export.Dim.AUTO)
    with _without_cache(model), quietly():
        try:
            with contextlib.suppress(Exception):  # one that asks for the size may be traced with one
                dynamic = shapes.dynamic_shapes(model, args, dict(kwargs))
                return torch.export.export(model, args, dict(kwargs), dynamic_shapes=dynamic, strict=False)
            return torch.export.export(model, args, dict(kwargs), strict=False)
        except Exception as error:  # whatever the tracer trips over lies in the model
            raise unfit(f"{what} cannot be traced", error) from error


def unfit(what: str, error: BaseException, remedy: str = WEIGHTS) -> LauncherError:
    """What to raise where a program cannot be made: with the words of the first of all that went wrong."""
    *_, error = chain_of(error)
    words = " ".join(re.sub(_DECORATION, "", str(error)).strip().partition("\n\n")[0].split())
    if len(words) > _LONG:
        words = re.split(r"(?<=[a-z)])\. (?=[A-Z])", words)[0][: 2 * _LONG]  # what follows is advice to programmers
    return LauncherError(f"{what}: {type(error).__name__}: {words}; {remedy}")


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
def quietly() -> Iterator[None]:
    """Exporters tell of packages that they would like to have, of their own deprecations, and of each way they try."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in _LOUD}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        silent = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(silent),
            contextlib.redirect_stderr(silent),  # where the tracer prints all that it has of a graph
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
