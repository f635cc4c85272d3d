"""Runs a project's own script, unchanged, for some steps, and writes down the loss of each.

What a run of ours does in a way of its own is done to the script from outside: samples are read in order, and whatever
draws is seeded by sample and by step. The weights that it begins with are kept, so that ours begins with them too.

usage: theirs.py STEPS OUTPUT SCRIPT [ARGUMENTS OF THE SCRIPT]
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from launcher.data.seeds import seed_generators


class Enough(BaseException):
    """All steps are done."""


class Seeded:
    """A data set whose samples are drawn with seeds of their own; all else is the data set's."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        seed_generators(0, 0, index, 0)
        return self._dataset[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)


class Watched:
    """What is seen of a script: put between it and torch, for the rest of this process.

    Args:
        steps: After so many backwards it ends.
        folder: Where `initial.pth` is written.
    """

    def __init__(self, steps: int, folder: Path):
        self.steps, self.folder = steps, folder
        self.losses: list[float] = []
        self._is_seeded = False
        self._drawn = 0
        self._backward, self._load, self._randint = Tensor.backward, DataLoader.__init__, torch.randint

    def watch(self) -> None:
        """Begins."""
        nn.modules.module.register_module_forward_pre_hook(lambda module, _: self._before(module))
        Tensor.backward = lambda tensor, *args, **more: self._after(tensor, *args, **more)  # type: ignore[method-assign]
        DataLoader.__init__ = self._loader()  # type: ignore[method-assign]
        RandomSampler.__iter__ = _in_order  # type: ignore[method-assign]
        torch.randint = self._in_order  # type: ignore[assignment]

    def _before(self, module: nn.Module) -> None:
        """The first forward of a step: of the whole model, as none is called before it."""
        if (
            self._is_seeded
            or not module.training
            or not torch.is_grad_enabled()
            or not any(True for _ in module.parameters())
        ):
            return
        if not self.losses:
            torch.save(module.state_dict(), self.folder / "initial.pth")
        seed_generators(0, len(self.losses), 0)
        self._is_seeded = True

    def _after(self, loss: Tensor, *args: Any, **more: Any) -> None:
        self.losses.append(loss.item())
        self._is_seeded = False
        if len(self.losses) == self.steps:
            raise Enough
        self._backward(loss, *args, **more)

    def _loader(self) -> Any:
        def load(loader: DataLoader[Any], dataset: Any, *args: Any, **settings: Any) -> None:
            settings |= {"num_workers": 0, "pin_memory": False}
            self._load(loader, Seeded(dataset), *args, **settings)

        return load

    def _in_order(self, *args: Any, **settings: Any) -> Tensor:
        """Windows of a text, where a script draws `torch.randint(high, (batch_size,))` of them: one after another."""
        is_of_windows = len(args) == 2 and isinstance(args[1], tuple) and not settings
        if not is_of_windows or not torch.is_grad_enabled():
            drawn: Tensor = self._randint(*args, **settings)
            return drawn
        high, (count,) = args
        first, self._drawn = self._drawn, self._drawn + count
        return torch.arange(first, first + count) % high


def _in_order(sampler: RandomSampler) -> Iterator[int]:
    size = len(sampler.data_source)
    return (number % size for number in range(sampler.num_samples))


def main() -> None:
    """Runs the script."""
    steps, output, script, *arguments = sys.argv[1:]
    watched = Watched(int(steps), Path(output).parent)
    watched.watch()
    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    sys.path[:0] = [str(Path(script).parent.resolve()), str(Path.cwd())]
    with contextlib.suppress(Enough):
        runpy.run_path(script, run_name="__main__")
    Path(output).write_text(json.dumps(watched.losses), encoding="utf-8")


if __name__ == "__main__":
    main()
