"""The seven phases of a training run, in order: the table of contents of this program."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher import faults
from launcher.data import load_data
from launcher.data.agreement import agree
from launcher.device import check_device, open_device, seed_everything, use_cpu
from launcher.launch.signals import listening
from launcher.launch.world import World
from launcher.model import build_model
from launcher.opening import Options
from launcher.recipe.components import Workshop
from launcher.recipe.schema import Recipe
from launcher.session import evaluate_at_end, open_session, save_at_end
from launcher.tracking import Line, check_trackers
from launcher.training import build_trainable, train


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        folder: The run's folder.
        state: `finished` or `preempted`.
        step: Optimizer steps completed.
        scores: The last evaluations, as they stand in metrics.jsonl: validation, then test.
        model: The trained module, unwrapped.
    """

    folder: Path
    state: str
    step: int
    scores: list[Line] = field(default_factory=list)
    model: Any = None


@listening()
def run(recipe: Recipe, world: World, options: Options) -> Result:
    """Trains, evaluates and saves what the recipe says, as one rank of the world.

    Raises:
        LauncherError: Anything a user can mend; the message says how.
    """
    workshop = checked(recipe, world, options)
    data = load_data(workshop, world, on_gpu=not use_cpu(world, options.cpu))  # 1 data
    with open_device(recipe, world, cpu=options.cpu) as device:  # 2 device
        agree(recipe, data, device.coordinator)
        model = build_model(workshop, device)  # 3 model
        trainable, horizon = build_trainable(workshop, model, device, data)  # 4 objective
        with open_session(workshop, trainable, data, horizon, options) as session:
            state, step = train(trainable, data, horizon, session)  # 5 training
            state, scores = evaluate_at_end(session, trainable, data, horizon, state, step)  # 6 evaluation
            save_at_end(session, trainable, state, step)  # 7 saving
    return Result(session.folder, state, step, scores, model.bare)


def checked(recipe: Recipe, world: World, options: Options) -> Workshop:
    """All that can be known to be wrong before data is opened: components, device, trackers.

    Raises:
        LauncherError: Something is.
    """
    faults.arm(world.faults, world.rank)
    faults.point("start")
    workshop = Workshop(recipe, options.allow)
    workshop.check()
    check_device(recipe.device, world, use_cpu(world, options.cpu))
    check_trackers(recipe.track.trackers, workshop.allow)
    seed_everything(recipe.seed)
    return workshop
