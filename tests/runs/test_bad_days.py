"""Days on which something around a run is broken: its screen, its locale, its directory, its disk."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import projects
import pytest
from places import ROOT
from tiers import rounds
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported, says its own documentation
from worlds import Command, Launched

from launcher.checkpoints import format as checkpoints
from launcher.cli.main import main
from launcher.data.workers import _failure
from launcher.errors import LauncherError, UsageError
from launcher.recipe.directory import shortest
from launcher.recipe.raised import chain_of
from launcher.runs.folder import create
from launcher.runs.reading import finite
from launcher.world.context import known_of
from launcher.world.failure import of_exception
from launcher.world.failure_report import Report

REPOSITORY = ROOT
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


def forked(folder: Path, *arguments: str, **environment: str) -> Launched:
    """The same where nothing hangs on how the process began: it has imported torch already."""
    return Command(folder, *arguments, **environment).wait(SECONDS)


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
    shown = forked(tmp_path, "show", "recipe.yaml", "--diff", "run")
    assert shown.code == 0, shown.screen


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
    "a full disk": (2, "> /dev/full 2>&1"),
    "somebody stops reading": (2, "2>&1 | head -1"),
}


@rounds("screen", plain=[*SCREENS][:4], long=[*SCREENS][4:])
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


@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_that_is_closed_ends_no_run(tmp_path: Path, processes: int) -> None:
    slow = SPEAKING.replace('print("a step", flush=True)', 'print("a step", flush=True)\n        time.sleep(0.2)')
    projects.make(tmp_path, parts=f"import time\n{slow}")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.environ.update(surroundings(TERM="xterm-256color", COLUMNS="100", LINES="30"))
        os.execv(sys.executable, [*command(*TRAIN), "--processes", str(processes)])
    seen = b""
    while b"a step" not in seen:
        seen += os.read(terminal, 65536)
    os.close(terminal)  # which sends SIGHUP to all that it is the terminal of
    _, ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended) == 0
    run = tmp_path / "run"
    assert (status(run)["state"], status(run)["step"]) == ("finished", 12)
    for rank in range(processes):
        assert (run / "logs" / f"rank-{rank}.log").read_text().count("a step\n") == 12


# ---------------------------------------------------------------------- files that are named like modules


@pytest.mark.parametrize("processes", ["1", "2"])
def test_files_beside_the_recipe_that_nobody_asked_for_are_nobodys_modules(tmp_path: Path, processes: str) -> None:
    names = (
        "random",
        "pydantic",
        "queue",
        "traceback",
        "threading",
        "copy",
        "heapq",
        "uuid",
        "decimal",
        "pathlib",
        "shlex",
    )
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
    ended = forked(tmp_path, "train", "recipe.yaml", "--cpu", *where)
    assert ended.code == 0, ended.screen
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (run,) = [tmp_path / named] if named else (tmp_path / "runs" / "project").iterdir()
    assert status(run)["state"] == "finished"
    assert json.loads((run / "environment.json").read_bytes())["directory"] == str(tmp_path)
    assert str(run) in ended.screen
    longer = forked(tmp_path, "resume", str(run.relative_to(tmp_path)), "train.epochs=4", "--allow-changes", "train")
    assert "there is no such folder" not in longer.screen


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
    ended = forked(tmp_path, "train", "recipe.yaml", "--cpu", "--processes", "2", "--run-dir", "out")
    assert ended.code == 0, ended.screen
    assert status(tmp_path / "out")["state"] == "finished"
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("command", ["check ../recipe.yaml", "doctor", "sweep ../recipe.yaml", "new x"])
def test_a_working_directory_that_was_removed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    projects.make(tmp_path)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(command.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------------- errors of a user's own code

DATA = {
    "left with 0": ("sys.exit(0)", r"left early: SystemExit\(0\)"),
    "left with 3": ("sys.exit(3)", r"SystemExit(\(3\)|: 3)"),
    "an iterator ran out": ("next(iter([]))", r"StopIteration: an iterator"),
    "Ctrl-C of its own": ("raise KeyboardInterrupt", r"KeyboardInterrupt: raised by the code itself"),
    "its own source": (
        "raise ConnectionResetError(104, 'Connection reset by peer')",
        r"ConnectionResetError: \[Errno 104\] Connection reset by peer",
    ),
    "unspeakable": ("raise Mute", r"Mute: <exception str\(\) failed>"),
    "several": (
        "raise ExceptionGroup('several', [ValueError('one'), KeyError('two')])",
        r"ExceptionGroup: several \(2 sub-exceptions\)\n(.*\n)?\s+1 of 2: ValueError: one\n\s+2 of 2: KeyError: 'two'",
    ),
    "a cause": ("self.divide()", r"LookupError: nothing here\n(.*\n)?\s+because of ZeroDivisionError.*parts\.py:\d+"),
}
MUTE = """

