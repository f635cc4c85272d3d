"""Losses that draw: measured with their numbers held, and trained on several processes as by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from worlds import in_world, result_of, train_here

from launcher.data.sampler import StepSampler
from launcher.data.seeds import seed_generators
from launcher.objective.halves import still_holds
from launcher.objective.probe import measure
from launcher.objective.reading import Hints, Reading
from launcher.objective.subject import Samples, Subject
from launcher.objective.verdict import Verdict

Step = Callable[[Any, Any], Any]


class Net(nn.Module):
    """Three numbers of four, with dropout of its own, whatever its mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """What the losses are of."""
        made: Tensor = self.line(F.dropout(x, 0.3, True))
        return made


def verdict_of(loss: Step, collate: Any = None) -> Verdict:
    """Of a loss of model and batch, as a step function has it."""
    g = Generator().manual_seed(0)
    rows = [(torch.randn(4, generator=g), n % 3, torch.randn(2 + n % 3, 4, generator=g)) for n in range(48)]

    def batch(numbers: Any) -> Any:
        x, y, waves = zip(*(rows[n] for n in numbers), strict=True)
        return collate(waves) if collate else (torch.stack(x), torch.tensor(y), torch.cat(waves))

    subject = Subject(parts=lambda batch: batch, value=loss)
    return measure(subject, Net(), Samples(48, batch, collates=True), Hints(of_batches=True))


def padded(waves: Any) -> Any:
    """Sequences, and which of it is none of theirs."""
    return pad_sequence(waves, True), pad_sequence([torch.ones(len(one)) for one in waves], True)


