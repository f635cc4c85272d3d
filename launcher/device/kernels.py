"""Which of a device's kernels compute: deterministic ones, TensorFloat-32, cuDNN's fastest; and back afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from launcher.errors import UsageError
from launcher.recipe import schema

_WORKSPACE, _SAME_EACH_TIME = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # torch knows no others


def settle_workspace(section: schema.Device) -> None:
    """Has cuBLAS add up alike each time, where that is asked for: torch looks once per process, at its first product.

    Called before the device is used: Accelerate's choice of one already begins CUDA.

    Raises:
        UsageError: It may be too late, or the variable says something else.
    """
    setting = os.environ.get(_WORKSPACE)
    if not section.deterministic or setting in _SAME_EACH_TIME:
        return
    if setting is None and not torch.cuda.is_initialized():
        os.environ[_WORKSPACE] = _SAME_EACH_TIME[0]
        return
    fault = "is not set, and this process has used its GPU already" if setting is None else f"is {setting!r}"
    raise UsageError(
        f"device.deterministic: {_WORKSPACE} {fault}; set {_WORKSPACE}={_SAME_EACH_TIME[0]} before Python starts, or "
        "restart the kernel of a notebook"
    )


@contextmanager
def kernels_chosen(section: schema.Device, device: torch.device) -> Iterator[None]:
    """The recipe's choice for a while: a notebook trains other things afterwards, with what it had set.

    Args:
        section: The recipe's `device`.
        device: Where it computes.
    """
    with ExitStack() as stack:
        if section.deterministic:
            stack.enter_context(_deterministic())
        if device.type == "cuda":
            if section.tf32 is not None:
                for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
                    stack.enter_context(_set(backend, "allow_tf32", section.tf32))
            stack.enter_context(_set(torch.backends.cudnn, "benchmark", not section.deterministic))
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


@contextmanager
def _set(backend: Any, name: str, value: bool) -> Iterator[None]:
    before = _setting(backend, name)
    setattr(backend, name, value)
    try:
        yield
    finally:
        if before is not None:
            setattr(backend, name, before)


def _setting(backend: Any, name: str) -> bool | None:
    """None where it was set by torch's newer names for it, in ways that the older one cannot say."""
    with suppress(RuntimeError):
        return bool(getattr(backend, name))
    return None


def kernel_notes(section: schema.Device, device: torch.device) -> Iterator[str]:
    """What the plan should say of them."""
    if device.type != "cuda":
        return
    products, convolutions = (_setting(backend, "allow_tf32") for backend in (_MATMUL, torch.backends.cudnn))
    whose = "torch's own setting; device.tf32 sets both" if section.tf32 is None else "device.tf32"
    settings = f"{_in_words(products)} for float32 matrix products, {_in_words(convolutions)} for convolutions"
    yield f"TF32: {settings} ({whose})"
    if not section.deterministic:
        yield "cuDNN tries which of its convolutions is the fastest; device.deterministic: true turns that off"
    if section.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield "this GPU has no bfloat16 of its own and emulates it, slower than float32: device.precision: fp16 or 'no'"


_MATMUL = torch.backends.cuda.matmul


def _in_words(setting: bool | None) -> str:
    return "as you have set it" if setting is None else "on" if setting else "off"
