"""Sweeps by real processes: killed, stopped, joined and grown, they come to what an undisturbed one comes to."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from places import TINY
from simulated import settings
from tiers import rounds
from worlds import Command

import launcher
from launcher.checkpoints import retention
from launcher.cli.main import main
from launcher.errors import EXIT_PREEMPTED, LauncherError, RecipeError, UsageError
from launcher.runs.folder import read_json, write_json
from launcher.runs.lock import locked
from launcher.runs.tracking.tracking import read_metrics
from launcher.sweep import record as lines
from launcher.sweep.begin import Asked, opened, sought
from launcher.sweep.ending import Ending, ending_of
from launcher.sweep.halving import counted, is_complete
from launcher.sweep.naming import saved_place
from launcher.sweep.pool import Pool, Work
from launcher.sweep.ranking import ranked
from launcher.sweep.record import Record, Settings, create
from launcher.sweep.room import still_needed
from launcher.sweep.slots import Slot, slots_of
from launcher.sweep.starter import Starter
from launcher.sweep.warm import Order
from launcher.sweep.work import work_off

# 20 steps a trial, each of some 15 to 80 ms
FIXED = (
    "train.epochs=5",
    "data.train={_target_: parts.py:Uneven, seconds: 0.001}",
    "data.validation={_target_: parts.py:WholeNumbers, size: 23, seed: 2}",
    "data.workers=0",
    "save.every=2 steps",
)
SPACES = {
    "grid": ("optimizer.lr=1e-3,3e-3,1e-2,3e-2,1e-1,3e-1",),
    "random": ("optimizer.lr=1e-4..1:log", "model.dropout=0..0.5"),
    "tpe": ("optimizer.lr=1e-4..1:log", "model.dropout=0..0.5"),
    "halving": ("optimizer.lr=1e-4..1:log",),
}
METHODS = tuple(SPACES)


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    """One for all sweeps of this process: most of a short sweep is its imports."""
    with closing(Starter()) as shared:
        yield shared


def asked(folder: Path, method: str, *words: str, trials: int | None = 6, slots: int = 2, **more: Any) -> Asked:
    return Asked(
        recipe=str(TINY),
        words=(*FIXED, *SPACES[method], *words),
        run_dir=str(folder / "sweep"),
        trials=trials,
        parallel=slots,
        method=method,
        lag=4,
        cpu=True,
        **more,
    )


def swept(
    wanted: Asked, starter: Starter, ends: str = "complete", slots: Sequence[Slot] | None = None, **options: Any
) -> Record:
    """A sweep that is begun or gone on with in this process, and comes to its end."""
    new = sought(wanted, slots)
    record = opened(new)
    assert work_off(record, new.space, new.recipe, new.slots, starter, **options) == ends
    return record


def test_what_a_sweep_saved_is_its_best_trial_and_it_is_resumed_as_a_sweep(
    tmp_path: Path, starter: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    record = swept(asked(tmp_path, "random", trials=4), starter)
    best = ranked(record)[0].trials[0].number
    assert best != 0
    assert saved_place(str(record.folder)) == record.folder_of(best)
    assert main(["evaluate", str(record.folder), "--split", "validation", "--cpu"]) == 0
    assert f"trials/{best:04}/model_weights.pth of tiny" in capsys.readouterr().out
    assert main(["resume", str(record.folder)]) == 2
    assert f"`launcher sweep {record.folder}` resumes it" in capsys.readouterr().err
    other = next(number for number in record.trials if number != best)
    assert main(["resume", str(record.folder_of(other))]) == 2
    assert "its checkpoints were removed" in capsys.readouterr().err


def command(wanted: Asked, *flags: str) -> Command:
    """The same on the command line, as a process of its own."""
    folder = Path(wanted.run_dir or "")
    given = ("--method", wanted.method, "--trials", wanted.trials, "--lag", wanted.lag, "--parallel", wanted.parallel)
    words = ("sweep", wanted.recipe, *wanted.words, "--cpu", "--run-dir", folder, *given, *flags)
    return Command(folder.parent, *map(str, words))


def done(command: Command, code: int = 0) -> str:
    ended = command.wait()
    assert ended.code == code, ended.screen
    assert not ended.left, "a process was left behind"
    return ended.screen


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines_of(folder: Path) -> int:
    """How far a sweep is."""
    path = folder / "sweep" / "record.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def curve(record: Record, trial: int) -> list[dict[str, Any]]:
    """A trial's figures, as they are read of its run."""
    lines = read_metrics(record.folder_of(trial) / "metrics.jsonl")
    return [{key: line.get(key) for key in ("step", "split", "loss", "lr")} for line in lines]


