"""Checkpoints: what one holds, one that is damaged or hostile, saving that fails, and starting from weights."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiers import rounds
from torch import nn
from worlds import (
    TINY,
    Command,
    Trained,
    assert_whole,
    in_world,
    result_of,
    train,
    train_here,
    train_in_process,
)

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.plain import restored
from launcher.checkpoints.sameness import difference
from launcher.checkpoints.weights import read_weights, stored_weights
from launcher.errors import LauncherError, UsageError
from launcher.recipe.load import load_recipe
from launcher.run import run as launch
from launcher.runs.options import Options
from launcher.world.faults import Fault
from launcher.world.world import World


def test_a_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    train(tmp_path / "run", "data.micro_batch_size=8", size=2)
    manifest = checkpoints.verify(tmp_path / "run/checkpoints/step-00000012").manifest
    expected = {"format": 3, "step": 12, "epoch": 3.0, "samples": 150, "world": 2, "threads": 1}
    assert expected.items() <= manifest.items()
    assert manifest["global_batch_size"] == 16
    assert manifest["recipe"]["optimizer.lr"] == "0.01"
    assert not {"data.micro_batch_size", "data.workers", "name"} & set(manifest["recipe"])
    assert manifest["data"].startswith("WholeNumbers, 50 samples, ")
    assert {"torch", "accelerate"} <= set(manifest["versions"])


class Tied(nn.Module):
    """Two names, one weight, stored transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.register_buffer("image", torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))


def test_a_copy_of_the_state_shares_what_was_shared() -> None:
    model = Tied()
    snapshot = checkpoints.Snapshot(model.state_dict(), {"list": [model.one.bias]}, {"step": 1})
    copy = snapshot.copied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    for name, value in copy.weights.items():
        assert torch.equal(value, before[name])
        assert value.stride() == before[name].stride()
    assert copy.weights["one.weight"].data_ptr() == copy.weights["two.weight"].data_ptr()
    assert copy.training["list"][0].data_ptr() == copy.weights["one.bias"].data_ptr()
    assert snapshot.num_bytes == copy.num_bytes == 4 * (9 + 3 + 3 + 96)


def kinds() -> dict[str, Any]:
    """Tensors whose numbers do not lie in a memory of their own, or are hard to compare."""
    dense, ones = torch.eye(4), torch.ones(4).double()
    return {
        "coo": dense.to_sparse(),
        "coo with an entry twice": torch.sparse_coo_tensor(
            torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0]), (4, 4)
        ),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 2)),
        "quantized": torch.quantize_per_tensor(dense, 0.1, 0, torch.quint8),
        "quantized by channel": torch.quantize_per_channel(dense, ones, ones.long(), 0, torch.qint8),
        "nested": torch.nested.nested_tensor([dense, dense[:2]]),
        "conjugated": torch.full((2,), 1j).conj(),
        "of 8 bits": dense.to(torch.float8_e4m3fn),
        "complex, not a number": torch.full((2,), complex("nan")),
    }


@pytest.mark.filterwarnings("ignore")  # torch's, that some of these are young and others old
def test_tensors_of_every_kind_are_copied_kept_and_compared(tmp_path: Path) -> None:
    state = kinds()
    snapshot = checkpoints.Snapshot(state, {"arrays": [np.eye(2, dtype="uint16"), np.float32(1)]}, {"step": 1})
    assert snapshot.num_bytes > 4 * 8 * 4
    checkpoint = checkpoints.verify(checkpoints.save(tmp_path / "checkpoints", snapshot.copied()))
    weights = checkpoint.weights()
    assert difference(state, weights) is None
    array, number = restored(checkpoint.training())["arrays"]
    assert (array.dtype, array.tolist(), number) == ("uint16", [[1, 0], [0, 1]], 1)
    for name, tensor in state.items():
        same = [other for other, value in weights.items() if difference(tensor, value) is None]
        assert same == [name]


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (np.array([1.0, np.nan]), np.array([1.0, 2.0])),
        (np.array(["a", None], dtype=object), np.array(["b", None], dtype=object)),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), np.array(["2021-01-01"], dtype="datetime64[D]")),
        (np.zeros(2, dtype=[("a", "i4")]), np.ones(2, dtype=[("a", "i4")])),
        (np.zeros(2), np.zeros(2, dtype="f4")),
        (np.zeros(2), 0.0),
        (np.zeros(2), torch.zeros(2)),
    ],
)
def test_arrays_of_every_kind_are_compared(value: Any, other: Any) -> None:
    assert difference({"a": value}, {"a": copy.deepcopy(value)}) is None
    assert difference({"a": value}, {"a": other}, "state") is not None


