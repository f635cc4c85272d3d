"""What `launcher submit` checks, writes and says, seen without a cluster."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from places import ROOT, TINY

from launcher.cli.main import main
from launcher.errors import LauncherError, RecipeError, UsageError
from launcher.launch.slurm.batch_script import Job, render
from launcher.launch.slurm.code import keep, kept_at
from launcher.launch.slurm.requeue import Ending, begin, lasting_words
from launcher.runs.folder import read_json, write_json
from launcher.runs.job import Submission, advance_in_words, in_words, mark_submitted
from launcher.runs.reading import Run
from launcher.world.site import read_site
from launcher.world.slurm import Queued, _gpus, _refusal, seconds_in
from launcher.world.world import World

CODE = Path("RUN") / "code" / "tiny.yaml"  # the copy of it that a job runs
HOSTILE = ["a b", 'a"b', "a'b", "$(touch PWNED)", "`touch PWNED`", "; touch PWNED", "a\\b", "#SBATCH --wrap=x", "-x"]


@pytest.fixture(autouse=True)
def away_from_any_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("bash", "sh", "touch", "cat", "env"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("LAUNCHER_SITE", raising=False)
    monkeypatch.chdir(tmp_path)


def rendered(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["submit", str(TINY), "--dry-run", *words]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["submit", *words]) == 2
    printed = capsys.readouterr()
    assert all(line.startswith("own code ") for line in printed.out.splitlines())  # which is said at reading
    assert not Path("runs").exists()
    return printed.err


def test_the_script_asks_for_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(
        capsys,
        *("--nodes", "4", "--gpus-per-node", "h100:4", "--cpus-per-task", "8", "--mem", "64G", "--time", "1-12"),
        *("--partition", "gpu", "--signal", "5 minutes", "slurm.qos=high", "train.epochs=7", "--allow", "timm"),
    )
    lines = text.splitlines()
    for asked in (
        *("nodes=4", "ntasks-per-node=4", "gpus-per-node=h100:4", "cpus-per-task=8", "mem=64G", "time=1-12"),
        *("partition=gpu", "signal=USR2@300", "qos=high", "requeue", "open-mode=append", "job-name=tiny"),
    ):
        assert f"#SBATCH --{asked}" in lines
    assert 'srun --export=ALL --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\' in lines
    # the order is the user's
    assert f'  "$python" -m launcher train {CODE} slurm.qos=high train.epochs=7 --allow=timm --run-dir "$run"' in lines
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert (
        rendered(capsys, "--cpu", "--", "--hold").count("--hold") == 1
    )  # only in what was typed: sbatch is told itself


@pytest.mark.parametrize("time", ["12:30:00", "'12:30:00'", '"12:30:00"'])
def test_a_time_limit_of_colons_is_that_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], time: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.launcher]\nbases = ['{TINY.parent}']\n")
    (tmp_path / "recipe.yaml").write_text(f"base: {TINY}\nslurm: {{time: {time}}}\n")
    assert main(["submit", "recipe.yaml", "--dry-run", "--cpu"]) == 0
    assert "#SBATCH --time=12:30:00\n" in capsys.readouterr().out


def test_an_uneven_world_and_a_single_process(capsys: pytest.CaptureFixture[str]) -> None:
    uneven = rendered(capsys, "--cpu", "--nodes", "2", "--processes", "3")
    assert "#SBATCH --ntasks=3\n#SBATCH --ntasks-per-node=2\n" in uneven
    one = rendered(capsys, "--cpu", "launch.processes=1")
    # or the recipe's own numbers would be started once more
    assert "--cpu --processes=1 --nodes=1 --run-dir" in one
    assert "--processes=1 --nodes=1" in rendered(capsys, "--cpu", "launch.nodes=2", "--nodes", "1")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(tmp_path: Path, text: str) -> None:
    """What the batch script would start is started, with `srun` in the place of SLURM's."""
    srun = tmp_path / "bin" / "srun"
    srun.write_text('#!/bin/sh\nshift\n"$@"\n')
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\n[ "$3" = job ] && exit 0\nprintf "<%s>\\n" "$@"\n')
    for file in (srun, python):
        file.chmod(0o755)
    from launcher.launch.slurm.batch_script import quoted

    job = Job(
        head=[f"{text}\n#SBATCH --wrap=x"],
        options={"job-name": "x"},
        launch=[f'srun -n1 "$python" -m launcher train {quoted(text)} {quoted(f"define.x={text}")}'],
        python="python",
        run=quoted(str(tmp_path / text.replace("/", ""))),
        environment={"WORDS": text},
    )
    script = render(job)
    assert script.count("\n#SBATCH") == 5 - 4  # the one that is meant
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert f"<{text}>\n<define.x={text}>" in done.stdout
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_options_are_one_word_or_refused(text: str) -> None:
    job = Job(head=[], options={"comment": text}, launch=[], python="p", run="r")
    if '"' in text or "\\" in text:
        with pytest.raises(UsageError, match="quotation mark or backslash"):
            render(job)
    else:
        assert f'#SBATCH --comment="{text}"\n' in render(job) or f"#SBATCH --comment={text}\n" in render(job)


