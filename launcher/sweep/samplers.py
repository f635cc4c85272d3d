"""Points proposed from results: Optuna's TPE, and CMA-ES. Fresh each time, told everything, asked once."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launcher.errors import UsageError
from launcher.recipe.caller import setting
from launcher.sweep.known import Known, finite_ranks
from launcher.sweep.record import Parameters
from launcher.sweep.space import Parameter, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_SPREAD = 0.3  # of CMA-ES at its start, where the whole of a range is 1
_PACKAGES = {"tpe": "optuna", "cmaes": "cmaes"}  # by method


def check_installed(method: str) -> None:
    """Refuses a method whose package is not there.

    Raises:
        UsageError: It is not.
    """
    package = _PACKAGES.get(method)
    if package is not None and not is_installed(package):
        raise UsageError(
            f"{setting('method', method)}: {package} is not installed; pip install 'torchlauncher[sweep]', or choose "
            "the method random, grid or halving"
        )


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    import importlib.util

    return importlib.util.find_spec(package) is not None


# ---------------------------------------------------------------------- TPE


def tpe(space: Space, known: Sequence[Known], seed: int) -> dict[str, int | float]:
    """A tree-structured Parzen estimator's proposal (Bergstra et al. 2011), choices and what depends on them included.

    Args:
        space: What may be proposed.
        known: Earlier points; those whose result is not known count as bad, so that it looks elsewhere.
        seed: Of this proposal.
    """
    import optuna

    with warnings.catch_warnings(), _Quiet(optuna):
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True))
        study.add_trials(list(_told(optuna, space, known)))
        trial, parameters = study.ask(), dict[str, int | float]()
        for parameter in space.parameters:
            if parameter.exists_in(parameters):
                parameters[parameter.name] = _decoded(parameter, _suggested(trial, parameter))
    return parameters


def _told(optuna: Any, space: Space, known: Sequence[Known]) -> Any:
    state = optuna.trial.TrialState
    for each, rank in zip(known, finite_ranks(known), strict=True):
        mine = [parameter for parameter in space.parameters if parameter.name in each.parameters]
        yield optuna.trial.create_trial(
            state=state.RUNNING if rank is None else state.COMPLETE,
            value=rank,
            params={parameter.name: _encoded(parameter, each.parameters[parameter.name]) for parameter in mine},
            distributions={parameter.name: _distribution(parameter) for parameter in mine},
        )


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found = parameter.range
    if found is None:
        return CategoricalDistribution(list(range(parameter.num_choices)))
    if found.is_listed:
        return IntDistribution(0, (found.size or 1) - 1)
    if found.is_integer:
        return IntDistribution(int(found.low), int(found.high), log=found.scale == "log")
    return FloatDistribution(float(found.low), float(found.high), log=found.scale == "log")


def _suggested(trial: Any, parameter: Parameter) -> int | float:
    found, name = parameter.range, parameter.name
    if found is None:
        return int(trial.suggest_categorical(name, list(range(parameter.num_choices))))
    if found.is_listed:
        return int(trial.suggest_int(name, 0, (found.size or 1) - 1))
    if found.is_integer:
        return int(trial.suggest_int(name, int(found.low), int(found.high), log=found.scale == "log"))
    return float(trial.suggest_float(name, float(found.low), float(found.high), log=found.scale == "log"))


def _encoded(parameter: Parameter, value: int | float) -> int | float:
    found = parameter.range
    return found.nearest(value) if found is not None and found.is_listed else value


def _decoded(parameter: Parameter, value: int | float) -> int | float:
    found = parameter.range
    if found is not None and found.is_listed:  # of which Optuna is told which value it is
        return found.value(int(value))
    return int(value) if found is None or found.is_integer else found.within(value)


class _Quiet:
    """Optuna says nothing of each trial meanwhile."""

    def __init__(self, optuna: Any):
        self._logging = optuna.logging

    def __enter__(self) -> None:
        self._before = self._logging.get_verbosity()
        self._logging.set_verbosity(self._logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._before)


# ---------------------------------------------------------------------- CMA-ES


def cmaes(space: Space, known: Sequence[Known], seed: int) -> dict[str, int | float]:
    """CMA-ES's proposal (covariance matrix adaptation, Hansen 2016) over the ranges that always exist.

    It has learned of every whole generation among the known points, in their order; choices, and numbers that depend
    on one, are drawn by chance.

    Args:
        space: What may be proposed.
        known: Earlier points; those whose result is not known are left out.
        seed: Of this proposal.
    """
    import numpy as np
    from cmaes import CMA

    order, parameters = random.Random(seed), dict[str, int | float]()
    ranged = [parameter for parameter in space.parameters if parameter.range is not None and parameter.choice is None]
    size = max(2, len(ranged))  # it knows no line: of a single range, the second coordinate means nothing
    population = 4 + math.floor(3 * math.log(size))
    strategy = CMA(np.full(size, 0.5), _SPREAD, np.tile([0.0, 1.0], (size, 1)), seed=seed, population_size=population)
    ranks = finite_ranks(known)
    told = [
        (_place(ranged, each.parameters, size), rank)
        for each, rank in zip(known, ranks, strict=True)
        if rank is not None
    ]
    for first in range(0, len(told) - population + 1, population):
        strategy.tell([(np.array(place), rank) for place, rank in told[first : first + population]])
    place = dict(zip((parameter.name for parameter in ranged), strategy.ask(), strict=False))
    for parameter in space.parameters:
        share = order.random()
        if not parameter.exists_in(parameters):
            continue
        if parameter.range is None:
            parameters[parameter.name] = int(share * parameter.num_choices)
        else:
            parameters[parameter.name] = parameter.range.at(float(place.get(parameter.name, share)))
    return parameters


def _place(ranged: Sequence[Parameter], parameters: Parameters, size: int) -> list[float]:
    """Where a point lies within the ranges, each 0 to 1, and in the middle of those that only fill up."""
    place = [each.range.fraction(parameters[each.name]) for each in ranged if each.range is not None]
    return [*place, *[0.5] * (size - len(place))]
