"""Pictures of a batch on one sheet, as a PNG file."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from launcher.datasets.files import atomic_write, needed

_SIDE = 112  # pixels of a picture's longer side
_COLUMNS = 8
_GAP = 12
_LINE = 14  # of text
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def write_sheet(path: Path, groups: Sequence[tuple[str, Tensor, Sequence[str]]]) -> None:
    """Writes pictures in rows, each with its label, below the name of the set that they come from.

    Numbers are shown as they are where they are bytes, else with the smallest of a set as black and the largest as
    white.

    Args:
        path: The PNG file.
        groups: Of each set a heading, pictures [N, C, H, W] with 1, 3 or 4 channels, and a label for each.

    Raises:
        ImportError: Pillow is missing.
    """
    image, draw = needed("PIL.Image", "images", "a picture sheet"), needed("PIL.ImageDraw", "images", "a picture sheet")
    tiles = [[_tile(image, picture) for picture in _bytes(pictures)] for _, pictures, _ in groups]
    columns = min(_COLUMNS, max(map(len, tiles)))
    height = sum(_LINE + _GAP + math.ceil(len(group) / columns) * (_SIDE + _LINE + _GAP) for group in tiles)
    sheet = image.new("RGB", (_GAP + columns * (_SIDE + _GAP), height + _GAP), _PAPER)
    pen, top = draw.Draw(sheet), _GAP
    for (heading, _, labels), group in zip(groups, tiles, strict=True):
        pen.text((_GAP, top), heading, fill=_INK)
        top += _LINE + _GAP // 2
        for number, (tile, label) in enumerate(zip(group, labels, strict=True)):
            left, below = _GAP + number % columns * (_SIDE + _GAP), top + number // columns * (_SIDE + _LINE + _GAP)
            sheet.paste(tile, (left + (_SIDE - tile.width) // 2, below + (_SIDE - tile.height) // 2))
            pen.text((left + _SIDE / 2, below + _SIDE + 2), label[:18], fill=_INK, anchor="ma")
        top += math.ceil(len(group) / columns) * (_SIDE + _LINE + _GAP) + _GAP // 2
    with atomic_write(path) as part:
        sheet.save(part, format="PNG")


def as_png(picture: Tensor) -> bytes | None:
    """A picture [C, H, W] with 1, 3 or 4 channels as a PNG file; None for what is none, or without Pillow."""
    if picture.ndim != 3 or picture.shape[0] not in (1, 3, 4) or min(picture.shape[1:]) <= 3:
        return None
    try:
        image = needed("PIL.Image", "images", "a picture")
    except ImportError:
        return None
    buffer = io.BytesIO()
    _tile(image, _bytes(picture[None])[0]).save(buffer, format="PNG")
    return buffer.getvalue()


def _bytes(pictures: Tensor) -> NDArray[np.uint8]:
    """Pictures as [N, H, W, C] bytes."""
    values = pictures.detach().permute(0, 2, 3, 1).double().numpy()
    if str(pictures.dtype) != "torch.uint8":
        low, high = np.nanmin(values), np.nanmax(values)
        values = np.nan_to_num((values - low) / max(high - low, 1e-12) * 255)
    return values.round().astype(np.uint8)


def _tile(image: Any, pixels: NDArray[np.uint8]) -> Any:
    """One picture, made as large as a tile: small ones by whole factors, so that their pixels show."""
    picture = image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3]).convert("RGB")
    factor = _SIDE / max(picture.size)
    factor = math.floor(factor) if factor >= 2 else factor
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    return picture.resize(size, image.Resampling.NEAREST if factor >= 2 else image.Resampling.LANCZOS)