def square(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().mean()


def denoised(net: Any, batch: Any) -> Any:
    time, noise = torch.randint(1, 9, (len(batch[0]), 1)) / 9, torch.randn_like(batch[0])
    return square(net(time * batch[0] + (1 - time) * noise), noise[:, :3])


def with_negatives(net: Any, batch: Any) -> Any:
    return F.cross_entropy(net(batch[0]), torch.randint(0, 3, batch[1].shape))


def sampled(net: Any, batch: Any) -> Any:
    chances = net(batch[0]).softmax(1)
    taken = torch.multinomial(chances.detach(), 2, replacement=True)
    return -(chances.gather(1, taken).log() * torch.bernoulli(chances[:, :2].detach())).mean()


def around(net: Any, batch: Any) -> Any:
    out = net(batch[0])
    drawn = torch.normal(out.detach(), 0.1) + torch.normal(out.detach(), out.detach().abs() + 1)
    return square(out, drawn + torch.empty_like(out).uniform_() + torch.empty(len(out), 1).exponential_())


def of_a_generator(net: Any, batch: Any) -> Any:
    return square(net(batch[0]), torch.randn(len(batch[0]), 3, generator=torch.Generator()))


def by_time_first(net: Any, batch: Any) -> Any:
    x = batch[0].repeat(7, 1, 1)
    return square(net(x + torch.randn(x.shape)), x[..., :3])


def of_flat_rows(net: Any, batch: Any) -> Any:
    x = batch[0].repeat_interleave(5, 0)
    return square(net(x + torch.rand_like(x)), x[:, :3])


def once_a_batch(net: Any, batch: Any) -> Any:
    level, layer = torch.rand(()), torch.randn(4)
    return square(net(batch[0] * level + layer), batch[0][:, :3])


def of_nodes(net: Any, batch: Any) -> Any:
    """Graphs side by side: as many rows as all of them have."""
    return square(net(batch[2] + torch.randn_like(batch[2])), batch[2][:, :3])


def of_padded(net: Any, batch: Any) -> Any:
    x, mask = batch
    each = (net(x + torch.randn_like(x)) - x[..., :3]).square().mean(2) * mask
    return each.sum() / mask.sum()


def attended(net: Any, batch: Any) -> Any:
    x = (batch[0] + torch.randn_like(batch[0]))[:, None, None]
    return square(net(F.scaled_dot_product_attention(x, x, x).flatten(1)), batch[0][:, :3])


def summed(net: Any, batch: Any) -> Any:
    return (net(batch[0]) - torch.randn(len(batch[0]), 1)).square().sum()


DRAWN: dict[str, tuple[Step, str, Any]] = {
    "noise": (denoised, "samples", None),
    "negatives": (with_negatives, "samples", None),
    "samples of chances": (sampled, "samples", None),
    "numbers around others": (around, "samples", None),
    "a generator of its own": (of_a_generator, "samples", None),
    "samples second": (by_time_first, "samples", None),
    "rows of samples": (of_flat_rows, "samples", None),
    "once for a batch": (once_a_batch, "samples", None),
    "nodes of graphs": (of_nodes, "rows", None),
    "padded": (of_padded, "mask", padded),
    "attention, which drops nothing": (attended, "samples", None),
    "a sum": (summed, "sum", None),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_loss_that_draws_is_measured_with_its_numbers_held(name: str) -> None:
    loss, kind, collate = DRAWN[name]
    verdict = verdict_of(loss, collate)
    assert verdict.reading is not None, verdict
    assert verdict.reading.kind == kind, verdict
    assert verdict.reading.draws
    assert "what it draws held" in str(verdict.reading)
    assert Reading.of_manifest(verdict.reading.manifest()).draws


def mixed(net: Any, batch: Any) -> Any:
    other = torch.randperm(len(batch[0]))
    return square(net(batch[0] + batch[0][other]), batch[0][:, :3])


def sorted_by_chance(net: Any, batch: Any) -> Any:
    return square(net(batch[0] + batch[0][torch.rand(len(batch[0])).argsort()]), batch[0][:, :3])


def by_numpy(net: Any, batch: Any) -> Any:
    noise = torch.from_numpy(np.random.randn(len(batch[0]), 1)).to(batch[0])
    return square(net(batch[0] + noise), batch[0][:, :3])


def by_python(net: Any, batch: Any) -> Any:
    return square(net(batch[0] * random.random()), batch[0][:, :3])


def contrasted(net: Any, batch: Any) -> Any:
    views = [F.normalize(net(batch[0] + torch.randn_like(batch[0])), dim=1) for _ in range(2)]
    return F.cross_entropy(views[0] @ views[1].T, torch.arange(len(batch[0])))


@pytest.mark.parametrize("loss", [mixed, sorted_by_chance, by_numpy, by_python, contrasted])
def test_what_mixes_samples_or_draws_otherwise_is_no_mean(loss: Step) -> None:
    verdict = verdict_of(loss)
    assert verdict.reading is None or not verdict.reading.is_mean, verdict


def test_a_reading_of_what_draws_is_audited_with_its_numbers_held() -> None:
    o, y = torch.randn(8, 3), torch.randn(8, 3)
    reading = Reading("samples", draws=True)
    assert still_holds(lambda o, y: square(o + torch.randn_like(o), y), reading, (o,), (y,), 8) is None
    off = still_holds(lambda o, y: (o + torch.randn_like(o) - y).norm(), reading, (o,), (y,), 8)
    assert off is not None
    assert off > 1e-2


# ---------------------------------------------------------------------- trained

PARTS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


def data():
    g = torch.Generator().manual_seed(0)
    y = torch.where(torch.rand(32, 6, generator=g) < 0.4, -100, torch.randint(3, (32, 6), generator=g))
    y[:, 0] = 1
    return TensorDataset(torch.randn(32, 6, 4, generator=g).double(), y)


class Draws(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 3).double()

    def forward(self, x, y):
        return loss(self.line(x + torch.randn_like(x)), y)


def loss(o, y):
    return nn.functional.cross_entropy((o + 0.1 * torch.rand_like(o)).transpose(1, 2), y, ignore_index=-100)


def step(model, batch, at):
    return {"loss": model(*batch)}
"""
RECIPE = """
data: {train: {_target_: "drawing.py:data"}, global_batch_size: 8, shuffle: false, workers: 0}
model: {_target_: "drawing.py:Draws"}
batch: {inputs: [0, 1], targets: []}
loss: model
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 3}
track: {every: 1 steps}
"""
WAYS = {"model": (), "step": ("train.step=drawing.py:step",)}


def by_hand(folder: Path, world: int) -> list[float]:
    """Each rank's share with the rank's numbers, put together by the labels that count."""
    parts: dict[str, Any] = {}
    exec(PARTS, parts)
    model, rows = parts["Draws"](), parts["data"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        means, counts = [], []
        for rank in range(world):
            sampler = StepSampler(rows, global_batch_size=8, shuffle=False, world_size=world, rank=rank)
            x, y = rows[sampler.shares(step)[0].indices.tolist()]
            seed_generators(0, step, rank)
            means.append(model(x, y))
            counts.append(int((y != -100).sum()))
        whole = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
        optimizer.zero_grad()
        whole.backward()
        optimizer.step()
        losses.append(float(whole))
    return losses


def train_both(folder: str) -> None:
    for name, overrides in WAYS.items():
        removed = ("loss",) if name == "step" else ()
        train_here(f"{folder}/{name}", overrides, f"{folder}/recipe.yaml", removed)


def test_a_loss_that_draws_trains_on_several_processes_as_by_hand(tmp_path: Path) -> None:
    (tmp_path / "drawing.py").write_text(PARTS)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    in_world(2, train_both, str(tmp_path))
    for name in WAYS:
        assert result_of(tmp_path / name).column("loss") == pytest.approx(by_hand(tmp_path, 2), rel=1e-9)
        manifest = json.loads(next((tmp_path / name / "checkpoints").rglob("manifest.json")).read_text())
        (reading,) = manifest["loss"].values()
        assert (reading["kind"], reading["draws"]) == ("kept", True)
