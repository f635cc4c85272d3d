"""Data as people have it, for the benchmarks: rows, pictures, texts, tables and shards, made once on a machine."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from launcher.datasets import NumpyArrays, Shards, Table

PICTURES, SIDE = int(os.environ.get("BENCH_PICTURES", "5000")), 160


def made(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of files, made the first time that somebody asks for it."""
    folder = Path(os.environ.get("BENCH_DATA", tempfile.gettempdir())) / f"launcher-bench-{os.getuid()}" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent))
        make(part)
        part.rename(folder)
    return folder


class Rows(Dataset[tuple[Tensor, int]]):
    """A table in memory that is read row by row, as nearly everybody's class does."""

    def __init__(self, samples: int = 20_000) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randn(samples, 64, generator=generator)
        self.classes = torch.randint(10, (samples,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[index], self.classes[index]


class FlippedRows(Rows):
    """The same, half of them turned around at random."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row, label = super().__getitem__(index)
        return (row.flip(0) if torch.rand(()) < 0.5 else row), label


class Own(TensorDataset):
    """A class of one's own that makes its tensors."""

    def __init__(self) -> None:
        super().__init__(Rows().rows, torch.tensor(Rows().classes))


@cache
def rows(train: bool = True) -> Rows:
    """20,000 of them; the same to validate."""
    return Rows()


class Pictures(Dataset[tuple[Tensor, int]]):
    """JPEGs of a folder, cropped, flipped and made noisy by Pillow and NumPy."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image, ImageEnhance

        picture = Image.open(self.files[index]).convert("RGB")
        left, top = np.random.randint(0, SIDE - 127, 2)
        picture = picture.crop((left, top, left + 128, top + 128))
        if np.random.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = ImageEnhance.Brightness(picture).enhance(0.8 + 0.4 * np.random.random())
        values = np.asarray(picture, dtype=np.float32) / 255
        values = values + np.random.standard_normal(values.shape).astype(np.float32) * 0.02
        return torch.from_numpy(values).permute(2, 0, 1).contiguous(), index % 10


@cache
def pictures(train: bool = True) -> Pictures:
    """A folder of them; the same to validate."""
    return Pictures(made(f"pictures-{PICTURES}", _paint))


def _paint(folder: Path) -> None:
    """Noise that is smooth, as photographs are."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(PICTURES):
        coarse = Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=90)


def columns(form: str | None = None) -> Any:
    """A table of Hugging Face's."""
    import datasets

    rows = Rows(10_000)
    table = datasets.Dataset.from_dict({"x": rows.rows[:, :16].tolist(), "y": rows.classes})
    return table.with_format(form) if form else table


@cache
def texts(train: bool = True) -> Any:
    """Tokenised texts of many lengths, in 10 classes."""
    import datasets

    lengths = np.random.default_rng(0).lognormal(3.5, 0.6, 5_000).astype(int) + 1
    tokens = np.random.default_rng(1)
    ids = [tokens.integers(0, 30_000, length).tolist() for length in lengths]
    return datasets.Dataset.from_dict({"ids": ids, "label": [sum(text[:2]) % 10 for text in ids]})


def padded(samples: list[Any]) -> tuple[Tensor, Tensor]:
    """As long as the longest of a batch; and the classes."""
    ids = [torch.as_tensor(sample["ids"]) for sample in samples]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True), torch.tensor([sample["label"] for sample in samples])


def arrays() -> NumpyArrays:
    """Files that are mapped into memory."""

    def make(folder: Path) -> None:
        np.save(folder / "x.npy", Rows().rows.numpy())
        np.save(folder / "y.npy", np.array(Rows().classes))

    folder = made("arrays", make)
    return NumpyArrays([folder / "x.npy", folder / "y.npy"])


@cache
def table(train: bool = True) -> Table:
    """A Parquet file of 64 columns."""
    return Table(made("table", _write_table) / "rows.parquet", target="y")


def _write_table(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = Rows()
    content = {f"x{number}": rows.rows[:, number].numpy() for number in range(64)}
    pyarrow.parquet.write_table(pyarrow.table({**content, "y": rows.classes}), folder / "rows.parquet")


@cache
def shards(train: bool = True) -> Shards:
    """Tars of arrays and classes."""
    return Shards(f"{tars()}/*.tar", parts=["x.npy", "cls"], transform=as_tensors)


def tars() -> Path:
    """Where they are."""
    return made("shards", _write_shards)


def as_tensors(parts: tuple[Any, int]) -> tuple[Tensor, int]:
    """What a model takes."""
    return torch.from_numpy(parts[0]), parts[1]


def _write_shards(folder: Path) -> None:
    rows = _first_rows()
    for shard in range(8):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(shard * 1000, shard * 1000 + 1000):
                content = io.BytesIO()
                np.save(content, rows.rows[number].numpy())
                for name, data in (("x.npy", content.getvalue()), ("cls", str(rows.classes[number]).encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{name}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def chunks_of_litdata() -> Path:
    """The same rows, as litdata keeps them."""
    return made("litdata", _write_litdata)


def _write_litdata(folder: Path) -> None:
    from litdata import optimize

    optimize(_row_of, list(range(8_000)), str(folder), chunk_size=1_000, num_workers=1)


def _row_of(number: int) -> tuple[Tensor, int]:
    rows = _first_rows()
    return rows.rows[number].clone(), rows.classes[number]


@cache
def _first_rows() -> Rows:
    return Rows(8_000)


def shards_of_streaming() -> Path:
    """The same rows, as mosaicml-streaming keeps them."""
    return made("streaming", _write_streaming)


def _write_streaming(folder: Path) -> None:
    from streaming import MDSWriter

    rows = _first_rows()
    with MDSWriter(out=str(folder / "mds"), columns={"x": "ndarray:float32:64", "y": "int"}, size_limit=1 << 19) as out:
        for number in range(8_000):
            out.write({"x": rows.rows[number].numpy(), "y": rows.classes[number]})
    for file in (folder / "mds").iterdir():
        file.rename(folder / file.name)
    (folder / "mds").rmdir()