class Mute(Exception):
    def __str__(self):
        raise OSError("not a word")

"""
DIVIDE = """
    def divide(self):
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise LookupError("nothing here") from error
"""


def failing_project(folder: Path, statement: str) -> None:
    parts = projects.PARTS.replace("return self.points[index]", f"{statement}\n        return self.points[index]")
    parts = parts.replace("    def __len__", f"{DIVIDE}\n    def __len__").replace(
        "from typing", "import sys\nfrom typing"
    )
    projects.make(folder, parts=parts.replace("\nclass Points", f"{MUTE}\nclass Points"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", DATA)
def test_what_a_data_set_raises_is_told_with_its_line(
    tmp_path: Path, kind: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    statement, words = DATA[kind]
    failing_project(tmp_path, f"if index == 30: {statement}")  # others are looked at before training
    report = failed_here(tmp_path, capsys, f"data.workers={workers}")
    assert re.search(words, report), report
    assert re.search(r"launcher: failed .*in \S*parts\.py:\d+: ", report), report
    assert "memory" not in report
    assert "another rank" not in report
    assert statement in report or kind == "a cause"


def failed_here(folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """The report of a training that fails, made in this process."""
    where = ["--run-dir", str(folder / "run"), "launch.threads=1"]
    with pytest.raises(SystemExit) as end:
        main(["train", str(folder / "recipe.yaml"), "--cpu", *where, *overrides])
    assert end.value.code == 1
    said = capsys.readouterr().err
    return said[said.index("launcher: ") :]


@pytest.mark.parametrize("kind", ["an iterator ran out", "Ctrl-C of its own", "unspeakable", "its own source"])
def test_what_a_model_raises_is_told_with_its_line(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    statement, words = DATA[kind]
    parts = projects.PARTS.replace("return self.layers(points)", f"{statement}\n        return self.layers(points)")
    projects.make(tmp_path, parts=parts.replace("\nclass Net", f"{MUTE}\nclass Net"))
    report = failed_here(tmp_path, capsys)
    assert re.search(words, report), report
    assert re.search(r"launcher: failed .*in \S*parts\.py:\d+: ", report), report
    assert "another rank" not in report


LEAVING = {
    "sys.exit": "__import__('sys').exit(0)",
    "os._exit": "__import__('os')._exit(0)",
    "a kind of its own": "raise type('Mine', (BaseException,), {})('x')",
    "what a Ctrl-C raises": "raise KeyboardInterrupt",
}


@pytest.mark.parametrize("kind", LEAVING)
@pytest.mark.parametrize(
    "place", ["def __init__(self, size", "def __len__(self)", "def __getitem__(self", "def forward"]
)
def test_code_that_ends_the_process_passes_no_check(
    tmp_path: Path, kind: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, begun, rest = projects.PARTS.partition(place)
    line, _, rest = rest.partition("\n")
    projects.make(tmp_path, parts=f"{before}{begun}{line}\n        {LEAVING[kind]}\n{rest}")
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 2
    err = capsys.readouterr().err
    assert re.search(r"^code of the recipe's ends the process, .*parts\.py:\d+: ", err), err
    assert err.count("\n") == 1


def test_code_that_ends_the_process_is_told_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = projects.PARTS.replace("return self.layers(points)", f"{LEAVING['os._exit']}\n        return points")
    projects.make(tmp_path, parts=parts)
    report = failed_here(tmp_path, capsys)
    assert re.search(r"launcher: failed .*parts\.py:\d+: left early: SystemExit\(0\)", report), report


def test_code_that_breaks_what_tells_of_it_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "dumps", json.dumps)  # and put back
    breaking = "__import__('json').dumps = lambda *_, **__: 1 / 0"
    projects.make(
        tmp_path, parts=projects.PARTS.replace("return self.layers", f"{breaking}\n        return self.layers")
    )
    report = failed_here(tmp_path, capsys)
    assert re.search(r"launcher: failed .*ZeroDivisionError: .*; there is no report of it: ", report), report
    assert "Traceback" not in report


def test_a_worker_that_leaves_by_itself_is_not_said_to_lack_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_project(tmp_path, "if index == 30: __import__('os')._exit(3)")
    report = failed_here(tmp_path, capsys, "data.workers=2")
    assert "ended with exit code 3 while reading sample" in report
    assert "data.workers=0 reads in the training process itself" in report
    assert "memory" not in report


def test_of_two_ranks_the_one_whose_source_broke_is_named(tmp_path: Path) -> None:
    statement = "if index == 30: raise ConnectionResetError(104, 'Connection reset by peer')"
    failing_project(tmp_path, statement)
    ended = forked(tmp_path, *TRAIN, "--processes", "2")
    assert ended.code == 1
    assert re.search(r"rank \d of 2 on \S+ failed .*in parts\.py:\d+: ConnectionResetError", ended.screen), ended.screen
    assert "hint" not in ended.screen


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]"), True),
        (distributed.DistNetworkError("Connection reset by peer"), True),
        (LauncherError("Points: sample 3: Connection reset by peer"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (TimeoutError(110, "Connection timed out"), False),
    ],
)
def test_words_alone_make_no_rank_another_ones_victim(error: Exception, follows: bool) -> None:
    assert of_exception(error).is_aftermath == follows


@pytest.mark.parametrize(
    ("statement", "follows"),
    [
        ("store.wait(['what nobody says'], datetime.timedelta(milliseconds=10))", True),  # torch's, from compiled code
        ("raise RuntimeError('Connection reset by peer')", False),
        ("raise ConnectionResetError(104, 'Connection reset by peer')", False),
        ("socket.create_connection(('127.0.0.1', 1), timeout=5)", False),
    ],
)
def test_in_the_user_s_own_line_it_is_torch_that_tells_of_other_ranks(
    tmp_path: Path, statement: str, follows: bool
) -> None:
    file = tmp_path / "own.py"
    file.write_text(f"import datetime, socket\ndef step(store):\n    {statement}\n")
    names: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    with pytest.raises((RuntimeError, OSError)) as caught:
        names["step"](TCPStore("127.0.0.1", 0, 1, True))
    failure = of_exception(caught.value)
    assert failure.culprit is not None
    assert (failure.culprit.line, failure.is_aftermath) == (3, follows)


# ---------------------------------------------------------------------- what is left behind


@pytest.mark.parametrize(("processes", "fails"), [(1, False), (2, False), (1, True)])
def test_worker_processes_leave_nothing_among_temporary_files(tmp_path: Path, processes: int, fails: bool) -> None:
    temporary = tmp_path / "t"
    temporary.mkdir()
    if fails:
        failing_project(tmp_path, "if index == 30: raise ValueError('no')")
    else:
        projects.make(tmp_path)
    recipe = (tmp_path / "recipe.yaml").read_text().replace("global_batch_size", "workers: 2, global_batch_size")
    validation = "{train: {_target_: parts.py:Points}, validation: {_target_: parts.py:Points},"
    (tmp_path / "recipe.yaml").write_text(recipe.replace("{train: {_target_: parts.py:Points},", validation))
    ended = launched(tmp_path, *TRAIN, "--processes", str(processes), environment={"TMPDIR": str(temporary)})
    assert ended.returncode == int(fails), ended.stdout
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("free", [0, 8, 40, 120])  # KiB: full at once, at the run's description, at a save, later
def test_a_full_disk_is_left_without_halves_of_our_files(tmp_path: Path, free: int) -> None:
    disk, ballast = tmp_path / "disk", tmp_path / "disk" / "ballast"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        ballast.write_bytes(bytes(2**20 - free * 2**10 - 4096))
        recipe = projects.RECIPE + "save: {every: 1 epoch}\n"
        projects.make(tmp_path, recipe.replace("parts.py:Net}", "parts.py:Net, unused: true}"))
        wide = (tmp_path / "parts.py").read_text().replace("nn.Linear(2, 2)", "nn.Linear(100, 100)")
        (tmp_path / "parts.py").write_text(wide)
        ended = forked(tmp_path, "train", "recipe.yaml", "--cpu", "--run-dir", "disk/run")
        assert ended.code in (1, 2), ended.screen
        assert "No space left on device" in ended.screen or "make room" in ended.screen
        assert "Traceback" not in ended.screen
        halves = [path for path in disk.rglob("*") if path.name.startswith(".") or path.suffix in (".tmp", ".part")]
        assert halves == []
        for path in disk.rglob("*.json"):
            assert json.loads(path.read_bytes())
        for step in disk.glob("run/checkpoints/*"):
            checkpoints.verify(step)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------------- run folders with odd content

ODD: dict[str, dict[str, str]] = {
    "a step that no float holds": {"status.json": '{"state": "failed", "step": 1' + "0" * 400 + "}"},
    "brackets without end": {"status.json": "[" * 100_000, "resolved.yaml": "[" * 100_000},
    "a list for a state": {"status.json": '{"state": ["running"], "world": ["x"], "host": {}, "total_steps": "1"}'},
    "no numbers": {"status.json": '{"state": "finished", "step": NaN, "started": Infinity, "updated": -1e999}'},
    "the end of time": {"status.json": '{"state": "finished", "started": 1e18, "updated": 1e300, "ended": "soon"}'},
    "a mapping for a split": {"metrics.jsonl": '{"split": {}, "step": 1, "loss": 1.0}\n' * 2},
    "a line that is null inside": {"metrics.jsonl": 'null\n{"split": "train", "step": 1, "loss": null}\n'},
    "a line without a step": {"metrics.jsonl": '{"split": "validation", "loss": 1.0}\n{"split": "test"}\n'},
    "endless numbers": {"metrics.jsonl": '{"split": "validation", "step": 3, "loss": "Infinity", "time": 1e300}\n'},
    "huge steps": {"metrics.jsonl": '{"split": "train", "step": 1' + "0" * 30 + ', "loss": 1.0}\n'},
    "a word for versions": {"environment.json": '{"versions": "x", "git": "y", "command": 3, "directory": []}'},
    "lists for events": {
        "events.jsonl": '{"event": [], "time": 1}\n{"event": "start", "time": 1e18, "step": []}\n[]\n'
    },
    "odd events": {"events.jsonl": '{"event": "start", "time": 5, "step": 1e999, "world": {}, "began": NaN}\n'},
    "ten thousand millions": {
        "resolved.yaml": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
        )
    },
    "an empty recipe": {"resolved.yaml": "", "recipe.yaml": ""},
    "a job that is none": {"slurm.json": '{"job": ["1"], "starts": {"a": 1}, "script": 3, "signal_seconds": "x"}'},
    "a job that is an option": {"slurm.json": '{"job": "--me\\u001b]0;T\\u0007\\nrun"}'},
    "starts that are none": {"slurm.json": '{"starts": [3], "job": ""}'},
    "a lock that is none": {"lock.json": '{"pid": 1' + "0" * 30 + ', "since": 1e300, "host": []}'},
}


def run_folder(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    line = '{"split": "validation", "step": 10, "loss": 0.5, "time": 1700000000.0}\n'
    whole = {
        "status.json": '{"state": "finished", "step": 10, "total_steps": 10, "world": 1, "started": 1700000000.0}',
        "metrics.jsonl": line,
        "resolved.yaml": "name: sound\n",
    }
    for name, text in {**whole, **files}.items():
        (folder / name).write_text(text)


def odd_folders(root: Path) -> None:
    for number, files in enumerate(ODD.values()):
        run_folder(root / f"odd-{number:02}", **files)
    run_folder(root / "pipes")
    for name in ("metrics.jsonl", "events.jsonl", "resolved.yaml", "environment.json"):
        (root / "pipes" / name).unlink(missing_ok=True)
        os.mkfifo(root / "pipes" / name)
    for number in (1, 2):
        run_folder(root / f"sound-{number}")


def test_odd_run_folders_are_listed_beside_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd_folders(tmp_path)
    assert main(["runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "--me" not in printed
    rows = printed.splitlines()
    assert sum("/sound-" in row and "finished" in row and "loss 0.5" in row for row in rows) == 2
    assert sum("/odd-" in row or "/pipes" in row for row in rows) >= len(ODD) + 1
    assert main(["runs", "--json", str(tmp_path), "--sort", "best"]) == 0
    assert len([json.loads(row) for row in capsys.readouterr().out.splitlines()]) == len(ODD) + 3
    for order in ("world", "step", "state", "name", "recipe"):
        assert main(["runs", str(tmp_path), "--sort", order, "--state", "finished"]) == 0
    assert main(["resume", str(tmp_path / "sound-1")]) == 2


def test_odd_run_folders_end_no_report_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd_folders(tmp_path / "runs")
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "runs"), "--to", str(page), "--png", str(tmp_path / "png")]) == 0
    text = page.read_text(encoding="utf-8")
    assert "sound-1" in text
    assert "sound-2" in text
    assert list((tmp_path / "png").glob("*-loss.png"))
    assert re.search(
        r"odd-05: skipped: .*metrics\.jsonl:1: this line of the metrics is damaged", capsys.readouterr().err
    )


@pytest.mark.parametrize("kind", ODD)
def test_a_report_of_an_odd_run_alone_is_a_page_or_one_line(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "run", **ODD[kind])
    code = main(["report", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert (code, said.count("\n")) in ((0, 0), (1, 1)), said


@pytest.mark.parametrize("name", ["report.html", "predictions.parquet", "resolved.yaml"])
def test_no_command_waits_at_a_pipe_in_a_run(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path)
    run_folder(tmp_path / "run")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "run" / name)
    words = ["show", str(recipe), "--diff"] if name == "resolved.yaml" else ["report"]
    code = main([*words, str(tmp_path / "run")])
    assert (code, capsys.readouterr().err.count("\n")) == (0, 0) if name == "predictions.parquet" else (2, 1)


def test_a_run_s_folder_is_a_folder_and_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("nowhere", "itself", "file", "pipe"):
        with pytest.raises(UsageError, match="is there and is no folder; name another"):
            create(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert shortest(tmp_path / "--help") == "./--help"


@pytest.mark.parametrize("kind", [ValueError, SystemExit, RuntimeError])
def test_words_of_data_move_no_cursor_and_forge_no_line(kind: type[BaseException]) -> None:
    error = kind("a\x1b]0;TITLE\x07\x9b2J\u202eb\nlauncher: all is well\n\tc")
    error.__cause__ = KeyError("d\x1b[2J")
    text = Report(of_exception(error), None, "again", "resume").text()
    assert all(line.isprintable() for line in text.split("\n"))
    assert [line for line in text.split("\n") if line.startswith("launcher: ")] == text.split("\n")[:1]


ODD_CLASSES: dict[str, dict[str, Any]] = {
    "an attribute of a group's name": {"exceptions": 5},
    "one that raises": {"exceptions": property(lambda _: 1 / 0), "__cause__": property(lambda _: 1 / 0)},
    "members without end": {"exceptions": itertools.repeat(ValueError())},
    "a cause that is none": {"__cause__": "abc"},
    "a context that is none": {"__context__": "abc"},
    "a traceback that raises": {"__traceback__": property(lambda _: 1 / 0)},
    "another class": {"__class__": property(lambda _: SystemExit)},
    "our own class": {"__class__": property(lambda _: LauncherError), "__dict__": property(lambda _: 1 / 0)},
    "nothing that prints": {"__notes__": 5, "__str__": lambda _: 5, "__repr__": None},
}


@pytest.mark.parametrize("kind", ODD_CLASSES)
def test_an_exception_is_what_python_keeps_of_it(tmp_path: Path, kind: str) -> None:
    try:
        raise types.new_class("Odd", (ValueError,), exec_body=lambda names: names.update(ODD_CLASSES[kind]))("no")
    except ValueError as error:
        failure, known, from_worker = of_exception(error), known_of(error), _failure(error, 0)
    assert "Odd: " in failure.line
    assert f"in {shortest(__file__)}:" in failure.line
    assert known.step is None
    assert "Odd: " in from_worker.text
    assert Report(failure, tmp_path, "again", "resume").write()


def test_causes_that_go_round_and_tell_secrets(tmp_path: Path) -> None:
    first, second, token = ValueError("first"), KeyError("hf_" + "a" * 34), "hf_" + "a" * 34
    first.__cause__, second.__cause__ = second, first
    assert list(chain_of(first)) == [first, second]
    report = Report(of_exception(ExceptionGroup(token, [first])), tmp_path, "again", "resume")
    report.write()
    assert token not in report.text() + (tmp_path / "failure.json").read_text()
    assert "because of KeyError: 'hf_***'" in report.text()
    assert len(of_exception(first).behind) == 8


def test_a_step_that_cannot_be_is_unknown_not_the_end() -> None:
    assert finite(10**400) == finite(float("nan")) == finite("3") == finite(None) == -float("inf")
    assert finite(True) == 1.0


@pytest.mark.parametrize("recorded", ["", "# nothing\n", "[" * 100_000])
def test_an_odd_recorded_recipe_is_one_line_to_compare_with(
    tmp_path: Path, recorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "run", **{"resolved.yaml": recorded})
    recipe = projects.make(tmp_path)
    assert main(["show", str(recipe), "--diff", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "resolved.yaml is not a recipe: " in said


# ---------------------------------------------------------------------- a model that speaks to wandb

LOGGING = projects.PARTS.replace(
    "return self.layers(points)",
    'wandb.log({"mine": 1.0})\n        wandb.run.log({"also": 2.0})\n        return self.layers(points)',
).replace("super().__init__()", "super().__init__()\n        wandb.watch(self)")
OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


@rounds("processes", plain=[1, 2], long=[3])
def test_a_model_speaks_to_wandb_from_its_first_step(tmp_path: Path, processes: int) -> None:
    recipe = projects.RECIPE + "track: {every: 1 steps, wandb: {project: p}}\n"
    projects.make(tmp_path, recipe, parts=f"import wandb\n{LOGGING}")
    own = {**OFFLINE, "WANDB_CONFIG_DIR": str(tmp_path / "config"), "NETRC": str(tmp_path / "netrc")}
    ended = forked(tmp_path, *TRAIN, "--processes", str(processes), **own)
    assert ended.code == 0, ended.screen
    rows = [row for row in history(tmp_path / "run") if row]
    ours = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ours == {line["step"]: line["loss"] for line in logged}
    assert sum("mine" in row for row in rows) == sum("also" in row for row in rows) == 12  # rank 0's, each step's
    assert "ignored" not in ended.screen


def history(run: Path) -> list[dict[str, Any]]:
    """What wandb's file has, row by row."""
    from tracked import wandb_records

    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(run)
        if record.HasField("history")
    ]