@pytest.mark.parametrize("name", ["kept:Nowhere", "os:path", "torch:nn", "torch:Tensor", "not.there:Tensor", ":"])
def test_a_class_that_is_not_loaded_is_none_to_make_tensors_of(name: str) -> None:
    kept: dict[str, Any] = {"__tensor_class__": name, "inner": {}, "context": None, "shape": [], "strides": []}
    with pytest.raises(ValueError, match="not loaded here"):
        restored({"state": [kept]})


NEWEST = "checkpoints/step-00000012"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lie(path: Path, **said: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **said}))


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte in the weights": lambda path: flip(path / "weights.pth"),
    "a flipped byte in the state": lambda path: flip(path / "training.pt"),
    "a flipped byte in the manifest": lambda path: (path / "manifest.json").write_bytes(
        b"#" + (path / "manifest.json").read_bytes()[1:]
    ),
    "a truncated file": lambda path: os.truncate(path / "weights.pth", 100),
    "an empty folder": empty,
    "a missing file": lambda path: (path / "training.pt").unlink(),
    "a manifest that lies": lambda path: lie(path, step=11),
}


def test_a_manifest_that_was_changed_anywhere_is_damaged(tmp_path: Path, saved: Trained) -> None:
    path = shutil.copytree(saved.folder / NEWEST, tmp_path / "step-00000012")
    whole = (path / "manifest.json").read_bytes()
    manifest = checkpoints.verify(path).manifest
    lies = {"threads": 2, "recipe": {**manifest["recipe"], "optimizer.lr": "0.02"}, "data": "other", "world": 3}
    files = {**manifest["files"], "weights.pth": {**manifest["files"]["weights.pth"], "more": 1}}
    for key, value in {**lies, "files": files}.items():
        (path / "manifest.json").write_bytes(whole)
        lie(path, **{key: value})
        with pytest.raises(checkpoints.DamagedError, match="its manifest is not what was written"):
            checkpoints.verify(path)
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        (path / "manifest.json").write_bytes(changed)
        with pytest.raises(checkpoints.DamagedError):
            checkpoints.verify(path)
    (path / "manifest.json").write_bytes(whole)
    checkpoints.verify(path)


def unread(path: Path, kind: str) -> None:
    """A pipe, or a device without end, in a file's place."""
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


def unread_weights(path: Path, kind: str) -> None:
    """The same for weights, of which the manifest says that they are empty, as `stat` does."""
    resealed(files=EMPTY_FILES)(path)
    unread(path / "weights.pth", kind)


def resealed(**said: Any) -> Callable[[Path], object]:
    """A manifest that says so, sealed as ours are."""

    def act(path: Path) -> None:
        manifest = {**json.loads((path / "manifest.json").read_text()), **said}
        (path / "manifest.json").write_text(json.dumps(checkpoints.sealed(manifest)))

    return act


