"""Weights to start from: found, read safely, fitted to a model by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.format import Checkpoint
from launcher.checkpoints.plain import with_arrays
from launcher.checkpoints.retention import listed
from launcher.errors import LauncherError, UsageError
from launcher.model.adapt import Built
from launcher.model.build import Start
from launcher.model.rows import Converted, shape_of
from launcher.model.tensor_files import archived_tensors, is_safetensors, stored_tensors
from launcher.recipe.inputs import unreadable
from launcher.runs import folder as runs
from launcher.text import brief, size, words_of


def start_from(model: Built, by_rows: bool, path: Path) -> Start:
    """What fits a model of saved weights; the note says what did not.

    Those of an adapted model's base are taken over under the names that they had before.

    Args:
        model: The bare module.
        by_rows: Whether tensors may stay in their files, where rows of them are read.
        path: A `.pth` or `.safetensors` file, an index of such, a folder of them, a checkpoint, or a run's folder.

    Raises:
        LauncherError: There are no weights, they are damaged, or none of them fits.
    """
    own = model.module.state_dict()
    renamed = model.base.renamed if model.base is not None else {}
    try:
        source = find_weights(path)
        read = stored_weights(source) if by_rows else read_weights(source)
        state = {renamed.get(name, name): value for name, value in _unprefixed(read).items()}
    except UsageError as error:  # nothing is there, or something else
        raise UsageError(f"train.start_from: {error}") from error
    except LauncherError as error:
        raise LauncherError(f"train.start_from: {error}") from error
    fitting = {name: value for name, value in state.items() if name in own and shape_of(own[name]) == shape_of(value)}
    if not fitting:
        raise LauncherError(
            f"train.start_from: none of the {len(state)} tensors in {path} fits this model; it has "
            f"{_some(list(own))}, the file {_some(list(state))}"
        )
    strange = {
        "missing there": [name for name in own if name not in state],
        "of another shape": [name for name in state if name in own and name not in fitting],
        "not in this model": [name for name in state if name not in own],
    }
    rest = "".join(f"; {what}: {_some(names)}" for what, names in strange.items() if names)
    step = f", step {source.step:,}" if isinstance(source, Checkpoint) else ""
    weights = {name: _as_own(value, own[name]) for name, value in fitting.items()} if by_rows else fitting
    how = _how_read(source, weights) if by_rows else ""
    return Start(weights, f"started from {path}{step}: {len(fitting)} of {len(own)} tensors{rest}{how}")


def _as_own(value: Any, own: Any) -> Any:
    """In the type that the model's own has now: what the run makes of its weights then is made of that."""
    is_other = isinstance(own, torch.Tensor) and value.dtype != own.dtype
    return Converted(value, own.dtype) if is_other else value


def _how_read(source: Path | Checkpoint, weights: Mapping[str, Any]) -> str:
    if isinstance(source, Path) and any(isinstance(value, torch.Tensor) for value in weights.values()):
        return f"; each process reads the whole file, {size(source.stat().st_size)}: only a zip archive is read by rows"
    return "; each process reads its rows"


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    """The shape of each tensor of a state_dict, and None of what is not a tensor, by name."""
    return {name: shape_of(value) for name, value in state.items()}


def find_weights(path: Path) -> Path | Checkpoint:
    """The weights that a path names: a file, a checkpoint, or a run's; its final ones, else its newest checkpoint's.

    Nothing is changed there: a damaged checkpoint of another run is skipped, and left to that run.

    Raises:
        UsageError: There are none.
        DamagedError: The checkpoint is not what was written, or all of them are not.
    """
    if fault := unreadable(path):
        raise UsageError(f"'{path}' {fault}; name a run's folder, a checkpoint, or a file of weights")
    if not path.exists():
        raise UsageError(f"there are no weights at '{path}'")
    folder = path.parent if path.name == checkpoints.WEIGHTS else path
    if (folder / checkpoints.MANIFEST).exists():
        return checkpoints.verify(folder)
    if path.is_file():
        return path
    if (final := runs.weights_of(path)) is not None:
        return final
    saved = listed(path / "checkpoints")
    for candidate in saved:
        with suppress(checkpoints.DamagedError):
            return checkpoints.verify(candidate)
    if saved:
        raise checkpoints.DamagedError(f"{path}: all its checkpoints are damaged")
    is_run = (path / runs.ENVIRONMENT_FILE).exists()
    what = "this run has saved nothing" if is_run else "neither a run's folder nor a checkpoint in one"
    rest = (
        "name another, as NAME@1 is the first; `launcher runs` lists them" if is_run else "`launcher runs` lists runs"
    )
    raise UsageError(f"{path}: {what}; {rest}")


