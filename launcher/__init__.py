"""Distributed training from a recipe: data, device, model, objective, training, evaluation, saving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher.world import began as _began  # noqa: F401  # the first of all: it notes the time

if TYPE_CHECKING:
    from launcher import datasets as datasets
    from launcher import models as models
    from launcher.api import check, load, train
    from launcher.runs.listing import runs
    from launcher.sweep.call import sweep
    from launcher.version import __version__

__all__ = ["__version__", "check", "load", "runs", "sweep", "train"]


if not TYPE_CHECKING:  # so that a misspelt name is found by a type checker

    def __getattr__(name: str) -> Any:
        # imported when asked for: `launcher --help` must not wait for torch, and as long as this file runs `python -m
        # launcher` looks for modules in the working directory first
        if name in ("check", "load", "train"):
            import warnings

            from launcher.world.system import unsupported

            if reason := unsupported():
                raise ImportError(reason)

            with warnings.catch_warnings():  # tqdm's in a notebook: ours has a bar without widgets
                warnings.filterwarnings("ignore", "IProgress not found")
                from launcher import api

            return getattr(api, name)
        if name in (
            "datasets",
            "models",
            "runs",
            "sweep",
        ):  # `from launcher import runs` would ask here again
            import importlib

            return importlib.import_module(f"launcher.{name}")
        if name == "__version__":
            from launcher.version import __version__

            return __version__
        raise AttributeError(f"module 'launcher' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__]