EMPTY_FILES = {name: {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()} for name in ("weights.pth", "training.pt")}
STRANGE: dict[str, Callable[[Path], object]] = {
    "brackets without end": lambda path: (path / "manifest.json").write_text("[" * 100_000),
    "a step without end": resealed(step=float("inf")),
    "a pipe for a manifest": lambda path: unread(path / "manifest.json", "pipe"),
    "a device for a manifest": lambda path: unread(path / "manifest.json", "device"),
    "a pipe for weights": lambda path: unread_weights(path, "pipe"),
    "a device for weights": lambda path: unread_weights(path, "device"),
    "a number for rows": resealed(rows=3, format=4),
    "a list for rows": resealed(rows=[1], format=4),
    "a mapping for rows": resealed(rows={"a": 1}, format=4),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_stranger_s_manifest_is_damaged(tmp_path: Path, saved: Trained, kind: str) -> None:
    path = shutil.copytree(saved.folder / NEWEST, tmp_path / "step-00000012")
    STRANGE[kind](path)
    with pytest.raises(checkpoints.DamagedError):
        checkpoints.verify(path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.safetensors.index.json"])
def test_weights_that_are_a_pipe_are_told_in_a_line(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name.replace(".index.json", ""))
    if name.endswith(".json"):
        (tmp_path / name).write_text(json.dumps({"weight_map": {"a": "w.safetensors"}}))
    for read in (read_weights, stored_weights):
        with pytest.raises(LauncherError, match="is a pipe, not a file"):
            read(tmp_path / name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("saved") / "run", "save={every: 2 steps, keep: 3}")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, saved: Trained, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved.folder, run)
    (run / "model_weights.pth").unlink()
    (run / "checkpoints" / "holiday").mkdir()
    DAMAGES[damage](run / NEWEST)
    again = train(run, "save={every: 2 steps, keep: 3}")
    assert again.distance(saved) == 0
    assert len(list((run / "checkpoints").glob(".corrupt-step-00000012-*"))) == 1
    assert (run / "checkpoints" / "holiday").is_dir()
    assert "set aside" in (run / "logs" / "rank-0.log").read_text()


def test_when_all_are_damaged_nothing_starts_again_at_0(tmp_path: Path, saved: Trained) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved.folder, run)
    for path in (run / "checkpoints").glob("step-*"):
        flip(path / "weights.pth")
    for _ in range(2):
        with pytest.raises(LauncherError, match=r"all checkpoints in .* are damaged; look at its \.corrupt-… folders"):
            train_in_process(run)


