"""What people bring trains as their own loop does: plain, in pieces, stopped and resumed, with evaluations between.

The cases of one world size share one world, so that each costs a fraction of a second. In the plain tier each case
meets one of the variations on each world, in turn; in the long one it meets all.
"""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import ROOT
from worlds import Trained, in_world, result_of

from launcher.checks.rehearsal import rehearse
from launcher.errors import EXIT_USAGE, LauncherError
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.run import run
from launcher.runs.options import Options
from launcher.world.world import FAULTS_VARIABLE, World
from tests.brought.case import EVERY, Case, Loop, Told, written
from tests.brought.table import CASES

FOLDER = Path(__file__).parent
RECIPE = FOLDER / "parts" / "brought.yaml"
REFUSED = FOLDER / "refused.txt"
VARIATIONS = ("pieces", "evaluated", "resumed")
WORLDS = (1, 2, 3)
EACH = {1: 3, 2: 1, 3: 9}  # by the number of processes, of how many cases the plain tier takes one


def variation_of(case: Case, size: int) -> str:
    """What a case meets in the plain tier: with another number of processes, another thing."""
    return VARIATIONS[([*CASES].index(case.name) + size) % len(VARIATIONS)]


def cases_of(size: int) -> list[Case]:
    """All on two processes, every third on one and every ninth on three; what takes long to import on two alone.

    Two run what one does, and what lies between them. Cases that are not for two are all tried where they can be.
    """
    able = [case for case in CASES.values() if size in case.worlds and (size == 2 or not case.heavy)]
    alone = [case for case in able if 2 not in case.worlds]
    chosen = able[:: EACH[size]]
    return chosen + [case for case in alone if case not in chosen]


def overrides_of(case: Case, variation: str, size: int) -> list[str]:
    """The recipe, and what the variation adds."""
    if variation == "pieces" and case.pieces:
        return [*case.overrides, f"data.micro_batch_size={4 - size}"]
    if variation == "evaluated":
        own = f"data.validation={written(case.validation or case.data)}"
        ranks = "all" if size == 3 and case.pieces else "first"
        batch = 7 if case.pieces else 20
        evaluate = f"evaluate={{every: {EVERY} steps, batch_size: {batch}, ranks: {ranks}}}"
        return [*case.overrides, own, evaluate]
    if variation == "resumed" and size > 1:
        return [*case.overrides, "save.every=3 steps"]
    return case.overrides


def train_all(folder: str, wanted: Sequence[tuple[str, str, int]]) -> dict[str, str]:
    """Trains cases as one rank of this world, one after another; what failed, by name."""
    failed = {}
    os.chdir(folder)  # where no repository is asked for its state before each run
    for name, variation, size in wanted:
        torch.set_default_dtype(torch.float32)
        try:
            _train(f"{folder}/{name}, {variation}", CASES[name], variation, size)
        except Exception as error:
            failed[f"{name}, {variation}"] = "".join(traceback.format_exception(error)[-4:])
    return failed


def _train(folder: str, case: Case, variation: str, size: int) -> None:
    recipe = load_recipe(RECIPE, overrides_of(case, variation, size), case.removed)
    options = Options(cpu=True, run_dir=folder, output="quiet", allow=case.allow)
    if variation == "resumed":
        _stop(recipe, options, size)
        torch.set_default_dtype(torch.float32)  # as a process of its own begins
    assert run(recipe, World.from_environ(), options).state == "finished"


def _stop(recipe: Recipe, options: Options, size: int) -> None:
    """Has one process asked to stop after step 3; several fail in step 4, and the last checkpoint is that of step 3."""
    os.environ[FAULTS_VARIABLE] = "term@step:3" if size == 1 else "raise@step:4"
    try:
        assert run(recipe, World.from_environ(), options).state == "stopped"
    except RuntimeError as error:
        if str(error) != "a fault at step":
            raise
    finally:
        del os.environ[FAULTS_VARIABLE]


@functools.cache
def by_hand(name: str, evaluates: bool) -> Told:
    """The loop's numbers, computed once for all worlds."""
    default = torch.get_default_dtype()
    try:
        return Loop(CASES[name], evaluates=evaluates).train()
    finally:
        torch.set_default_dtype(default)


