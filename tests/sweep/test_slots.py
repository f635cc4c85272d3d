"""Where trials run: GPUs dealt to slots, by whatever name the machine or its queue gives them."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from places import TINY

from launcher.cli.main import main
from launcher.device import kind
from launcher.errors import EXIT_USAGE, UsageError
from launcher.sweep.slots import described, slots_here, slots_of
from launcher.world.gpus import _VISIBLE

MIG = ("MIG-4c/1/0", "MIG-4c/2/0", "MIG-6d/1/0")


@pytest.fixture(autouse=True)
def _own_locks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("locks")))


def machine(monkeypatch: pytest.MonkeyPatch, number: int, **environ: str) -> None:
    """This machine with so many GPUs that torch sees, and these variables."""
    for name in _VISIBLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(kind, "count", lambda: number)


@pytest.mark.parametrize(
    ("number", "environ", "processes", "groups"),
    [
        (4, {}, 1, ["0", "1", "2", "3"]),
        (4, {}, 2, ["0,1", "2,3"]),
        (5, {}, 2, ["0,1", "2,3"]),
        (2, {"CUDA_VISIBLE_DEVICES": "2,5"}, 1, ["2", "5"]),
        (2, {"CUDA_VISIBLE_DEVICES": "GPU-8f,GPU-1a"}, 1, ["GPU-8f", "GPU-1a"]),
        (1, {"CUDA_VISIBLE_DEVICES": "3,-1,2"}, 1, ["3"]),
        (1, {"CUDA_VISIBLE_DEVICES": ",".join(MIG)}, 1, list(MIG)),  # CUDA shows a process one slice
        (2, {"CUDA_VISIBLE_DEVICES": "2,5", "SLURM_JOB_GPUS": "2,5", "SLURM_GPUS_ON_NODE": "2"}, 2, ["2,5"]),
        (2, {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_GPUS": "6,7"}, 1, ["0", "1"]),  # behind control groups
        (0, {"CUDA_VISIBLE_DEVICES": ""}, 1, []),
    ],
)
def test_gpus_are_dealt_by_the_names_that_this_process_has(
    monkeypatch: pytest.MonkeyPatch, number: int, environ: dict[str, str], processes: int, groups: list[str]
) -> None:
    machine(monkeypatch, number, **environ)
    slots = slots_here(None, processes, cpu=False)
    assert [slot.number for slot in slots] == list(range(len(slots)))
    assert [slot.environment for slot in slots if slot.gpus] == [{"CUDA_VISIBLE_DEVICES": group} for group in groups]
    for one, other in itertools.combinations(slots, 2):
        assert not groups or not set(one.gpus) & set(other.gpus)
    assert all(not slot.environment for slot in slots_here(None, processes, cpu=True))


def test_rocms_variables_stay_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2, ROCR_VISIBLE_DEVICES="1,3")
    assert [slot.environment for slot in slots_here(None, 1, cpu=False)] == [
        {"ROCR_VISIBLE_DEVICES": "1"},
        {"ROCR_VISIBLE_DEVICES": "3"},
    ]


def test_more_slots_than_gpus_share_them_only_where_that_was_asked_for() -> None:
    assert [slot.gpus for slot in slots_of(3, 1, ["a", "b"])] == [("a",), ("b",), ("a",)]
    assert [slot.gpus for slot in slots_of(1, 2, ["a", "b", "c", "d"])] == [("a", "b")]
    assert described(slots_of(None, 2, ["a", "b", "c", "d"]), 2) == "2 at a time on 4 GPUs"
    assert described(slots_of(3, 1, ["a", "b"]), 1) == "3 at a time on 2 GPUs, which they share"
    assert described(slots_of(1, 1, ["a"]), 1) == "1 at a time on 1 GPU"
    assert described(slots_of(2, 1, []), 1) == "2 at a time"


@pytest.mark.parametrize(
    ("names", "processes", "message"),
    [
        (["0", "1"], 3, "--processes-per-run 3: this machine shows 2 GPUs; use --processes-per-run 2, or --cpu"),
        (["0"], 2, "--processes-per-run 2: this machine shows 1 GPU; use --processes-per-run 1, or --cpu"),
        (list(MIG), 2, "shows slices of GPUs, of which a process sees one; use --processes-per-run 1, or --cpu"),
    ],
)
def test_fewer_gpus_than_a_trial_has_processes_are_refused(names: list[str], processes: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        slots_of(None, processes, names)
    assert str(caught.value).endswith(message)


def test_that_is_one_line_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, 1)
    monkeypatch.chdir(tmp_path)
    words = ("data.validation={_target_: parts.py:WholeNumbers}", "optimizer.lr=1e-3,1e-2")
    assert main(["sweep", str(TINY), *words, "--processes-per-run", "2"]) == EXIT_USAGE
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_gpus_at_which_another_sweep_works_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpus(parallel: int | None = None, processes: int = 1) -> list[str]:
        return [",".join(slot.gpus) for slot in slots_here(parallel, processes, cpu=False)]

    machine(monkeypatch, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    first = slots_here(None, 1, cpu=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus() == ["1", "2"]
    assert gpus(processes=2) == ["1,2"]
    assert gpus(4) == ["0", "1", "2", "0"], "asked for: shared"
    with pytest.raises(UsageError, match=r"work on 1 of 3 GPUs, and a trial wants 3; .* --parallel 1 to share"):
        gpus(processes=3)
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # whose 0 is another GPU, where the driver does not say which
    assert gpus() == ["0", "1", "2"]
    monkeypatch.delenv("SLURM_JOB_ID")
    assert [slot.gpus for slot in first] == [("0",)]
    del first
    assert gpus() == ["0", "1", "2"]
