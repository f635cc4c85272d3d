"""What `launcher data` says, a line after another as it is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launcher.data.inspect.measure import (
    Balance,
    Field,
    Layout,
    Speed,
    advice,
    balance_of,
    fields_of,
    first_batch,
    speeds,
)
from launcher.data.inspect.picture_sheet import write_sheet
from launcher.data.load import Data
from launcher.data.loaders import EvaluationLoader, TrainLoader
from launcher.data.streams import StreamLoader
from launcher.data.subsets import innermost, name_of
from launcher.text import counted, printable, short
from launcher.world.world import World, usable_cpus

_BAR = 30  # characters of the most frequent class
_MOST_CLASSES = 20  # shown one by one
_MOST_TEXT = 240  # characters of a sample
_ROWS = 3  # samples that are no pictures


@dataclass(frozen=True)
class Wishes:
    """How much to look at.

    Attributes:
        samples: How many pictures of a set.
        sheet: Where they go.
        seconds: How long to read with each number of workers, and for counting classes.
    """

    samples: int
    sheet: Path
    seconds: float


def show(data: Data, layout: Layout, world: World, wishes: Wishes) -> Iterator[str]:
    """Says what the data is, line by line.

    Args:
        data: Opened.
        layout: Which parts of a batch are inputs and targets.
        world: The processes of the run.
        wishes: What to show, and where.

    Raises:
        LauncherError: It cannot be read.
    """
    yield from _sets(data)
    fields = fields_of(first_batch(data.train).data, layout)
    yield from _batch(data.train, fields, world)
    targets = [field for field in fields if field.role == "target"]
    balance = balance_of(data.train, targets[0], layout, wishes.seconds) if len(targets) == 1 else None
    if balance is not None:
        yield from _classes(balance)
    yield from _samples(data, layout, balance, wishes)
    measured: list[Speed] = []
    if wishes.seconds:
        yield from _reading(data.train, wishes.seconds, measured)
    yield from _titled("recommended", advice(data, fields, balance, measured) or ["nothing to change"])


def _titled(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"\n{title}"
    yield from (f"  {printable(line)}" for line in lines)  # names in it are anybody's


def _table(rows: Sequence[Sequence[str]], right: str = "") -> list[str]:
    """Cells in columns; `right` has an `r` for each column that is set to the right, as in `-rr`."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = right.ljust(len(widths), "-")
    return [
        "  ".join(c.rjust(w) if a == "r" else c.ljust(w) for c, w, a in zip(row, widths, aligns, strict=True)).rstrip()
        for row in rows
    ]


# ---------------------------------------------------------------------- sections


def _sets(data: Data) -> Iterator[str]:
    rows = [("train", data.training_set.removesuffix(" training samples"), name_of(data.train.dataset), _epoch(data))]
    for part, sets in (("validation", data.validation), ("test", data.test)):
        rows += [
            (f"{part} {name}".strip(), f"{loader.num_samples():,}", name_of(loader.dataset), "")
            for name, loader in sets.items()
        ]
    yield from _titled("data sets", _table([("", "samples", "", ""), *rows], "-r"))
    yield from (f"  {printable(note)}" for note in data.notes)


def _epoch(data: Data) -> str:
    sampler = data.train.sampler
    if isinstance(data.train, StreamLoader):
        return ""
    last = sampler.batch_size(sampler.steps_per_epoch - 1)
    short_one = f", the last of {last}" if last != sampler.batch_size(0) else ""
    return f"{counted(sampler.steps_per_epoch, 'step')} of {sampler.batch_size(0):,} an epoch{short_one}"


def _batch(loader: TrainLoader, fields: Sequence[Field], world: World) -> Iterator[str]:
    whose = "" if world.size == 1 else f", the share of one of {world.size} processes"
    rows = [(repr(field.key), *_described(field.value), _range(field), field.role) for field in fields]
    title = f"a batch of train{whose}"
    if loader.sampler.accumulation(0) > 1:
        title += f", one of {loader.sampler.accumulation(0)} in a step"
    yield from _titled(title, _table(rows))


def _described(value: Any) -> tuple[str, str]:
    if isinstance(value, Tensor):
        return str(value.dtype).removeprefix("torch."), str(list(value.shape))
    if isinstance(value, list | tuple) and value:
        return f"{type(value).__name__} of {type(value[0]).__name__}", f"[{len(value)}]"
    return type(value).__name__, ""


def _range(field: Field) -> str:
    numbers = field.numbers
    if numbers is None or not numbers.size:
        return ""
    summary = f"{short(numbers.min())} … {short(numbers.max())}"
    if field.value.is_floating_point():
        summary += f", mean {short(numbers.mean())}, deviation {short(numbers.std())}"
    return summary


