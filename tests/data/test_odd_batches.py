"""Whatever a batch is made of: tensors of any layout, named parts, paths, whole objects."""

from __future__ import annotations

import collections
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from projects import make
from torch import Tensor, nn
from torch.utils.data import Dataset
from worlds import train_here

import launcher
from launcher.checks.rehearsal import rehearse
from launcher.cli.main import main
from launcher.data.fingerprint import fingerprint
from launcher.data.inspect.measure import fields_of
from launcher.data.loaders import Reading, TrainLoader
from launcher.data.sampler import StepSampler
from launcher.data.transfer import moved
from launcher.errors import LauncherError, RecipeError
from launcher.objective.batch import BatchLayout
from launcher.objective.run_length import At
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.text import shapes
from launcher.world.world import World

SIZE = 6


class Pair(NamedTuple):
    """Two parts by name."""

    image: Any
    label: Any


class Fields(NamedTuple):
    """Two more."""

    x: Any
    y: Any


@dataclass
class Record:
    """An object that has no `to`."""

    x: Any
    y: Any


class Bag:
    """An object of any class."""

    x: Any
    more: Any
    itself: Any

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class Frozen(Mapping[str, Any]):
    """A mapping that cannot be written to."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)

    def __getitem__(self, key: str) -> Any:
        return self.parts[key]

    def __iter__(self) -> Any:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def row(number: float) -> Tensor:
    return torch.tensor([number, -number, 0.5])


TENSORS: dict[str, Any] = {
    "plain": row,
    "sparse": lambda n: row(n).to_sparse(),
    "CSR": lambda n: torch.stack([row(n), row(n)]).to_sparse_csr(),
    "CSC": lambda n: torch.stack([row(n), row(n)]).to_sparse_csc(),
    "BSR": lambda n: torch.ones(2, 2).mul(n + 1).to_sparse_bsr((1, 1)),
    "nested": lambda n: torch.nested.nested_tensor([row(n), row(n)[:2]], layout=torch.jagged),
    "nested, of the old kind": lambda n: torch.nested.nested_tensor([row(n), row(n)[:2]]),
    "quantized": lambda n: torch.quantize_per_tensor(row(n), 0.5, 1, torch.qint8),
    "quantized by channel": lambda n: torch.quantize_per_channel(
        torch.stack([row(n), row(n)]), torch.tensor([0.5, 0.25]), torch.tensor([0, 1]), 0, torch.qint8
    ),
    "conjugated": lambda n: torch.complex(row(n), row(n)).conj(),
    "negated": lambda n: torch.complex(row(n), row(n)).conj().imag,
    "complex": lambda n: torch.complex(row(n), row(n)),
    "of no size": lambda n: torch.zeros(0, 3 + int(n)),
    "a number": lambda n: torch.tensor(n),
    "half": lambda n: row(n).half(),
    "in eight bits": lambda n: row(n).to(torch.float8_e4m3fn),
    "truth": lambda n: row(n) > 1,
    "transposed": lambda n: torch.stack([row(n), row(n)]).T,
    "expanded": lambda n: torch.tensor(n).expand(3),
    "to be learned": lambda n: row(n).requires_grad_(),
}
HOLDERS: dict[str, Any] = {
    "a tuple": lambda x: (x, 1),
    "a named tuple": lambda x: Pair(x, 1),
    "a mapping": lambda x: {"x": x, "words": ["a"]},
    "a default": lambda x: collections.defaultdict(list, x=x),
    "a frozen mapping": lambda x: Frozen({"x": x}),
    "a dataclass": lambda x: Record(x, "a"),
    "an object": lambda x: Bag(x=x, more=[Bag(x=x)]),
}


class Odd(Dataset[Any]):
    """Samples of a kind; a sample more or less is another set."""

    def __init__(self, tensor: str, holder: str = "a tuple", plus: float = 0.0) -> None:
        self.make, self.hold, self.plus = TENSORS[tensor], HOLDERS[holder], plus

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return self.hold(self.make(float(index) + self.plus))


def loader_of(dataset: Any, **reading: Any) -> TrainLoader:
    return TrainLoader(dataset, StepSampler(dataset, global_batch_size=3, shuffle=False), Reading(**reading))


def listed(samples: list[Any]) -> Any:
    return samples


# --- fingerprints ---


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tensor", TENSORS)
def test_a_fingerprint_knows_tensors_of_any_kind(tensor: str) -> None:
    found, is_steady = fingerprint(loader_of(Odd(tensor), collate=listed))
    assert is_steady
    assert found == fingerprint(loader_of(Odd(tensor), collate=listed))[0]
    assert found != fingerprint(loader_of(Odd(tensor, plus=2.0), collate=listed))[0]


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_fingerprint_looks_into_whatever_holds_them(holder: str) -> None:
    found, is_steady = fingerprint(loader_of(Odd("plain", holder), collate=listed))
    assert is_steady
    assert found != fingerprint(loader_of(Odd("plain", holder, plus=1.0), collate=listed))[0]


# --- batches ---


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        if one.is_nested:
            return all(map(equal, one.unbind(), other.unbind()))
        one, other = (value.dequantize() if value.is_quantized else value.to_dense() for value in (one, other))
        return one.dtype == other.dtype and bool(torch.equal(one.resolve_conj().float(), other.resolve_conj().float()))
    return bool(one == other)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("tensor", TENSORS)
def test_batches_are_torch_s_or_the_samples_are_named(tensor: str, workers: int) -> None:
    """A quantized or conjugated sample makes a batch in a worker as in the training process."""
    try:
        expected = torch.utils.data.default_collate([Odd(tensor)[index] for index in range(3)])[0]
    except RuntimeError:
        with pytest.raises(LauncherError, match=r"samples 0, 1, 2 do not make a batch: .*data\.collate"):
            next(loader_of(Odd(tensor), workers=workers).steps(0, 1))
        return
    (batch,) = next(loader_of(Odd(tensor), workers=workers).steps(0, 1))
    assert equal(batch.data[0], expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tensor", ["sparse", "CSR", "nested", "quantized", "conjugated", "of no size"])
def test_a_collate_may_give_any_of_them_from_a_worker(tensor: str) -> None:
    (batch,) = next(loader_of(Odd(tensor, "a named tuple"), workers=1, collate=lambda samples: samples[1]).steps(0, 1))
    assert isinstance(batch.data, Pair)
    assert equal(batch.data.image, TENSORS[tensor](1.0))


# --- transfers ---


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_holds_tensors_is_moved_with_its_class(holder: str) -> None:
    value = HOLDERS[holder](row(1.0))
    there: Any = moved(value, torch.device("meta"))
    assert type(there) is type(value)
    assert there is not value
    tensor = there[0] if isinstance(there, tuple) else there["x"] if isinstance(there, Mapping) else there.x
    assert tensor.device.type == "meta"
    if holder == "an object":
        assert there.more[0].x.device.type == "meta"
        assert value.more[0].x.device.type == "cpu"


def test_what_moves_itself_is_asked_and_what_holds_none_stays() -> None:
    class Mover:
        def to(self, device: Any) -> Mover:
            self.device = device
            return self

    class InPlace(Mover):
        def to(self, device: Any) -> None:  # type: ignore[override]  # as some do
            self.device = device

    for mover in (Mover(), InPlace()):
        assert moved([mover], torch.device("meta"))[0] is mover
        assert mover.device.type == "meta"
    plain = {"words": ["a", ("b", 1)], "nothing": None, "kind": Record}
    assert moved(plain, torch.device("meta")) is plain
    circle = Bag()
    circle.itself = circle
    assert moved(circle, torch.device("meta")) is circle


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tensor", ["sparse", "nested", "conjugated", "of no size", "transposed"])
def test_tensors_of_any_kind_are_moved(tensor: str) -> None:
    there = moved(Pair(TENSORS[tensor](1.0), [TENSORS[tensor](2.0)]), torch.device("cpu"))
    assert equal(there.image, TENSORS[tensor](1.0))
    assert equal(there.label[0], TENSORS[tensor](2.0))


# --- names and paths ---

Parts: Any = collections.namedtuple("Parts", "x y")
BATCHES: dict[str, Any] = {
    "a mapping": {"x": {"left": 1, "right": 2}, "y": [3, 4], "a.b": 5},
    "a named tuple": Parts({"left": 1, "right": 2}, [3, 4]),
    "an object": types.SimpleNamespace(x=Bag(left=1, right=2), y=[3, 4]),
    "a dataclass": Record({"left": 1, "right": 2}, [3, 4]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_parts_are_named_by_paths(name: str) -> None:
    layout = BatchLayout(schema.Batch(inputs=["x.left", "x.right"], targets=["y.1"]))
    assert layout.split(BATCHES[name]) == ((1, 2), {}, (4,))
    layout = BatchLayout(schema.Batch(inputs={"a": "x.left", "b": "y"}, targets=["y.-1"]))
    assert layout.split(BATCHES[name]) == ((), {"a": 1, "b": [3, 4]}, (4,))


def test_a_key_with_dots_of_its_own_comes_first() -> None:
    layout = BatchLayout(schema.Batch(inputs=["a.b"], targets=["c.a.b.d"]))
    assert layout.split({"a.b": 5, "a": {"b": 6}, "c": {"a.b": {"d": 7}}}) == ((5,), {}, (7,))


def test_positions_names_and_outputs_of_a_named_tuple() -> None:
    layout = BatchLayout(schema.Batch(inputs=["image"], targets=[1], outputs=["parts.0"], loss="parts.1"))
    assert layout.split(Pair(1, 2)) == ((1,), {}, (2,))
    assert layout.outputs({"parts": (3, torch.tensor(4.0))}) == (3,)
    assert float(layout.loss({"parts": (3, torch.tensor(4.0))})) == 4


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("x.middle", "batch: 'x' of a batch has no 'middle'; it is a mapping with 'left', 'right'"),
        ("z.left", "batch: a batch has no 'z.left'; it is a mapping with 'x', 'y', 'a.b'"),
        ("y.7", "batch: 'y' of a batch has no '7'; it is a list of 2"),
        ("x.left.deep", "batch: 'x.left' of a batch has no 'deep'; it is a int"),
    ],
)
def test_a_path_that_leads_nowhere_is_told_as_far_as_it_goes(key: str, words: str) -> None:
    with pytest.raises(LauncherError) as caught:
        BatchLayout(schema.Batch(inputs=[key])).split(BATCHES["a mapping"])
    assert str(caught.value).startswith(words)


def test_a_whole_batch_is_one_input_with_targets_where_they_are_named() -> None:
    batch = Record(1, 2)
    assert BatchLayout(schema.Batch(inputs="whole")).split(batch) == ((batch,), {}, ())
    assert BatchLayout(schema.Batch(inputs="whole", targets=["y"])).split(batch) == ((batch,), {}, (2,))
    fields = fields_of({"x": 1.5, "y": 2.5}, BatchLayout(schema.Batch(inputs="whole", targets=["y"])))
    assert [(field.key, field.role) for field in fields] == [("x", "input"), ("y", "target")]


def test_batches_are_described_whatever_they_hold() -> None:
    ragged = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
    assert shapes(Pair(ragged, torch.zeros(2).to_sparse())) == (
        "Pair{image: nested float32 of [2], [3], label: sparse_coo float32 [2]}"
    )
    assert shapes(Record(torch.zeros(1), "a")) == "Record{x: float32 [1], y: str}"


# --- in a run ---

PARTS = """
import collections, dataclasses, json
import torch
from torch import nn
from torch.utils.data import Dataset
from worlds import train_here

