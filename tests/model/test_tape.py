"""A constructor written down and done again has the numbers of one that ran, or is not written down."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.sharded import Net
from torch import Tensor, nn

from launcher.model.rows import whole_of
from launcher.model.tape import UnrecordedError, record
from launcher.models import GPT, MLP, ConvNet

Make = Callable[[], nn.Module]


def initialised(*ways: Callable[[Tensor], object]) -> nn.Module:
    """A layer for each, and one after them that would be another if they had drawn otherwise."""
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) if way is nn.init.dirac_ else nn.Linear(20, 30) for way in ways))
    for way, layer in zip(ways, model, strict=True):
        way(layer.weight)  # type: ignore[arg-type]
    return model.append(nn.Linear(3, 3))


class Computed(nn.Module):
    """Parameters by arithmetic, buffers, one of them in two places, and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.drawn = nn.Parameter(torch.randn(300, 20) * 0.02)
        self.inner = nn.Linear(20, 20)
        with torch.no_grad():
            self.inner.weight[3] = self.drawn[7] * 2
            self.inner.weight.div_(self.inner.weight.norm())
        self.register_buffer("mask", torch.tril(torch.ones(9, 9)), persistent=False)
        self.inner.register_buffer("mask", self.get_buffer("mask"))
        self.angles = torch.arange(8.0).cos()


class FromNumPy(nn.Module):
    """Tensors from outside of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(np.random.randn(4, 4)).float())
        self.after = nn.Linear(3, 3)
        self.register_buffer("positions", torch.from_numpy(np.arange(3.0)))


class Deeper(nn.Module):
    """Rates by depth, read from a tensor, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = torch.linspace(0, 0.1, 4).tolist()
        factor = torch.tensor([1.0, 2.0]).mul_(2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Dropout(rate)) for rate in self.rates)
        self.scale = nn.Parameter(torch.full((2,), factor[1].item()) * factor)

    def extra_repr(self) -> str:
        """The rates."""
        return f"{self.rates}"


class Tied(nn.Module):
    """One parameter by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 6, padding_idx=1)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.tokens.weight


EQUAL: dict[str, Make] = {
    "the shipped GPT": lambda: GPT(65, 64, 2, 4, 64),
    "the shipped CNN and MLP": lambda: nn.Sequential(ConvNet(10), MLP(8, [16], 4)),
    "blocks, tied, in double": Net,
    "norms and convolutions": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 3)),
    "LSTM": lambda: nn.LSTM(16, 32, 2),
    "TransformerEncoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32), 2, enable_nested_tensor=False
    ),
    "ways to initialise": lambda: initialised(
        *(nn.init.trunc_normal_, nn.init.orthogonal_, nn.init.dirac_, nn.init.kaiming_normal_, nn.init.zeros_),
        lambda weight: nn.init.trunc_normal_(weight, 0.5, 2.0, -1.0, 1.0),
        lambda weight: nn.init.sparse_(weight, 0.3),
        lambda weight: nn.init.normal_(weight, generator=torch.Generator().manual_seed(1)),
    ),
    "computed": Computed,
    "from NumPy": FromNumPy,
    "tied": Tied,
    "rates read from a tensor": Deeper,
    "copies": lambda: nn.ModuleList(copy.deepcopy(nn.Linear(3, 3)) for _ in range(3)),
    "half of double": lambda: nn.Linear(4, 4).double().half(),
    "parametrized": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    ),
}


def seeded() -> None:
    torch.manual_seed(7)
    np.random.seed(7)


@pytest.mark.parametrize("case", EQUAL)
def test_the_numbers_are_those_of_a_model_that_was_built_at_once(case: str) -> None:
    seeded()
    real = EQUAL[case]()
    after, numpys = torch.get_rng_state(), np.random.random()
    expected = {name: held.detach() for name, held in (*real.named_parameters(), *real.named_buffers())}
    seeded()
    model, recording = record(EQUAL[case], lambda made: made)
    torch.rand(3)  # whatever is drawn meanwhile
    built = {name: held for name, held in model.named_buffers() if name not in recording.buffers}
    recording.play(lambda name, source: built.update({name: whole_of(source).clone()}))
    assert built.keys() == expected.keys()
    assert all(torch.equal(built[name], value) and built[name].dtype == value.dtype for name, value in expected.items())
    assert torch.equal(torch.get_rng_state(), after)
    assert np.random.random() == numpys
    assert [repr(part) for part in model.modules()] == [repr(part) for part in real.modules()]
    assert [*model.state_dict()] == [*real.state_dict()]


def test_ties_buffers_in_two_places_and_other_tensors_stay_what_they_are() -> None:
    tied, _ = record(Tied, lambda made: made)
    assert tied.head.weight is tied.tokens.weight
    assert tied.head.weight.is_meta
    model, recording = record(Computed, lambda made: made)
    assert model.inner.mask is model.mask
    recording.play(lambda name, tensor: None)
    assert torch.equal(model.angles, torch.arange(8.0).cos())


def test_no_more_is_held_than_the_largest_tensor_where_each_is_drawn_alone() -> None:
    _, recording = record(lambda: nn.Sequential(*(nn.Linear(100, 100) for _ in range(20))), lambda made: made)
    assert recording.total == 20 * 101 * 100 * 4
    assert recording.held <= 101 * 100 * 4
    _, recording = record(lambda: GPT(65, 64, 6, 8, 384), lambda made: made)  # which draws all once more in the end
    assert recording.held < 0.1 * recording.total


def test_what_is_done_with_all_parameters_in_the_end_is_done_one_by_one() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(20)))
        nn.init.trunc_normal_(model[3].weight)  # type: ignore[arg-type]
        for parameter in model.parameters():
            parameter.data.mul_(0.5)
        return model.to(torch.float64)

    _, recording = record(build, lambda made: made)
    assert recording.total == 20 * 101 * 100 * 8
    assert recording.held <= 3 * 100 * 100 * 8  # before and after, and the one that is drawn twice
    torch.manual_seed(3)
    expected = dict(build().named_parameters())
    torch.manual_seed(3)
    _, recording = record(build, lambda made: made)
    recording.play(lambda name, tensor: torch.testing.assert_close(tensor, expected[name].detach(), rtol=0, atol=0))


class ReadsValues(nn.Module):
    """Draws until it likes what it has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        while float(self.layer.weight.detach().mean()) < 0:
            nn.init.normal_(self.layer.weight)


