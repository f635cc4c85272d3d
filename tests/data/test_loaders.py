"""Batches as a rank gets them: the same for every number of workers and processes, and errors that name the sample."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from launcher.data.loaders import EvaluationLoader, MicroBatch, Reading, TrainLoader
from launcher.data.sampler import StepSampler
from launcher.data.seeds import randomness_restored
from launcher.data.subsets import subset
from launcher.data.transfer import _one_ahead, on_device
from launcher.data.whole import whole_batches
from launcher.device.kind import Aside
from launcher.errors import LauncherError

SIZE, BATCH = 23, 8  # the last batch has 7


class Augmented(Dataset[tuple[int, Tensor]]):
    """Samples with noise from every generator that augmentation draws from."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        noise = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return index, torch.tensor([*noise, random.gauss(0, 1)], dtype=torch.float64)


def loader_of(dataset: Any, *, rank: int = 0, world: int = 1, micro: int | None = None, **reading: Any) -> TrainLoader:
    sampler = StepSampler(dataset, global_batch_size=BATCH, rank=rank, world_size=world, micro_batch_size=micro, seed=3)
    return TrainLoader(dataset, sampler, Reading(seed=3, rank=rank, **reading))


def read(loaders: Sequence[TrainLoader], start: int, stop: int) -> list[dict[int, list[float]]]:
    """What all ranks read at each step: noise by index, of samples that count."""
    streams = [loader.steps(start, stop) for loader in loaders]
    steps = []
    for batches in zip(*streams, strict=True):
        step: dict[int, list[float]] = {}
        for batch in itertools.chain(*batches):
            indices, noise = batch.data
            counted = list(zip(indices.tolist(), noise.tolist(), strict=True))[: batch.samples]
            assert step.keys().isdisjoint(dict(counted))
            step.update(counted)
        steps.append(step)
    return steps


@pytest.fixture(scope="module")
def undisturbed() -> list[dict[int, list[float]]]:
    return read([loader_of(Augmented())], 0, 10)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro", [None, 1, 3])
def test_every_world_reads_each_sample_of_an_epoch_once(
    undisturbed: list[dict[int, list[float]]], world: int, micro: int | None
) -> None:
    loaders = [loader_of(Augmented(), rank=rank, world=world, micro=micro) for rank in range(world)]
    steps = read(loaders, 0, 10)
    assert steps == undisturbed
    assert [len(step) for step in steps[:6]] == [8, 8, 7, 8, 8, 7]
    assert set().union(*steps[:3]) == set().union(*steps[3:6]) == set(range(SIZE))
    assert steps[0] != steps[3]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize(("world", "workers", "start"), [(1, 1, 0), (1, 4, 5), (3, 2, 4), (2, 0, 7)])
def test_workers_and_resuming_change_no_sample_and_no_augmentation(
    undisturbed: list[dict[int, list[float]]], world: int, workers: int, start: int
) -> None:
    loaders = [loader_of(Augmented(), rank=rank, world=world, micro=2, workers=workers) for rank in range(world)]
    assert read(loaders, start, 10) == undisturbed[start:]


def test_an_epoch_augments_anew_and_evaluation_does_not(undisturbed: list[dict[int, list[float]]]) -> None:
    first, second = (dict(itertools.chain(*(s.items() for s in undisturbed[i : i + 3]))) for i in (0, 3))
    assert all(first[index] != second[index] for index in range(SIZE))
    loader = EvaluationLoader(Augmented(), 10, Reading(seed=3))
    one, other = ([batch.data[1].tolist() for batch in loader.batches()] for _ in range(2))
    assert one == other


def test_without_sample_seeds_samples_draw_from_the_process() -> None:
    loader = loader_of(Augmented(), sample_seeds=False)
    torch.manual_seed(0)
    first = torch.rand(())
    torch.manual_seed(0)
    noise = next(loader.steps(0, 1))[0].data[1]
    assert noise[0, 2] == pytest.approx(first.item())


def test_reading_leaves_the_generators_of_the_process_alone() -> None:
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]  # a tuple unless legacy=False
    for workers in (0, 1):
        read([loader_of(Augmented(), workers=workers, collate=_noisy_collate)], 0, 3)
    assert states == [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]  # as above


def _noisy_collate(samples: list[Any]) -> Any:
    indices, noise = default_collate(samples)
    return indices, noise + torch.rand(()) + random.random()


