"""torch's compiler, left unloaded where nobody compiles.

Making an optimizer or DDP imports `torch._dynamo` only to say that it shall not be compiled, or to ask a setting of the
compiler's: 0.7 s in every process, as long as torch itself takes. Where nobody has imported it, nothing is being
compiled, and no setting of its can be another than torch's own.

What is put in its place is tried on a function of our own first. Where torch calls something else, or otherwise, all is
left to torch, which then takes its time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from launcher import internals
from launcher.internals import COMPILER
from launcher.world.world import wants_plain_torch

_DDP_MODE = "ddp_optimizer"  # torch's own choice of how a compiled DDP adds its gradients


def optimizers() -> None:
    """Lets optimizers be made, saved and loaded without the compiler, from now on."""
    for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
        _spare(getattr(Optimizer, name, None))


@contextmanager
def ddp() -> Iterator[None]:
    """Lets DDP be made without the compiler meanwhile, and be called without it from now on."""
    _spare(internals.ddp_forward(), recursive=False)
    if _wrapper() is None or not internals.asks_compiler_one_thing(DistributedDataParallel.__init__):
        yield
        return
    stand_in = _Later(COMPILER, utils=_Later(f"{COMPILER}.utils", get_optimize_ddp_mode=lambda: _DDP_MODE))
    with internals.compiler_replaced(stand_in):
        yield


class _Later:
    """A module that is loaded when something of it is asked for that is not known before."""

    def __init__(self, name: str, **known: Any):
        self.__name__ = name
        vars(self).update(known)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.__name__), attribute)


def _spare(wrapper: Callable[..., Any] | None, recursive: bool = True) -> None:
    """Puts the function itself where torch's wrapper would put what the compiler makes of it, until one is loaded."""
    function: Any = getattr(wrapper, "__wrapped__", None)
    code = getattr(wrapper, "__code__", None)
    if function is None or wrapper is None or code is None or code is not _wrapper() or internals.is_spared(function):
        return
    internals.spare(function, _uncompiled(function, recursive))


def _uncompiled(function: Callable[..., Any], recursive: bool) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not internals.is_compiler_loaded():
            return function(*args, **kwargs)
        disabled = torch.compiler.disable(function, recursive=recursive)  # as torch does
        internals.spare(function, disabled)
        return disabled(*args, **kwargs)

    return call


@cache
def _wrapper() -> CodeType | None:
    """The code of what torch puts around functions that it keeps from the compiler, if it can be spared that.

    Going both ways would load the compiler, which is what this is to avoid: what is compared with is the function
    itself, called without anything around it, as the compiler calls what it keeps away from.
    """
    if wants_plain_torch() or internals.is_compiler_loaded():
        return None
    try:
        return _tried(internals.kept_from_compiler())
    except Exception:  # whatever another torch says of what it does not know
        return None


def _tried(keep: Callable[..., Any]) -> CodeType | None:
    def doubled(values: torch.Tensor, *, less: float) -> torch.Tensor:
        return values * 2 - less

    wrapper = keep(doubled)
    internals.spare(doubled, _uncompiled(doubled, recursive=True))
    values = torch.arange(3, device="cpu", dtype=torch.float32)
    is_same = torch.equal(wrapper(values, less=0.1), doubled(values, less=0.1))
    code: CodeType = wrapper.__code__
    return code if is_same and wrapper.__wrapped__ is doubled and not internals.is_compiler_loaded() else None