class Unwritten(nn.Module):
    """A parameter of whatever was in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.left = nn.Linear(2, 2), nn.Parameter(torch.empty(4, 4))


class Keeping(nn.Module):
    """Tensors in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(2, 2), [torch.ones(3)]


def of_its_own_seed() -> nn.Module:
    torch.manual_seed(5)
    return nn.Linear(4, 4)


def beside_the_generator() -> nn.Module:
    with torch.random.fork_rng():
        first = nn.Linear(4, 4)
    return nn.Sequential(first, nn.Linear(4, 4))


THERE = nn.Linear(2, 2)
NOT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "reads values": (ReadsValues, "reads values"),
    "an unwritten one": (Unwritten, "leaves 'left' as memory happened to be"),
    "a list of tensors": (Keeping, "keeps tensors where the program does not find them"),
    "a seed of its own": (of_its_own_seed, "seeds a generator, or sets it back"),
    "a state set back": (beside_the_generator, "seeds a generator, or sets it back"),
    "there already": (lambda: THERE, "makes no parameters: it is there already"),
    "into NumPy": (lambda: nn.Linear(int(torch.ones(2).numpy().sum()), 2), "numpy"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "UninitializedParameter"),
    "an error": (lambda: nn.Linear(1, "two"), "needs values .TypeError"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", NOT)
def test_what_the_tape_does_not_know_of_is_not_written_down(case: str) -> None:
    make, reason = NOT[case]
    seeded()
    before = torch.get_rng_state()
    with pytest.raises(UnrecordedError, match=reason):
        record(make, lambda made: made)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.ones(2).sum() == 2  # values are there again


class Own(nn.Module):
    """Reads its weights itself: one in another type, one of which something is made, one with a name of its own."""

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        self.drawn, self.layer = nn.Linear(3, 3), nn.Linear(4, 5).double()
        self.layer.load_state_dict({name: state[name] for name in ("weight", "bias")})
        self.table = nn.Parameter(state["table"])
        self.halved = nn.Parameter(state["table"].bfloat16())
        self.sums = nn.Parameter(state["table"].sum(1))
        self.norm = nn.BatchNorm1d(6)
        self.norm.running_mean.copy_(state["table"][0, :6])  # type: ignore[union-attr]  # it has one
        self.after = nn.Linear(2, 2)


def stored(folder: Path) -> dict[str, Callable[[], nn.Module]]:
    """Ways to read three tensors."""
    from safetensors import torch as files

    torch.manual_seed(3)
    state = {**nn.Linear(4, 5).state_dict(), "table": torch.randn(7, 8)}
    torch.save(state, folder / "weights.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    files.save_file(state, folder / "weights.safetensors")

    def opened() -> dict[str, Tensor]:
        from safetensors import safe_open

        with safe_open(folder / "weights.safetensors", "pt") as file:
            names = file.keys()
            return {name: file.get_slice(name)[:] for name in names}

    return {
        "torch.load": lambda: Own(torch.load(folder / "weights.pth", weights_only=True)),
        "an old file": lambda: Own(torch.load(folder / "old.pth", weights_only=True)),
        "load_file": lambda: Own(files.load_file(folder / "weights.safetensors")),
        "safe_open": lambda: Own(opened()),
    }


@pytest.mark.parametrize("way", ["torch.load", "load_file", "safe_open"])
def test_weights_are_left_in_their_files(tmp_path: Path, way: str) -> None:
    make = stored(tmp_path)[way]
    seeded()
    real = make()
    after = torch.get_rng_state()
    seeded()
    model, recording = record(make, lambda made: made)
    assert {"layer.weight", "layer.bias", "table", "halved"} <= recording.ready.keys()
    built: dict[str, Tensor] = {}
    recording.play(lambda name, source: built.update({name: whole_of(source).clone()}))
    for name, value in (*real.named_parameters(), *real.named_buffers()):
        if name != "norm.num_batches_tracked":
            assert built[name].dtype == value.dtype
            assert torch.equal(built[name], value.detach()), name
    assert torch.equal(torch.get_rng_state(), after)
    assert [*model.state_dict()] == [*real.state_dict()]


def test_a_file_of_which_no_rows_can_be_read_is_not_left_there(tmp_path: Path) -> None:
    make = stored(tmp_path)["an old file"]
    with pytest.raises(UnrecordedError, match=r"reads .*old\.pth: it is no zip archive"):
        record(make, lambda made: made)
    make()
