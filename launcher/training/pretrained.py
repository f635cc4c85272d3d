"""7: saving. At the end of a run, the folder that `from_pretrained` loads, for models that have such a thing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.checkpoints.compare import Batch
from launcher.checkpoints.pretrained import FOLDER, holding, is_loadable, save_folder
from launcher.checkpoints.real_batch import called_by_step, calls_itself
from launcher.checkpoints.rebuilt import rebuilt
from launcher.data.transfer import moved
from launcher.evaluation.modes import evaluating, own_randomness
from launcher.model.adapt import Built
from launcher.model.bfloat16 import hold_in_bfloat16
from launcher.model.kinds import class_of
from launcher.model.rows import shape_of, whole_of
from launcher.model.tensor_files import FileTensor
from launcher.objective.calls import copied
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.training.state import TrainState


@dataclass(frozen=True)
class Pretrained:
    """Writes the folder on rank 0 when the run is finished.

    Attributes:
        recipe: What is trained.
        builder: Has built the tokenizers that stand beside it, and builds an adapter's base again.
        state: The model, and the data of which a batch is tried.
        folder: The run's.
    """

    recipe: Recipe
    builder: Builder
    state: TrainState
    folder: Path

    @classmethod
    def of(cls, recipe: Recipe, builder: Builder, state: TrainState, folder: Path) -> Pretrained | None:
        """What the recipe wants; None where it wants none, or the model is of no such kind.

        Raises:
            RecipeError: The recipe wants one, and the model is of no such kind.
        """
        wanted, is_able = recipe.save.pretrained, is_loadable(state.model.bare)
        if wanted and not is_able:
            kind = class_of(state.model.bare).__name__
            raise builder.wrong(
                "save.pretrained", f"{kind} has no save_pretrained and from_pretrained; remove it, or write false"
            )
        return cls(recipe, builder, state, folder) if is_able and wanted is not False else None

    def write(self, weights: Mapping[str, Any]) -> str:
        """Writes the folder, with these weights, and gives a line about it.

        Raises:
            Exception: Whatever saving or loading it raises, or the comparison; nothing is left then.
        """
        target = self.folder / FOLDER
        shutil.rmtree(target, ignore_errors=True)  # of a run that was made longer
        fresh = partial(rebuilt, self.builder, self.recipe)
        with own_randomness(self.recipe.seed, 0, self.state.device.torch_device), self._whole(weights, fresh) as model:
            batch = self._batch(model.module)
            comparison = save_folder(target, model, fresh, batch, self.builder.objects)
        return f"{FOLDER}/: for from_pretrained; {comparison}"

    @contextmanager
    def _whole(self, weights: Mapping[str, Any], fresh: Callable[[], Built]) -> Iterator[Built]:
        """The model in eval mode with these weights: where each process has only rows of it, another, on the CPU."""
        state = self.state
        if state.shards is not None:
            whole = fresh()
            if self.recipe.device.precision == "bf16-true":
                hold_in_bfloat16(self.builder, whole.module)
            _put(whole, weights)
            whole.module.eval()
            yield whole
            return
        with evaluating(state.model.bare, state.objective), holding(state.model, weights):
            yield Built(state.model.bare, state.model.base)

    def _batch(self, model: nn.Module) -> Batch:
        train, objective = self.state.data.train, self.state.objective
        rows = min(2, train.num_readable())
        if not rows:
            raise ValueError("the training set can be read only once, so that there is no batch to try it on")
        data = moved(train.batch_of(range(rows)), next(model.parameters()).device)
        change = train.reading.on_device
        data = data if change is None else change(data)
        if calls_itself(self.recipe):
            return called_by_step(objective, copied(model), data, self.state.length.last)
        args, kwargs = objective.layout.inputs(data)
        return Batch(tuple(args), dict(kwargs))


@torch.no_grad()
def _put(whole: Built, weights: Mapping[str, Any]) -> None:
    """Puts weights into a model: those in a file of its type stay there, and its own memory is given back."""
    own, module = whole.state_dict(), whole.module
    held = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    for name, value in weights.items():
        mine = held.get(name)
        if isinstance(value, FileTensor) and mine is not None and mine.dtype == value.dtype and mine.is_contiguous():
            mine.data = value.mapped().view(mine.shape)
        elif shape_of(value) is not None:
            own[name].copy_(whole_of(value))
    module.load_state_dict({name: value for name, value in weights.items() if shape_of(value) is None}, strict=False)
