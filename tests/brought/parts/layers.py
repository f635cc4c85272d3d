"""Torch's own layers, as people put them together; in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from nets import made, sequential
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Last(nn.Module):
    """What a layer for sequences gives at its last place."""

    def __init__(self, layer: nn.Module, width: int, by_time: bool = False):
        super().__init__()
        self.layer, self.head, self.by_time = layer, nn.Linear(width, 1), by_time

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        out = out[0] if isinstance(out, tuple) else out
        scores: Tensor = self.head(out)
        return scores.squeeze(-1)


@made
def lstm() -> nn.Module:
    return Last(nn.LSTM(4, 3, batch_first=True, num_layers=2), 3)


@made
def gru() -> nn.Module:
    return Last(nn.GRU(4, 3, batch_first=True, bidirectional=True), 6)


@made
def transformer() -> nn.Module:
    return Last(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), 4)


@made
def attention() -> nn.Module:
    return Last(Attending(), 4)


class Attending(nn.Module):
    """Each place looks at all."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


@made
def mlp(norm: str = "layer", dropout: float = 0.0) -> nn.Module:
    norms: dict[str, Callable[[], nn.Module]] = {
        "layer": lambda: nn.LayerNorm(6),
        "group": lambda: nn.GroupNorm(2, 6),
        "rms": lambda: nn.RMSNorm(6),
        "batch": lambda: nn.BatchNorm1d(6),
        "frozen batch": lambda: nn.BatchNorm1d(6, track_running_stats=True).eval(),
    }
    return sequential(nn.Linear(4, 6), norms[norm](), nn.SiLU(), nn.Dropout(dropout), nn.Linear(6, 1))


@made
def spectral() -> nn.Module:
    return sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 1))


@made
def convolutions(masks: bool = False) -> nn.Module:
    body = [nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()]
    head = [nn.Conv2d(4, 2, 1)] if masks else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return sequential(*body, *head)


@made
def normed_convolutions() -> nn.Module:
    body = [nn.Conv2d(2, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4)]
    return sequential(*body, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))


@made
def residual() -> nn.Module:
    return sequential(nn.Linear(4, 5), *(Residual() for _ in range(2)), nn.Linear(5, 1))


class Residual(nn.Module):
    """Adds to what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(5, 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x, x))


@made
def experts() -> nn.Module:
    return Experts()


class Experts(nn.Module):
    """Each sample goes to one expert: in some steps one of them gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x).softmax(1)
        outputs = torch.cat([expert(x) for expert in self.experts], 1)
        best = gates.argmax(1, keepdim=True)
        out: Tensor = gates.gather(1, best) * outputs.gather(1, best)
        return out


@made
def jitted() -> nn.Module:
    return torch.jit.trace(nn.Linear(4, 1).double(), torch.zeros(2, 4, dtype=torch.float64))  # type: ignore[no-any-return]
