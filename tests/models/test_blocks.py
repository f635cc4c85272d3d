"""The repeated blocks of models of many makes, found by how they are built."""

from __future__ import annotations

import pytest
from torch import nn

from launcher.model.blocks import blocks_of
from launcher.models import GPT, MLP, ConvNet


class Layer(nn.Module):
    """Two modules, as a layer of somebody's has."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)


class Experts(nn.Module):
    """A layer with a list of layers in it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Layer() for _ in range(3))
        self.gate = nn.Linear(4, 3)


class Stage(nn.Module):
    """A stage of a pyramid."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Layer() for _ in range(layers)))


def model(**parts: nn.Module) -> nn.Module:
    """A module of these parts."""
    whole = nn.Module()
    for name, part in parts.items():
        whole.add_module(name, part)
    return whole


def test_a_gpts_blocks() -> None:
    blocks = blocks_of(GPT(11, 8, 3, 2, 8))
    assert list(blocks.modules) == ["blocks.0", "blocks.1", "blocks.2"]
    assert blocks.describe() == "3 × Block, the rest as one"


def test_layers_of_torch() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert list(blocks_of(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).modules) == [
        "layers.0",
        "layers.1",
    ]
    both = blocks_of(nn.Transformer(8, 2, 2, 3, 16))
    assert both.describe() == "2 × TransformerEncoderLayer, 3 × TransformerDecoderLayer, the rest as one"


def test_experts_are_none_however_large_their_layer_is() -> None:
    assert list(blocks_of(model(layers=nn.ModuleList([Experts(), Experts()]))).modules) == ["layers.0", "layers.1"]
    assert not blocks_of(Experts())


def test_a_model_without_any() -> None:
    for whole in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), MLP(2, [3], 2)):
        assert not blocks_of(whole)
        assert blocks_of(whole).describe() == "as one, since no block of it repeats"
    assert isinstance(blocks_of(ConvNet(10)).modules, dict)


def test_attributes_of_ones_own_class_and_a_dict() -> None:
    assert list(blocks_of(model(first=Layer(), second=Layer(), head=nn.Linear(4, 2))).modules) == ["first", "second"]
    assert list(blocks_of(model(parts=nn.ModuleDict({"a": Layer(), "b": Layer()}))).modules) == ["parts.a", "parts.b"]


def test_sequences_are_alike_where_their_parts_are() -> None:
    pair = [nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)]
    assert list(blocks_of(nn.Sequential(*pair, nn.Sequential(nn.Linear(2, 2)))).modules) == ["0", "1"]


def test_the_outermost_count() -> None:
    assert blocks_of(nn.Sequential(*(Experts() for _ in range(5)))).describe() == "5 × Experts, the rest as one"


def test_a_large_stage_is_its_blocks() -> None:
    whole = model(stages=nn.ModuleList([Stage(1), Stage(1), Stage(8), Stage(1)]), head=nn.Linear(4, 2))
    assert blocks_of(whole).describe() == "3 × Stage, 8 × Layer, the rest as one"


def test_one_module_used_twice_is_not_two() -> None:
    layer = Layer()
    assert not blocks_of(model(layers=nn.ModuleList([layer, layer])))


def test_patterns_overrule() -> None:
    whole = GPT(11, 8, 3, 2, 8)
    assert list(blocks_of(whole, ["*.attention", "head"]).modules) == [
        "blocks.0.attention",
        "blocks.1.attention",
        "blocks.2.attention",
        "head",
    ]
    assert list(blocks_of(whole, ["blocks.*"]).modules) == ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize(("pattern", "said"), [("layers.*", "no module is named like"), ("stages", "never called")])
def test_patterns_of_nothing(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        blocks_of(model(stages=nn.ModuleList([Stage(1)])), [pattern])
