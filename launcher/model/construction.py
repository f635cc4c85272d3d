"""3: model. A model that is sharded, built so that no process ever holds all of it, where its constructor allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from launcher.data.seeds import seed_everything
from launcher.internals import parts_of
from launcher.model.adapt import Built, built
from launcher.model.rows import Stored, whole_of
from launcher.model.sharding import Mesh, put_rows
from launcher.model.tape import Recording, UnrecordedError, record
from launcher.recipe.build import Builder
from launcher.recipe.component import Component
from launcher.text import size


@dataclass(frozen=True)
class Construction:
    """A model, and where it was built without memory what makes its numbers.

    Attributes:
        made: The model.
        recording: What its constructor did; None where it was built whole.
        note: For the plan: which of the two, and what it costs in memory.
    """

    made: Built
    recording: Recording | None
    note: str

    def fill(self, mesh: Mesh, device: torch.device) -> None:
        """Gives the model, sharded by now, its memory and its numbers: of parameters this process's rows."""
        model = self.made.module
        if self.recording is None:
            return
        buffers = [(part, *pair) for part in model.modules() for pair in part.named_buffers(recurse=False)]
        model.to_empty(device=device)
        for part, name, buffer in buffers:  # which are there, and may be one in several modules
            setattr(part, name, buffer)
        _deal_out(model, self.recording, mesh)


def construct(builder: Builder, component: Component, seed: int) -> Construction:
    """Builds the recipe's model, without memory where that can be; afterwards it is seeded as after any.

    Args:
        builder: Builds it.
        component: The recipe's `model`.
        seed: The run's.

    Raises:
        RecipeError: What came out is not a module.
    """
    try:
        with builder.undone_on_error():
            made, recording = record(lambda: built(builder, component), lambda made: made.module)
        return Construction(made, recording, _in_parts(recording))
    except ImportError:
        why = "this torch has no tensors without memory"
    except UnrecordedError as error:
        why = f"its constructor {error}"
    seed_everything(seed)
    made = built(builder, component)
    tensors = (*made.module.parameters(), *made.module.buffers())
    total = sum(part.nbytes for tensor in tensors for part in parts_of(tensor))
    return Construction(made, None, f"built whole on each process, and then sharded: {size(total)} of memory ({why})")


def _in_parts(recording: Recording) -> str:
    held, total = size(recording.held), size(recording.total)
    read = ", and reads its rows of what stands in files" if recording.in_files else ""
    return f"built without a whole copy: a process holds at most {held} of {total} at once, beside its rows{read}"


@torch.no_grad()
def _deal_out(model: nn.Module, recording: Recording, mesh: Mesh) -> None:
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def take(name: str, source: torch.Tensor | Stored) -> None:
        if name in buffers:
            buffers[name].copy_(whole_of(source))
        else:
            put_rows(parameters[name], source, mesh)

    recording.play(take)