Pair = collections.namedtuple("Pair", "x y")

@dataclasses.dataclass
class Batch:
    x: dict
    y: torch.Tensor

class Rows(Dataset):
    def __init__(self):
        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(20, 4, generator=g, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True)
    def __len__(self): return 20
    def __getitem__(self, i): return Pair({"left": self.x[i, :2], "right": self.x[i, 2:]}, self.y[i])

class Sparse(Rows):
    def __getitem__(self, i): return self.x[i].to_sparse(), self.y[i]

def stacked(samples): return torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples])

def batch(samples):
    both = [torch.cat([s.x["left"], s.x["right"]]) for s in samples]
    return Batch({"both": torch.stack(both)}, torch.stack([s.y for s in samples]))

class Lin(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(4, 1, dtype=torch.float64)
    def forward(self, x, right=None):
        if isinstance(x, Batch): x = x.x["both"]
        if x.layout is not torch.strided: x = x.to_dense()
        return self.l(x if right is None else torch.cat([x, right], 1))

def step(model, batch, at):
    if not torch.is_grad_enabled():
        with open("seen.jsonl", "a") as file: file.write(json.dumps(list(at)) + "\\n")
    loss = ((model(batch.x["left"], batch.x["right"]) - batch.y) ** 2).mean()
    return {"loss": loss}
"""
RECIPE = """
data: {train: {_target_: parts.py:Rows}, validation: {_target_: parts.py:Rows}, global_batch_size: 8, shuffle: false}
batch: {inputs: [x.left, x.right], targets: [y]}
model: {_target_: parts.py:Lin}
loss: {_target_: MSELoss}
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 6}
track: {every: 1 steps}
launch: {threads: 1}
"""
WHOLE = ("data.collate={_ref_: 'parts.py:batch'}", "batch={inputs: whole, targets: [y]}")
SPARSE = (
    *("data.train={_target_: 'parts.py:Sparse'}", "data.validation={_target_: 'parts.py:Sparse'}"),
    *("data.collate={_ref_: 'parts.py:stacked'}", "batch={inputs: [0], targets: [1]}"),
)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("overrides", [(), WHOLE, SPARSE], ids=["paths", "whole", "sparse"])
def test_a_run_reads_them_as_the_loop_by_hand(tmp_path: Path, overrides: tuple[str, ...], workers: int) -> None:
    recipe = make(tmp_path / "project", RECIPE, parts=PARTS)
    run = tmp_path / "run"
    launcher.train(recipe, *overrides, f"data.workers={workers}", cpu=True, run_dir=run, output="quiet")
    namespace: dict[str, Any] = {"__name__": "parts_by_hand"}
    exec(PARTS.replace("@dataclasses.dataclass", ""), namespace)
    rows, model, expected = namespace["Rows"](), namespace["Lin"](), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for part in [slice(0, 8), slice(8, 16), slice(16, 20)] * 2:
        loss = nn.functional.mse_loss(model.l(rows.x[part]), rows.y[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses(run) == pytest.approx(expected, rel=1e-9)


def test_check_names_the_place_of_what_makes_no_batch(tmp_path: Path) -> None:
    recipe = make(tmp_path / "project", RECIPE, parts=PARTS)
    wrong = {
        "batch": ("batch.inputs=[x.middle]",),
        "data.train": (SPARSE[0], SPARSE[-1]),
    }
    for place, overrides in wrong.items():
        read = load_recipe(recipe, overrides)
        with pytest.raises(RecipeError) as caught:
            rehearse(read, Builder(read), World(), lambda stage, words: None)
        assert f"{place}: " in str(caught.value) or f"{place} (" in str(caught.value), str(caught.value)


def test_a_step_function_is_told_the_true_place_in_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make(tmp_path / "project", RECIPE, parts=PARTS)
    monkeypatch.chdir(tmp_path)
    settings = ("loss=null", "train.step=parts.py:step", "evaluate={every: 2 steps, batch_size: 20, first: true}")
    train_here(str(tmp_path / "run"), settings, str(recipe))
    lines = dict.fromkeys(Path("seen.jsonl").read_text().splitlines())  # at the start it is tried as well
    assert [*map(json.loads, lines)] == [list(At(step, step // 3, step / 6)) for step in (0, 2, 4, 6)]
    Path("seen.jsonl").unlink()
    assert main(["evaluate", str(tmp_path / "run"), "--cpu"]) == 0
    (line,) = Path("seen.jsonl").read_text().splitlines()
    assert json.loads(line) == [6, 2, 1.0]
