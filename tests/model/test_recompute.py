"""`device.recompute`: less is kept, and nothing else is another."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes.stacks import Stack
from tiers import rounds
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from worlds import TINY, killed, result_of, train, train_here, train_in_process

from launcher.checks.rehearsal import rehearse
from launcher.errors import LauncherError, RecipeError
from launcher.model.recompute import Recomputed, recomputed_in
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.world.world import World

STACK = ("model={_target_: stacks.py:Stack, odd: true}", "data.global_batch_size=18", "data.train.size=56")
ACCUMULATED = (*STACK, "data.micro_batch_size=5", "data.drop_last=true")


@rounds("size", plain=[2], long=[1])
def test_a_run_is_to_the_bit_the_one_that_keeps_all(tmp_path: Path, size: int) -> None:
    kept = train(tmp_path / "kept", *ACCUMULATED, size=size)
    again = train(tmp_path / "again", *ACCUMULATED, "device.recompute=true", size=size)
    assert again.distance(kept) == 0
    assert again.column("loss") == kept.column("loss")
    assert again.weights.keys() == kept.weights.keys()


def test_a_killed_run_goes_on_to_the_bit_with_it_or_without(tmp_path: Path) -> None:
    changes = (*ACCUMULATED, "save.every=2 steps")
    kept = train(tmp_path / "kept", *changes)
    run = tmp_path / "run"
    assert killed(1, train_here, str(run), (*changes, "device.recompute=true"), str(TINY), (), "kill@step:5")
    train(run, *changes)
    assert result_of(run).distance(kept) == 0
    assert result_of(run).column("loss") == kept.column("loss")


def _called(model: nn.Module, inputs: Tensor) -> tuple[float, list[Tensor], tuple[float, float, float]]:
    """The loss, gradients and buffers, and what every generator gives next."""
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    loss = cross_entropy(model(inputs), torch.arange(len(inputs)) % 3)
    loss.backward()
    after = random.random(), float(np.random.rand()), float(torch.rand(()))
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(loss.detach()), [*gradients, *(buffer.clone() for buffer in model.buffers())], after


def _stacks() -> tuple[Stack, Stack]:
    """One that keeps all, and one that does not."""
    torch.manual_seed(1)
    plain = Stack(odd=True)
    changed = copy.deepcopy(plain)
    for block in changed.blocks:
        block.forward = Recomputed(block)
    return plain, changed


def test_gradients_buffers_and_every_generator_are_as_without() -> None:
    plain, changed = _stacks()
    inputs = torch.randn(9, 6, dtype=torch.float64)
    for _ in range(3):  # the first forward finds out which buffers move
        expected, found = _called(plain, inputs), _called(changed, inputs)
        assert (found[0], found[2]) == (expected[0], expected[2])
        for ours, theirs in zip(found[1], expected[1], strict=True):
            assert torch.equal(ours, theirs)


class Delayed(nn.Module):
    """A layer that begins to move a buffer in its fourth call, behind autograd's back where it is told to."""

    calls: Tensor
    mean: Tensor

    def __init__(self, hidden: bool):
        super().__init__()
        self.layer, self.hidden = nn.Linear(6, 6).double(), hidden
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:
            mean = self.mean.data if self.hidden else self.mean
            mean.mul_(0.5).add_(inputs.detach().mean(0))
        added: Tensor = self.layer(inputs - self.mean.clone()).tanh()
        return added


def _thawed() -> nn.Module:
    layer = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).double()
    layer[1].eval()
    return layer


def _observed() -> nn.Module:
    from torch.ao.quantization import FakeQuantize

    observer: Any = FakeQuantize()
    observer.disable_observer()
    return nn.Sequential(nn.Linear(6, 6), observer)


def _later(block: nn.Module) -> None:
    """What somebody does after the third step."""
    part: Any
    for part in block.modules():
        part.train()
        if hasattr(part, "enable_observer"):
            part.enable_observer()