def check_equal(case: Case, trained: Trained, told: Told, evaluated: bool) -> None:
    """Losses, evaluations and weights are the loop's."""
    near = functools.partial(pytest.approx, rel=case.exact, abs=case.exact * 1e-2)
    assert trained.column("loss") == near(told.losses)
    if evaluated:
        assert trained.column("loss", "validation") == near(told.scores)
    weights = {name: value for name, value in trained.weights.items() if isinstance(value, torch.Tensor)}
    assert weights.keys() == told.weights.keys()
    for name, value in told.weights.items():
        assert torch.allclose(weights[name], value, rtol=case.exact, atol=case.exact * 1e-1), name


def compare_all(folder: Path, size: int, wanted: Sequence[tuple[Case, str]]) -> None:
    """All of them in one world; every one that differs is named."""
    named = [(case.name, variation, size) for case, variation in wanted]
    failed = {
        name: said for rank in in_world(size, train_all, str(folder), named, timeout=800) for name, said in rank.items()
    }
    failed = {**differing(folder, named), **failed}
    assert not failed, "\n".join(f"--- {name}\n{said}" for name, said in failed.items())


def differing(folder: Path, trained: Sequence[tuple[str, str, int]]) -> dict[str, str]:
    """Which cases, in which variation, are not the loop by hand, and where they differ."""
    failed = {}
    for name, variation, _ in trained:
        run = f"{name}, {variation}"
        try:
            told = by_hand(name, variation == "evaluated")
            check_equal(CASES[name], result_of(folder / run), told, variation == "evaluated")
        except Exception as error:
            failed[run] = "".join(traceback.format_exception(error)[-1:])
    return failed


def refuse_all(names: Sequence[str]) -> dict[str, str]:
    """What `check` says of cases, by name."""
    return {name: _refusal(CASES[name]) for name in names}


def _refusal(case: Case) -> str:
    recipe = load_recipe(RECIPE, case.overrides, case.removed)
    world = World(size=case.refused, local_size=case.refused, started_by="launcher")
    try:
        builder = Builder(recipe, case.allow)
        builder.check()
        rehearse(recipe, builder, world, lambda stage, said: None)
    except LauncherError as error:
        said = str(error).replace(f"{RECIPE.parent}/", "")
        return said if error.exit_code == EXIT_USAGE else f"{said} (exit code {error.exit_code})"
    except Exception as error:  # a traceback is not a refusal
        return f"{type(error).__name__}: {error}"
    return "nothing wrong was found"


def test_what_cannot_be_right_is_refused_by_check() -> None:
    """Each message stands in `refused.txt`; what is accepted or ends in a traceback shows there as such."""
    names = [name for name, case in CASES.items() if case.refused]
    (said,) = in_world(1, refuse_all, names)
    text = "".join(f"{name}, {_processes(CASES[name].refused)}:\n    {said[name]}\n" for name in names)
    assert text == REFUSED.read_text(encoding="utf-8")


def _processes(count: int) -> str:
    return f"{count} process{'es' * (count > 1)}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", WORLDS)
def test_each_case_is_the_loop_by_hand(tmp_path: Path, size: int) -> None:
    compare_all(tmp_path, size, [(case, variation_of(case, size)) for case in cases_of(size)])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("size", WORLDS)
def test_each_case_meets_every_variation(tmp_path: Path, size: int, variation: str) -> None:
    able = [case for case in CASES.values() if size in case.worlds]
    for part in range(3):  # several shorter worlds, so that none takes too long for its time limit
        compare_all(tmp_path, size, [(case, variation) for case in able[part::3]])


def test_the_promises_name_the_table_and_its_length() -> None:
    """The page of promises says how many cases hold them."""
    page = (ROOT / "docs" / "what-you-can-rely-on.md").read_text(encoding="utf-8")
    assert f"{len(CASES)} things that people bring" in page
    assert len(CASES) >= 150


def test_what_is_checked_can_fail(tmp_path: Path) -> None:
    """A loop that differs in the ninth digit is found."""
    case = CASES["torch's: mean square"]
    assert in_world(1, train_all, str(tmp_path), [(case.name, "pieces", 1)]) == [{}]
    told = by_hand(case.name, False)
    trained = result_of(tmp_path / f"{case.name}, pieces")
    check_equal(case, trained, told, evaluated=False)
    with pytest.raises(AssertionError):
        check_equal(case, trained, replace(told, losses=[loss * (1 + 3e-9) for loss in told.losses]), evaluated=False)
    moved = {name: value * (1 + 3e-9) + 3e-9 for name, value in told.weights.items()}
    with pytest.raises(AssertionError):
        check_equal(case, trained, replace(told, weights=moved), evaluated=False)
