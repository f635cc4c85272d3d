"""A DataLoader passed as a data set: understood, or refused with the words to write. A collate for each use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import make
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

import launcher
from launcher.data.load import Data, load_evaluation
from launcher.data.streams import StreamLoader
from launcher.errors import RecipeError
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.training.build import open_run_data
from launcher.world.world import World

SIZE = 20
PARTS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

class Rows(Dataset):
    classes = ("one", "two")
    def __init__(self):
        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(20, 4, generator=g, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True)
    def __len__(self): return 20
    def __getitem__(self, i): return self.x[i], self.y[i]

class Lin(nn.Module):
    def __init__(self, inputs: int = 4, size: int = 0):
        super().__init__()
        torch.manual_seed(0)
        self.l, self.size = nn.Linear(inputs, 1, dtype=torch.float64), size
    def forward(self, x): return self.l(x)

def loader(): return DataLoader(Rows(), batch_size=8)

def doubled(samples):
    x, y = default_collate(samples)
    return 2 * x, y

def tripled(samples):
    x, y = default_collate(samples)
    return 3 * x, y
"""
RECIPE = """
data: {train: {_target_: parts.py:loader}, global_batch_size: 8, shuffle: false, workers: 0}
model: {_target_: parts.py:Lin}
loss: {_target_: MSELoss}
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 5}
track: {every: 1 steps}
launch: {threads: 1}
"""
_known: dict[str, Any] = {}
exec(PARTS, _known)
Rows, doubled = _known["Rows"], _known["doubled"]


def _settings(said: dict[str, Any]) -> dict[str, Any]:
    return {"batch_size": 8, **said}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return make(tmp_path / "project", RECIPE, parts=PARTS)


def opened(recipe: Path, *overrides: str, world: World | None = None, **given: Any) -> Data:
    slots = {f"data.{name}": thing for name, thing in given.items()}
    read = load_recipe(recipe, overrides, given=slots)
    return open_run_data(read, Builder(read), world or World())