def assert_same(record: Record, other: Record, *, weights: bool = True) -> None:
    """Two sweeps have the same trials, values, members of each rung and curves; the same weights are left."""
    assert {n: t.parameters for n, t in record.trials.items()} == {n: t.parameters for n, t in other.trials.items()}
    for rung in range(other.settings.num_rungs):
        assert counted(record, rung) == counted(other, rung)
        for point in counted(other, rung):
            assert record.trials[point].values[rung] == other.trials[point].values[rung]
    for number in other.trials:
        both = curve(record, number), curve(other, number)
        shorter = min(map(len, both))
        assert shorter
        assert both[0][:shorter] == both[1][:shorter]
    if weights and other.settings.method != "halving":  # there one that was taken early may be left as well
        assert left(record) == left(other)


def left(record: Record) -> list[str]:
    """The trials whose weights are still there."""
    return sorted(path.parent.name for path in record.folders.glob("*/model_weights.pth"))


def checkpointed(record: Record) -> list[str]:
    """The trials that have a checkpoint."""
    return sorted(path.parents[1].name for path in record.folders.glob("*/checkpoints/step-*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, starter: Starter) -> Callable[[str], Record]:
    """The sweep that nothing happened to, by its method."""
    return cache(lambda method: swept(asked(tmp_path_factory.mktemp(method), method), starter))


@pytest.mark.timeout(1200)
@rounds("method, kills", plain=[("tpe", 1), ("halving", 1)], long=[(method, 10) for method in METHODS])
def test_killed_at_random_moments_and_resumed(
    tmp_path: Path, method: str, kills: int, undisturbed: Callable[[str], Record], starter: Starter
) -> None:
    """With one, two and three slots, at trials of differing speed; a kill is of the sweep, or first of a trial."""
    expected = undisturbed(method)
    moments, hit = random.Random(kills + METHODS.index(method)), 0
    for number in range(kills):
        wanted = lines_of(tmp_path) + moments.randrange(2, max(5, expected.lines // kills))
        running = command(asked(tmp_path, method, slots=1 + (number + 1) % 3))
        until(lambda: not running.process.is_alive() or (lines_of(tmp_path) >= wanted and trials_of(running)))  # noqa: B023
        time.sleep(moments.uniform(0, 0.7))
        if number == 2 and (trials := trials_of(running)):  # once, as what fails twice at one place has failed
            moments.choice(trials).kill()
            time.sleep(0.3)
        if running.process.is_alive():
            hit += 1
            os.kill(running.process.pid, signal.SIGKILL)
        assert not running.wait().left, "trials outlived their sweep"
    assert hit > kills // 2, "it was over before most of the kills"
    assert_same(swept(asked(tmp_path, method, slots=3), starter), expected)


def trials_of(running: Command) -> list[psutil.Process]:
    """The processes of its trials."""
    mine = [process for process in running.family() if process.pid != running.process.pid]
    return [process for process in mine if (parent := process.parent()) is not None and parent in mine]


def test_stopped_by_sigterm_all_is_saved(
    tmp_path: Path, undisturbed: Callable[[str], Record], starter: Starter
) -> None:
    running = command(asked(tmp_path, "random"))
    until(lambda: lines_of(tmp_path) >= 7)
    time.sleep(0.3)
    os.kill(running.process.pid, signal.SIGTERM)
    ended = running.wait()
    assert (ended.code, ended.left) == (75, []), ended.screen
    record = Record(tmp_path / "sweep")
    assert not record.running
    assert 1 <= [trial.state for trial in record.trials.values()].count("waiting") <= 2
    for number, trial in record.trials.items():
        if not trial.is_over:
            assert read_json(record.folder_of(number) / "status.json")["state"] == "stopped"
    again = Command(tmp_path, "sweep", "sweep", "--parallel", "1").wait()
    assert again.code == 0, again.screen
    assert_same(Record(tmp_path / "sweep"), undisturbed("random"))


def test_one_at_a_time_or_joined(tmp_path: Path, undisturbed: Callable[[str], Record]) -> None:
    wanted = asked(tmp_path, "halving", slots=1)
    participants = [command(wanted, "--join") for _ in range(3)]
    until(lambda: lines_of(tmp_path) >= 3)
    refused = Command(tmp_path, "sweep", "sweep").wait()
    assert refused.code == 2
    assert "works on this sweep already; add --join to take part in it" in refused.screen
    participants[0].process.kill()  # SIGKILL: what it was at is set free
    for participant in participants[1:]:
        ended = participant.wait()
        assert ended.code == 0, ended.screen
    assert not participants[0].wait().left
    assert_same(Record(tmp_path / "sweep"), undisturbed("halving"))


def test_a_trial_that_fails_counts_as_the_worst_and_one_that_is_killed_goes_on(
    tmp_path: Path, undisturbed: Callable[[str], Record]
) -> None:
    fails = replace(asked(tmp_path, "grid"), words=(*FIXED, "optimizer.lr=1e-2", "model.dropout=0,0.1,1.5"), trials=4)
    running = command(fails)
    until(lambda: any(trials_of(running)) and lines_of(tmp_path) >= 4)
    until(lambda: bool(list((tmp_path / "sweep" / "trials" / "0000" / "checkpoints").glob("step-*"))))
    for process in trials_of(running)[:1]:
        process.kill()
    ended = running.wait()
    assert ended.code == 0, ended.screen
    record = Record(tmp_path / "sweep")
    assert "trial 3: " in ended.screen
    assert "model: parts.py:Net: ValueError: dropout probability" in ended.screen
    assert "killed by signal 9 (SIGKILL)" in ended.screen
    assert [trial.state for trial in record.trials.values()] == ["finished", "finished", "finished", "failed"]
    assert len(record.trials[3].failures) == 1, "the machine was not at fault"
    assert sum(len(record.trials[number].failures) for number in (0, 1)) == 1
    baseline = undisturbed("grid").trials[0]
    assert record.trials[0].result == baseline.result


def test_a_machine_that_fails_a_trial_again_has_failed_it_wherever_that_was(tmp_path: Path) -> None:
    pool = bare_pool(tmp_path, settings())
    killed = [Ending("failed", step, f"killed by signal 9, after step {step}", is_machine=True) for step in (3, 7)]
    for ending in killed:
        with pool.record.locked():
            pool.record.append(pool._line(0, Work(Slot(0), 0), ending))
    assert [len(pool.record.trials[0].failures), pool.record.trials[0].is_failed] == [2, True]


def test_a_run_of_another_length_is_compared_with_none(tmp_path: Path) -> None:
    pool = bare_pool(tmp_path, settings(method="halving", rungs=(5, 20)))
    kinds = []
    for steps in (20, 40):
        write_json(tmp_path / "status.json", {"state": "stopped", "step": 5, "total_steps": steps})
        kinds.append(pool._compared(tmp_path, Ending("reached", 5)).kind)
    assert kinds == ["reached", "failed"]


def test_a_trial_that_is_stopped_in_its_rungs_evaluation_has_not_reached_it(tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", {"state": "stopped", "step": 5, "total_steps": 20})
    begun = [{"event": "evaluate", "step": step, "time": time.time(), "seconds": 0.1} for step in (4, 5)]
    (tmp_path / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in begun))
    kinds = []
    for step in (4, 5):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(f"{json.dumps({'step': step, 'split': 'validation', 'loss': 1.0})}\n")
        kinds.append(ending_of(tmp_path, EXIT_PREEMPTED, 5, tmp_path / "start.log", 0.0).kind)
    assert kinds == ["stopped", "reached"]


def test_a_budget_counts_what_all_are_at_and_nothing_of_the_dead(tmp_path: Path) -> None:
    pool = bare_pool(tmp_path, settings(budget=3600.0))
    (workers := pool.record.folder / "workers").mkdir()
    with locked(workers, None, "other.json"):
        assert not pool._is_spent()
        pool.record.trials[0].since = time.time() - 3500
        assert not pool._is_spent()
        pool.record.trials[0].since = time.time() - 3700
        assert pool._is_spent(), "another participant has been at it for so long"
    assert not pool._is_spent(), "who took it is gone"


def bare_pool(folder: Path, asked: Settings) -> Pool:
    """Of a sweep whose first trial another participant has taken; it starts nothing."""
    record = create(folder / "sweep", asked)
    with record.locked():
        record.append(lines.proposal(0, None), lines.taken(0, 0, "other"))
    return Pool(record, None, [], "me", None)  # type: ignore[arg-type]


def test_no_trial_is_taken_while_its_process_imports(tmp_path: Path) -> None:
    record = create(tmp_path / "sweep", settings(trials=1, slots=1))
    with closing(Starter(is_warm=False)) as starter:
        pool = Pool(record, None, [Slot(0)], "me", starter)  # type: ignore[arg-type]
        pool._fill()
        assert not record.trials
        while not starter.is_ready:
            assert starter.ended(60.0) == []
        with pytest.raises(AttributeError, match="propose"):  # now it asks what the trial is
            pool._fill()


def test_a_metric_that_is_no_number_ends_it_before_anything_is_removed(tmp_path: Path, starter: Starter) -> None:
    several = "{_target_: torchmetrics.MetricCollection, metrics: [{_target_: MulticlassAccuracy, num_classes: 3}]}"
    wanted = asked(tmp_path, "grid", f"evaluate.metrics.top={several}", trials=None, metric="top:max")
    with pytest.raises(LauncherError, match=r"validation/top, and of trial . it is none; there are loss, top/Multi"):
        swept(wanted, starter)
    record = Record(tmp_path / "sweep")
    assert not record.running
    assert not any(trial.values for trial in record.trials.values())
    assert left(record), "the weights are there still"


def test_ten_failures_in_a_row_end_it(tmp_path: Path, starter: Starter) -> None:
    wanted = replace(asked(tmp_path, "grid"), words=(*FIXED, "model.dropout=1.1..3.1:0.1"), trials=None)
    heard: list[str] = []
    with pytest.raises(LauncherError, match=r"1\d trials in a row have failed, the last of them: .*parts.py"):
        swept(wanted, starter, say=heard.append)
    failed = [trial for trial in Record(tmp_path / "sweep").trials.values() if trial.is_failed]
    assert 10 <= len(failed) == len(heard) < 21, "the baseline, which does not fail, may end in between"


def test_it_grows_and_keeps_what_may_be_resumed(
    tmp_path: Path, undisturbed: Callable[[str], Record], starter: Starter
) -> None:
    before = undisturbed("halving")
    shutil.copytree(before.folder, tmp_path / "sweep")
    for number, trial in before.trials.items():
        steps = [path.name for path in retention.listed(before.folder_of(number) / "checkpoints")]
        assert len(steps) == (0 if trial.is_over and str(number).zfill(4) not in left(before) else 1)
    more = Record(before.folder)
    more.budgets.append(12)
    paused = next(number for number, trial in before.trials.items() if trial.state == "paused")
    kept = (before.folder_of(paused) / "checkpoints").rglob("*")
    checkpoint = sum(path.stat().st_size for path in kept if path.is_file())
    assert 6 <= still_needed(more, paused)[0] / checkpoint <= 10, "six more may be paused, while two others are saved"
    grown = swept(asked(tmp_path, "halving", trials=12), starter)
    assert len(grown.trials) == 12
    assert {n: t.parameters for n, t in before.trials.items()} == {n: grown.trials[n].parameters for n in range(6)}
    assert counted(grown, 2) >= counted(before, 2), "who won the smaller one stays"
    with pytest.raises(UsageError, match="this is not the sweep that was begun there:\n  seed: was 0, is now 1"):
        opened(sought(asked(tmp_path, "halving", trials=12, seed=1)))
    assert swept(asked(tmp_path, "halving", trials=12), starter).lines == grown.lines, "there was nothing left to do"


def test_a_budget_is_training_of_all_starts_and_more_of_it_resumes_the_paused(
    tmp_path: Path, undisturbed: Callable[[str], Record], starter: Starter
) -> None:
    spent = swept(asked(tmp_path, "halving", budget="0.1 seconds"), starter, "spent")
    assert sum(trial.seconds for trial in spent.trials.values()) >= 0.1
    assert not is_complete(spent)
    assert not spent.running
    lines, had = spent.lines, sum(trial.seconds for trial in spent.trials.values())
    again = swept(asked(tmp_path, "halving"), starter, "spent")
    assert again.lines == lines, "what the first start took is counted: nothing is begun"
    little = swept(asked(tmp_path, "halving", budget=f"{had + 0.1} seconds"), starter, "spent")
    assert sum(trial.seconds for trial in little.trials.values()) >= had + 0.1
    grown = swept(asked(tmp_path, "halving", budget="1.5 hours"), starter)
    assert grown.seconds == 1.5 * 3600
    assert_same(grown, undisturbed("halving"))
    assert {trial.state for trial in grown.trials.values()} == {"finished"}, "there is time for those left behind too"
    assert swept(asked(tmp_path, "halving", budget="0.1 seconds"), starter), "there is nothing left to spend it on"


def test_all_is_kept_where_that_is_asked_for_else_the_best(
    tmp_path: Path, undisturbed: Callable[[str], Record], starter: Starter
) -> None:
    best, whole = undisturbed("random"), swept(asked(tmp_path, "random", keep="all"), starter)
    assert_same(whole, best, weights=False)
    names = [path.name for path in sorted(best.folders.iterdir())]
    assert left(whole) == checkpointed(whole) == names
    (winner,) = [entry for entry in ranked(best) if entry.place == 1]
    assert left(best) == checkpointed(best) == [f"{winner.point:04}"]
    for name in names:
        for record in (best, whole):
            assert (record.folders / name / "metrics.jsonl").stat().st_size, "the figures of all stay"


@rounds("names", plain=[["GPU-aa", "GPU-bb"]], long=[["0", "3"], ["MIG-4c/1/0", "MIG-4c/2/0"]])
def test_each_trial_sees_its_own_gpu_and_no_two_that_run_share_one(
    tmp_path: Path, names: list[str], starter: Starter
) -> None:
    assert_apart(swept(placed(tmp_path), starter, slots=slots_of(None, 1, names)), [(name,) for name in names])


@pytest.mark.long
def test_each_trial_of_several_processes_sees_its_own_gpus(tmp_path: Path, starter: Starter) -> None:
    slots = slots_of(None, 2, ["0", "1", "2", "3", "4"])
    assert_apart(swept(placed(tmp_path, processes=2), starter, slots=slots), [("0", "1"), ("2", "3")])


def placed(folder: Path, **more: Any) -> Asked:
    """A sweep whose trials say what they see; they train on the CPU, as the GPUs are none."""
    plain = asked(folder, "random", trials=4, **more)
    return replace(plain, words=(*plain.words, "data.train={_target_: parts.py:Placed, seconds: 0.001}"))


def assert_apart(record: Record, groups: list[tuple[str, ...]]) -> None:
    """Each trial has seen one of these groups of GPUs, and none that another one had meanwhile."""
    rows = [json.loads(line) for line in (record.folder / "record.jsonl").read_text(encoding="utf-8").splitlines()]
    since = {row["trial"]: row["time"] for row in rows if row["kind"] == "taken"}
    until = {row["trial"]: row["time"] for row in rows if row["kind"] == "rung"}
    seen = {number: seen_by(record.folder_of(number)) for number in record.trials}
    assert set(seen.values()) == set(groups), "all are used"
    for one, other in itertools.combinations(record.trials, 2):
        is_apart = until[one] <= since[other] or until[other] <= since[one]
        assert is_apart or seen[one] != seen[other]


def seen_by(run: Path) -> tuple[str, ...]:
    logs = "".join(path.read_text(encoding="utf-8") for path in (run / "logs").iterdir())
    (devices,) = {line.split()[1] for line in logs.splitlines() if line.startswith("sees ")}
    return tuple(devices.split(","))


@rounds("points, epochs", plain=[(6, 5)], long=[(16, 10)])
def test_halving_by_pausing_finds_the_winner_with_half_of_the_steps(
    tmp_path: Path, points: int, epochs: int, starter: Starter
) -> None:
    rates = ",".join(f"{10 ** (-4 + 4 * place / (points - 1)):.3g}" for place in range(points - 1))
    words = (*FIXED, f"optimizer.lr={rates}", f"train.epochs={epochs}", "evaluate.every=5 steps")
    whole = replace(asked(tmp_path / "all", "grid", trials=None), words=words)
    halved = replace(asked(tmp_path / "half", "halving", trials=points, slots=1), words=words)
    expected, record = swept(whole, starter), swept(halved, starter)
    by_point = {str(trial.parameters): trial for trial in expected.trials.values()}
    winner = min(expected.trials.values(), key=lambda trial: (trial.result, trial.number))
    finished = [trial for trial in record.trials.values() if trial.result is not None]
    assert min(finished, key=lambda trial: (trial.result, trial.number)).parameters == winner.parameters
    steps = sum(trial.step for trial in record.trials.values())
    assert steps <= sum(trial.step for trial in expected.trials.values()) / 2
    for trial in finished:  # which were paused twice
        never = by_point[str(trial.parameters)]
        assert trial.result == never.result
        assert curve(record, trial.number) == curve(expected, never.number)


def test_a_fork_computes_what_a_fresh_process_does(tmp_path: Path, starter: Starter) -> None:
    found = []
    for number, is_fresh in enumerate((False, True)):
        run = tmp_path / str(number)
        arguments = ["train", str(TINY), *FIXED[:-1], "launch.threads=1", "--cpu", "--quiet", "--run-dir", str(run)]
        starter.start(Order(number, arguments, str(tmp_path / f"{number}.log"), dict(os.environ), is_fresh))
        (ended,) = starter.ended(60)
        assert (ended.code, ended.is_forked) == (0, not is_fresh), (tmp_path / f"{number}.log").read_text()
        losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl")]
        found.append((losses, (run / "model_weights.pth").read_bytes()))
    assert found[0] == found[1]


def test_from_python_it_gives_a_row_for_each_trial(tmp_path: Path) -> None:
    words = (*FIXED, "optimizer.lr=1e-2,1e-1")
    rows = launcher.sweep(str(TINY), *words, cpu=True, parallel=2, run_dir=tmp_path / "sweep")
    assert [(row["trial"], row["optimizer.lr"], row["state"], row["step"]) for row in rows] == [
        (0, 0.01, "finished", 20),
        (1, 0.1, "finished", 20),
    ]
    assert sorted(row["rank"] for row in rows) == [1, 2]
    with pytest.raises(UsageError, match="budget: 'much' is not a duration that fits here"):
        launcher.sweep(str(TINY), *words, budget="much")
    with pytest.raises(UsageError, match=r"^metric='nothing': no validation set has it"):
        launcher.sweep(str(TINY), *words, metric="nothing")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "cmaes"}, "method='cmaes': varies ranges, and there is none; write method='tpe'"),
        ({"trials": 8}, "trials=8: the space has 2 runs with the baseline; write trials=2"),
        ({"method": "grid", "trials": 8}, "trials=8: the grid has 2 runs with the baseline; omit trials"),
        ({"run_dir": __file__}, f"run_dir: {__file__}"),
    ],
)
def test_from_python_messages_speak_of_keywords(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        launcher.sweep(str(TINY), *FIXED, "optimizer.lr=1e-2,1e-1", cpu=True, processes_per_run=2, **asked)


def test_from_python_a_mapping_becomes_a_file_in_the_sweeps_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts.py").write_text((TINY.parent / "parts.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "small.yaml").write_text("train: {epochs: 1}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    del recipe["train"]
    recipe = {**recipe, "base": "small.yaml"}
    words = (*FIXED[1:], "optimizer.lr=1e-2,1e-1")
    with pytest.raises(RecipeError, match=r"sweep/recipe.yaml.*it is not in your project.*\[tool.launcher\] code"):
        launcher.sweep(recipe, *words, cpu=True, run_dir="sweep")
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "pyproject.toml").touch()
    rows = launcher.sweep(recipe, *words, cpu=True, parallel=2, run_dir="sweep")
    assert [(row["optimizer.lr"], row["state"], row["step"]) for row in rows] == [
        (0.01, "finished", 4),
        (0.1, "finished", 4),
    ]
    lines = Record(tmp_path / "sweep").lines
    assert launcher.sweep(recipe, *words, cpu=True, run_dir="sweep") == rows, "there was nothing left to do"
    (tmp_path / "sweep").rename(tmp_path / "moved")  # with its recipe
    assert Command(tmp_path, "sweep", "moved", "--parallel", "1").wait().code == 0
    assert Record(tmp_path / "moved").lines == lines
    recipe["evaluate"] = {"every": "2 epochs"}
    with pytest.raises(UsageError, match="this is not the sweep that was begun there:\n  the recipe: is no longer"):
        launcher.sweep(recipe, *words, cpu=True, run_dir="moved")


def test_an_edited_recipe_ends_it_and_the_rest_goes_on_when_it_is_put_back(tmp_path: Path, starter: Starter) -> None:
    for name in ("tiny.yaml", "parts.py"):
        (tmp_path / name).write_text((TINY.parent / name).read_text(encoding="utf-8"), encoding="utf-8")
    recipe = tmp_path / "tiny.yaml"
    text = recipe.read_text(encoding="utf-8")
    edited = text.replace("CrossEntropyLoss", "CrossEntropyLoss, label_smoothing: 0.1")
    wanted = replace(asked(tmp_path, "grid", trials=None), recipe=str(recipe))

    def edit(record: Record) -> None:
        if any(trial.is_over for trial in record.trials.values()):
            recipe.write_text(edited, encoding="utf-8")

    with pytest.raises(UsageError, match="is no longer the recipe that the sweep was begun with"):
        swept(wanted, starter, show=edit)
    record = Record(tmp_path / "sweep")
    assert not record.running
    assert any(not trial.is_over for trial in record.trials.values())
    recipe.write_text(text, encoding="utf-8")
    assert [trial.state for trial in swept(wanted, starter).trials.values()] == ["finished"] * 6