def test_line_breaks_reach_no_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "control characters" in refused(capsys, str(TINY), "--cpu", "--dry-run", "--run-dir", "a\nb")
    assert "printable line" in refused(capsys, str(TINY), "--cpu", "--dry-run", 'slurm.comment="a\\nb"')
    assert "'%'" in refused(capsys, str(TINY), "--cpu", "--dry-run", "--run-dir", "a%jb")
    error = refused(capsys, str(TINY), "--cpu", "--dry-run", "slurm.wrap=id")
    assert "slurm.wrap: a recipe may not say this" in error


def test_what_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, str(TINY))
    assert error == (
        "how many GPUs of a node? Set --gpus-per-node, slurm.gpus_per_node, or --cpu; what the cluster offers is not "
        "known: sinfo is not on this machine; submit from a login node of the cluster, or load its module\n"
    )
    assert "sbatch is not on this machine" in refused_after_reading(capsys, str(TINY), "--cpu")
    assert "--processes goes with --cpu" in refused(capsys, str(TINY), "--processes", "2")
    assert "'lots' is not a number of GPUs" in refused(capsys, str(TINY), "--gpus-per-node", "lots")
    assert "slurm.time" in refused(capsys, str(TINY), "--cpu", "--time", "soon")
    assert "name a script that exists" in refused(capsys, "--cpu", "run", "nothing.py")
    # 32 ranks would have nothing to do: the batch is 16
    assert "32" in refused(capsys, str(TINY), "--gpus-per-node", "8", "--nodes", "4")
    assert "holds no changes" in refused_file(capsys, "")
    assert "optimizer.lrr" not in refused_file(capsys, "optimizer: 1")


def test_what_the_recipe_names_is_imported_before_anything_is_queued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\ntouch QUEUED\n")
    sbatch.chmod(0o755)
    error = refused(capsys, str(TINY), "--cpu", "optimizer.lrr=1", "model._target_=parts.py:Nett")
    assert "optimizer.lrr: AdamW takes no 'lrr'; did you mean 'lr'?" in error
    assert "model._target_: parts.py has no 'Nett'; did you mean 'Net'?" in error
    assert "optimizer.lrr: " in refused_file(capsys, "optimizer.lr=1e-3\noptimizer.lrr=1\n")
    assert not Path("QUEUED").exists()
    monkeypatch.setattr("launcher.launch.slurm.request._CHECK_SECONDS", 0.01)  # no machine imports anything in that
    assert main(["submit", str(TINY), "--cpu", "--dry-run", "optimizer.lrr=1"]) == 0
    printed = capsys.readouterr()
    assert "components not checked: importing what the recipe names took more than 0.01 s" in printed.err
    assert printed.out.startswith("#!")