def test_a_collate_is_seeded_whoever_calls_it() -> None:
    here, there = (read([loader_of(Augmented(), workers=w, collate=_noisy_collate)], 0, 4) for w in (0, 2))
    assert here == there


# --- evaluation ---


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_evaluation_reads_every_sample_once_over_all_ranks(world: int) -> None:
    loader = EvaluationLoader(Augmented(), 4, Reading())
    batches = [batch for rank in range(world) for batch in loader.batches(rank, world)]
    assert [index for batch in batches for index in batch.data[0].tolist()] == list(range(SIZE))
    assert sum(batch.samples for batch in batches) == loader.num_samples() == SIZE


def test_evaluation_keeps_its_workers_and_begins_anew_each_time() -> None:
    loader = EvaluationLoader(WithProcess(), 4, Reading(workers=2))
    first, again = (list(loader.batches()) for _ in range(2))
    assert processes(first) == processes(again)
    abandoned = loader.batches()
    next(abandoned)
    del abandoned
    last = list(loader.batches())
    for batches in (first, again, last):
        assert [index for batch in batches for index in batch.data[0].tolist()] == list(range(SIZE))
    assert processes(last).isdisjoint(processes(first))
    loader.close()
    assert not any(map(is_running, processes(last)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_evaluation_starts_no_more_workers_than_batches() -> None:
    loader = EvaluationLoader(WithProcess(), 16, Reading(workers=8))
    assert len(processes(list(loader.batches()))) == 2
    assert len(psutil.Process().children()) >= 2
    loader.close()


class WithProcess(Augmented):
    """Samples that say who read them."""

    def __getitem__(self, index: int) -> Any:
        return index, os.getpid()


def processes(batches: Sequence[MicroBatch]) -> set[int]:
    return {process for batch in batches for process in batch.data[1].tolist()}


def is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- what goes wrong ---


class At(Augmented):
    """Something happens at one sample."""

    def __init__(self, index: int, act: Callable[[], Any]):
        self.index, self.act = index, act

    def __getitem__(self, index: int) -> Any:
        if index == self.index:
            self.act()
        return super().__getitem__(index)


def run_through(loader: TrainLoader) -> None:
    read([loader], 0, 6)


def fail(error: Exception) -> Callable[[], Any]:
    def act() -> None:
        raise error

    return act


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_named_with_its_sample() -> None:
    index = int(loader_of(Augmented(), rank=1, world=2).sampler.shares(4)[0].indices[1])
    loader = loader_of(At(index, killed), rank=1, world=2, workers=2)
    with pytest.raises(LauncherError) as caught:
        run_through(loader)
    message = str(caught.value)
    assert "data.train (At), rank 1: worker process" in message
    assert f"was killed by SIGKILL while reading sample {index} (epoch " in message
    assert "use fewer data.workers" in message


def test_a_hanging_worker_is_named_within_the_timeout_and_does_not_stay() -> None:
    loader = loader_of(At(13, lambda: time.sleep(1000)), workers=2, timeout_seconds=3)
    before = {child.pid for child in psutil.Process().children()}
    began = time.monotonic()
    with pytest.raises(
        LauncherError, match=r"no batch came in data.timeout \(3 s\): .* hangs while reading sample 13 "
    ):
        run_through(loader)
    assert time.monotonic() - began < 60
    assert not any(is_running(child.pid) for child in psutil.Process().children() if child.pid not in before)


def test_a_worker_that_dies_during_a_step_is_noticed_when_its_batch_is_wanted() -> None:
    steps = loader_of(WithProcess(), workers=1).steps(0, None)
    os.kill(next(steps)[0].data[1][0].item(), signal.SIGKILL)
    for _ in range(20):
        time.sleep(0.01)  # here torch's own handler of such a death would raise
    with pytest.raises(LauncherError, match="was killed by SIGKILL"):
        for _ in steps:
            pass


@pytest.mark.parametrize("workers", [0, 2])
def test_a_clear_error_of_a_data_set_stays_clear(workers: int) -> None:
    loader = loader_of(At(13, fail(LauncherError("photo.jpg: cannot be read"))), workers=workers)
    with pytest.raises(LauncherError) as caught:
        run_through(loader)
    assert str(caught.value) == "data.train (At), rank 0, sample 13: photo.jpg: cannot be read"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_data_set_keeps_its_kind_and_names_the_sample(workers: int) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_through(loader_of(At(13, lambda: 1 // 0), workers=workers))
    said = str(caught.value) + str(getattr(caught.value, "__notes__", ""))
    assert "in data.train (At), rank 0, sample 13" in said


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_make_no_batch_are_named(workers: int) -> None:
    ragged = [torch.zeros(2 + (index == 5)) for index in range(SIZE)]
    with pytest.raises(LauncherError, match=r"samples [\d, …]+ do not make a batch: stack expects .* data\.collate"):
        list(loader_of(ragged, workers=workers).steps(0, 3))


def test_workers_ignore_the_signals_meant_for_the_trainer() -> None:
    steps = loader_of(WithProcess(), workers=2).steps(0, 12)
    workers = processes(next(steps)) | processes(next(steps))
    for worker, number in itertools.product(workers, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)):
        os.kill(worker, number)
    assert len(list(steps)) == 10


def _trainer(pipe: Any) -> None:
    steps = loader_of(WithProcess(), workers=2).steps(0, None)
    pipe.send(processes(next(steps)) | processes(next(steps)))
    time.sleep(1000)


def test_workers_end_with_a_killed_trainer() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    trainer = context.Process(target=_trainer, args=(theirs,))
    trainer.start()
    workers = ours.recv()
    assert all(map(is_running, workers))
    assert len(workers) == 2
    trainer.kill()
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def test_a_program_ends_though_it_still_reads(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import torch
        from launcher.data.loaders import Reading, TrainLoader
        from launcher.data.sampler import StepSampler
        data = [torch.zeros(2)] * 100
        steps = TrainLoader(data, StepSampler(data, global_batch_size=4), Reading(workers=2)).steps(0, None)
        next(steps)
        1 // 0
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.count("Error")) == (1, 1), done.stderr


# --- whole batches ---


def table_of(rows: int) -> Any:
    columns = {"number": list(range(rows)), "half": [index / 2 for index in range(rows)]}
    return datasets.Dataset.from_dict(
        {**columns, "word": [f"w{i}" for i in range(rows)], "pair": [[i, -i] for i in range(rows)]}
    )


def test_columns_of_a_hub_data_set_are_its_samples_collated() -> None:
    table = table_of(SIZE)
    indices = np.array([3, 0, 22, 3])
    read_batch = whole_batches(table, None)
    assert read_batch is not None
    assert_same(read_batch(indices), default_collate([table[int(index)] for index in indices]))
    for form in ("numpy", "torch"):  # as torch's DataLoader reads them, by `__getitems__`
        formatted = table.with_format(form)
        read_formatted = whole_batches(formatted, None)
        assert read_formatted is not None
        assert_same(read_formatted(indices), default_collate(formatted.__getitems__(indices.tolist())))


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        for inner, its in zip(one, other, strict=True):
            assert_same(inner, its)
    else:
        assert one == other


def test_a_hub_data_set_with_a_transform_is_read_sample_by_sample() -> None:
    def transform(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"noise": [random.random() for _ in columns["number"]], "number": columns["number"]}

    table = table_of(SIZE).with_transform(transform)
    assert whole_batches(table, None) is None
    one = [batch.data["noise"].tolist() for step in loader_of(table).steps(0, 3) for batch in step]
    two = [loader_of(table, rank=rank, world=2).steps(0, 3) for rank in range(2)]
    shared = [[*a[0].data["noise"].tolist(), *b[0].data["noise"].tolist()] for a, b in zip(*two, strict=True)]
    assert one == shared


def test_a_collate_gets_a_hub_data_set_s_rows() -> None:
    seen: list[list[Any]] = []
    loader = loader_of(table_of(SIZE), collate=lambda rows: seen.append(rows) or len(rows))  # type: ignore[func-returns-value]  # append and go on
    assert [batch.data for step in loader.steps(0, 3) for batch in step] == [8, 8, 7]
    assert all(set(row) == {"number", "half", "word", "pair"} for row in seen[0])


def test_classes_that_may_differ_from_their_samples_are_never_read_at_once() -> None:
    class Normalised(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            row = self.tensors[0][index]
            return row - row.mean()

    assert whole_batches(Normalised(torch.rand(4, 3)), None) is None
    assert whole_batches(TensorDataset(torch.rand(4, 3)), None) is not None
    assert whole_batches(TensorDataset(torch.rand(4, 3)), default_collate) is None


def test_workers_that_are_asked_for_read_whole_batches_too() -> None:
    data = TensorDataset(torch.arange(SIZE), torch.rand(SIZE, 2))
    here, there = ([step[0].data for step in loader_of(data, workers=w).steps(0, 3)] for w in (0, 2))
    for one, other in zip(here, there, strict=True):
        assert all(map(torch.equal, one, other))


def test_random_states_are_put_back() -> None:
    with randomness_restored(needed=True):
        inside = torch.rand(())
    assert torch.rand(()) == inside


# --- to the device ---


class Step:
    """A step of one micro-batch."""

    def __init__(self, number: int):
        self.batches = [MicroBatch({"number": torch.tensor([number])}, 1)]


HOST = torch.device("cpu")


class Streams:
    """torch.cuda's streams as far as they are used, writing down what happens; computing is the current stream."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.copied = itertools.count()

    def Stream(self, device: Any) -> Any:  # noqa: N802  # torch's name
        return self

    def current_stream(self, device: Any) -> Any:
        return self

    def stream(self, stream: Any) -> Any:
        return torch.cpu.stream(torch.cpu.Stream())

    def wait_stream(self, stream: Any) -> None:
        self.log.append("copying waits for computing")

    def record_event(self) -> int:
        self.log.append(f"copy {(number := next(self.copied))}")
        return number

    def wait_event(self, event: int) -> None:
        self.log.append(f"computing waits for copy {event}")


def test_the_next_batch_is_copied_before_this_one_is_handed_out() -> None:
    streams, closed = Streams(), []

    def steps() -> Generator[Step, None, None]:
        try:
            for number in range(3):
                streams.log.append(f"read {number}")
                yield Step(number)
        finally:
            closed.append(True)

    for number, step in enumerate(_one_ahead(steps(), HOST, Aside(streams, HOST))):
        assert step.batches[0].data["number"].item() == number
        streams.log.append(f"compute {number}")
    assert streams.log == [
        *("read 0", "copying waits for computing", "copy 0"),
        *("read 1", "copying waits for computing", "copy 1", "computing waits for copy 0", "compute 0"),
        *("read 2", "copying waits for computing", "copy 2", "computing waits for copy 1", "compute 1"),
        *("computing waits for copy 2", "compute 2"),
    ]
    assert closed


def test_moving_stops_when_it_is_closed_and_takes_torch_s_own_streams() -> None:
    closed = []

    def steps() -> Generator[Step, None, None]:
        try:
            yield from map(Step, itertools.count())
        finally:
            closed.append(True)

    ahead = _one_ahead(steps(), HOST, Aside(torch.cpu, HOST))
    assert [step.batches[0].data["number"].item() for step in itertools.islice(ahead, 5)] == list(range(5))
    ahead.close()
    assert closed
    stream = steps()
    assert on_device(stream, torch.device("cpu")) is stream
    assert next(on_device(steps(), torch.device("meta"))).batches[0].data["number"].is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_batches_arrive_on_a_gpu_unharmed() -> None:
    data = TensorDataset(torch.arange(10_000_000).reshape(-1, 1000))
    sampler = StepSampler(data, global_batch_size=500)
    loader = TrainLoader(data, sampler, Reading(pin_memory=True))
    device = torch.device("cuda")

    class OneStep:
        def __init__(self, batches: Sequence[MicroBatch]):
            self.batches = batches

    for step in on_device((OneStep(batches) for batches in loader.steps(0, 100)), device):
        rows = step.batches[0].data[0]
        torch.cuda._sleep(1_000_000)  # the GPU is behind the host, as in training
        assert bool((rows[:, 0] // 1000 * 1000 == rows[:, 0]).all())
        assert torch.equal(rows - rows[:, :1], torch.arange(1000, device=device).expand_as(rows))


def test_a_part_holds_its_indices_in_an_array_and_reads_as_the_whole_does() -> None:
    indices = np.array([7, 2, 9])
    one_by_one, tensors = Augmented(), TensorDataset(torch.arange(20), torch.arange(20) * 2)
    part, many = subset(one_by_one, indices), subset(tensors, indices)
    assert len(part) == len(many) == 3
    assert [part[place][0] for place in range(3)] == [7, 2, 9]
    assert whole_batches(part, None) is None
    read = whole_batches(many, None)
    assert read is not None
    assert [column.tolist() for column in read(np.array([2, 0]))] == [[9, 7], [18, 14]]
    assert part.indices.nbytes == many.indices.nbytes == 3 * 8
