"""The chaotic series of Mackey and Glass (1977), made by arithmetic, and a network that says how it goes on."""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

DELAY, A_UNIT = 17, 10  # of the equation, in units of time; steps of integration in a unit


@cache
def series(length: int) -> Tensor:
    """A value for each unit of time, of mean 0 and deviation 1.

    x' = 0.2 x(t - 17) / (1 + x(t - 17)¹⁰) - 0.1 x(t), integrated by Euler's steps of 0.1.
    """
    lag, ahead = DELAY * A_UNIT, 500 * A_UNIT
    values = np.full(lag + ahead + length * A_UNIT, 1.2)
    for now in range(lag, len(values)):
        delayed, before = values[now - lag], values[now - 1]
        values[now] = before + (0.2 * delayed / (1 + delayed**10) - 0.1 * before) / A_UNIT
    chosen = torch.from_numpy(values[lag + ahead :: A_UNIT].copy()).float()
    return (chosen - chosen.mean()) / chosen.std()


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """What was [past, 1], with a little noise, and what comes [horizon].

    Args:
        first: Where in the series they begin.
        last: Where they end.
        past: How many values are seen.
        horizon: How many are to be said.
    """

    def __init__(self, first: int, last: int, past: int = 64, horizon: int = 32) -> None:
        self.values, self.past, self.horizon = series(10_000)[first:last], past, horizon
        noise = torch.randn(len(self.values), generator=torch.Generator().manual_seed(first))
        self.measured = self.values + 0.05 * noise

    def __len__(self) -> int:
        return len(self.values) - self.past - self.horizon + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        now = index + self.past
        return self.measured[index:now, None], self.values[now : now + self.horizon]


class Forecaster(nn.Module):
    """A GRU that reads what was; a linear layer says all that comes at once."""

    def __init__(self, width: int = 64, horizon: int = 32) -> None:
        super().__init__()
        self.recurrent = nn.GRU(1, width, batch_first=True)
        self.head = nn.Linear(width, horizon)

    def forward(self, past: Tensor) -> Tensor:
        """Maps [N, past, 1] to [N, horizon]."""
        said: Tensor = self.head(self.recurrent(past)[1][0])
        return said


def baseline() -> float:
    """The mean squared error of the best linear map from what was to what comes, on the test's part."""
    (seen, true), (past, future) = (_all(Windows(*part)) for part in ((0, 8000), (9000, 10_000)))
    return float((past @ torch.linalg.lstsq(seen, true).solution - future).square().mean())


def _all(windows: Windows) -> tuple[Tensor, Tensor]:
    past, future = zip(*(windows[index] for index in range(len(windows))), strict=True)
    return torch.stack(past).squeeze(-1), torch.stack(future)


if __name__ == "__main__":
    print(f"mean squared error of linear autoregression: {baseline():.4f}")
