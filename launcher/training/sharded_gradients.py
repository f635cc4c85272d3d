"""5: training. Gradients of which each process has some rows: looked at, and kept small, as those of the whole."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from launcher.errors import LauncherError
from launcher.model.sharding import Shards

_MARKS = 2**16  # so few that a sum of them is exact in float32


@dataclass(frozen=True)
class Clipping:
    """How gradients are kept small.

    Attributes:
        norm: Largest norm of all gradients together, or None.
        value: Largest size of each entry, or None.
    """

    norm: float | None = None
    value: float | None = None

    def __call__(self, parameters: list[torch.Tensor]) -> torch.Tensor | None:
        """Clips; the norm before, where that is what is kept small."""
        if any(one.grad is not None and one.grad.layout is not torch.strided for one in parameters):
            return self._clip_sparse([one for one in parameters if one.grad is not None])
        if self.value is not None:
            nn.utils.clip_grad_value_(parameters, self.value)
        return nn.utils.clip_grad_norm_(parameters, self.norm) if self.norm is not None else None

    @torch.no_grad()
    def _clip_sparse(self, parameters: list[torch.Tensor]) -> torch.Tensor | None:
        """The same by what sparse gradients hold, for which torch has no kernels: what they leave out is zero."""
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad.layout is torch.sparse_coo:
                parameter.grad = parameter.grad.coalesce()  # entries of one place are one
        numbers = [values_of(parameter.grad) for parameter in parameters if parameter.grad is not None]
        if (most := self.value) is not None:
            for entries in numbers:
                entries.clamp_(-most, most)
        if self.norm is None:
            return None
        norm = nn.utils.get_total_norm([entries for entries in numbers if entries.numel()])
        for entries in numbers:
            entries.mul_((self.norm / (norm + 1e-6)).clamp(max=1.0).to(entries.device))
        return norm


def values_of(gradient: torch.Tensor) -> torch.Tensor:
    """What a gradient holds, dense; of a coalesced one the very numbers."""
    if gradient.layout is torch.sparse_coo:
        return gradient.coalesce().values()
    return gradient if gradient.layout is torch.strided else gradient.values()


class ShardedGradients:
    """What the whole model's gradients are: whether all are finite, and their norm, by one all-reduce a step.

    Args:
        shards: What this process holds.
        clipping: How gradients are kept small.
    """

    def __init__(self, shards: Shards, clipping: Clipping):
        self._shards, self._clipping = shards, clipping
        self._norm: torch.Tensor | None = None
        self._mark = -1  # of the parameters that had a gradient in the last step
        self._dtype = next((shard.local.dtype for shard in shards.named.values()), torch.float32)

    def collect(self) -> None:
        """Takes up what backward has left."""
        self._shards.collect()

    def clear(self) -> None:
        """Forgets them."""
        self._shards.clear()

    @property
    def gradients(self) -> list[torch.Tensor]:
        """This process's rows of them."""
        return self._shards.gradients

    @torch.no_grad()
    def agree(self, flag: torch.Tensor) -> None:
        """Raises every process's flag where one's is up; the norm is made on the way.

        Args:
            flag: 1 where one of this process's gradients is not finite, in place.

        Raises:
            LauncherError: Processes have gradients of different parameters, which were added up with one another.
        """
        numbers = flag.new_zeros(3, dtype=self._shards.sharding.device.kind.wide)
        numbers[0] = flag
        used = [name for name, shard in self._shards.named.items() if shard.local.grad is not None]
        numbers[2] = mark = zlib.crc32(" ".join(used).encode()) % _MARKS
        if self._clipping.norm is not None and self.gradients:
            norms = [nn.utils.get_total_norm([gradient]) for gradient in self.gradients]
            numbers[1] = torch.stack([norm.to(numbers.dtype) for norm in norms]).square().sum()
        dist.all_reduce(numbers)  # of all groups too: where processes are copies of one another, gradients are averaged
        if mark != self._mark:  # else nobody waits for a device
            self._mark = mark
            if float(numbers[2]) != mark * dist.get_world_size():
                raise LauncherError(
                    "device.sharding: processes got gradients of different parameters in this step, which cannot be "
                    "told apart; use all of them in each forward, or set device.ddp.find_unused_parameters: true"
                )
        flag.copy_(numbers[0].clamp(max=1.0))
        self._norm = (numbers[1] / self._shards.mesh.groups).sqrt().to(self._dtype)  # each group has all of it

    def clip(self) -> torch.Tensor | None:
        """Clips, as `Clipping` does; after `agree`."""
        rows = self._shards.with_gradients
        if self._clipping.value is not None:
            nn.utils.clip_grad_value_(rows, self._clipping.value)
        if self._clipping.norm is None or self._norm is None:
            return None
        nn.utils.clip_grads_with_norm_(rows, self._clipping.norm, self._norm)
        return self._norm
