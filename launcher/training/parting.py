"""Ranks that part are noticed: each steps by itself, and nothing else would ever say that their weights differ.

A sum over the parameters is compared, on the side channel, at every save, at the second step, where what parts them
by design has shown itself, and every 100 steps; no step waits for it.
Buffers are left out: running means differ between ranks by design.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import torch

from launcher.device.coordination import Coordinator, Pending, packed, unpacked
from launcher.device.kind import OnItsWay, kind_of
from launcher.errors import LauncherError

FIRST, EVERY = 2, 100  # steps
_LATER = 10  # steps until what was begun is looked at: by then it is there
_ROUNDING = 1e-3  # of the sum's size: more is not rounding between machines
_ON_ONE_MACHINE = 1e-7  # there: each step adds the same numbers to the same weights


class PartedError(LauncherError):
    """The ranks train different weights."""


class Parting:
    """Compares the ranks' weights now and then.

    Args:
        parameters: What all ranks should have the same of.
        coordinator: The ranks' side channel; there are several.
        warn: Gets a line where machines round differently; once.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], coordinator: Coordinator, warn: Callable[[str], None]):
        self._parameters = [
            parameter for parameter in parameters if parameter.is_floating_point() or parameter.is_complex()
        ]
        self._coordinator, self._warn = coordinator, warn
        self._own: tuple[OnItsWay, int] | None = None  # of a step
        self._pending: Pending | None = None
        self._has_warned = False

    def after(self, step: int) -> None:
        """Begins a comparison, or looks at the one that was begun a few steps ago; called after each step.

        Raises:
            PartedError: The ranks have parted.
        """
        place = step % EVERY
        if place == 0 or step == FIRST:
            self._own = self._sums(), step
        elif place == _LATER:
            self._begin()
        elif place == 2 * _LATER:
            self._judge()

    def compare(self, step: int) -> None:
        """The same at once, before anything is kept.

        Raises:
            PartedError: The ranks have parted.
        """
        self._begin()
        self._judge()
        self._own = self._sums(), step
        self._begin()
        self._judge()

    @torch.no_grad()
    def _sums(self) -> OnItsWay:
        """The sum of all parameters, and that of their sizes, on their way to host memory: nobody waits for them."""
        real = [
            torch.view_as_real(parameter) if parameter.is_complex() else parameter for parameter in self._parameters
        ]
        kind = kind_of(real[0].device)
        total = torch.stack([tensor.sum(dtype=kind.wide) for tensor in real]).sum()
        size = torch.stack([torch.linalg.vector_norm(tensor, 1, dtype=kind.wide) for tensor in real]).sum()
        return kind.to_host(torch.stack([total, size]))

    def _begin(self) -> None:
        if self._own is not None and self._pending is None:
            own = self._own[0].here().double()
            self._pending = self._coordinator.max(torch.cat([own, -own]))

    def _judge(self) -> None:
        """Looks at the largest and the smallest of all ranks."""
        if self._pending is None or self._own is None:
            return
        largest, smallest = self._pending.result().view(2, 2)
        spread = (largest + smallest).tolist()  # the smallest have their sign turned
        (copied, step), size = self._own, float(largest[1])
        self._pending = self._own = None
        if not max(spread) > 0:
            return
        relative = max(spread) / size
        if relative > _ON_ONE_MACHINE or not self._has_warned:
            self._say(copied.tensor, step, relative)

    def _say(self, own: torch.Tensor, step: int, relative: float) -> None:
        """Says who differs: all ranks have seen the same numbers, and come here together."""
        told = [
            unpacked(payload) for payload in self._coordinator.gather(packed([socket.gethostname(), *own.tolist()]))
        ]
        first = told[0]
        rank, other = next((rank, report) for rank, report in enumerate(told) if report[1:] != first[1:])
        between = f"rank 0 ({first[0]}) and rank {rank} ({other[0]})"
        on_one = len({report[0] for report in told}) == 1
        if relative > (_ON_ONE_MACHINE if on_one else _ROUNDING):
            raise PartedError(
                f"step {step}: the weights of {between} have parted: their sums are {first[1]:.9g} and "
                f"{other[1]:.9g}; each rank trains a model of its own: look for weights or gradients that a step, a "
                "hook or an optimizer changes by rank, and for steps that go around DDP"
            )
        if not self._has_warned:
            self._has_warned = True
            self._warn(
                f"step {step}: the weights of {between} differ by {relative:.1g} of their size, as machines of "
                "different kinds round"
            )
