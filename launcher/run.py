"""The seven phases of a training run, in order: the table of contents of this program."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.data.same_data import compare_over_ranks
from launcher.data.seeds import seed_everything
from launcher.device.device import check_device, open_device, use_cpu
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.runs.options import Options
from launcher.runs.tracking.tracking import Line, check_trackers
from launcher.training.build import build_run_model, build_run_state, open_run_data
from launcher.training.finish import evaluate_at_end, save_at_end
from launcher.training.loop import train
from launcher.training.micro_batch import settle_micro_batch
from launcher.training.open_session import open_session
from launcher.world import faults
from launcher.world.waiting import stoppable
from launcher.world.world import World


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        folder: The run's folder.
        state: `finished` or `stopped`.
        step: Optimizer steps completed.
        scores: The last evaluations, as in metrics.jsonl: validation, then test.
        model: The trained module, unwrapped, with the weights of model_weights.pth where the run is finished.
    """

    folder: Path
    state: str
    step: int
    scores: list[Line] = field(default_factory=list)
    model: Any = field(default=None, repr=False)


@stoppable()
def run(recipe: Recipe, world: World, options: Options) -> Result:
    """Trains, evaluates and saves what the recipe says, as one rank of the world.

    Raises:
        LauncherError: Anything a user can fix; the message says how.
    """
    builder = checked(recipe, world, options)
    data = open_run_data(recipe, builder, world, on_gpu=not use_cpu(world, options.cpu))  # 1 data
    with open_device(recipe.device, world, cpu=options.cpu, launch=recipe.launch) as device:  # 2 device
        compare_over_ranks(builder, recipe.data, data, device.coordinator)
        data, retry = settle_micro_batch(recipe, data, device, options)
        model = build_run_model(recipe, builder, device)  # 3 model
        state = build_run_state(recipe, builder, model, device, data, retry)  # 4 objective
        with open_session(recipe, builder, state, options) as session:
            outcome, step = train(state, session)  # 5 training
            outcome, scores = evaluate_at_end(state, session, outcome, step)  # 6 evaluation
            save_at_end(state, session, outcome, step)  # 7 saving
    return Result(session.folder, outcome, step, scores, model.bare)


def checked(recipe: Recipe, world: World, options: Options) -> Builder:
    """All that can be known to be wrong before data is opened: components, device, trackers.

    Raises:
        LauncherError: Something is.
    """
    faults.arm(world.faults, world.rank)
    faults.point("start")
    builder = Builder(recipe, options.allow)
    builder.check()
    check_device(recipe.device, world, use_cpu(world, options.cpu))
    check_trackers(recipe.track.trackers, builder.allow)
    seed_everything(recipe.seed)
    return builder