_EXTRA = "_extra_state"  # behind the names of what modules give by `get_extra_state`


def _is_weight(name: Any, value: Any) -> bool:
    """Whether a state_dict may have it: a class of somebody's adds numbers and words."""
    is_plain = value is None or isinstance(value, bool | int | float | complex | str)
    return is_plain or shape_of(value) is not None or str(name).rpartition(".")[2] == _EXTRA


def read_weights(source: Path | Checkpoint) -> Mapping[str, Any]:
    """The weights in a `.pth` or `.safetensors` file, an index of such, or a checkpoint, on the CPU.

    Raises:
        LauncherError: The file holds more than tensors, or something else.
    """
    if isinstance(source, Checkpoint):
        return source.evaluated()
    with _reading(source):
        if is_safetensors(source):
            made: dict[int, torch.Tensor] = {}
            stored = stored_tensors(source)
            return {name: made.setdefault(id(value), value.whole()) for name, value in stored.items()}
        return with_arrays(_checked(torch.load(source, map_location="cpu", weights_only=True)))


def stored_weights(source: Path | Checkpoint) -> Mapping[str, Any]:
    """The same of tensors that stay where they are, and of which rows are read; where that cannot be, of whole ones.

    Raises:
        LauncherError: As above.
    """
    if isinstance(source, Checkpoint):
        return source.lazily(source.evaluated_file)
    with _reading(source):
        if is_safetensors(source):
            return stored_tensors(source)
        with suppress(Exception):  # a file of which that cannot be, or holds a sparse one: reading all of it says more
            return _checked(archived_tensors(source, map_location="cpu", weights_only=True))
    return read_weights(source)


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    if fault := unreadable(source):  # at a pipe reading would wait for ever
        raise LauncherError(f"{source} {fault}; name a file of weights")
    try:
        yield
    except Exception as error:  # whatever a reader raises: the file is not what it should be
        raise LauncherError(f"{source} cannot be read: {_why(words_of(error))}") from error


def _why(words: str) -> str:
    """A reader's words in one line; of objects in a pickle ours, as torch's say how to run what is in them."""
    if "weights_only" in words:
        named = re.search(r"GLOBAL ([\w.]+)", words)
        what = f"more than tensors, such as {named[1]}" if named else "more than tensors"
        return f"it holds {what}, which is not unpickled; write it with torch.save(model.state_dict(), FILE)"
    return " ".join(words.split()) or "it is empty or cut short"


def _checked(state: Any) -> Mapping[str, Any]:
    if not isinstance(state, Mapping) or not all(_is_weight(*entry) for entry in state.items()):
        raise TypeError("it holds more than a state_dict of tensors")
    if state and all(shape_of(value) is None for value in state.values()):
        raise TypeError("it holds no tensors")
    for name, value in state.items():
        if fault := _fault(name, value):
            raise TypeError(f"'{name}' {fault}")
    return state


def _fault(name: Any, value: Any) -> str | None:
    """Why an entry cannot become a weight, in words that follow its name."""
    if not isinstance(name, str):
        return "is a number in place of a name"
    if isinstance(value, torch.Tensor) and value.is_meta:
        return "has no numbers: it was saved on the meta device"
    if isinstance(value, torch.Tensor) and value.is_quantized:
        return "is quantized; save it dequantized"
    return None


def _unprefixed(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without what DDP and torch.compile put before every name."""
    for prefix in ("module.", "_orig_mod."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(brief, names[:4])) + (f", … ({len(names)})" if len(names) > 4 else "")
