"""`launcher.sweep()`: the package of that name can be called."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

from launcher.recipe.package import make_callable
from launcher.recipe.slips import check_call, hinting
from launcher.sweep.states import Keep, Method


@hinting
def sweep(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    *overrides: str,
    trials: int | None = None,
    metric: str | None = None,
    method: Method | None = None,
    parallel: int | Literal["auto"] | None = None,
    processes_per_run: int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    lag: int | None = None,
    budget: str | None = None,
    keep: Keep | None = None,
    seed: int | None = None,
    cpu: bool = False,
    join: bool = False,
    allow: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Trains a recipe with many values of some keys, each trial in a process of its own; see `launcher sweep`.

    Args:
        recipe: The YAML file, or its content as a mapping, which is written into the sweep's folder.
        *overrides: `a.b=1,2`, `a.b=1e-4..1e-2:log`, `seed=0..4`; one with a single value holds for all trials.
        trials: How many runs, those of all seeds counted.
        metric: What is compared, as in `validation/accuracy:max`.
        method: `grid`, `random`, `tpe`, `cmaes` or `halving`.
        parallel: Trials at a time; None or `auto` is as the GPUs suffice for.
        processes_per_run: Of each trial.
        run_dir: The sweep's folder, resumed if it is one.
        lag: How many trials before it a proposal does not wait for.
        budget: Training that all trials together may take, as in `12 hours`.
        keep: Whose weights stay: `best`, or `all`.
        seed: Of the proposals.
        cpu: Use the CPU even if there is a GPU.
        join: Take part where others work on the same sweep.
        allow: Further packages that the recipe may name.

    Returns:
        A row for each trial, in the order of their numbers, as `pandas.DataFrame` takes them.

    Raises:
        RecipeError: Everything that is wrong with the recipe or the space, each with its place.
        UsageError: An argument is not what it must be; or what was asked for does not fit together, is another sweep
            than the one in the folder, or needs more room than the disk has.
        KeyboardInterrupt: It was interrupted, and all trials have saved.
    """
    from launcher.recipe.caller import from_python
    from launcher.recipe.directory import taken
    from launcher.sweep.begin import Asked, opened, sought
    from launcher.sweep.best import rows
    from launcher.sweep.screen import Screen
    from launcher.sweep.starter import Starter
    from launcher.sweep.work import work_off
    from launcher.world.obeying import obeying

    check_call("launcher.sweep", recipe, overrides, {"cpu": cpu, "join": join}, {"allow": allow})
    asked = Asked(
        recipe=recipe if isinstance(recipe, Mapping) else os.fspath(recipe),
        words=overrides,
        allow=tuple(allow),
        run_dir=None if run_dir is None else os.fspath(run_dir),
        trials=trials,
        metric=metric,
        parallel=parallel,
        processes=processes_per_run,
        method=method,
        lag=lag,
        budget=budget,
        keep=keep,
        seed=seed,
        cpu=cpu,
        join=join,
    )
    with taken(), obeying(), from_python(), closing(Starter(processes_per_run in (None, 1))) as starter:
        new = sought(asked)
        record = opened(new)
        with Screen(record, new.space, plain=True) as screen:
            work_off(record, new.space, new.recipe, new.slots, starter, join=join, say=screen.say, show=screen.show)
    return rows(record, new.space)


make_callable("launcher.sweep", sweep)
