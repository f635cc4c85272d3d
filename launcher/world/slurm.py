"""SLURM's commands, asked as seldom as possible; what they say is handed on in its own words."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from launcher.errors import LauncherError, UsageError
from launcher.world.world import is_of_this_start

ASK_SECONDS = 30.0  # at most one squeue in so long: a controller has thousands of users
_PATIENCE_SECONDS = 60.0
_MISSING = "is not on this machine; submit from a login node of the cluster, or load its module"


def answers() -> bool:
    """Whether this machine is one of a cluster, as far as its controller says."""
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=_PATIENCE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def gpu_count(asked: int | str) -> int:
    """How many GPUs a node is asked for: 4, of `4` or `h100:4`.

    Raises:
        UsageError: That is no number.
    """
    count = str(asked).rpartition(":")[2]
    if not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise UsageError(f"slurm.gpus_per_node: '{asked}' is no number of GPUs; write it as in 4 or h100:4")
    return int(count)


def submit(script: str, options: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Hands a script to sbatch.

    Args:
        script: The file.
        options: In front of it, each one argument.
        environment: The variables that the job inherits; None for all of this process.

    Returns:
        The job's number.

    Raises:
        UsageError: It was refused; the message says so in SLURM's words.
    """
    said = _said(["sbatch", "--parsable", *options, script], environment).strip()
    return said.splitlines()[-1].split(";")[0] if said else ""


def test_only(script: str, options: Sequence[str]) -> str:
    """When SLURM would start a script, in its words; nothing is queued.

    Raises:
        UsageError: It would be refused.
    """
    done = _run(["sbatch", *options, script])
    if done.returncode:
        raise UsageError(_refusal(done.stderr))
    return (done.stderr or done.stdout).strip().removeprefix("sbatch: ")


def requeue(job: str) -> str | None:
    """Puts this running job back into the queue; gives SLURM's words where that is refused."""
    try:
        done = _run(["scontrol", "requeue", job])
    except LauncherError as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip()


def end_this_start() -> None:
    """Kills what this start of the job has on this node besides this process: batch script, srun, other ranks.

    For a node that SLURM has lost, and whose job it has started again elsewhere under the same number: there its srun
    would end the new start's step, and its batch script queue the job once more.
    """
    import psutil

    for one in sorted(psutil.process_iter(), key=psutil.Process.create_time):  # the script before its srun
        with suppress(psutil.Error):
            if one.pid != os.getpid() and is_of_this_start(one.environ()):
                one.kill()


def cancel(job: str, signal: str | None = None) -> None:
    """Ends a job, or sends a signal to its steps.

    Raises:
        LauncherError: SLURM refuses.
    """
    _said(["scancel", *([f"--signal={signal}"] if signal else []), job])


@dataclass(frozen=True)
class Offer:
    """What a kind of node offers.

    Attributes:
        partition: Its queue.
        cpus: Of one node.
        gpus: Of one node.
        kind: Of its GPUs, where SLURM knows it.
    """

    partition: str
    cpus: int
    gpus: int
    kind: str

    def __str__(self) -> str:
        gpus = f"{self.kind + ':' if self.kind else ''}{self.gpus}"
        return f"{gpus} in {self.partition}"


def offers(partition: str | None) -> list[Offer]:
    """What the nodes of a partition offer, or of all; the cluster's default comes first.

    Raises:
        LauncherError: The cluster does not answer.
    """
    where = [f"--partition={partition}"] if partition else []
    rows = _said(["sinfo", "--noheader", "--Format=PartitionName:64|,CPUs:16|,Gres:256", *where]).splitlines()
    found = [
        Offer(name.strip(), _first_number(cpus), *_gpus(gres))
        for name, cpus, gres in (row.split("|") for row in rows if row.count("|") == 2)
    ]
    return list(dict.fromkeys(sorted(found, key=lambda one: one.cpus)))


def _gpus(gres: str) -> tuple[int, str]:
    """Number and kind from `gpu:h100:4(S:0-1),shard:8`."""
    match = re.search(r"\bgpu:(?:([^:,()]+):)?(\d+)", gres)
    return (int(match[2]), match[1] or "") if match else (0, "")


def _first_number(text: str) -> int:
    match = re.search(r"\d+", text)
    return int(match[0]) if match else 0


@dataclass(frozen=True)
class Queued:
    """A job as the queue shows it.

    Attributes:
        state: SLURM's word, as in PENDING or RUNNING.
        reason: Why it waits, in SLURM's words.
        start: When it is expected to start or has started, as SLURM writes it; empty where it does not know.
        left: Time left, as SLURM writes it.
        nodes: Where it runs.
        limit: Its time limit, as SLURM writes it.
    """

    state: str
    reason: str
    start: str
    left: str
    nodes: str
    limit: str = ""


def queue() -> dict[str, Queued]:
    """One's own jobs by their number, in one question.

    Raises:
        LauncherError: The cluster does not answer.
    """
    rows = _said(["squeue", "--me", "--noheader", "--array", "--format=%A|%i|%T|%r|%S|%L|%N|%l"]).splitlines()
    found: dict[str, Queued] = {}
    for row in rows:
        number, name, *rest = row.split("|")
        if len(rest) == 6:
            state, reason, start, left, nodes, limit = rest
            found[number] = found[name] = Queued(state, reason, start.replace("N/A", ""), left, nodes, limit)
    return found


def seconds_in(text: str) -> int | None:
    """A time as SLURM writes it (`10:00`, `2:00:00`, `1-00:00:00`); None for UNLIMITED and the like."""
    days, is_long, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in (*parts, *([days] if is_long else []))):
        return None
    hours, minutes, seconds = [0] * (3 - len(parts)) + [int(part) for part in parts][:3]
    return (int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds


def _said(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    done = _run(command, environment)
    if done.returncode:
        raise UsageError(_refusal(done.stderr)) if command[0] == "sbatch" else LauncherError(_words(command, done))
    return done.stdout


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE_SECONDS,
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        raise UsageError(f"{command[0]} {_MISSING}") from None
    except subprocess.TimeoutExpired:
        raise LauncherError(f"{command[0]} did not answer in {_PATIENCE_SECONDS:.0f} s; try again later") from None


def _words(command: Sequence[str], done: subprocess.CompletedProcess[str]) -> str:
    said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
    return f"{command[0]}: {said[-1].removeprefix(f'{command[0]}: ').removeprefix('error: ')}"


# what sbatch refuses, and the setting that it means
_MEANT = (
    ("partition", "slurm.partition"),
    ("account", "slurm.account"),
    ("time limit", "slurm.time"),
    ("qos", "slurm.qos"),
    ("gres", "slurm.gpus_per_node"),
    ("gpu", "slurm.gpus_per_node"),
    ("memory", "slurm.mem"),
    ("cpu count", "slurm.cpus_per_task"),
    ("node count", "--nodes"),
    ("node configuration", "slurm.gpus_per_node, slurm.cpus_per_task, slurm.mem, or --nodes"),
)


def _refusal(said: str) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in said.strip().splitlines()]
    text = "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason was given"
    meant = next((setting for word, setting in _MEANT if word in text.lower()), None)
    return f"sbatch refused the job: {text}" + (f" (this means {meant})" if meant else "")
