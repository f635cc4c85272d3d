"""Opening the recipe's data sets: prepared once on a machine, checked, and spoken of in the plan."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import RECIPES
from worlds import in_world, killed, train, train_here

from launcher.data import open as sets
from launcher.data.load import Data, fair_workers, load_evaluation
from launcher.data.open import slow_note
from launcher.data.preparation import once_per_node
from launcher.data.streams import StreamLoader
from launcher.datasets.files import atomic_write
from launcher.errors import LauncherError, RecipeError
from launcher.recipe.build import Builder, BuildError
from launcher.recipe.load import load_recipe
from launcher.training.build import open_run_data
from launcher.world.world import World, usable_cpus

RECIPE = RECIPES / "data.yaml"
_context = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(*overrides: str, remove: tuple[str, ...] = (), world: World | None = None) -> Data:
    recipe = load_recipe(RECIPE, overrides, remove)
    return open_run_data(recipe, Builder(recipe), world or World())


def started(function: Callable[..., None], *arguments: Any) -> Any:
    process = _context.Process(target=function, args=arguments)
    process.start()
    return process


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("held_back", ["20% of train", "{_share_: 20% of train}"])
def test_a_table_is_scaled_by_the_rows_that_are_trained_on(folder: Path, held_back: str) -> None:
    """Those that are held back say nothing of the scale, whichever set is opened first, and then have the same."""
    (folder / "rows.csv").write_text("x,kind\n" + "".join(f"{number**2},{'ab'[number % 2]}\n" for number in range(50)))
    table = "{_target_: Table, path: rows.csv, target: kind, scale: SCALE}"
    read = table.replace("SCALE", "true"), table.replace("SCALE", "'${data.train.scaling}'")
    sets = [f"data.train={read[0]}", f"data.validation={held_back}", f"data.test={read[1]}"]
    recipe = load_recipe(RECIPE, sets, ["data.validation"])
    data = open_run_data(recipe, Builder(recipe), World())
    trained = data.train.dataset
    features, indices = trained.dataset.tensors[0], trained.indices
    torch.testing.assert_close(features[indices].mean(0), torch.zeros(1))
    torch.testing.assert_close(features[indices].std(0, correction=0), torch.ones(1))
    numbers = torch.arange(50.0).square()[:, None]
    raw = numbers[indices]
    torch.testing.assert_close(features, (numbers - raw.mean()) / raw.std(correction=0))
    alone = load_evaluation(
        Builder(recipe), recipe.data, World(), [("test", "")], evaluate=recipe.evaluate, seed=recipe.seed
    )
    (other,) = alone.values()
    for same in (data.test[""], other):
        torch.testing.assert_close(same.dataset.tensors[0], features)
    part = data.validation[""].dataset
    torch.testing.assert_close(part.dataset.tensors[0][part.indices], features[part.indices])


# --- preparing ---


def test_a_data_set_is_prepared_before_it_is_built_once_for_the_same_arguments(folder: Path) -> None:
    data = opened()
    assert (data.train.sampler.dataset_size, data.validation[""].num_samples()) == (6, 6)
    assert (folder / "log").read_text().splitlines() == [f"{os.getpid()} a b"] * 2  # each returns at once
    assert "the numbers are small" in data.notes


def test_data_sets_inside_others_and_under_define_are_prepared(folder: Path) -> None:
    inner = "{_target_: sources.py:Prepared, folder: other, words: [c]}"
    data = opened(f"define={{numbers: {inner}}}", "data.train={_target_: sources.py:Half, whole: '${define.numbers}'}")
    assert data.train.sampler.dataset_size == 3
    data = opened(f"data.train={{_target_: sources.py:Half, whole: {inner.replace('other', 'third')}}}")
    assert data.train.sampler.dataset_size == 3
    assert (folder / "third" / "rows").exists()


def _open_with_others(started_at: float) -> int:
    time.sleep(max(0.0, started_at - time.time()))
    data = opened(remove=("data.validation",), world=World.from_environ())
    time.sleep(1)  # as a trainer that lives on
    return data.train.sampler.dataset_size


def test_one_process_of_a_machine_prepares_and_the_others_wait(folder: Path) -> None:
    assert in_world(4, _open_with_others, time.time() + 1) == [6] * 4
    assert len((folder / "log").read_text().splitlines()) == 1


def _prepare(folder: Path, wait: bool) -> None:
    def act() -> None:
        with atomic_write(folder / "made") as part:
            part.mkdir()
            (part / "begun").touch()
            if wait:
                time.sleep(1000)
            (part / "finished").touch()

    once_per_node(f"test of {folder}", act, "test")
    with open(folder / "log", "a") as log:
        log.write("done\n")


def test_a_killed_preparation_leaves_nothing_and_another_goes_on(folder: Path) -> None:
    first = started(_prepare, folder, True)
    wait_for(lambda: bool(list(folder.glob(".made*/begun"))))
    others = [started(_prepare, folder, False) for _ in range(2)]
    time.sleep(0.3)
    assert not (folder / "made").exists()
    assert not (folder / "log").exists()
    first.kill()
    for process in [first, *others]:
        process.join(60)
    assert [process.exitcode for process in [first, *others]] == [-9, 0, 0]
    assert sorted(path.name for path in folder.iterdir()) == ["log", "made"]  # no leftover
    assert (folder / "made" / "finished").exists()


def test_a_preparation_that_fails_is_told_to_all_that_waited(folder: Path) -> None:
    with pytest.raises(BuildError) as caught:
        opened("data.train={_target_: sources.py:Unlucky, folder: made}")
    message = str(caught.value)
    assert "override 'data.train=" in message
    assert "data.train: sources.py:Unlucky.prepare: OSError: the server does not answer" in message
    assert caught.value.exit_code == 2


def test_a_later_start_prepares_again(folder: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        once_per_node(f"again {folder}", lambda: calls.append(1), "test")
    assert len(calls) == 2


# --- scratch ---


def test_scratch_is_handed_to_data_sets_that_take_it(folder: Path) -> None:
    data = opened(f"data.scratch={folder}/disk")
    assert data.train.dataset.scratch == f"{folder}/disk"
    text = "{_target_: TextFile, path: text.txt, context: 4}"
    (folder / "text.txt").write_text("hello world " * 10)
    opened(f"data.scratch={folder}/disk", f"data.train={text}", remove=("data.validation",))
    with pytest.raises(RecipeError, match=r"data\.scratch: no data set takes a 'scratch' folder; remove it, or give"):
        opened("data.scratch=/tmp", "data.train={_target_: sources.py:SizedStream}", remove=("data.validation",))


# --- what the plan says ---


def test_a_data_set_that_takes_long_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "SLOW_SECONDS", 0.0)
    notes = [note for note in opened(world=World(size=2)).notes if "took" in note]
    assert len(notes) == 2
    assert notes[0].startswith(
        "data.train: building Prepared took 0 s on each of 2 processes; a class method prepare()"
    )
    assert not [note for note in opened().notes if "took" in note]
    assert "took 95 s on each of 512 processes; " in slow_note("data.train", "Photos", 95.2, 512)


@pytest.mark.parametrize(("local_size", "on_gpu"), [(1, False), (2, True), (1000, True)])
def test_workers_are_a_fair_share_of_the_cpus(local_size: int, on_gpu: bool) -> None:
    workers = fair_workers(World(size=local_size, local_size=local_size), on_gpu)
    assert 0 <= workers <= max(0, usable_cpus() // local_size)
    assert local_size < 1000 or workers == 0


def test_workers_that_are_asked_for_are_used_and_said(folder: Path) -> None:
    (folder / "text.txt").write_text("hello world " * 10)
    text = "data.train={_target_: TextFile, path: text.txt, context: 4}"
    assert opened(text).train.reading.workers == 0
    data = opened(text, "data.workers=2")
    assert data.train.reading.workers == 2
    assert "2 worker processes a rank read whole batches" in data.notes


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        ("0::/", {"cpu.max": "100000 100000"}, 1),
        ("0::/job/step", {"job/cpu.max": "150000 100000", "job/step/cpu.max": "max 100000"}, 1),
        ("0::/", {"cpu.max": "10000 100000"}, 1),  # less than one
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/elsewhere", {"cpu.max": "6400000 100000"}, None),  # more than there are
        ("3:cpu,cpuacct:/pod", {"cpu/pod/cpu.cfs_quota_us": "100000", "cpu/pod/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu,cpuacct:/pod", {"cpu/pod/cpu.cfs_quota_us": "-1", "cpu/pod/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
)
def test_a_quota_of_cpu_time_counts(tmp_path: Path, cgroup: str, files: dict[str, str], cpus: int | None) -> None:
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{one}": files[one] for one in files}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert usable_cpus(tmp_path) == (cpus or len(os.sched_getaffinity(0)))


# --- streams ---


def stream(name: str, *overrides: str, world: World | None = None) -> Data:
    return opened(f"data.train={{_target_: sources.py:{name}}}", *overrides, remove=("data.validation",), world=world)


def test_a_stream_s_epoch_is_its_length_or_the_run() -> None:
    unsized, sized = stream("Stream"), stream("SizedStream")
    assert (unsized.steps_per_epoch, sized.steps_per_epoch) == (5, 3)
    assert (unsized.describe(), sized.describe()) == ("a stream", "a stream of 10 training samples")
    assert isinstance(unsized.train, StreamLoader)
    (note,) = unsized.notes
    assert note == "a stream in its own order; resuming a stopped run reads past what was read before"
    assert "every process reads all" in stream("Stream", world=World(size=2)).notes[0]
    assert (
        stream("Shards", world=World(size=2)).notes[0].startswith("a stream in 2 shards: another number of processes")
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train={epochs: 3}"], r"train\.epochs: Stream is a stream without a length; set train\.steps"),
        (["train={time: 3 seconds}"], r"train\.time: Stream is a stream without a length"),
        (["data.shuffle=true"], r"data\.shuffle: Stream is a stream, of which no samples can be picked by number"),
        (["data.weights=weights.npy"], r"data\.weights: Stream is a stream"),
        (["data.validation=10% of train"], r"data\.validation: Stream is a stream"),
        (["data.workers=2"], r"data\.workers: Stream has no shards for so many, and each would read all of it"),
        (["data.validation={_target_: sources.py:Stream}"], r"data\.validation: .* set evaluate\.limit, as in"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        opened("data.train={_target_: sources.py:Stream}", "data.validation=null", *overrides)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generated", "a generator can be read only once; give a list of samples, or a class whose __iter__ starts"),
        ("zipped", "a zip can be read only once"),
        ("split", r"a dict of train, test is not a data set; give one of its values"),
        ("columns", r"a dict of x, y is not a data set; .*TensorDataset"),
    ],
)
@pytest.mark.parametrize("key", ["train", "validation"])
def test_what_is_no_data_set_is_told_as_what_it_is(name: str, key: str, message: str) -> None:
    with pytest.raises(RecipeError, match=rf"data\.{key}: {message}"):
        opened(f"data.{key}={{_target_: sources.py:{name}}}", "train={steps: 4}", "evaluate.limit=2 batches")


def test_a_data_set_without_a_length_is_refused() -> None:
    with pytest.raises(LauncherError, match=r"NoLength is not a data set|NoLength has no length"):
        opened("data.train={_target_: sources.py:NoLength}", remove=("data.validation",))


def test_a_stream_trains_the_same_in_every_world(folder: Path) -> None:
    overrides = ["data.train={_target_: sources.py:Stream}", "data.micro_batch_size=2", "train.steps=6"]
    remove = ("data.validation",)
    one = train(folder / "one", *overrides, recipe=RECIPE, remove=remove)
    three = train(folder / "three", *overrides, recipe=RECIPE, remove=remove, size=3)
    assert len(one.column("loss")) == 6
    assert three.column("loss") == pytest.approx(one.column("loss"), rel=1e-5)
    shards = [overrides[0].replace("Stream", "Shards"), *overrides[1:]]
    validation = "data.validation={_target_: sources.py:Stream, size: 9}"
    sharded = train(folder / "shards", *shards, validation, "evaluate.limit=2 batches", recipe=RECIPE, size=2)
    assert sharded.column("loss", "validation")[-1] < 1


def test_a_stream_goes_on_in_as_many_shards_as_it_began_with(folder: Path) -> None:
    overrides = ["data.train={_target_: sources.py:Shards}", "train.steps=6", "save.every=1 steps"]
    given: dict[str, Any] = {"recipe": RECIPE, "remove": ("data.validation",)}
    straight = train(folder / "straight", *overrides, "data.workers=2", **given)
    assert train(folder / "alone", *overrides, "data.workers=1", **given).distance(straight) > 0

    def begun(name: str) -> Path:
        arguments = ((*overrides, "data.workers=2"), str(RECIPE), given["remove"], "kill@step:4")
        assert killed(1, train_here, str(folder / name), *arguments)
        return folder / name

    auto = train(begun("auto"), *overrides, "data.workers=auto", **given)  # which is another number on this machine
    assert auto.distance(straight) == 0
    with pytest.raises(AssertionError, match=r"data\.workers: was 2, is now 1(.|\n)*--allow-changes data\.workers"):
        train(begun("stated"), *overrides, "data.workers=1", **given)
    train(folder / "stated", *overrides, **given, size=2)
    log = (folder / "stated" / "logs" / "rank-0.log").read_text()
    assert "2 shards, read with --processes 1 and data.workers=2, are cut again for other readers" in log
