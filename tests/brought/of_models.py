"""Modules: layers of torch's, wrappers, weights made of others, and what does things to itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import layers
import losses
import nets
import sets
import steps
import torch
from torch import nn

from tests.brought.case import case

CE = nn.CrossEntropyLoss
rows: dict[str, Any] = {"data": sets.Masked, "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.5)}

# ---------------------------------------------------------------------- torch's layers

case("layers: LSTM", model=layers.lstm, **rows)
case("layers: GRU both ways", model=layers.gru, **rows)
case("layers: a transformer's layer", model=layers.transformer, **rows)
case("layers: attention", model=layers.attention, **rows)
for norm in ("layer", "group", "rms"):
    case(f"layers: normed by {norm}", model=partial(layers.mlp, norm=norm))
case("BatchNorm, of one process", model=partial(layers.mlp, norm="batch"), worlds=(1,), pieces=False)
case(
    "BatchNorm, a last batch of one",
    "data.train.size=17",
    model=partial(layers.mlp, norm="batch"),
    worlds=(),
    refused=1,
)
case("layers: convolutions", model=layers.convolutions, data=sets.Pictures, loss=CE)
case("layers: convolutions, instances normed", model=layers.normed_convolutions, data=sets.Pictures, loss=CE)
case("layers: residual bilinear layers", model=layers.residual)
case("experts, some of them unused", model=layers.experts)
case("traced by torch.jit", model=layers.jitted)
case("layers: an embedding", model=nets.Bag, data=sets.Tokens)
case("layers: an embedding with padding", model=partial(nets.Bag, kind="padding"), data=sets.Tokens)
case(
    "an embedding that renormalizes itself",
    model=partial(nets.Bag, kind="renormalized"),
    data=sets.Tokens,
    pieces=False,
    worlds=(1,),
)
case("layers: a bag of embeddings", model=partial(nets.Bag, kind="bag"), data=sets.Tokens)
case("sparse gradients", model=partial(nets.Bag, kind="sparse"), data=sets.Tokens)
case("sparse gradients that share memory", model=nets.Factors, data=sets.Tokens)
case(
    "sparse gradients that share memory, over gloo",
    "device.ddp.shared_memory=false",
    model=nets.Factors,
    data=sets.Tokens,
)
case("layers: sparse gradients of a bag", model=partial(nets.Bag, kind="sparse bag"), data=sets.Tokens)

# ---------------------------------------------------------------------- weights made of others

for kind in ("weight", "old weight", "orthogonal", "symmetric"):
    case(f"parametrized: {kind}", model=partial(nets.Deep, kind=kind))
case("spectral norm", model=layers.spectral, worlds=(1,), pieces=False)
case("tied weights", model=partial(nets.Deep, kind="tied"))
case("frozen in part", model=partial(nets.Deep, kind="frozen"))
case("a layer called several times", model=partial(nets.Deep, kind="several"))
case("recomputed", model=partial(nets.Deep, kind="recomputed"))
case("a forward hook", model=partial(nets.Deep, kind="hooked"))
case("a hook on a gradient", model=partial(nets.Deep, kind="gradient hook"))
case("parameters that nothing uses", "device.ddp.find_unused_parameters=true", model=partial(nets.Deep, kind="unused"))
case("called by a mapping of weights", model=nets.Functional)
case("parameters outside of layers", model=nets.Loose)
case("complex weights", model=nets.Waves)
case("forces", "device.ddp.find_unused_parameters=true", model=nets.Slopes)
of_forces = ("batch.outputs=[0, 1]",)


def with_gradients(model: nn.Module, batch: Any, loss: Any) -> Any:
    """An evaluation by hand, of what takes gradients itself."""
    with torch.enable_grad():
        value = loss(*model(batch[0]), batch[1])
    model.zero_grad()
    return value.detach()


def of_both(model: nn.Module, batch: Any, loss: Any) -> Any:
    return loss(*model(batch[0]), batch[1])


for way in ("autograd", "hook", "functional", "jacrev"):
    case(
        f"energies and forces by {way}",
        *of_forces,
        model=partial(nets.Forces, way=way),
        loss=losses.of_forces,
        forward=of_both,
        score=with_gradients,
    )
case(
    "an equation in the loss",
    *of_forces,
    model=nets.Solution,
    loss=losses.of_equation,
    forward=of_both,
    score=with_gradients,
)


def of_own(model: nn.Module, batch: Any, loss: Any) -> Any:
    with torch.enable_grad():
        return model(batch[0])


case(
    "an equation in the model",
    "loss=model",
    model=partial(nets.Solution, residual=True),
    loss=None,
    forward=of_own,
)


def one_with_gradients(model: nn.Module, batch: Any, loss: Any) -> Any:
    with torch.enable_grad():
        return loss(model(batch[0]), batch[1])


case("a judge's slopes in the loss", loss=losses.Steep, score=one_with_gradients)
case("backward in forward", model=nets.Adapting, worlds=(), refused=1)


def of_penalty(model: nn.Module, batch: Any, _: Any) -> Any:
    with torch.enable_grad():
        return steps.penalised(model, batch)["loss"]


case("a penalty of slopes in a step", "train.step=steps.py:penalised", loss=None, forward=of_penalty)
case("a wrapper that passes all on", model=nets.Wrapper)
case(
    "a wrapper that hands its own out",
    "train.step=steps.py:by_method",
    model=nets.Wrapper,
    loss=None,
    forward=lambda model, batch, _: nn.functional.mse_loss(model.score(batch[0]), batch[1]),
)

# ---------------------------------------------------------------------- that do things to themselves

case("LoRA that folds itself in", model=nets.Folding)
case("LoRA inside, its base frozen", model=nets.FoldingInside)
case("weights changed by train()", model=nets.Forgetting)
case("extra state", model=nets.Extra, pieces=False)
case("extra state: an array", model=nets.ExtraArray, pieces=False)
case("a number in the state_dict", model=nets.Numbered, pieces=False)
case("a buffer that forward moves", model=nets.Counting, pieces=False)
case("a buffer that grows", model=nets.Growing, worlds=(), refused=1)
case("rounded to 8 bits, scale observed", model=nets.Quantized)
case("float64 as torch's default", model=nets.Defaulted)
case("weights of 16 bits", model=partial(nets.Lin, dtype=torch.bfloat16), exact=0.02)
case("weights of 32 bits", model=partial(nets.Lin, dtype=torch.float32), exact=1e-5)
case(
    "inputs by name",
    "batch={inputs: {left: x.left, right: x.right}, targets: [y.0]}",
    model=nets.Halves,
    data=partial(sets.Shaped, kind="nested"),
    forward=lambda model, batch, loss: loss(model(batch["x"]["left"], batch["x"]["right"]), batch["y"][0]),
)
case("dropout that is off", model=partial(layers.mlp, dropout=0.0))
case("dropout", model=partial(layers.mlp, dropout=0.5), worlds=(1,), pieces=False)
