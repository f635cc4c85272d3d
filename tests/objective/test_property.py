"""Random losses in random worlds and cuts: equal to the loss of the whole batch, written by hand, or refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from places import RECIPES
from tiers import rounds
from torch import Tensor
from torch.utils.data import default_collate
from worlds import in_world, result_of, train_here

from launcher.errors import RecipeError
from launcher.objective.batch import BatchLayout
from launcher.objective.loss import Objective, Term
from launcher.objective.probe import measure
from launcher.objective.reading import Hints
from launcher.objective.subject import Samples, Subject
from launcher.recipe import schema
from recipes import drawn

EXACT = 1e-9
specs = st.builds(
    drawn.Spec,
    seed=st.integers(0, 10_000),
    **{name: st.sampled_from(options) for name, options in drawn.CHOICES.items()},
)
cuts = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4)  # by rank, its pieces
LAYOUT = BatchLayout(schema.Batch(targets=[1, 2]))


def settled(spec: drawn.Spec, data: drawn.Data) -> Objective | None:
    """The loss with what measuring finds it to be; None where that is refused or asked for."""
    loss = drawn.Loss(**asdict(spec))
    samples = Samples(len(data), lambda numbers: default_collate([data[number] for number in numbers]))
    subject = Subject(lambda batch: batch[1:], lambda model, batch: (model(batch[0]),), loss)
    verdict = measure(subject, drawn.Net(**asdict(spec)), samples, Hints.of(loss))
    if verdict.reading is None or verdict.reading.kind == "batch":
        return None
    return Objective([Term("", loss, 1.0, None, verdict.reading)], LAYOUT)


def together(objective: Objective, model: torch.nn.Module, ranks: Sequence[Sequence[Any]]) -> Tensor:
    """A step's loss from the micro-batches of each rank, as training puts it together."""
    counts = [[objective.counts(batch, len(batch[0])) for batch in batches] for batches in ranks]
    total = [sum(count[0] for count in itertools.chain(*counts))]
    parts = []
    for batches, local in zip(ranks, counts, strict=True):
        for batch, count in zip(batches, local, strict=True):
            scales = objective.scales(count, total, len(ranks), len(batch[0]))
            value, factor, _ = objective.value(model(batch[0]), batch, batch[1:], scales)
            parts.append(value * factor / len(ranks))  # DDP's mean
    return torch.stack(parts).sum()


def check(spec: drawn.Spec, pieces: Sequence[Sequence[int]]) -> bool:
    """Whether it was read, and then gives what the whole batch gives: the loss and its gradient."""
    data = drawn.Data(64, **asdict(spec))
    objective = settled(spec, data)
    if objective is None:
        return False
    objective.settle()
    model, loss = drawn.Net(**asdict(spec)), drawn.Loss(**asdict(spec))
    order = iter(torch.randperm(64, generator=torch.Generator().manual_seed(spec.seed)).tolist())
    numbers = [[list(itertools.islice(order, size)) for size in rank] for rank in pieces]
    ranks = [[default_collate([data[number] for number in part]) for part in rank] for rank in numbers]
    whole = default_collate([data[number] for rank in numbers for part in rank for number in part])
    values = [loss(model(whole[0]), *whole[1:]), together(objective, model, ranks)]
    slopes = [torch.autograd.grad(value, list(model.parameters())) for value in values]
    off = [abs(values[0] - values[1]), *((a - b).abs().max() for a, b in zip(*slopes, strict=True))]
    scale = max(1.0, float(values[0].detach().abs()), *(float(slope.abs().max()) for slope in slopes[0]))
    worst = max(float(number.detach()) for number in off) / scale
    assert worst < EXACT, f"{spec}, in {pieces}: {objective.terms[0].reading} is {worst:.1g} off"
    return True


def run(examples: int) -> None:
    """Tries so many; a good part of them must have been read."""
    seen: list[bool] = []

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(specs, cuts)
    def each(spec: drawn.Spec, pieces: Sequence[Sequence[int]]) -> None:
        seen.append(check(spec, pieces))

    each()
    assert sum(seen) > len(seen) / 5


@pytest.mark.timeout(1800)  # 3,000 take five minutes on a busy machine
@rounds("examples", plain=[30], long=[3_000])
def test_a_loss_in_any_cut_is_that_of_the_whole_batch(examples: int) -> None:
    run(examples)


# ---------------------------------------------------------------------- in real worlds


def losses_by_hand(spec: drawn.Spec) -> list[float]:
    """The loop that one writes: whole batches, one process."""
    own = asdict(spec)
    data, model, loss = drawn.Data(**own), drawn.Net(**own), drawn.Loss(**own)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for first in (0, 8, 16):
        batch = default_collate([data[number] for number in range(first, first + 8)])
        value = loss(model(batch[0]), *batch[1:])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def train_each(folder: str, seeds: Sequence[int]) -> list[int]:
    """Trains each loss; gives those that were."""
    trained = []
    for seed in seeds:
        spec = drawn.Spec.of(seed)
        cut = () if seed % 2 else (f"data.micro_batch_size={1 + seed % 3}",)
        with suppress(RecipeError):
            train_here(f"{folder}/{seed}", (*drawn.recipe_of(spec), *cut), str(RECIPES / "counted.yaml"))
            trained.append(seed)
    return trained


@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [2, 3])
@rounds("seeds", plain=[range(100, 104)], long=[range(1_000, 1_150)])
def test_a_loss_on_several_processes_is_that_of_the_whole_batch(tmp_path: Path, size: int, seeds: range) -> None:
    done = in_world(size, train_each, str(tmp_path), seeds, timeout=600)[0]
    assert len(done) > len(seeds) / 5
    for seed in done:
        spec = drawn.Spec.of(seed)
        assert result_of(tmp_path / str(seed)).column("loss") == pytest.approx(losses_by_hand(spec), rel=EXACT), spec