def _classes(balance: Balance) -> Iterator[str]:
    of = f"all {balance.samples:,} samples" if balance.is_all else f"{balance.samples:,} samples that were read"
    counts = sorted(balance.counts.items())
    if len(counts) > _MOST_CLASSES:
        by_size = sorted(counts, key=lambda item: item[1])
        title = f"{len(counts):,} classes of train, {of}; the rarest and the most frequent"
        counts = [*by_size[:5], *by_size[-5:]]
    else:
        title = f"classes of train, {of}"
    most = max(count for _, count in counts)
    rows = [
        (balance.name(number), f"{count:,}", f"{count / balance.samples:.1%}", "█" * max(1, round(_BAR * count / most)))
        for number, count in counts
    ]
    yield from _titled(title, _table(rows, "-rr"))


def _reading(loader: TrainLoader, seconds: float, measured: list[Speed]) -> Iterator[str]:
    cpus = usable_cpus()
    how = "whole batches" if loader.reads_whole_batches else "sample by sample"
    samples = len(loader.sampler.shares(0)[0].indices)
    yield f"\nreading train alone, {how}, batches of {samples:,}, {cpus} CPU{'s' * (cpus > 1)} here"
    yield f"  {'workers':>7}  {'batches/s':>11}  {'samples/s':>12}  {'first batch':>11}"
    for speed in speeds(loader, seconds):
        measured.append(speed)
        here = "  as the recipe has it" if speed.workers == loader.reading.workers else ""
        first = f"{speed.start_seconds * 1000:,.0f} ms"
        yield f"  {speed.workers:>7}  {speed.batches:>11,.1f}  {speed.samples:>12,.0f}  {first:>11}{here}"


# ---------------------------------------------------------------------- samples


def _samples(data: Data, layout: Layout, balance: Balance | None, wishes: Wishes) -> Iterator[str]:
    loaders: dict[str, TrainLoader | EvaluationLoader] = {"train": data.train}
    loaders |= {f"validation {name}".strip(): loader for name, loader in data.validation.items()}
    parts = {name: fields_of(first_batch(loader).data, layout) for name, loader in loaders.items()}
    pictures = {name: fields for name, fields in parts.items() if any(field.is_pictures for field in fields)}
    if pictures:
        yield from _pictures(pictures, balance, wishes)
    else:
        decode = getattr(innermost(data.train.dataset), "decode", None)
        yield from _titled("samples of train", list(_rows(parts["train"], decode)))


def _pictures(parts: dict[str, list[Field]], balance: Balance | None, wishes: Wishes) -> Iterator[str]:
    groups = []
    for name, fields in parts.items():
        shown = next(field for field in fields if field.is_pictures).value[: wishes.samples]
        targets = next((field.value for field in fields if field.role == "target"), None)
        groups.append((name, shown, [_label(targets, number, balance) for number in range(len(shown))]))
    try:
        write_sheet(wishes.sheet, groups)
    except ImportError as error:
        yield from _titled("samples", [str(error)])
        return
    counts = ", ".join(f"{len(shown)} of {name}" for name, shown, _ in groups)
    yield from _titled("samples", [f"{wishes.sheet}: {counts}"])


def _label(targets: Any, number: int, balance: Balance | None) -> str:
    if not isinstance(targets, Tensor) or targets[number].numel() != 1:
        return ""
    value = targets[number].item()
    return balance.name(value) if balance is not None and isinstance(value, int) else short(value)


def _rows(fields: Sequence[Field], decode: Callable[[Any], str] | None) -> Iterator[str]:
    """The first samples: words as they are, tokens as text where the data set can, else the first numbers."""
    widest = max(len(repr(field.key)) for field in fields)
    for number in range(_ROWS):
        for field in fields:
            value = field.value
            if not hasattr(value, "__len__") or number >= len(value):
                continue
            text = _said(value[number], decode)
            text = text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"
            yield f"{number if field is fields[0] else ' '}  {field.key!r:<{widest}}  {text}"


def _said(value: Any, decode: Callable[[Any], str] | None) -> str:
    if isinstance(value, Tensor):
        if decode is not None and value.ndim == 1 and value.dtype == torch.int64:
            return repr(decode(value))
        numbers = ", ".join(short(number) for number in value.flatten()[:12].double().tolist())
        return numbers if value.ndim == 0 else f"[{numbers}{', …' if value.numel() > 12 else ''}]"
    return repr(value) if isinstance(value, str) else str(value)