def refused_after_reading(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """As `refused`, where the plan is printed first."""
    assert main(["submit", *words]) == 2
    assert not list(Path("runs").rglob("*.sbatch"))
    return capsys.readouterr().err


def refused_file(capsys: pytest.CaptureFixture[str], text: str) -> str:
    Path("overrides.txt").write_text(text)
    return refused(capsys, str(TINY), "--cpu", "--array-file", "overrides.txt")


def test_an_array_is_a_run_for_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("overrides.txt").write_text("# two rates\noptimizer.lr=1e-3\n\noptimizer.lr=3e-3 'define.x=a b'\n")
    text = rendered(capsys, "--cpu", "--array-file", "overrides.txt", "--run-dir", "runs/both")
    assert "#SBATCH --array=0-1\n" in text
    assert "  1) set -- optimizer.lr=3e-3 'define.x=a b' ;;\n" in text
    assert f'run={Path("runs/both").absolute()}/"$SLURM_ARRAY_TASK_ID"\n' in text
    assert '--cpu --processes=1 --nodes=1 "$@" --run-dir "$run"' in text
    for change in ("slurm.time=5", "launch.nodes=2"):  # would be read when nothing can be asked for any more
        assert "say it on the command line" in refused_file(capsys, f"optimizer.lr=1e-3\n{change}")


def test_a_script_of_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_gan.py").write_text("")
    flags = ("--gpus-per-node", "2", "--cpus-per-task", "3", "--time=30", "--run-dir", "run", "--dry-run")
    its_own = ("--steps", "5", "--time=now", "run", "lr=1")
    assert main(["submit", *flags, "run", "my_gan.py", *its_own, "--", "--qos=high"]) == 0
    text = capsys.readouterr().out
    asked = ("job-name=my_gan", "gpus-per-node=2", "ntasks-per-node=2", "cpus-per-task=3", "time=30")
    assert {f"#SBATCH --{one}" for one in asked} <= set(text.splitlines())
    code = Path("run").absolute() / "code" / "my_gan.py"
    assert f'  "$python" -m launcher run --run-dir "$run" {code} --steps 5 --time=now run lr=1\n' in text
    assert "--time: 'soon'" in refused(capsys, "--cpu", "--time", "soon", "run", "my_gan.py")
    assert "go with a recipe" in refused(capsys, "--cpu", "--allow", "timm", "run", "my_gan.py")


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "words",
    [
        (str(TINY), "--", f"--export=ALL,WANDB_API_KEY={SECRET}"),
        (str(TINY), f"track.wandb.api_key={SECRET}"),
        ("run", "my_gan.py", f"--api-key={SECRET}"),
        ("run", "my_gan.py", "--password", SECRET),
    ],
)
def test_secrets_are_refused_and_not_repeated(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    Path("my_gan.py").write_text("")
    error = refused(capsys, "--cpu", *words)
    assert "secret" in error
    assert SECRET not in error


def test_the_code_of_a_job_is_that_of_its_submission(tmp_path: Path) -> None:
    project, run = tmp_path / "project", tmp_path / "project" / "runs" / "one"
    for name in ("recipes/x.yaml", "base.yaml", "recipes/net.py", "recipes/parts/__init__.py", "words.txt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("before")
    (project / "data").mkdir()
    files = [project / "recipes" / "x.yaml", project / "base.yaml"]
    for _ in range(2):  # as when it is submitted again
        assert keep(files, run) is None
    code = run / "code"
    assert kept_at(files[0], files, run) == code / "recipes" / "x.yaml"
    copied = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file() and not path.is_symlink()}
    assert copied == {"recipes/x.yaml", "base.yaml", "recipes/net.py", "recipes/parts/__init__.py"}
    assert {path.name for path in code.iterdir() if path.is_symlink()} == {"words.txt", "data"}
    (project / "recipes" / "net.py").write_text("after")
    assert (code / "recipes" / "net.py").read_text() == "before"


# ---------------------------------------------------------------------- the site file


def test_the_site_file_fills_in_what_belongs_to_the_cluster(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("site.yaml").write_text(
        "setup: [module load cuda/12.4]\nenvironment: {NCCL_SOCKET_IFNAME: ib0}\npartition: gpu\n"
        "gpus_per_node: h100:2\ncpus_per_task: 6\nrequeue: false\noptions: {qos: normal}\n"
        "container: [apptainer, exec, my image.sif]\n"
        "python: /opt/python\nscratch: /scratch\n"
    )
    monkeypatch.setenv("LAUNCHER_SITE", "site.yaml")
    text = rendered(capsys, "slurm.partition=mine")
    for line in (
        *("module load cuda/12.4", "export NCCL_SOCKET_IFNAME=ib0", "#SBATCH --partition=mine", "python=/opt/python"),
        *(
            "#SBATCH --gpus-per-node=h100:2",
            "#SBATCH --cpus-per-task=6",
            "#SBATCH --no-requeue",
            "#SBATCH --qos=normal",
        ),
    ):
        assert line in text.splitlines()
    command = f'"$python" -m launcher train {CODE} slurm.partition=mine data.scratch=/scratch --run-dir "$run"'
    assert f"  apptainer exec 'my image.sif' {command}" in text
    assert "--signal 120 --no-requeue $cancelled" in text
    assert '"$host" -m launcher job begin' in text  # /opt/python is in the image
    assert f"host={sys.executable}" in text
    assert main(["submit", str(TINY), "--", "--test-only"]) == 2  # there is no sbatch; the plan is printed first
    shown = capsys.readouterr().out
    assert 'site       gpus_per_node: "h100:2", from site.yaml\n' in shown
    Path("site.yaml").write_text("runs: elsewhere\nenvironment: {WANDB_API_KEY: hunter2}\n")
    assert "looks like a secret" in refused(capsys, str(TINY), "--cpu")
    write_json(started(Path("elsewhere/one"), 0, 10) / "slurm.json", {})
    assert main(["runs"]) == 0
    assert "elsewhere/one" in capsys.readouterr().out


def test_a_wrong_site_file_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_SITE", "missing.yaml")
    with pytest.raises(UsageError, match=r"LAUNCHER_SITE: there is no file 'missing\.yaml'"):
        read_site()
    monkeypatch.setenv("LAUNCHER_SITE", "site.yaml")
    Path("site.yaml").write_text("partitoin: gpu\nsetup: module load\n")
    with pytest.raises(RecipeError, match=r"partitoin: unknown key; did you mean 'partition'") as found:
        read_site()
    assert "site.yaml: setup: input should be a valid list" in str(found.value)
    Path("site.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match=r"site\.yaml:1"):
        read_site()


# ---------------------------------------------------------------------- the examples


def test_the_scripts_in_slurm_are_what_the_template_gives() -> None:
    scripts = runpy.run_path(str(ROOT / "scripts" / "slurm_examples"))["scripts"]()
    assert {path.name for path in (ROOT / "slurm").glob("*.sbatch")} == set(scripts)
    for name, text in scripts.items():
        assert (ROOT / "slurm" / name).read_text() == text, "run scripts/slurm_examples"
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


# ---------------------------------------------------------------------- after the ranks have ended


def started(folder: Path, *steps: int, state: str = "stopped", script: str = "") -> Path:
    """A run whose job has been started from these checkpoints, and has just ended with the last of them."""
    for number, step in enumerate(steps[:-1]):
        begin(folder, "7", 99)
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(exist_ok=True)
        if number == 0:
            mark_submitted(folder, Submission(job="7", script=script, starts=Submission.read(folder).starts))
    starts: list[Mapping[str, Any]] = [
        {**start, "step": step} for start, step in zip(Submission.read(folder).starts, steps, strict=False)
    ]
    Submission(job="7", script=script, starts=starts).write(folder)
    (folder / "checkpoints" / f"step-{steps[-1]:08d}").mkdir(exist_ok=True)
    status = {"state": state, "step": steps[-1], "total_steps": 100, "started": starts[-1]["time"] + 1}
    write_json(folder / "status.json", status)
    return folder


def test_a_job_goes_on_only_where_that_is_right(tmp_path: Path) -> None:
    said: list[str] = []

    def settle(folder: Path, code: int, **how: object) -> int:
        said.clear()
        return Ending(folder, "7", code, **how).settle(said.append)  # type: ignore[arg-type]  # each test knows its own

    run = started(tmp_path / "a", 0, 10)
    assert (settle(run, 0, cancelled=True), "SLURM ends this job" in said[0]) == (75, True)
    assert (settle(run, 75, max_requeues=0), "slurm.max_requeues is 0" in said[0]) == (1, True)
    assert settle(run, 75) == 75
    assert said[0] == "saved at step 10 of 100; needs about 9.0 more starts like this one"
    assert "scontrol is not on this machine" in said[2]  # where there is none
    assert said[3].endswith(f": RUN={run} sbatch SCRIPT …")
    assert settle(run, 1, requeue=False) == 75  # torchrun ends with 1 where it was asked to stop
    write_json(run / "slurm.json", {**read_json(run / "slurm.json"), "cancelled": True})
    assert (settle(run, 75), "cancelled, and not queued again" in said[0]) == (0, True)  # not 75: see RequeueExit
    with pytest.raises(LauncherError, match="job 7 was cancelled: not started again"):
        begin(run, "7", 20)
    assert begin(run, "8", 20).startswith("start 2 of job 8")  # submitted by hand, on purpose
    run = started(tmp_path / "b", 10, 10)
    assert (settle(run, 75), "where this start began: not queued again" in said[0]) == (1, True)
    run = started(tmp_path / "c", 0, 10, state="failed")
    assert (settle(run, 1), said) == (1, [])
    run = started(tmp_path / "d", 0, 10, state="finished")
    assert (settle(run, 0), said) == (0, [])
    (tmp_path / "never").mkdir()
    mark_submitted(tmp_path / "never", Submission())
    begin(tmp_path / "never", "7", 20)
    assert (settle(tmp_path / "never", 127), Run(tmp_path / "never").state) == (127, "failed")  # as where Python is not
    run = started(tmp_path / "e", 0, 10, script="job script.sbatch")
    assert settle(run, 75, requeue=False) == 75
    assert said[-1].endswith("to resume: sbatch 'job script.sbatch'")


def test_a_job_that_fails_is_started_again_without_the_host_that_failed_twice(tmp_path: Path) -> None:
    said: list[str] = []
    run = started(tmp_path / "run", 0, 10, state="failed", script="job.sbatch")

    def fails_on(host: str, restarts: int) -> int:
        write_json(run / "failure.json", {"host": host, "time": time.time() + 1})
        said.clear()
        code = Ending(run, "7", 1, max_restarts=restarts).settle(said.append)
        steps = len(Submission.read(run).starts) + 10
        (run / "checkpoints" / f"step-{steps:08d}").mkdir()
        begin(run, "7", 99)
        return code

    assert (fails_on("node7.cluster", 0), said) == (1, [])
    assert fails_on("node7.cluster", 3) == 75
    assert said[:2] == ["restart 1 of 3, from the last checkpoint", "queueing job 7 again"]
    assert fails_on("node7.cluster", 3) == 75
    assert said[0] == "node7 was the first to fail in two starts running: from now on without it"
    assert said[-1].endswith("to resume: sbatch --exclude=node7 job.sbatch")
    assert (fails_on("node3", 3), Submission.read(run).excluded) == (75, ["node7"])
    assert (fails_on("node7", 3), len(said)) == (1, 1)
    assert said[0].startswith("failed 4 times: not started again (launch.max_restarts); `launcher resume")


def test_a_job_ends_with_the_code_of_the_rank_that_was_killed_first(tmp_path: Path) -> None:
    run, said = started(tmp_path / "run", 0, 10, state="failed"), list[str]()
    (run / "logs").mkdir(exist_ok=True)
    ends = ("node1: task 3: Killed", "node0: tasks 0-1: Terminated", "node1: task 2: Exited with exit code 1")
    printed = "".join(f"srun: error: {end}\n" for end in ends)
    (run / "logs" / "slurm-7.out").write_text(f"launcher: start 1 of job 7\n{printed}")
    assert Ending(run, "7", 143).settle(said.append) == 137  # srun's is the highest of all
    assert "killed by signal 9" in said[0]
    assert read_json(run / "failure.json")["rank"] == 3
    assert Submission.read(run).starts[-1]["code"] == 137


def test_a_job_whose_ranks_were_asked_too_early_goes_on(tmp_path: Path) -> None:
    run, said = tmp_path / "run", list[str]()
    run.mkdir()
    mark_submitted(run, Submission(job="7"))
    begin(run, "7", 20)
    assert Ending(run, "7", 128 + signal.SIGUSR2).settle(said.append) == 75
    assert "asked to save before there was anything to save" in said
    assert Ending(run, "7", 128 + signal.SIGUSR2, cancelled=True).settle(said.append) == 128 + signal.SIGUSR2


@pytest.mark.parametrize(
    ("how", "code"), [("Terminated", 75), ("Exited with exit code 75", 75), ("Exited with exit code 1", 143)]
)
def test_ranks_that_were_asked_before_python_listened_have_not_failed(tmp_path: Path, how: str, code: int) -> None:
    run, said = tmp_path / "run", list[str]()
    (run / "logs").mkdir(parents=True)
    mark_submitted(run, Submission(job="7"))
    begin(run, "7", 20)
    exits = f"srun: error: node1: task 0: {how}\nsrun: error: node0: task 1: Terminated\n"
    (run / "logs" / "slurm-7.out").write_text(f"launcher: start 1 of job 7\n{exits}")
    assert Ending(run, "7", 143).settle(said.append) == code, said
    assert ("asked to save before there was anything to save" in said) == (code == 75)
    if how.endswith("75"):  # all have heard it, while data and model were built
        said.clear()
        assert Ending(run, "7", 75).settle(said.append) == 75
        assert "asked to save before there was anything to save" in said
    write_json(run / "slurm.json", {**read_json(run / "slurm.json"), "cancelled": True})
    assert Ending(run, "7", 143).settle(said.append) == (0 if code == 75 else 143)  # SLURM calls the job cancelled
    assert Run(run).state == ("stopped" if code == 75 else "failed")


def test_a_save_that_takes_long_gets_more_time(tmp_path: Path) -> None:
    run, said = started(tmp_path / "run", 0, 10), list[str]()
    with (run / "events.jsonl").open("a") as file:
        file.write(f'{{"event": "save", "step": 10, "time": {time.time() + 60}, "seconds": 61.0}}\n')
    Ending(run, "7", 75).settle(said.append)
    assert said[1] == "a save took 61 s, more than half of slurm.signal (120 s): 240 s from now on"
    assert Submission.read(run).signal_seconds == 240


def test_a_job_that_gets_nowhere_is_stopped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert begin(run, "7", 20) == "start 1 of job 7"
    write_json(run / "status.json", {"state": "running"})
    for _ in range(3):
        begin(run, "7", 20)
    with pytest.raises(Exception, match="3 starts in a row began at step 0: not started again"):
        begin(run, "7", 20)
    again = tmp_path / "again"
    begin(again, "7", 1)
    begin(again, "7", 1)
    with pytest.raises(Exception, match="started 2 times: not started again"):
        begin(again, "7", 1)


# ---------------------------------------------------------------------- SLURM's words


def test_refusals_name_the_setting() -> None:
    said = "sbatch: error: invalid partition specified: gpuu\nsbatch: error: Batch job submission failed: Invalid"
    assert _refusal(said).endswith("(this means slurm.partition)")
    assert "Requested time limit is invalid" in _refusal("sbatch: error: Requested time limit is invalid\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("gpu:h100:4(S:0-1),shard:8", (4, "h100")), ("gpu:2", (2, "")), ("(null)", (0, "")), ("lgpu:3", (0, ""))],
)
def test_gres_are_read(text: str, expected: tuple[int, str]) -> None:
    assert _gpus(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("10:00", 600), ("2:00:00", 7200), ("1-12:00:00", 129_600), ("UNLIMITED", None), ("", None)]
)
def test_times_are_read(text: str, expected: int | None) -> None:
    assert seconds_in(text) == expected


def test_a_queued_run_says_how_far_it_is_and_what_it_needs(tmp_path: Path) -> None:
    run = started(tmp_path / "run", 0, 10)
    (run / "metrics.jsonl").write_text(
        '{"step": 10, "epoch": 1, "split": "train", "loss": 1, "samples_per_second": 8.0}\n'
        '{"step": 10, "epoch": 1, "split": "validation", "loss": 1}\n'
    )
    (run / "resolved.yaml").write_text("data:\n  global_batch_size: 16\n")
    waits = Queued("PENDING", "Resources", "", "1:00", "", "1:00")
    # 90 steps of two seconds, a minute at a time
    expected = "step 10 of 100, 8.000 samples/s, needs about 3.0 jobs of 1:00 at this speed"
    assert advance_in_words(Run(run), waits) == expected
    assert advance_in_words(Run(run), replace(waits, limit="UNLIMITED")) == "step 10 of 100, 8.000 samples/s"
    assert (Run(run).state, Run(run, waits).state) == ("stopped", "queued")


def test_words_about_one_submission_do_not_last() -> None:
    words = ["--begin", "now+1hour", "-d", "afterok:7", "--hold", "--qos", "high", "--deadline=noon", "--nodelist=n1"]
    assert list(lasting_words(words)) == ["--qos", "high", "--nodelist=n1"]


def test_a_job_that_left_the_queue_is_said() -> None:
    assert in_words("7", None) == "job 7 is not in the queue any more"


def test_a_batch_script_is_no_world() -> None:
    assert World.from_environ({**os.environ, "SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}).size == 1
