"""6: evaluation. A function of the user's after each evaluation: it logs numbers and figures, and changes nothing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.errors import LauncherError
from launcher.evaluation.modes import own_randomness
from launcher.objective.loss import Objective, owner_of
from launcher.objective.run_length import At
from launcher.recipe.line_keys import LINE_KEYS

FIGURES = "figures"  # in a run's folder
KEY = "evaluate.after"
_PIXELS = 255


class After:
    """Calls `evaluate.after` on rank 0: `(model, at, scores) -> {name: a number or a figure}`, or nothing.

    The model is in eval mode, without gradients, and as the evaluation's forward passes have left it; what is drawn is
    drawn from randomness of its own. Figures of
    matplotlib, images of Pillow and arrays of pixels become PNG files in the run's folder.

    Args:
        model: The bare module.
        objective: Holds the function.
        folder: The run's.
        seed: The run's.
    """

    def __init__(self, model: nn.Module, objective: Objective, folder: Path, seed: int):
        self._model, self._objective = model, objective
        self._folder, self._seed = folder, seed
        self._function: Callable[..., Any] | None = objective.others.get(KEY)

    def __call__(
        self, at: At, scores: Mapping[str, Any], from_first: Callable[[Callable[[], Any]], Any]
    ) -> dict[str, float]:
        """Every rank calls this; rank 0 calls the function, and all learn the numbers.

        Args:
            at: Where training stands.
            scores: What was measured on each set; of the only one, the function gets what was measured.
            from_first: Has rank 0 do something, and tells all what came of it.

        Raises:
            LauncherError: What it gave is neither, or it has changed the model.
        """
        if self._function is None:
            return {}
        if len(scores) == 1:
            scores = next(iter(scores.values()))
        told: dict[str, float] = from_first(lambda: self._called(at, scores))
        return told

    @property
    def owner(self) -> Any:
        """What may remember something of it; None where there is no function."""
        return None if self._function is None else owner_of(self._function)

    def _called(self, at: At, scores: Mapping[str, Any]) -> dict[str, float]:
        assert self._function is not None
        device, own = next(self._model.parameters()).device, self._objective.own_gradients
        with own_randomness(self._seed, 0, device), own.mode(), self._untouched():
            given = self._function(self._model, at, scores)
        if given is not None and not isinstance(given, Mapping):
            raise LauncherError(f"{KEY}: gave a {type(given).__name__}; return {{name: number or figure}}, or nothing")
        numbers: dict[str, float] = {}
        for name, value in (given or {}).items():
            if not isinstance(name, str) or name in LINE_KEYS or name in scores or not _is_plain(name):
                raise LauncherError(f"{KEY}: '{name}' cannot be logged; give it a name of its own, a word")
            if _is_number(value):
                numbers[name] = float(value)
            else:
                self._draw(name, at.step, value)
        return numbers

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Whatever the function does, the weights are what they were.

        Raises:
            LauncherError: They are not.
        """
        kept = [(name, weight, weight.detach().clone()) for name, weight in self._model.named_parameters()]
        yield
        for name, weight, before in kept:
            weight.grad = None
            if not torch.equal(weight, before):
                weight.copy_(before)
                raise LauncherError(f"{KEY}: has changed '{name}'; what changes weights is train.after_step")

    def _draw(self, name: str, step: int, figure: Any) -> None:
        path = self._folder / FIGURES / f"{name}-{step:09}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(getattr(figure, "savefig", None)):  # of matplotlib
            figure.savefig(path)
        elif callable(getattr(figure, "save", None)):  # of Pillow
            figure.save(path)
        else:
            path.write_bytes(_png(_pixels(name, figure)))


def _is_plain(name: str) -> bool:
    return bool(name) and all(letter.isalnum() or letter in "_-." for letter in name) and not name.startswith(".")


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor | np.ndarray):
        return (value.numel() if isinstance(value, torch.Tensor) else value.size) == 1
    return isinstance(value, int | float | np.number)


def _pixels(name: str, picture: Any) -> np.ndarray[Any, Any]:
    """Rows of red, green and blue from [H, W], [H, W, 3] or [3, H, W], whole numbers to 255 or parts of one.

    Raises:
        LauncherError: It is no such thing.
    """
    array = np.asarray(picture.detach().cpu() if isinstance(picture, torch.Tensor) else picture)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype == object or array.ndim != 3 or array.shape[2] not in (1, 3):
        message = f"'{name}' is a {type(picture).__name__}; give a number, a figure, or pixels as [H, W] or [H, W, 3]"
        raise LauncherError(f"{KEY}: {message}")
    if array.dtype.kind == "f":
        array = np.nan_to_num(array).clip(0, 1) * _PIXELS
    return np.broadcast_to(array.astype(np.uint8), (*array.shape[:2], 3))


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    """Rows of red, green and blue as a PNG file: https://www.w3.org/TR/png-3."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
