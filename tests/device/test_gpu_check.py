"""scripts/gpu_check on a CPU: what it says of parts that fail, and that it can be run at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from tiers import rounds

SCRIPT = ROOT / "scripts" / "gpu_check"


def loaded(path: Path) -> Any:
    """A script as a module."""
    spec = spec_from_loader(path.stem, SourceFileLoader(path.stem, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu_check = loaded(SCRIPT)
GOOD, BAD = '{"name": "a", "ok": true}\n', '{"name": "b", "ok": false}\n'
DIED = "Traceback (most recent call last):\n  File …\nRuntimeError: CUDA error\n"


@pytest.mark.parametrize(
    ("code", "printed", "names"),
    [
        (0, GOOD, ["a"]),
        (1, GOOD + BAD, ["a", "b"]),  # a line has said so
        (1, GOOD, ["a", "its end"]),
        (1, GOOD + DIED, ["a", "its end"]),
        (1, GOOD + BAD + DIED, ["a", "b", "its end"]),
        (1, DIED, ["its end"]),
        (-11, GOOD, ["a", "its end"]),
        (124, BAD, ["b", "its end"]),
    ],
)
def test_a_part_that_dies_is_not_well(tmp_path: Path, code: int, printed: str, names: list[str]) -> None:
    results = list(gpu_check.Check(True, tmp_path).lines((code, printed, 1.0)))
    assert [result["name"] for result in results] == names
    assert all(result["ok"] for result in results) is (code == 0)


def test_a_part_that_takes_too_long_leaves_nobody(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    child = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('begun', flush=True)\n"
    )
    parent += f"subprocess.run([sys.executable, '-c', {child!r}])"
    gpu_check.SECONDS_TO_LEAVE = 0.1
    code, printed, _ = gpu_check.Check(True, tmp_path, time.monotonic() + 5).run(sys.executable, "-c", parent)
    assert (code, printed) == (124, "begun\n")
    process = Path("/proc") / file.read_text()
    while process.exists() and "Z" not in (process / "stat").read_text().rpartition(")")[2].split()[0]:
        time.sleep(0.05)  # the kernel is about to


def test_limits_come_to_eight_minutes() -> None:
    assert sum(seconds for seconds, _ in gpu_check.PARTS.values()) <= 8 * 60


@pytest.mark.parametrize("name", ["plain", "tf32", "graphs, accumulated"])
def test_a_variant_that_was_not_counted_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent / "gpu"))
    steps = loaded(SCRIPT.parent / "gpu" / "steps.py")
    judged = steps.judged({"name": name, "losses": [1.0, 2.0]}, [1.0, 2.0002], False)
    assert not judged["ok"]
    if name == "tf32":
        assert judged["off"] == pytest.approx(1e-4, rel=0.01)
    monkeypatch.setattr(steps, "by_hand", lambda: 20.0)
    counted = {"name": "plain", "losses": [1.0], "waits": {}}
    assert steps.judged({**counted, "launches": 23.0}, [], False)["ok"]
    assert "by hand" in steps.judged({**counted, "launches": 24.0}, [], False)["wrong"][0]


def test_the_benchmark_finds_this_program_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = loaded(SCRIPT.parent / "bench" / "compare.py")

    def absent(package: str) -> str:
        raise compare.PackageNotFoundError(package)

    monkeypatch.setattr(compare, "version", absent)
    assert compare.version_of(compare.PEERS["launcher"])
    assert compare.version_of("lightning") is None


@rounds("only", plain=[("profile",)], long=[(tuple(gpu_check.PARTS),)])
def test_it_can_be_tried_on_a_cpu(only: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = [sys.executable, str(SCRIPT), "--cpu", "--out", str(out), "--slower", "10", "--only", *only]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert {*only} - {"benchmark"} <= {result["part"] for result in results}
