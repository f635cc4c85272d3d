"""Small shards of every kind, whose samples are numbers, and a project that trains on them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

SIZES = (5, 0, 7, 1, 6)


def add(archive: tarfile.TarFile, name: str, content: bytes, **settings: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in settings.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def picture(colour: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(content, "png")
    return content.getvalue()


def array(values: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def tar(file: Path, numbers: range) -> None:
    with tarfile.open(file, "w") as archive:
        for number in numbers:
            key = f"./images/{number:04d}"
            add(archive, f"{key}.png", picture(number))
            add(archive, f"{key}.cls", str(number % 3).encode())
            add(archive, f"{key}.meta.json", json.dumps({"number": number}).encode())


def lines(file: Path, numbers: range) -> None:
    file.write_text("".join(json.dumps({"number": number, "word": "ä" * number}) + "\n" for number in numbers))


def rows(file: Path, numbers: range) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"number": pyarrow.array(numbers, pyarrow.int64())}), file)


WRITERS: dict[str, Callable[[Path, range], None]] = {"tar": tar, "jsonl": lines, "parquet": rows}


def number_of(sample: Any) -> int:
    return int(sample["meta.json"]["number"] if "meta.json" in sample else sample["number"])


def written(folder: Path, kind: str, sizes: Sequence[int] = SIZES) -> str:
    folder.mkdir(exist_ok=True)
    first = 0
    for shard, size in enumerate(sizes):
        WRITERS[kind](folder / f"part-{shard:02d}.{kind}", range(first, first + size))
        first += size
    return f"{folder}/part-{{00..{len(sizes) - 1:02d}}}.{kind}"


RECIPE = """
data:
  train: {_target_: Shards, path: PATH, parts: [png, cls], transform: {_ref_: parts.py:tensors}}
  global_batch_size: 4
model: {_target_: parts.py:Net}
loss: {_target_: CrossEntropyLoss}
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 6}
"""
PARTS = """
import numpy
import torch

def tensors(parts):
    return torch.from_numpy(numpy.array(parts[0])).float().flatten() / 255, parts[1]

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(48, 3)
"""
