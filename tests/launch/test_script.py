"""`launcher run`: a loop of one's own with our processes, killed and started again."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
from places import ROOT
from tiers import rounds
from worlds import Command

from launcher.cli.main import main
from launcher.errors import EXIT_PREEMPTED

GAN = str(ROOT / "recipes" / "gan" / "train.py")


def run(folder: Path, name: str, steps: int) -> Command:
    return Command(folder, "run", "--cpu", "--processes", "2", "--run-dir", name, GAN, "--steps", str(steps))


@rounds("steps", plain=[300], long=[1500])
def test_a_gan_of_one_s_own_goes_on_bit_for_bit_after_kill_9(tmp_path: Path, steps: int) -> None:
    straight = run(tmp_path, "straight", steps).wait()
    assert straight.code == 0, straight.screen
    assert straight.screen.count("saved ") == 1
    killed = run(tmp_path, "killed", steps)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoints" / "step-00000100").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.process.kill()
    assert killed.wait().left == []
    assert not (tmp_path / "killed" / "generator.pth").exists()
    again = run(tmp_path, "killed", steps).wait()
    assert again.code == 0, again.screen
    one, other = (torch.load(tmp_path / name / "generator.pth", weights_only=True) for name in ("straight", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_script_that_fails_is_reported_at_its_own_line(tmp_path: Path, processes: int) -> None:
    text = "import os, sys\nprint(sys.argv[1:])\nif os.environ.get('RANK', '1') == '1':\n    1 / 0\n"
    (tmp_path / "mine.py").write_text(text)
    done = Command(tmp_path, "run", "--cpu", f"--processes={processes}", "mine.py", "--mine", "3").wait()
    assert done.code == 1
    assert "['--mine', '3']" in done.screen
    who = r"rank 1 of 2 on \S+ " if processes > 1 else ""
    assert re.match(rf"launcher: {who}failed in .*mine.py:4: ZeroDivisionError", done.report), done.screen
    (run,) = (tmp_path / "runs" / "mine").iterdir()
    place = re.escape(str(run.relative_to(tmp_path)))
    assert re.search(rf"again +launcher run --run-dir=\S*{place} --cpu .*mine.py --mine 3$", done.report, re.MULTILINE)
    log = (run / "logs" / f"rank-{processes - 1}.log").read_text()
    assert "['--mine', '3']" in log
    assert "Traceback" in log
    failure = json.loads((run / "failure.json").read_text())
    assert (failure["rank"], failure["culprit"]) == (processes - 1, "mine.py:4")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_script_that_ends_with_75_is_to_be_continued(tmp_path: Path, processes: int) -> None:
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(75)\n")
    done = Command(tmp_path, "run", "--cpu", f"--processes={processes}", "mine.py").wait()
    assert (done.code, done.screen) == (EXIT_PREEMPTED, "")


def test_a_script_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nowhere.py"]) == 2
    assert capsys.readouterr().err == "nowhere.py: there is no such script\n"