class Hostile:
    """What a hostile pickle would run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_checkpoint_that_another_node_shows_late_is_waited_for(tmp_path: Path, saved: Trained) -> None:
    source = max((saved.folder / "checkpoints").glob("step-*"))
    late = tmp_path / "checkpoints" / source.name
    late.mkdir(parents=True)
    arrival = threading.Timer(0.3, shutil.copytree, (source, late), {"dirs_exist_ok": True})
    arrival.start()
    assert checkpoints.awaited(late).step == checkpoints.verify(source).step
    arrival.join()
    (late / "weights.pth").write_bytes(b"")
    with pytest.raises(checkpoints.DamagedError, match="0 bytes"):
        checkpoints.awaited(late, patience_seconds=0)


@pytest.mark.parametrize("name", ["weights.pth", "training.pt"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, saved: Trained, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved.folder, run)
    (run / "model_weights.pth").unlink()
    for path in (run / "checkpoints").glob("step-*"):
        torch.save({"x": Hostile(tmp_path / "PWNED")}, path / name)
        content = (path / name).read_bytes()
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / "manifest.json").write_text(json.dumps(checkpoints.sealed(manifest)))
    with pytest.raises(LauncherError, match="refused"):
        train_in_process(run)
    assert not (tmp_path / "PWNED").exists()


def test_a_failed_write_is_tried_again(tmp_path: Path, saved: Trained) -> None:
    for number, background in enumerate(("true", "false")):
        run, changes = tmp_path / str(number), (f"save={{every: 2 steps, keep: 3, background: {background}}}",)
        faults = "full@checkpoint.sync:4 flip@checkpoint.sync:6 raise@checkpoint.rename:8"
        in_world(1, train_here, str(run), changes, str(TINY), (), faults)
        assert result_of(run).distance(saved) == 0
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
            f"step-{step:08d}" for step in (8, 10, 12)
        ]
        log = (run / "logs" / "rank-0.log").read_text()
        assert "No space left on device" in log
        assert "sha256 differs" in log
        assert "RuntimeError: a fault at checkpoint.rename" in log
        assert log.count("trying again in 0.5 s") == 3


ALWAYS_FULL = " ".join(["full@checkpoint.sync:4"] * 3)


@rounds("background", plain=["true"], long=["false"])
def test_a_save_that_keeps_failing_stops_the_run(tmp_path: Path, background: str) -> None:
    changes = (f"save={{every: 2 steps, background: {background}}}",)
    with pytest.raises(AssertionError, match="No space left on device; what was saved before is intact"):
        in_world(1, train_here, str(tmp_path / "run"), changes, str(TINY), (), ALWAYS_FULL)
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")] == ["step-00000002"]


@rounds("background", plain=["false"], long=["true"])
def test_a_save_that_keeps_failing_is_said_where_the_run_may_go_on(tmp_path: Path, background: str) -> None:
    changes = (f"save={{every: 2 steps, background: {background}, on_failure: warn}}",)
    in_world(1, train_here, str(tmp_path / "run"), changes, str(TINY), (), ALWAYS_FULL)
    assert result_of(tmp_path / "run").column("step")[-1] == 12


@rounds("background", plain=["true"], long=["false"])
def test_a_save_that_failed_is_tried_again_at_the_end_and_not_called_saved(tmp_path: Path, background: str) -> None:
    """With three faults the save of step 4 fails, and the one at the end does not; with six both do."""
    run, changes = tmp_path / "run", (f"save={{every: 4 steps, background: {background}, on_failure: warn}}",)
    for tries, end in ((6, "stopped after step 4  nothing saved"), (3, "stopped, saved after step 4")):
        faults = " ".join(["full@checkpoint.write:4"] * tries)
        told = ("train", str(TINY), "--cpu", "--run-dir", str(run), "--until", "4 steps", *changes)
        stopped = Command(tmp_path, *told, LAUNCHER_FAULTS=faults).wait()
        assert stopped.code == 75
        assert end in stopped.screen
        assert "No space left on device; nothing was saved before" in " ".join(stopped.screen.split())
        assert ("4 steps were made here, and none was saved: training begins again" in stopped.screen) == (tries == 3)
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000004"]


NEVER_RENAMED = " ".join(["raise@checkpoint.rename:12"] * 3)


@rounds(
    "background, fault",
    plain=[("true", NEVER_RENAMED), ("false", "raise@checkpoint.prune")],
    long=[("false", NEVER_RENAMED), ("true", "raise@checkpoint.prune")],
)
def test_no_save_is_lost_silently_whatever_went_wrong(tmp_path: Path, background: str, fault: str) -> None:
    changes = (f"save={{every: 2 steps, background: {background}}}",)
    with pytest.raises(AssertionError, match=r"saving .*: RuntimeError: a fault at checkpoint\.(rename|prune)"):
        in_world(1, train_here, str(tmp_path / "run"), changes, str(TINY), (), fault)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert_whole(tmp_path / "run")


def mounted(folder: Path, megabytes: int) -> None:
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a small tmpfs needs root")


def test_a_read_only_file_system_is_said_before_the_start_and_on_the_way(tmp_path: Path) -> None:
    disk = tmp_path / "run" / "checkpoints"
    mounted(disk, 8)
    read_only = ["mount", "-o", "remount,ro", str(disk)]
    try:
        paced = "data.train={_target_: parts.py:Paced, seconds: 0.3}"
        command = Command(
            tmp_path, "train", str(TINY), "--cpu", "--run-dir", "run", "launch.threads=1", "save.every=2 steps", paced
        )
        deadline = time.monotonic() + 60
        while not (disk / "step-00000002").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while subprocess.run(read_only, capture_output=True, check=False).returncode:  # in the middle of a save
            assert time.monotonic() < deadline
        done = command.wait()
        assert done.code == 1, done.screen
        assert "Read-only file system; what was saved before is intact" in " ".join(done.screen.split())
        assert_whole(tmp_path / "run")
        with pytest.raises(UsageError, match=r"--run-dir: .* cannot be written: Read-only file system"):
            train_in_process(disk / "another")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_fault_that_is_none_is_refused() -> None:
    for text in ("kill", "kill@nowhere", "melt@step", "kill@step:x", "kill@checkpoint.write/", "kill@step:1#"):
        with pytest.raises(UsageError, match="is not a fault; write ACTION@POINT"):
            Fault.parse(text)
    assert Fault.parse("kill@checkpoint.write/manifest.json:4#1") == Fault(
        "kill", "checkpoint.write", "manifest.json", 4, 1
    )


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path: Path) -> None:
    mounted(tmp_path / "disk", 8)
    try:
        big = ("model={_target_: parts.py:Wide, width: 30000}", "save={every: 2 steps, keep: 5}")  # 5 MB with AdamW
        with pytest.raises(AssertionError, match=r"\d+\.\d [KM]iB are needed and \d+\.\d [KM]iB are free; make room"):
            in_world(1, train_here, str(tmp_path / "disk" / "run"), big)
        run = tmp_path / "disk" / "run"
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
        checkpoints.verify(run / "checkpoints" / "step-00000002")
        elsewhere = shutil.copytree(run, tmp_path / "elsewhere")
        assert train(elsewhere, *big).distance(train(tmp_path / "straight", *big)) == 0
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_run_can_start_from_weights(tmp_path: Path, saved: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    def plan(*overrides: str, source: Path) -> str:
        recipe = load_recipe(TINY, ["launch.threads=1", f"train.start_from={source}", "train={steps: 1}", *overrides])
        launch(recipe, World(), Options(cpu=True, run_dir=str(tmp_path / str(time.time_ns()))))
        return " ".join(capsys.readouterr().out.split())

    unfinished = tmp_path / "unfinished"
    shutil.copytree(saved.folder, unfinished)
    (unfinished / "model_weights.pth").unlink()
    step = ", step 12"
    for source, which in (
        (saved.folder, ""),
        (saved.folder / "model_weights.pth", ""),
        (saved.folder / NEWEST, step),
        (saved.folder / NEWEST / "weights.pth", step),
        (unfinished, step),
    ):
        screen = plan(source=source)
        assert f"started from {source}{which}: 4 of 4 tensors" in screen
        assert "1 checkpoint saved, which made training wait for" in screen
    flip(unfinished / NEWEST / "weights.pth")
    assert f"started from {unfinished}, step 10: 4 of 4 tensors" in plan(source=unfinished)
    with pytest.raises(LauncherError, match=r"train\.start_from: .*weights\.pth: its content is not what was written"):
        plan(source=unfinished / NEWEST)
    wrapped = {f"module.{name}": value for name, value in saved.weights.items()}
    torch.save({**wrapped, "module.head.bias": torch.ones(2)}, tmp_path / "wrapped.pth")
    said = plan("model.norm=true", "data.drop_last=true", source=tmp_path / "wrapped.pth")
    assert "2 of 9 tensors; missing there: layers.1.weight, layers.1.bias, layers.1.running_mean" in said
    assert "of another shape: layers.1.bias, layers.3.weight" not in said
    assert "not in this model: layers.3.weight, layers.3.bias, head.bias" in said
    with pytest.raises(LauncherError, match="there are no weights at"):
        plan(source=tmp_path / "nothing.pth")
    torch.save({"x": torch.ones(1)}, tmp_path / "foreign.pth")
    with pytest.raises(LauncherError, match=r"none of the 1 tensors in .* fits this model; it has layers\.0\.weight"):
        plan(source=tmp_path / "foreign.pth")
    torch.save({"x": Hostile(tmp_path / "PWNED")}, tmp_path / "evil.pth")
    with pytest.raises(LauncherError, match="cannot be read: it holds more than tensors, such as") as caught:
        plan(source=tmp_path / "evil.pth")
    assert "weights_only" not in str(caught.value)  # torch's way to run what is in it
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "PWNED").exists()
    weights = torch.load(saved.folder / "model_weights.pth", weights_only=True)
    for name, (odd, words) in {
        "number.pth": ({1: torch.ones(1)}, "'1' is a number in place of a name"),
        "meta.pth": ({key: value.to("meta") for key, value in weights.items()}, "it was saved on the meta device"),
        "sparse.pth": ({key: value.to_sparse() for key, value in weights.items()}, "an exception occurred"),
        "empty.pth": (None, "cannot be read: "),
    }.items():
        torch.save(odd, tmp_path / name)
        if odd is None:
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(LauncherError, match=words) as caught:
            plan(source=tmp_path / name)
        assert "\n" not in str(caught.value)
