"""From Python or a notebook: the same seven phases, with objects in place of sections."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from launcher.checkpoints.weights import read_weights
from launcher.errors import UsageError
from launcher.recipe.directory import taken
from launcher.recipe.load import load_recipe
from launcher.run import Result, run
from launcher.runs.folder import STATUS_FILE, WEIGHTS_FILE, read_json
from launcher.runs.metrics import METRICS_FILE, Line, read_evaluations
from launcher.runs.options import Options
from launcher.training.resume import Finished
from launcher.world.screen import prepare
from launcher.world.world import World

_SLOTS = {
    "model": "model",
    "loss": "loss",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "train": "data.train",
    "validation": "data.validation",
    "test": "data.test",
    "collate": "data.collate",
    "step": "train.step",
}


def train(
    recipe: str | os.PathLike[str],
    *overrides: str,
    cpu: bool = False,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    allow: Sequence[str] = (),
    output: str = "auto",
    **objects: Any,
) -> Result:
    """Trains what a recipe says, in this process or in the launched world that it runs in.

    Args:
        recipe: The YAML file.
        *overrides: `a.b=value`, as on the command line.
        cpu: Stay on the CPU though there may be a GPU.
        run_dir: The run's folder, resumed if it holds a checkpoint; None chooses a new one.
        resume: Go on with the newest unfinished run of this recipe, or start one.
        allow: Further packages that the recipe may name.
        output: What is shown: `auto`, `quiet` or `json`.
        **objects: In place of sections: `model` (a module), `loss` (a callable), `optimizer` (an optimizer, or a
            callable of the parameters), `scheduler` (a scheduler, or a callable of the optimizer), `train`,
            `validation`, `test` (data sets), `collate`, `step`. None leaves a section as it is. A resume needs the same
            call.

    Returns:
        The run's folder, its state, its last scores and the trained module; of a run that is finished already, what it
        left.

    Raises:
        RecipeError: Everything that is wrong with the recipe, each with its place.
        UsageError: There is no such slot for an object.
    """
    unknown = sorted(set(objects) - set(_SLOTS))
    if unknown:
        raise UsageError(f"launcher.train() takes no '{unknown[0]}'; it takes: {', '.join(_SLOTS)}")
    prepare()
    given = {_SLOTS[name]: thing for name, thing in objects.items() if thing is not None}
    options = Options(
        cpu=cpu,
        run_dir=None if run_dir is None else os.fspath(run_dir),
        resume=resume,
        allow=tuple(allow),
        output=output,
        how={"command": ["launcher.train", os.fspath(recipe), *overrides]},
    )
    try:
        with taken():
            return run(load_recipe(recipe, overrides, given=given), World.from_environ(), options)
    except Finished as finished:
        return _left_by(finished.folder, finished.model)


def _left_by(folder: Path, model: nn.Module) -> Result:
    """The result of a finished run, with its weights in the model."""
    model.load_state_dict(read_weights(folder / WEIGHTS_FILE))
    scores: list[Line] = []
    for split in ("validation", "test"):
        lines = list(read_evaluations(folder / METRICS_FILE, split))
        last = [line for line in lines if line["step"] == lines[-1]["step"]]
        scores += [{key: value for key, value in line.items() if key != "time"} for line in last]
    return Result(folder, "finished", read_json(folder / STATUS_FILE)["step"], scores, model)
