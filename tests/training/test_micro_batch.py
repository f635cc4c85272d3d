"""`data.micro_batch_size: auto`: found in processes that may die, halved when memory runs out, and the same run."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from places import RECIPES
from worlds import TINY, Trained, in_world, result_of, train, train_here

from launcher.errors import RecipeError
from launcher.launch.postmortem import examined
from launcher.recipe.load import load_recipe
from launcher.run import run as launch
from launcher.runs.options import Options
from launcher.training import micro_batch
from launcher.training.micro_batch import _UntriedError, largest
from launcher.training.trial import out_of_memory
from launcher.world.signals import listening
from launcher.world.world import FAULTS_VARIABLE, World

AUTO = ("data.micro_batch_size=auto", "data.global_batch_size=16", "data.train.size=56")
STACK = ("model={_target_: stacks.py:Stack, odd: true, dropout: 0.0}", "data.drop_last=true")


@pytest.mark.parametrize("limit", range(1, 18))
@pytest.mark.parametrize("share", [1, 2, 7, 16, 17])
def test_the_largest_part_of_a_share_that_fits_is_found_in_few_trials(share: int, limit: int) -> None:
    tried: list[int] = []

    def fits(samples: int) -> bool:
        tried.append(samples)
        return samples <= limit

    expected = max(size for parts in range(1, share + 1) if (size := -(-share // parts)) <= max(1, limit))
    assert largest(share, fits) == expected
    assert len(tried) <= 8


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("sys.exit(0)", True),
        ("sys.exit(77)", False),
        ("os.kill(os.getpid(), 9)", False),
        ("os.kill(os.getpid(), 15)", False),  # by a guard of the machine's memory
        ("os.kill(os.getppid(), 15); os.kill(os.getpid(), 15)", "asked to stop"),
        ("os.kill(os.getppid(), 12); os.kill(os.getpid(), 12)", "asked to stop"),
        ("sys.exit(1)", "exit code 1"),
        ("raise RuntimeError('shapes cannot be multiplied')", "RuntimeError: shapes cannot be multiplied"),
        ("raise RuntimeError('CUDA error: CUDA-capable device(s) is/are busy or unavailable')", "exclusive use of the"),
    ],
)
def test_only_a_trial_that_says_so_fits(monkeypatch: pytest.MonkeyPatch, code: str, words: bool | str) -> None:
    monkeypatch.setattr(micro_batch, "_START", f"import os, sys; {code}")
    environment = {"PATH": os.environ["PATH"]}
    with listening(), nullcontext() if isinstance(words, bool) else pytest.raises(_UntriedError, match=words):
        assert micro_batch._fits({}, environment, 60.0) is words


def test_nothing_fits() -> None:
    assert largest(16, lambda samples: False) == 0


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_there_is_no_memory(error: Exception, is_memory: bool) -> None:
    assert out_of_memory(error) is is_memory


def _at_home(home: str, folder: str, overrides: tuple[str, ...], faults: str | None, tries: bool) -> str:
    """Trains as a user whose cache is there, and who has a recipe that a trial can read, or has not."""
    os.environ["HOME"] = home
    if tries:
        return train_here(folder, overrides, faults=faults)
    os.environ[FAULTS_VARIABLE] = faults or ""
    recipe = load_recipe(TINY, ["launch.threads=1", *overrides])
    return launch(recipe, World.from_environ(), Options(cpu=True, run_dir=folder, output="quiet")).state


def trained(folder: Path, *overrides: str, faults: str | None = None, size: int = 1, tries: bool = False) -> Trained:
    in_world(size, _at_home, str(folder.with_name(f"home of {folder.name}")), str(folder), overrides, faults, tries)
    return result_of(folder)


def events(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == "smaller"]


def remembered(home: Path) -> list[int]:
    files = sorted(home.glob(".cache/launcher-data/micro-batch-*/micro_batch.json"))
    return [json.loads(file.read_text(encoding="utf-8"))["samples"] for file in files]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run in whole shares, which fit."""
    return train(tmp_path_factory.mktemp("whole") / "run", *AUTO[1:])


def test_sizes_are_tried_in_processes_of_their_own_and_remembered(tmp_path: Path, whole: Trained) -> None:
    run = trained(tmp_path / "run", *AUTO, faults="oom@trial:16 kill@trial:8", tries=True)
    assert run.distance(whole) < 1e-9
    assert remembered(tmp_path / "home of run") == [6]  # of 1, 2, 3, … parts of 16
    (tmp_path / "home of run").rename(tmp_path / "home of again")
    again = trained(tmp_path / "again", *AUTO, faults="kill@trial", tries=True)  # nothing is tried again
    assert again.distance(run) == 0


@pytest.mark.parametrize("point", ["forward", "backward"])
def test_a_step_without_memory_is_made_again_in_smaller_pieces(tmp_path: Path, whole: Trained, point: str) -> None:
    run = trained(tmp_path / "run", *AUTO, faults=f"oom@{point}:3 oom@{point}:5")
    assert run.distance(whole) < 1e-9
    assert run.column("loss") == pytest.approx(whole.column("loss"), abs=1e-9)
    assert run.column("step") == whole.column("step")
    assert [(event["step"], event["micro_batch_size"]) for event in events(run.folder)] == [(3, 8), (5, 4)]
    assert remembered(tmp_path / "home of run") == [4]


def test_buffers_that_a_forward_moves_are_as_before_when_the_step_is_made_again(tmp_path: Path) -> None:
    changes = (*AUTO, *STACK)
    expected = trained(tmp_path / "expected", *changes, faults="oom@forward:2")  # before anything has moved
    run = trained(tmp_path / "run", *changes, faults="oom@backward:2")
    assert events(run.folder)[0]["micro_batch_size"] == events(expected.folder)[0]["micro_batch_size"] == 8
    assert run.distance(expected) == 0


