"""The weights of a run in another form, checked against the run's own on a real batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.saved_run import Saved
from launcher.errors import LauncherError, UsageError
from launcher.internals import tree_map
from launcher.objective.batch import BatchLayout
from launcher.recipe.build import Builder
from launcher.recipe.generated_code import check_arguments, check_names
from launcher.recipe.schema import Recipe
from launcher.world.files import atomic_write


def export(saved: Saved, target: Path) -> str:
    """Writes the weights of a run or checkpoint as `.safetensors`, `.pth` or a `torch.export` program (`.pt2`).

    What was written is loaded again, and its outputs on a batch of two training samples are compared with those of
    the model that it came from.

    Args:
        saved: The weights and their recipe.
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
    builder = Builder(saved.recipe, saved.allow, saved.directory)
    builder.check()
    model = builder.build(saved.recipe.model)
    model.load_state_dict(saved.weights())
    model.eval()
    args, kwargs = _batch(saved.recipe, builder)
    with atomic_write(target, parents=False) as part:
        with _as_saved(model, saved) if target.suffix != ".pt2" else nullcontext():
            again = _FORMS[target.suffix](model, lambda: _another(saved), args, kwargs, part)
        distance = _distance(model, again, args, kwargs)
        sizes = _sizes(model, again, args, kwargs) if target.suffix == ".pt2" else ""
    size = target.stat().st_size / 2**20
    agreed = "bit-equal" if distance == 0 else f"within {distance:.1e}"
    form = target.suffix[1:]
    return f"{target}: {saved.label} as {form}, {size:.1f} MiB; outputs on a real batch are {agreed}{sizes}"


@contextmanager
def _as_saved(model: nn.Module, saved: Saved) -> Iterator[None]:
    """Holds weights in the types of the file for a while: bfloat16 ones go there and back without a change."""
    weights = saved.weights()
    named = [(name, value) for name, value in model.state_dict(keep_vars=True).items() if _is_tensor(weights[name])]
    before = [value.dtype for _, value in named]
    for name, value in named:
        value.data = value.data.to(weights[name].dtype)
    yield
    for (_, value), dtype in zip(named, before, strict=True):
        value.data = value.data.to(dtype)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _batch(recipe: Recipe, builder: Builder) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model gets of two training samples."""
    from launcher.data.load import load_data
    from launcher.world.world import World

    section = recipe.data.model_copy(update={"workers": 0, "micro_batch_size": _SAMPLES})
    data = load_data(
        builder,
        section,
        World(),
        evaluate=recipe.evaluate,
        train=recipe.train,
        seed=recipe.seed,
        trains=False,
    )
    batches = next(iter(data.train.steps(0, 1)))
    args, kwargs, _ = BatchLayout(recipe.batch).split(batches[0].data)
    return tuple(args), dict(kwargs)


_SAMPLES = 2  # of the batch that is tried
Form = Callable[[nn.Module, Callable[[], nn.Module], tuple[Any, ...], dict[str, Any], Path], Callable[..., Any]]


def _safetensors(
    model: nn.Module, another: Callable[[], nn.Module], args: Any, kwargs: Any, path: Path
) -> Callable[..., Any]:
    from safetensors.torch import load_model, save_model

    if strange := [name for name, value in model.state_dict().items() if not isinstance(value, torch.Tensor)]:
        raise UsageError(
            f"--to: safetensors holds tensors only, and '{strange[0]}' of the model is a "
            f"{type(model.state_dict()[strange[0]]).__name__}; write .pth"
        )
    save_model(model, str(path))  # knows tied weights, which save_file refuses
    again = another()
    load_model(again, str(path))
    return again.eval()


def _pth(model: nn.Module, another: Callable[[], nn.Module], args: Any, kwargs: Any, path: Path) -> Callable[..., Any]:
    checkpoints.save_weights(path, model.state_dict())
    again = another()
    again.load_state_dict(checkpoints.load_state(path))
    return again.eval()


def _program(
    model: nn.Module, another: Callable[[], nn.Module], args: Any, kwargs: Any, path: Path
) -> Callable[..., Any]:
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
        other = tree_map(partial(_of_rows, rows), (args, kwargs))
        try:
            _distance(model, again, *other)
        except Exception:  # the program's own check of shapes, or what comes of them
            return (
                f"; it takes batches of {_SAMPLES} samples only: traced with another size, the model does not follow it"
            )
    return "; it takes batches of any size"


def _of_rows(rows: list[int], value: Any) -> Any:
    return value[rows] if torch.is_tensor(value) and _is_batch(value) else value


def _another(saved: Saved) -> nn.Module:
    """A second model of the recipe, with fresh weights."""
    model: nn.Module = Builder(saved.recipe, saved.allow, saved.directory).build(saved.recipe.model)
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
