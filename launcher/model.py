"""3: model. Build it, place it, compile it, and say what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from launcher import checkpoints, uncompiled
from launcher.checkpoints import Checkpoint
from launcher.device import Device, seed_everything
from launcher.errors import LauncherError, Problem, RecipeError, UsageError
from launcher.recipe import schema
from launcher.recipe.components import Workshop
from launcher.recipe.generated_code import check_names
from launcher.recipe.inputs import unreadable
from launcher.runs import folder as runs
from launcher.runs.words import size


@dataclass(frozen=True)
class Model:
    """One module, seen two ways.

    Attributes:
        bare: The module as its class made it: what is evaluated and saved.
        wrapped: What training calls: `bare` under DDP, autocast and compilation, as the run needs.
        notes: What was chosen by the program, for the plan.
    """

    bare: nn.Module
    wrapped: nn.Module
    notes: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """The unwrapped weights: no `module.`, no `_orig_mod.`."""
        return dict(self.bare.state_dict())

    def describe(self) -> str:
        """Class, parameters and their size, for the plan."""
        parameters = list(self.bare.parameters())
        total = sum(parameter.numel() for parameter in parameters)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        frozen = f", {trained:,} of them trained" if trained != total else ""
        return f"{type(self.bare).__name__}, {total:,} parameters{frozen}, {size(num_bytes)}"


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
    if any(is_lazy(parameter) for parameter in bare.parameters()):
        message = "has lazy modules, whose sizes nobody knows yet: give them sizes, or pass a batch through it once"
        raise RecipeError([Problem(where, "model", message)])
    if not any(parameter.requires_grad for parameter in bare.parameters()):
        raise RecipeError([Problem(where, "model", "no parameter requires a gradient: there is nothing to train")])
    notes = []
    if recipe.train.start_from is not None:
        notes.append(_load_weights(bare, recipe.document.folder / Path(recipe.train.start_from).expanduser()))
    if section.sync_batchnorm:
        bare = nn.SyncBatchNorm.convert_sync_batchnorm(bare)
    if section.channels_last:
        bare = bare.to(memory_format=torch.channels_last)
    return Model(bare, wrap(bare, device, section), tuple(notes))


def wrap(module: nn.Module, device: Device, section: schema.Device) -> nn.Module:
    """The module under what Accelerate adds (device, autocast, DDP), compiled where asked."""
    bare = module.to(device.torch_device)
    # said, and not left to Accelerate to find out: its looking imports torch.distributed.tensor, a tenth of a start
    with uncompiled.ddp():
        wrapped: nn.Module = device.accelerator.prepare_model(bare, device_placement=True)
    memory = device.coordinator.memory
    if memory is not None and isinstance(wrapped, DistributedDataParallel):
        memory.serve(wrapped)
    if section.compile:
        check_names(bare)
        mode = section.compile if isinstance(section.compile, str) else "default"
        wrapped = torch.compile(wrapped, mode=mode)  # type: ignore[assignment]  # it is an OptimizedModule
    return wrapped


def _load_weights(model: nn.Module, path: Path) -> str:
    """Takes over what fits of saved weights; says what did not.

    Args:
        model: The bare module.
        path: A `.pth` or `.safetensors` file, a checkpoint, or a run's folder.

    Raises:
        LauncherError: There are no weights, they are damaged, or none of them fits.
    """
    own = model.state_dict()
    try:
        source = find_weights(path)
        state = _unprefixed(read_weights(source))
    except UsageError as error:  # nothing is there, or something else
        raise UsageError(f"train.start_from: {error}") from error
    except LauncherError as error:
        raise LauncherError(f"train.start_from: {error}") from error
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise LauncherError(
            f"train.start_from: none of the {len(state)} tensors in {path} fits this model; it has "
            f"{_some(list(own))}, the file {_some(list(state))}"
        )
    model.load_state_dict(fitting, strict=False)
    strange = {
        "missing there": [name for name in own if name not in state],
        "of another shape": [name for name in state if name in own and name not in fitting],
        "not in this model": [name for name in state if name not in own],
    }
    rest = "".join(f"; {what}: {_some(names)}" for what, names in strange.items() if names)
    step = f", step {source.step:,}" if isinstance(source, Checkpoint) else ""
    return f"started from {path}{step}: {len(fitting)} of {len(own)} tensors{rest}"


def find_weights(path: Path) -> Path | Checkpoint:
    """The weights that a path names: a file, a checkpoint, or a run's; its final ones, else its newest checkpoint's.

    Nothing is changed there: a damaged checkpoint of another run is passed over, and left to that run.

    Raises:
        UsageError: There are none.
        DamagedError: The checkpoint is not what was written, or all of them are not.
    """
    if fault := unreadable(path):
        raise UsageError(f"'{path}' {fault}; name a run's folder, a checkpoint, or a file of weights")
    if not path.exists():
        raise UsageError(f"there are no weights at '{path}'")
    folder = path.parent if path.name == checkpoints.WEIGHTS else path
    if (folder / checkpoints.MANIFEST).exists():
        return checkpoints.verify(folder)
    if path.is_file():
        return path
    if (path / runs.WEIGHTS_FILE).exists():
        return path / runs.WEIGHTS_FILE
    saved = checkpoints.listed(path / "checkpoints")
    for one in saved:
        with suppress(checkpoints.DamagedError):
            return checkpoints.verify(one)
    if saved:
        raise checkpoints.DamagedError(f"{path}: all its checkpoints are damaged")
    is_run = (path / runs.ENVIRONMENT_FILE).exists()
    what = "nothing was saved yet" if is_run else "neither a run's folder nor a checkpoint in one"
    raise UsageError(f"{path}: {what}; `launcher runs` lists the runs")


def read_weights(source: Path | Checkpoint) -> Mapping[str, torch.Tensor]:
    """The weights in a `.pth` or `.safetensors` file or a checkpoint, on the CPU.

    Raises:
        LauncherError: The file holds more than tensors, or something else.
    """
    if isinstance(source, Checkpoint):
        return source.weights()
    try:
        if source.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(source)
        state = torch.load(source, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise TypeError("it holds more than a state_dict of tensors")
    except Exception as error:  # whatever a reader raises: the file is not what it should be
        raise LauncherError(f"{source} cannot be read: {error}") from error
    return state


def _unprefixed(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Without what DDP and torch.compile put before every name."""
    for prefix in ("module.", "_orig_mod."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", … ({len(names)})" if len(names) > 4 else "")
