"""torch's compiler, left unloaded where nobody compiles.

Making an optimizer or DDP imports `torch._dynamo` only to say that it shall not be compiled, or to ask a setting of the
compiler's: 0.7 s in every process, as long as torch itself takes. Where nobody has imported it, nothing is being
compiled, and no setting of its can be another than torch's own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

_COMPILER = "torch._dynamo"
_CACHED = "__dynamo_disable"  # where torch keeps what its compiler has made of a function
_DDP_MODE = "ddp_optimizer"  # torch's own choice of how a compiled DDP adds its gradients


def optimizers() -> None:
    """Lets optimizers be made, saved and loaded without the compiler, from now on."""
    for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
        _spare(getattr(getattr(Optimizer, name), "__wrapped__", None))


@contextmanager
def ddp() -> Iterator[None]:
    """Lets DDP be made without the compiler meanwhile, and be called without it from now on."""
    entered = getattr(getattr(DistributedDataParallel, "_inside_ddp_forward", None), "__wrapped__", None)
    _spare(getattr(entered, "__wrapped__", None), recursive=False)
    stand_in: Any = _Later(_COMPILER, utils=_Later(f"{_COMPILER}.utils", get_optimize_ddp_mode=lambda: _DDP_MODE))
    if _COMPILER not in sys.modules:
        torch._dynamo = stand_in
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is stand_in:
            del torch._dynamo


class _Later:
    """A module that is loaded when something of it is asked for that is not known before."""

    def __init__(self, name: str, **known: Any):
        self.__name__ = name
        vars(self).update(known)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.__name__), attribute)


def _spare(function: Callable[..., Any] | None, **how: Any) -> None:
    """Puts what waits for the compiler where torch would put what the compiler makes."""
    if function is not None and not hasattr(function, _CACHED):
        setattr(function, _CACHED, _uncompiled(function, **how))


def _uncompiled(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if _COMPILER not in sys.modules:
            return function(*args, **kwargs)
        disabled = torch._dynamo.disable(function, wrapping=False, **how)  # as torch does
        setattr(function, _CACHED, disabled)
        return disabled(*args, **kwargs)

    return call
