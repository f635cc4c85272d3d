"""3: model. Build it, place it, compile it, and say what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.device import Device, seed_everything
from launcher.errors import LauncherError, Problem, RecipeError
from launcher.recipe import schema
from launcher.recipe.components import Workshop


@dataclass(frozen=True)
class Model:
    """One module, seen two ways.

    Attributes:
        bare: The module as its class made it: what is evaluated and saved.
        wrapped: What training calls: `bare` under DDP, autocast and compilation, as the run needs.
    """

    bare: nn.Module
    wrapped: nn.Module

    def state_dict(self) -> dict[str, Any]:
        """The unwrapped weights: no `module.`, no `_orig_mod.`."""
        return dict(self.bare.state_dict())

    def describe(self) -> str:
        """Class, parameters and their size, for the plan."""
        parameters = list(self.bare.parameters())
        total = sum(parameter.numel() for parameter in parameters)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        size = sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 2**20
        frozen = f", {trained:,} of them trained" if trained != total else ""
        return f"{type(self.bare).__name__}, {total:,} parameters{frozen}, {size:.1f} MiB"


def build_model(workshop: Workshop, device: Device) -> Model:
    """Builds the recipe's model with the run's seed, the same on every rank, and wraps it for this world.

    Args:
        workshop: Builds the component; its recipe says seed, weights to start from, and what wraps the model.
        device: Where it goes.

    Raises:
        RecipeError: What came out is not a module, or has nothing to train.
    """
    recipe, section = workshop.recipe, workshop.recipe.device
    seed_everything(recipe.seed)
    bare = workshop.build(recipe.model)
    where = str(recipe.model.origin)
    if not isinstance(bare, nn.Module):
        kind = type(bare).__name__
        raise RecipeError([Problem(where, "model", f"{recipe.model.target} gave a {kind}, not a torch.nn.Module")])
    if not any(parameter.requires_grad for parameter in bare.parameters()):
        raise RecipeError([Problem(where, "model", "no parameter requires a gradient: there is nothing to train")])
    if recipe.train.start_from is not None:
        _load_weights(bare, recipe.document.folder / recipe.train.start_from)
    if section.sync_batchnorm:
        bare = nn.SyncBatchNorm.convert_sync_batchnorm(bare)  # type: ignore[no-untyped-call]  # torch has no types here
    if section.channels_last:
        bare = bare.to(memory_format=torch.channels_last)
    return Model(bare, wrap(bare, device, section))


def wrap(module: nn.Module, device: Device, section: schema.Device) -> nn.Module:
    """The module under what Accelerate adds (device, autocast, DDP), compiled where asked."""
    bare = module.to(device.torch_device)
    wrapped: nn.Module = device.accelerator.prepare_model(bare)
    if section.compile:
        mode = section.compile if isinstance(section.compile, str) else "default"
        wrapped = torch.compile(wrapped, mode=mode)  # type: ignore[assignment]  # it is an OptimizedModule
    return wrapped


def _load_weights(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise LauncherError(f"train.start_from: there is no file '{path}'")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:
        raise LauncherError(f"train.start_from: {path.name} does not fit: {error}") from error
