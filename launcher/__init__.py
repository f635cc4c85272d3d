"""Distributed training from a recipe: data, device, model, objective, training, evaluation, saving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher.version import __version__

if TYPE_CHECKING:
    from launcher.api import train

__all__ = ["__version__", "train"]


def __getattr__(name: str) -> Any:
    # imported when asked for: `launcher --help` must not wait for torch
    if name == "train":
        from launcher.api import train

        return train
    raise AttributeError(f"module 'launcher' has no attribute '{name}'")
