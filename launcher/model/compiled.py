"""3: model. torch.compile, block by block where blocks are repeated: one is compiled, and serves all."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from launcher.datasets.files import cache_path
from launcher.model.blocks import blocks_of
from launcher.version import __version__

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
WITH_GRAPHS = ("reduce-overhead", "max-autotune")  # one CUDA graph of the model, and not one of each block


def compile_blocks(bare: nn.Module, wanted: bool | str) -> str:
    """Has the repeated blocks of a model compiled when they are first called; gives what the plan says of it.

    Args:
        bare: The module.
        wanted: The recipe's `device.compile`.

    Returns:
        Nothing where the model is to be compiled as a whole: it repeats none, or CUDA graphs are asked for.
    """
    blocks = blocks_of(bare) if wanted and wanted not in WITH_GRAPHS else None
    if not blocks:
        return ""
    mode = wanted if isinstance(wanted, str) else "default"
    for block in blocks.modules.values():
        block.forward = Compiled(block, mode)
    return f"{blocks.counted}: compiled one by one, the rest is as it is"


def compiled_in(module: nn.Module) -> bool:
    """Whether blocks of a model are compiled one by one."""
    return any(_is_compiled(vars(part).get("forward")) for part in module.modules())


def _is_compiled(forward: Any) -> bool:
    return isinstance(forward, Compiled) or isinstance(getattr(forward, "inner", None), Compiled)


class Compiled:
    """The forward of a module, compiled where it is trained, and as it is where it is evaluated.

    It is set on the instance: names, class and state_dict stay as they are, and hooks stay outside. A copy of the
    module has its own, which compiles nothing before it is called.

    Attributes:
        inner: The forward that is called.
        compiled: What was made of it; None before it is called to train.

    Args:
        module: The module, which may have a forward of its own already.
        mode: One of torch.compile's.
    """

    def __init__(self, module: nn.Module, mode: str):
        self._module, self.inner, self._mode = module, module.forward, mode
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it."""
        if not (self._module.training and torch.is_grad_enabled()):
            return self.inner(*args, **kwargs)
        if self.compiled is None:
            self.compiled = torch.compile(self.inner, mode=self._mode)
        return self.compiled(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, which is of this module and no other."""
        return {**self.__dict__, "compiled": None}


def keep_compiled(model: str, device: str) -> str:
    """Has torch keep what it compiles for this model in the user's own cache, unless somebody says where; gives where.

    It holds code: never in a run's folder, which may be somebody else's.

    Args:
        model: What the recipe says of it.
        device: What the device calls itself.
    """
    if CACHE_VARIABLE not in os.environ:
        versions = torch.__version__, __version__, platform.python_version()
        folder = cache_path("compiled", model, *versions, device)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return ""  # torch's own place will do
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return ""
        os.environ[CACHE_VARIABLE] = str(folder)
    return os.environ[CACHE_VARIABLE]
