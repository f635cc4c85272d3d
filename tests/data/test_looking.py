"""Streams that are looked at before they are trained on: each sample is read once, as by a loop of one's own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import lines
import pytest
import torch
from torch import nn
from worlds import in_world, train_here

from launcher.data.loaders import Reading
from launcher.data.looking import copy_of, light_copy
from launcher.data.streams import StreamEvaluationLoader, has_shards
from tests.data.test_streams import BATCH, loader_of

OWN = (lines.Generator, lines.File, lines.Socket, lines.Received, lines.Locked, lines.Global, lines.Closure)
KINDS: dict[str, Any] = {kind.__name__: kind for kind in (*OWN, lines.Method, lines.Shuffled)}


def numbers_in(batches: Any) -> list[int]:
    return [int(number) for batch in batches for number in batch.data[0]]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_was_looked_at_is_lost(tmp_path: Path, kind: str, workers: int) -> None:
    """Batch by batch the same as the loop by hand: `for sample in stream`."""
    by_hand = [number for number, _ in itertools.islice(KINDS[kind](tmp_path), 5 * BATCH)]
    stream = KINDS[kind](tmp_path)
    assert (copy_of(stream) is None) == (kind not in ("Shuffled", "Method"))
    loader = loader_of(stream, workers=workers)
    assert loader.num_readable() > BATCH
    loader.batch_of([3, 5])
    next(loader.apart().steps(0, 1))
    assert [number for step in loader.steps(0, 5) for number in numbers_in(step)] == by_hand


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_reads_on_behind_what_was_read(tmp_path: Path, kind: str) -> None:
    by_hand = [number for number, _ in itertools.islice(KINDS[kind](tmp_path), 5 * BATCH)]
    loader = loader_of(KINDS[kind](tmp_path))
    assert loader.num_readable() > BATCH
    assert [number for step in loader.steps(2, 5) for number in numbers_in(step)] == by_hand[2 * BATCH :]


def test_an_evaluation_begins_with_the_batch_that_was_looked_at(tmp_path: Path) -> None:
    loader = StreamEvaluationLoader(lines.Generator(tmp_path), 4, Reading(), limit=3)
    assert numbers_in([loader.first_batch()]) == [0, 1, 2, 3]
    assert numbers_in(loader.batches()) == list(range(12))


def test_a_part_that_was_looked_at_is_read_from_its_first_sample(tmp_path: Path) -> None:
    parts = []
    for rank in range(3):
        loader = loader_of(lines.Parts(tmp_path), rank=rank, world=3)
        assert loader.is_sharded
        assert loader.num_readable() == 0  # of the whole, which nobody reads
        next(loader.apart().steps(0, 1))
        parts.append([number for step in loader.steps(0, 4) for number in numbers_in(step)])
    assert [part[:4] for part in parts] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_asking_whether_a_stream_has_shards_copies_no_samples() -> None:
    stream = lines.Counted()
    assert all(has_shards(stream, readers) for readers in (1, 2, 3))
    assert (lines.Counted.copies, len(stream.samples), stream.inner.left) == (0, 100, [*range(100)])
    light = light_copy(stream)
    assert light.samples is not stream.samples
    assert light.samples[0] is stream.samples[0]


# ---------------------------------------------------------------------- in runs


def train_all(folder: str, kinds: list[str]) -> None:
    for name in kinds:
        own = f"data.train={{_target_: own_lines.py:{name}, folder: {folder}}}"
        train_here(f"{folder}/{name}", (own,), f"{folder}/recipe.yaml")


RECIPE = """
data: {train: null, global_batch_size: 6, workers: WORKERS}
model: {_target_: "own_lines.py:Net"}
loss: {_ref_: "own_lines.py:measured"}
optimizer: {_target_: SGD, lr: 0.01}
train: {steps: 3}
track: {every: 1 steps}
"""


def losses_by_hand(folder: Path, kind: str) -> list[float]:
    model = lines.Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rows = iter(KINDS[kind](folder))
    losses = []
    for _ in range(3):
        x, y = (torch.stack(column) for column in zip(*itertools.islice(rows, 6), strict=True))
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (2, 1), (3, 0)])
def test_a_run_on_a_stream_that_cannot_be_copied_is_the_loop_by_hand(tmp_path: Path, size: int, workers: int) -> None:
    """With a loss that is measured on its first samples, and from three processes on with a pass to warm up."""
    (tmp_path / "own_lines.py").write_text(Path(lines.__file__).read_text())
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("WORKERS", str(workers)))
    in_world(size, train_all, str(tmp_path), [*KINDS])
    for kind in KINDS:
        written = (tmp_path / kind / "metrics.jsonl").read_text().splitlines()
        losses = [line["loss"] for line in map(json.loads, written) if line["split"] == "train"]
        assert losses == pytest.approx(losses_by_hand(tmp_path, kind), rel=1e-9), kind