IN_TURNS = (
    "model={_target_: ways.py:Two}",
    "optimizer={critic: {_target_: Adam, lr: 0.01}, generator: {_target_: Adam, lr: 0.02}}",
    "train={steps: 9, step: {critic: ways.py:critic, generator: ways.py:generator}, count: ways.py:samples}",
)
CLOSED = ("optimizer={_target_: LBFGS, lr: 0.3, max_iter: 2}", "train.steps=9")


def _in_its_way(home: str, folder: str, overrides: tuple[str, ...], faults: str, cuts: str = "auto") -> str:
    os.environ["HOME"] = home
    os.environ[FAULTS_VARIABLE] = faults
    remove = ["loss"] if overrides == IN_TURNS else []
    changes = ["launch.threads=1", f"data.micro_batch_size={cuts}", "save={every: 1 steps, background: false}"]
    recipe = load_recipe(RECIPES / "ways.yaml", [*changes, *overrides], remove)
    return launch(recipe, World.from_environ(), Options(cpu=True, run_dir=folder, output="quiet")).state


@pytest.mark.parametrize("way", [IN_TURNS, CLOSED], ids=["turns", "closure"])
def test_a_step_in_another_way_is_made_again_too(tmp_path: Path, way: tuple[str, ...]) -> None:
    home = str(tmp_path / "home")
    in_world(1, _in_its_way, home, str(tmp_path / "run"), way, "oom@forward:3 oom@forward:5")
    in_world(1, _in_its_way, home, str(tmp_path / "whole"), way, "", "8")
    run, expected = result_of(tmp_path / "run"), result_of(tmp_path / "whole")
    assert [event["micro_batch_size"] for event in events(run.folder)] == [4, 2]
    assert run.distance(expected) < 1e-9
    assert remembered(tmp_path / "home") == [2]


@pytest.mark.parametrize("way", [IN_TURNS, CLOSED], ids=["turns", "closure"])
def test_a_step_that_has_moved_weights_already_ends_the_run_and_the_half_is_remembered(
    tmp_path: Path, way: tuple[str, ...]
) -> None:
    home = str(tmp_path / "home")
    with pytest.raises(AssertionError, match="OutOfMemoryError"):
        in_world(1, _without_memory_later, home, str(tmp_path / "run"), way)
    assert remembered(tmp_path / "home") == [4]
    in_world(1, _in_its_way, home, str(tmp_path / "run"), way, "")
    in_world(1, _in_its_way, home, str(tmp_path / "whole"), way, "", "8")
    assert result_of(tmp_path / "run").distance(result_of(tmp_path / "whole")) < 1e-9


def _without_memory_later(home: str, folder: str, way: tuple[str, ...]) -> str:
    """In the fourth step's second call of a loss: another turn, or a closure's."""
    from launcher.world import context

    calls = [0]

    def looks(part: torch.nn.Module, args: Any) -> None:
        calls[0] = calls[0] + 1 if context.run.step == 3 and context.run.batch is not None else 0
        if calls[0] == LATER[way]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    torch.nn.modules.module.register_module_forward_pre_hook(looks)
    try:
        return _in_its_way(home, folder, way, "")
    except torch.OutOfMemoryError as error:
        facts = examined(error, World()).facts
        assert facts["memory"] == "the next start takes data.micro_batch_size=4 (auto)"
        raise


LATER = {IN_TURNS: 16, CLOSED: 8}  # of all modules that are called in the step


def test_without_the_key_the_run_fails_as_ever(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="OutOfMemoryError"):
        trained(tmp_path / "run", *AUTO[1:], faults="oom@forward:3")


def test_one_sample_that_does_not_fit_is_the_end(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not even one sample fits; see launcher check --memory"):
        trained(tmp_path / "run", *AUTO, "data.global_batch_size=2", faults="oom@trial", tries=True)


def test_of_several_processes_all_leave_and_the_next_start_takes_half(tmp_path: Path, whole: Trained) -> None:
    changes = (*AUTO, "save.every=2 steps")
    with pytest.raises(AssertionError, match="OutOfMemoryError"):
        trained(tmp_path / "run", *changes, faults="oom@forward:5#1", size=2)
    assert remembered(tmp_path / "home of run") == [4]
    assert not (tmp_path / "run" / "model_weights.pth").exists()
    assert trained(tmp_path / "run", *changes, size=2).distance(whole) < 1e-9


def _plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    recipe = load_recipe(TINY, ["launch.threads=1", "train.epochs=1", *AUTO, *overrides])
    launch(recipe, World(), Options(cpu=True, run_dir=str(tmp_path / "run")))  # no recipe that a trial could read
    return " ".join(capsys.readouterr().out.split())


def test_the_plan_says_what_was_found_and_when_other_cuts_give_other_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = _plan(tmp_path / "a", capsys)
    assert "data.micro_batch_size: auto: 16 (the whole share: a run with objects from Python cannot be tried" in plan
    assert "half of that when memory runs out" in plan
    assert "another micro-batch size or number of processes gives other numbers" not in plan
    assert "draws random numbers for each micro-batch" in _plan(tmp_path / "b", capsys, "model.dropout=0.1")
    model = "model={_target_: parts.py:Net, norm: true}"
    assert "BatchNorm takes the mean of each micro-batch" in _plan(tmp_path / "c", capsys, model)


def test_cuda_graphs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load_recipe(TINY, [*AUTO, "device.compile=reduce-overhead"])
    with pytest.raises(RecipeError, match="CUDA graphs, which overwrite the gradients"):
        launch(recipe, World(), Options(cpu=True, run_dir=str(tmp_path / "run"), output="quiet"))
