"""The built-in models, and the user's own one of recipes/custom_model."""

from __future__ import annotations

import math
from collections.abc import Sized
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from launcher.datasets import Digits, TextFile
from launcher.models import GPT, MLP, ConvNet


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(ord("a") + i % 26) for i in range(1000)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("model", "inputs", "outputs"),
    [
        (MLP(64, [32, 16], 10, dropout=0.1), torch.rand(3, 1, 8, 8), (3, 10)),
        (MLP(10, 5, 1), torch.rand(1, 10), (1, 1)),
        (MLP(10, [], 1, dtype=torch.float64), torch.rand(2, 10, dtype=torch.float64), (2, 1)),
        (ConvNet(10), torch.rand(1, 1, 8, 8), (1, 10)),
        (ConvNet(4, [8], inputs=3), torch.rand(2, 3, 9, 12), (2, 4)),
        (ConvNet(10, dtype=torch.float64), torch.rand(2, 1, 8, 8, dtype=torch.float64), (2, 10)),
        (GPT(11, context=8), torch.randint(11, (3, 8)), (3, 11, 8)),
        (GPT(11, context=8, layers=1, dropout=0.1, bias=True), torch.randint(11, (1, 5)), (1, 11, 5)),
    ],
)
def test_output_shapes_and_gradients(model: nn.Module, inputs: Tensor, outputs: tuple[int, ...]) -> None:
    result = model(inputs)
    assert result.shape == outputs
    result.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_mlp_without_hidden_layers_is_linear() -> None:
    assert [type(layer) for layer in MLP(4, [], 2).layers] == [nn.Flatten, nn.Linear]


@pytest.mark.parametrize("model", [MLP(64, 16, 10), ConvNet(10)])
def test_an_image_scores_the_same_alone_and_in_a_batch(model: nn.Module) -> None:
    images = torch.rand(5, 1, 8, 8)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone)


def test_gpt_does_not_look_ahead() -> None:
    model = GPT(11, context=8)
    tokens = torch.randint(11, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[..., :5], after[..., :5])
    assert not torch.allclose(before[..., 5:], after[..., 5:])


def test_gpt_starts_at_the_loss_of_a_guess() -> None:
    torch.manual_seed(0)
    loss = F.cross_entropy(GPT(65)(torch.randint(65, (4, 64))), torch.randint(65, (4, 64)))
    assert loss.item() == pytest.approx(math.log(65), rel=0.02)


def test_gpt_logits_suit_a_plain_cross_entropy_loss() -> None:
    logits, targets = GPT(11, context=8)(torch.randint(11, (3, 8))), torch.randint(11, (3, 8))
    by_hand = F.cross_entropy(logits.transpose(1, 2).reshape(-1, 11), targets.flatten())
    torch.testing.assert_close(nn.CrossEntropyLoss()(logits, targets), by_hand)


def test_gpt_ties_embedding_and_head_and_scales_residual_projections() -> None:
    torch.manual_seed(0)
    model = GPT(65, layers=8)
    assert model.head.weight is model.tokens.weight
    deviation = {name: parameter.std().item() for name, parameter in model.blocks[0].named_parameters()}
    assert deviation["attention.query_key_value.weight"] == pytest.approx(0.02, rel=0.05)
    assert deviation["attention.project.weight"] == pytest.approx(0.005, rel=0.05)
    assert deviation["feed_forward.project.weight"] == pytest.approx(0.005, rel=0.05)


def test_gpt_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="width 10 is not divisible by heads 4"):
        GPT(11, width=10)
    with pytest.raises(ValueError, match="sequences of 9 tokens, but the model was built for context 8"):
        GPT(11, context=8)(torch.zeros(1, 9, dtype=torch.int64))


# --- they learn ---


def fit(model: nn.Module, dataset: Dataset[Any], steps: int, batch_size: int, lr: float) -> None:
    assert isinstance(dataset, Sized)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    order = torch.randint(len(dataset), (steps, batch_size))
    for indices in order:
        inputs, targets = dataset.get_batch(indices)  # type: ignore[attr-defined]  # ours all have it
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


@pytest.mark.parametrize("make", [lambda: MLP(64, 64, 10), lambda: ConvNet(10, [16, 32])])
def test_digits_are_learned(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    fit(model, Digits("train"), steps=150, batch_size=64, lr=5e-3)
    images, targets = Digits("validation").tensors
    assert (model(images).argmax(1) == targets).float().mean() > 0.9


def test_gpt_learns_the_alphabet(text_file: Path) -> None:
    torch.manual_seed(0)
    model = GPT(26, context=8, layers=1, heads=2, width=32)
    fit(model, TextFile(text_file, context=8), steps=100, batch_size=16, lr=1e-2)
    inputs, targets = TextFile(text_file, "validation", context=8).get_batch(torch.arange(12))
    assert F.cross_entropy(model(inputs), targets) < 0.1
