"""Days on which something around a run is broken: its screen, its locale, its directory, its disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import projects
import pytest

REPOSITORY = Path(__file__).parent.parent
SECONDS = 150


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "launcher", *arguments]


def surroundings(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


def launched(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """A command in a process of its own, with all that it printed as `stdout`."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=surroundings(**environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS,
        check=False,
    )


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_bytes())
    return found


TRAIN = ("train", "recipe.yaml", "--cpu", "--run-dir", "run")

# ---------------------------------------------------------------------- the locale

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_files_are_utf_8_in_an_ascii_locale(tmp_path: Path, processes: str) -> None:
    recipe = projects.RECIPE + "define: {words: größe}  # 数据\n"
    speaking = projects.PARTS.replace(
        "return self.layers(points)", "print('größe 数据')\n        return self.layers(points)"
    )
    projects.make(tmp_path, recipe, parts=speaking)
    ended = launched(tmp_path, *TRAIN, "--processes", processes, environment=ASCII)
    assert ended.returncode == 0, ended.stdout
    assert "could not be written" not in ended.stdout
    run = tmp_path / "run"
    assert (run / "recipe.yaml").read_text(encoding="utf-8") == recipe
    assert "größe" in (run / "resolved.yaml").read_text(encoding="utf-8")
    assert "größe" in (run / "report.html").read_text(encoding="utf-8")
    for rank in range(int(processes)):
        assert (run / "logs" / f"rank-{rank}.log").read_text(encoding="utf-8").count("größe 数据") == 12
    shown = launched(tmp_path, "show", "recipe.yaml", "--diff", "run")
    assert shown.returncode == 0, shown.stdout


# ---------------------------------------------------------------------- the screen

SPEAKING = projects.PARTS.replace(
    "return self.layers(points)",
    """print("a step", flush=True)
        sys.stdout.writelines(["of", "mine"])
        sys.stdout.buffer.write(b"!")
        sys.stdout.flush()
        os.system("echo and a program of mine")
        return self.layers(points)""",
).replace("from typing import Any", "import os\nimport sys\nfrom typing import Any")
SCREENS = {
    "stdout is closed": (1, ">&-"),
    "all are closed": (2, "<&- >&- 2>&-"),
    "nobody reads": (1, "2>errors | true"),
    "somebody stops reading": (2, "2>&1 | head -1"),
    "a full disk": (2, "> /dev/full 2>&1"),
}


@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_that_is_gone_fails_no_run(tmp_path: Path, screen: str) -> None:
    projects.make(tmp_path, parts=SPEAKING)
    processes, redirection = SCREENS[screen]
    start = " ".join([*command(*TRAIN), "--processes", str(processes), "--max-restarts", "1", redirection])
    line = f"set -o pipefail; {start}; echo $? > code"
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env=surroundings(), timeout=SECONDS, check=True)
    run = tmp_path / "run"
    assert (tmp_path / "code").read_text() == "0\n"
    assert (status(run)["state"], status(run)["step"]) == ("finished", 12)
    assert not (run / "failure.json").exists()
    assert [json.loads(row)["event"] for row in (run / "events.jsonl").read_text().splitlines()].count("start") == 1
    for rank in range(processes):
        assert (run / "logs" / f"rank-{rank}.log").read_text().count("a step\n") == 12


# ---------------------------------------------------------------------- files that are named like modules


@pytest.mark.parametrize("processes", ["1", "2"])
def test_files_beside_the_recipe_that_nobody_asked_for_are_nobodys_modules(tmp_path: Path, processes: str) -> None:
    names = ("random", "pydantic", "queue", "traceback", "threading", "copy", "heapq", "uuid", "decimal")
    projects.make(tmp_path, **dict.fromkeys(names, "raise SystemExit('this is mine')\n"))
    ended = launched(tmp_path, *TRAIN, "--processes", processes)
    assert ended.returncode == 0, ended.stdout
    assert "this is mine" not in ended.stdout


def test_what_lies_in_the_working_directory_can_still_be_imported(tmp_path: Path) -> None:
    lines = "import elsewhere\nimport sys\nprint(elsewhere.PLACE, sys.path[0])\n"
    (tmp_path / "script.py").write_text("import sys\nprint('first:', sys.path[0])\n" + lines)
    (tmp_path / "elsewhere.py").write_text("PLACE = 'found'\n")
    ended = launched(tmp_path, "run", "--cpu", "--processes", "2", "script.py")
    assert ended.returncode == 0, ended.stdout
    assert f"found {tmp_path}" in ended.stdout  # as `python script.py` would have it


# ---------------------------------------------------------------------- the working directory


@pytest.mark.parametrize("named", ["out", None])
def test_code_that_changes_the_directory_moves_no_run(tmp_path: Path, named: str | None) -> None:
    (tmp_path / "elsewhere").mkdir()
    moving = projects.PARTS.replace("super().__init__()", "super().__init__()\n        os.chdir('elsewhere')")
    recipe = projects.RECIPE.replace("train: {epochs", "save: {every: 1 epoch}\ntrain: {epochs")
    projects.make(tmp_path, recipe, parts=f"import os\n{moving}")
    where = ["--run-dir", named] if named else []
    ended = launched(tmp_path, "train", "recipe.yaml", "--cpu", *where)
    assert ended.returncode == 0, ended.stdout
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (run,) = [tmp_path / named] if named else (tmp_path / "runs" / "project").iterdir()
    assert status(run)["state"] == "finished"
    assert json.loads((run / "environment.json").read_bytes())["directory"] == str(tmp_path)
    assert str(run) in ended.stdout
    longer = launched(tmp_path, "resume", str(run.relative_to(tmp_path)), "train.epochs=4", "--allow-changes", "train")
    assert "there is no such folder" not in longer.stdout


def test_a_module_that_changes_the_directory_when_it_is_imported_moves_nothing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "text.txt").write_text("a text to learn by heart. " * 50)
    recipe = """
name: moved
data: {train: {_target_: TextFile, path: text.txt, context: 16}, global_batch_size: 16}
model: {_target_: net.py:Net}
loss: {_target_: CrossEntropyLoss, _per_: element}
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 3}
"""
    net = """
import os
from torch import nn
os.chdir("elsewhere")
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 64)
    def forward(self, tokens):
        return self.table(tokens).transpose(1, 2)
"""
    projects.make(tmp_path, recipe, net=net)
    ended = launched(tmp_path, "train", "recipe.yaml", "--cpu", "--processes", "2", "--run-dir", "out")
    assert ended.returncode == 0, ended.stdout
    assert status(tmp_path / "out")["state"] == "finished"
    assert list((tmp_path / "elsewhere").iterdir()) == []