def test_a_rehearsal_bears_a_model_that_speaks_to_wandb(tmp_path: Path) -> None:
    recipe = projects.RECIPE + "track: {wandb: {project: p}}\n"
    path = projects.make(tmp_path, recipe, parts=f"import wandb\n{LOGGING}")
    ended = forked(tmp_path, "check", str(path), **OFFLINE)
    assert ended.code == 0, ended.screen
    assert not (tmp_path / "wandb").exists()


def test_a_tracker_that_cannot_open_is_no_reason_to_fail_for_a_model_that_speaks_to_it(tmp_path: Path) -> None:
    recipe = projects.RECIPE + "track: {wandb: {project: 'no/such: project?'}}\n"
    projects.make(tmp_path, recipe, parts=f"import wandb\n{LOGGING}")
    ended = forked(tmp_path, *TRAIN, **OFFLINE)
    assert ended.code == 0, ended.screen
    assert status(tmp_path / "run")["state"] == "finished"


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "logs/rank-0.log"])
def test_a_run_adds_to_no_file_of_somebody_else(
    tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = projects.make(tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    run_folder(tmp_path / "run", **{"status.json": '{"state": "failed", "step": 0}'})
    path = tmp_path / "run" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(victim) if kind == "link" else os.mkfifo(path)
    assert main(["train", str(recipe), "--cpu", "--run-dir", str(tmp_path / "run")]) == 2
    assert "is a link or a pipe, where a run writes; remove it" in capsys.readouterr().err
    assert victim.read_text() == "mine\n"