@pytest.mark.parametrize("kind", ["delayed", "hidden", "thawed", "observed"])
def test_a_buffer_that_begins_to_move_later_is_as_without(kind: str) -> None:
    torch.manual_seed(1)
    make = {
        "delayed": lambda: Delayed(False),
        "hidden": lambda: Delayed(True),
        "thawed": _thawed,
        "observed": _observed,
    }
    plain = nn.Sequential(make[kind]())
    changed = copy.deepcopy(plain)
    changed[0].forward = Recomputed(changed[0])
    inputs = torch.randn(9, 6, dtype=next(plain.parameters()).dtype)
    for number in range(6):
        expected, found = _called(plain, inputs + number), _called(changed, inputs + number)
        assert found[0] == expected[0]
        for ours, theirs in zip(found[1], expected[1], strict=True):
            assert torch.equal(ours, theirs), number
        if number == 2:
            _later(plain)
            _later(changed)


def test_it_keeps_less_between_forward_and_backward() -> None:
    kept: list[int] = []
    for model in _stacks():
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(90, 6, dtype=torch.float64))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


def test_names_classes_and_copies_are_those_of_the_model() -> None:
    plain, changed = _stacks()
    assert [*changed.state_dict()] == [*plain.state_dict()]
    assert [(name, type(part)) for name, part in changed.named_modules()] == [
        (name, type(part)) for name, part in plain.named_modules()
    ]
    other = copy.deepcopy(changed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    inputs = torch.ones(4, 6, dtype=torch.float64)
    other.eval()
    assert torch.equal(other.blocks[0](inputs), inputs)  # its blocks' forwards are its own
    assert not torch.equal(changed.eval().blocks[0](inputs), inputs)
    assert [*recomputed_in(other)] == ["blocks.0", "blocks.1", "blocks.2"]


def test_arguments_by_name_may_have_the_names_of_torchs_own() -> None:
    class Odd(nn.Linear):
        def forward(self, inputs: Tensor, *, debug: float, scale: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(inputs) * debug * scale

    layer, scale = Odd(2, 2), torch.ones((), requires_grad=True)
    layer.forward = Recomputed(layer)  # type: ignore[method-assign]  # as it does
    layer(torch.ones(1, 2), debug=3.0, scale=scale).sum().backward()
    assert scale.grad is not None
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("['nothing.*']", "no module is named like 'nothing.*'"),
        ("[blocks]", "a list of modules, which is never called"),
        ("[]", "device.recompute"),
    ],
)
def test_names_of_nothing_are_refused(tmp_path: Path, wanted: str, message: str) -> None:
    with pytest.raises(LauncherError, match=re.escape(message)):
        train_in_process(tmp_path / "run", *STACK, f"device.recompute={wanted}")


def test_a_model_without_blocks_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"device.recompute.*no block of the model is repeated; name the modules"):
        train_in_process(tmp_path / "run", "device.recompute=true")


def _checked(*overrides: str) -> list[str]:
    recipe = load_recipe(TINY, [*STACK[1:], *overrides])
    checked = rehearse(recipe, Builder(recipe), World(), lambda *_: None)
    return [*(text for label, text in checked.plan if label == "note"), *checked.doubts]


def test_the_plan_says_which_and_check_finds_blocks_that_nobody_calls() -> None:
    said = _checked("model={_target_: stacks.py:Stack}", "device.recompute=['blocks.*']")
    assert any(text.startswith("3 × Block: activations are computed again") for text in said)
    with pytest.raises(RecipeError, match=r"the step calls none of these blocks \(blocks.0, blocks.1, blocks.2\)"):
        _checked("model={_target_: stacks.py:Around}", "device.recompute=true")
    doubts = _checked("model={_target_: stacks.py:Around}", "device.recompute=['blocks.*', head]")
    assert any("the step did not call blocks.0, blocks.1, blocks.2" in text for text in doubts)