def refusals(recipe: Path, *overrides: str, world: World | None = None, **given: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        opened(recipe, *overrides, world=world, **given)
    return [problem.message for problem in caught.value.problems]


def first(data: Data) -> list[Tensor]:
    return list(next(data.train.steps(0, 1))[0].data)


# --- understood ---


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def test_a_run_with_a_dataloader_is_the_loop_over_it(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = launcher.train(recipe, cpu=True, run_dir=recipe.parent / "run")
    model, expected = _known["Lin"](), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in [*_known["loader"](), *_known["loader"]()][:5]:
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses(result.folder) == pytest.approx(expected, rel=1e-9)
    said = "data.train: of the DataLoader its data set is used; batches, order and workers are the recipe's"
    assert said in capsys.readouterr().out


def test_from_python_it_is_taken_apart_too(recipe: Path) -> None:
    given: dict[str, Any] = {
        "train": DataLoader(Rows(), batch_size=8, collate_fn=doubled),
        "validation": DataLoader(Rows()),
    }
    result = launcher.train(recipe, cpu=True, run_dir=recipe.parent / "run", **given)
    assert [line["split"] for line in result.scores] == ["validation"]
    data = opened(recipe, **given)
    assert torch.equal(first(data)[0], 2 * Rows().x[:8])  # its collate
    (batch, *_) = data.validation[""].batches()
    assert torch.equal(batch.data[0], Rows().x[:8])  # which is not the validation set's


def test_references_mean_its_data_set(recipe: Path) -> None:
    read = load_recipe(recipe, ["model.size=${data.train.size}"])
    builder = Builder(read)
    open_run_data(read, builder, World())
    assert builder.build(read.model).size == SIZE
    assert builder.lookup("data.train.classes") == ("one", "two")


def test_opening_it_once_more_for_two_samples_asks_nothing(recipe: Path) -> None:
    read = load_recipe(recipe)
    builder = Builder(read)
    open_run_data(read, builder, World())
    small = read.model_copy(update={"data": read.data.model_copy(update={"global_batch_size": 2, "workers": 0})})
    assert len(first(open_run_data(small, builder.for_recipe(small), World()))[0]) == 2


class FromNumbers(Sampler[int]):
    """Samples by an order of one's own."""

    def __iter__(self) -> Any:
        return iter([0, 1])

    def __len__(self) -> int:
        return 2


AGREES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "in order": ({}, []),
    "shuffled": ({"shuffle": True}, ["data.shuffle=true"]),
    "by a sampler of torch's": ({"sampler": RandomSampler(range(SIZE))}, ["data.shuffle=true"]),
    "over ranks": ({"sampler": DistributedSampler(Rows(), 2, 0, shuffle=False)}, []),
    "over ranks, shuffled": ({"sampler": DistributedSampler(Rows(), 2, 0)}, ["data.shuffle=true"]),
    "by torch's batch sampler": (
        {"batch_sampler": BatchSampler(SequentialSampler(range(SIZE)), 8, drop_last=True), "batch_size": 1},
        ["data.drop_last=true"],
    ),
    "micro-batches": ({"batch_size": 4}, ["data.micro_batch_size=4"]),
    "with workers": ({"num_workers": 2}, ["data.workers=2"]),
    "with workers, which the recipe leaves open": ({"num_workers": 2}, ["data.workers=auto"]),
}


@pytest.mark.parametrize("case", AGREES)
def test_what_agrees_with_the_recipe_is_read(recipe: Path, case: str) -> None:
    said, overrides = AGREES[case]
    loader = DataLoader(Rows(), **_settings(said))
    assert len(opened(recipe, *overrides, train=loader).train.dataset) == SIZE


def test_a_script_s_batch_size_is_that_of_one_process(recipe: Path) -> None:
    data = opened(recipe, world=World(rank=1, size=2), train=DataLoader(Rows(), batch_size=4))
    assert torch.equal(first(data)[0], Rows().x[4:8])


class Flow(IterableDataset[Any]):
    """Rows in a row."""

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Any:
        return (Rows()[index] for index in range(SIZE))


class HandsOn(IterableDataset[Any]):
    """As webdataset's WebLoader: a stream of another loader's batches."""

    def __init__(self, loader: Any):
        self.pipeline = [loader]

    def __iter__(self) -> Any:
        return iter(self.pipeline[0])


def test_a_stream_in_a_dataloader_is_that_stream(recipe: Path) -> None:
    data = opened(recipe, train=DataLoader(Flow(), batch_size=8))
    assert isinstance(data.train, StreamLoader)
    assert torch.equal(first(data)[0], Rows().x[:8])


# --- refused ---


class Own(DataLoader[Any]):
    """A loader whose batches are its own affair."""

    def __iter__(self) -> Any:
        return iter([default_collate([Rows()[0]])])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a batch size": (
        {"batch_size": 4},
        "its batch_size=4, and data.global_batch_size is 8; write data.global_batch_size: 4,",
    ),
    "torch's own batch size": ({"batch_size": 1}, "write data.global_batch_size: 1, or pass its data set itself"),
    "shuffling": ({"shuffle": True}, "its shuffle=True, and data.shuffle is false; write data.shuffle: true"),
    "drop_last": ({"drop_last": True}, "its drop_last=True, and data.drop_last is not; write data.drop_last: true"),
    "workers": ({"num_workers": 2}, "its num_workers=2, and data.workers is 0; write data.workers: 2"),
    "weights": ({"sampler": WeightedRandomSampler([1.0] * SIZE, SIZE)}, "give data.weights a number for each sample"),
    "a subset": ({"sampler": SubsetRandomSampler([1, 2])}, "torch.utils.data.Subset(data_set, indices)"),
    "replacement": ({"sampler": RandomSampler(range(SIZE), replacement=True)}, "data.weights draws with replacement"),
    "fewer": ({"sampler": RandomSampler(range(SIZE), num_samples=5)}, "its RandomSampler chooses samples"),
    "an own order": ({"sampler": FromNumbers()}, "its FromNumbers chooses samples: remove it; data.shuffle and"),
    "an own batch sampler": ({"batch_size": 1, "batch_sampler": [[0, 1], [2]]}, "its batch_sampler decides on batches"),
    "no batches": ({"batch_size": None}, "it has batch_size=None, which are the recipe's to make"),
    "a start of workers": ({"worker_init_fn": print}, "its worker_init_fn would not be called"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_contradicts_the_recipe_is_refused_with_the_words_to_write(recipe: Path, case: str) -> None:
    said, words = WRONG[case]
    (message,) = refusals(recipe, train=DataLoader(Rows(), **_settings(said)))
    assert words in message
    assert message.startswith("a DataLoader: ")


def test_all_contradictions_are_told_at_once(recipe: Path) -> None:
    messages = refusals(recipe, train=DataLoader(Rows(), batch_size=4, shuffle=True, num_workers=1))
    assert len(messages) == 3


def test_batches_of_another_kind_are_never_taken_for_samples(recipe: Path) -> None:
    assert "Own makes its batches itself" in refusals(recipe, train=Own(Rows(), batch_size=8))[0]
    handed_on = HandsOn(DataLoader(Rows(), batch_size=8))
    assert "HandsOn passes on the batches of a DataLoader, not samples" in refusals(recipe, train=handed_on)[0]


def test_an_evaluation_reads_every_sample_in_any_batches(recipe: Path) -> None:
    data = opened(recipe, validation=DataLoader(Rows(), batch_size=3, shuffle=True))
    assert data.validation[""].num_samples() == SIZE
    some = DataLoader(Rows(), sampler=SubsetRandomSampler([1, 2]))
    assert "Subset(data_set, indices)" in refusals(recipe, validation=some)[0]
    assert "remove drop_last" in refusals(recipe, test=DataLoader(Rows(), batch_size=3, drop_last=True))[0]


def test_who_does_not_train_is_not_asked_about_batches(recipe: Path) -> None:
    given = {"data.train": DataLoader(Rows(), batch_size=4, shuffle=True)}
    read = load_recipe(recipe, ["data.validation=40% of train"], given=given)
    builder, parts = Builder(read), [("validation", "")]
    (loader,) = load_evaluation(builder, read.data, World(), parts, evaluate=read.evaluate, seed=read.seed).values()
    assert loader.num_samples() == 8
    assert len(first(open_run_data(read, builder, World(), trains=False))[0]) == 8


def test_two_collates_are_one_too_many(recipe: Path) -> None:
    loader = DataLoader(Rows(), batch_size=8, collate_fn=doubled)
    (message,) = refusals(recipe, "data.collate={_ref_: 'parts.py:tripled'}", train=loader)
    assert "its DataLoader has a collate_fn, and the recipe data.collate; remove one of the two" in message


# --- a collate for each use ---

EACH = "data.collate={train: {_ref_: 'parts.py:doubled'}, evaluate: {_ref_: 'parts.py:tripled'}}"
SETS = ("data.train={_target_: 'parts.py:Rows'}", "data.validation={_target_: 'parts.py:Rows'}")


def evaluated(data: Data) -> Tensor:
    tensor: Tensor = next(iter(data.validation[""].batches())).data[0]
    return tensor


def test_training_and_evaluating_have_their_own(recipe: Path) -> None:
    data = opened(recipe, *SETS, EACH)
    assert torch.equal(first(data)[0], 2 * Rows().x[:8])
    assert torch.equal(evaluated(data), 3 * Rows().x[:8])


def test_one_of_them_alone_leaves_the_other_torch_s(recipe: Path) -> None:
    data = opened(recipe, *SETS, "data.collate={train: {_ref_: 'parts.py:doubled'}}")
    assert torch.equal(evaluated(data), Rows().x[:8])
    data = opened(recipe, *SETS, "data.collate={train: {_ref_: 'parts.py:doubled'}, evaluate: null}")
    assert torch.equal(evaluated(data), Rows().x[:8])
    data = opened(recipe, *SETS, "data.collate={evaluate: {_ref_: 'parts.py:tripled'}}")
    assert torch.equal(first(data)[0], Rows().x[:8])
    assert torch.equal(evaluated(data), 3 * Rows().x[:8])


def test_one_for_all_is_one_for_all_and_a_held_back_part_is_evaluated(recipe: Path) -> None:
    data = opened(recipe, *SETS, "data.collate={_ref_: 'parts.py:doubled'}")
    assert torch.equal(evaluated(data), 2 * Rows().x[:8])
    data = opened(recipe, SETS[0], "data.validation=40% of train", EACH)
    rows = data.validation[""].dataset
    assert torch.equal(evaluated(data)[0], 3 * rows[0][0])


def test_from_python_they_come_in_a_mapping(recipe: Path) -> None:
    data = opened(recipe, *SETS, collate={"train": doubled})
    assert torch.equal(first(data)[0], 2 * Rows().x[:8])
    assert torch.equal(evaluated(data), Rows().x[:8])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "{train: {_ref_: 'parts.py:doubled'}, valid: {_ref_: 'parts.py:doubled'}}",
            "has 'valid'; allowed: train, evaluate",
        ),
        ("{}", "is not a collate"),
        ("{train: 3}", "is not a collate; write"),
        ("{train: {_target_: 'parts.py:Rows'}}", "is not a function"),
    ],
)
def test_another_collate_is_refused(recipe: Path, said: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Builder(load_recipe(recipe, [*SETS, f"data.collate={said}"])).check()


def test_what_only_evaluates_may_change_when_a_run_goes_on(recipe: Path) -> None:
    folder = recipe.parent / "run"
    launcher.train(recipe, *SETS, EACH, "train.steps=3", cpu=True, run_dir=folder)
    (folder / "status.json").unlink()
    other = EACH.replace("tripled", "doubled")
    result = launcher.train(recipe, *SETS, other, "train.steps=3", cpu=True, run_dir=folder)
    assert result.state == "finished"
