"""3: model. A model that is bfloat16 itself (`device.precision: bf16-true`): half the memory of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from accelerate.utils.operations import recursively_apply
from torch import nn

from launcher.internals import batch_norms
from launcher.recipe.build import Builder


def hold_in_bfloat16(builder: Builder, bare: nn.Module) -> str:
    """Makes parameters and buffers bfloat16, and has forward take and give what a model in float32 would.

    Args:
        builder: Says where something is wrong.
        bare: The module.

    Raises:
        RecipeError: It has complex numbers, which bfloat16 has not.
    """
    named = (*bare.named_parameters(), *bare.named_buffers())
    if strange := [name for name, tensor in named if tensor.is_complex()]:
        message = f"bf16-true: '{strange[0]}' of the model is complex, and bfloat16 has no complex numbers; use bf16"
        raise builder.wrong("device.precision", message)
    norms = any(isinstance(module, batch_norms()) for module in bare.modules())
    for tensor, dtype in _held(bare):
        tensor.data = tensor.data.to(dtype)
    own = ((part, *pair) for part in bare.modules() for pair in part.named_parameters(recurse=False))
    if inner := next(((part, name) for part, name, value in own if value.dtype == torch.bfloat16), None):
        bare.forward = AtTheDoor(bare, *inner)
    but = " (BatchNorm stays in float32)" if norms else ""
    return f"bf16-true: parameters, gradients and buffers of the model are bfloat16{but}; losses are taken in float32"


def _held(bare: nn.Module) -> Iterator[tuple[torch.Tensor, torch.dtype]]:
    """Parameters and buffers, with the type that each is held in."""
    for module in bare.modules():
        # means of a BatchNorm move by less than bfloat16 can tell; torch's kernels take both together
        dtype = torch.float32 if isinstance(module, batch_norms()) else torch.bfloat16
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                yield tensor, dtype


@contextmanager
def held_for_a_while(bare: nn.Module) -> Iterator[None]:
    """The same types for a while; afterwards each has its own again, with the values that bfloat16 has."""
    types = [(tensor, tensor.dtype, dtype) for tensor, dtype in _held(bare)]
    for tensor, _, dtype in types:
        tensor.data = tensor.data.to(dtype)
    yield
    for tensor, before, _ in types:
        tensor.data = tensor.data.to(before)


class AtTheDoor:
    """A module's forward that takes floats of any kind, and gives no half precision to a loss.

    It is set on the instance: names, class and state_dict stay as they are, and a copy of the module has its own.

    Args:
        module: The module.
        inner: The part of it that has the parameter whose dtype inputs are made.
        name: That parameter's name there.
    """

    def __init__(self, module: nn.Module, inner: nn.Module, name: str):
        self._forward, self._inner, self._name = module.forward, inner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it."""
        held: torch.Tensor = getattr(self._inner, self._name)
        dtype, device = held.dtype, held.device.type

        def fits(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype)

        args, kwargs = recursively_apply(fits, (args, kwargs), test_type=_is_real)
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return convert_to_fp32(self._forward(*args, **kwargs))
        with torch.autocast(device, enabled=False):  # which is for what a step function calls beside it
            return convert_to_fp32(self._forward(*args, **kwargs))


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
