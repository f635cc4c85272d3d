"""SLURM's commands, asked as seldom as possible; what they say is handed on in its own words."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from launcher.errors import LauncherError, UsageError
from launcher.world.world import is_of_this_start, job_environment, question_environment

ASK_SECONDS = 30.0  # at most one squeue in so long: a controller has thousands of users
_PATIENCE_SECONDS = 60.0
_MISSING = "is not on this machine; submit from a login node of the cluster, or load its module"


def answers() -> bool:
    """Whether this machine is one of a cluster, as far as its controller says."""
    try:
        done = _run(["sinfo", "--noheader"])
    except LauncherError:
        return False
    return done.returncode == 0


def gpu_count(asked: int | str) -> int:
    """How many GPUs a node is asked for: 4, of `4` or `h100:4`.

    Raises:
        UsageError: That is not a number.
    """
    count = str(asked).rpartition(":")[2]
    if not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise UsageError(f"slurm.gpus_per_node: '{asked}' is not a number of GPUs; write it as in 4 or h100:4")
    return int(count)


def submit(script: str, options: Sequence[str]) -> str:
    """Hands a script to sbatch. What stands on its command line wins over `SBATCH_*` variables, these over the script.

    Args:
        script: The file.
        options: In front of it, each one argument.

    Returns:
        The job's number.

    Raises:
        UsageError: It was refused; the message says so in SLURM's words.
    """
    output = _said(["sbatch", "--parsable", *options, script]).strip()
    return output.splitlines()[-1].split(";")[0] if output else ""


def test_only(script: str, options: Sequence[str]) -> str:
    """When SLURM would start a script, in its words; nothing is queued.

    Raises:
        UsageError: It would be refused.
    """
    done = _run(["sbatch", "--test-only", *options, script])
    if done.returncode:
        raise UsageError(_refusal(done.stderr))
    return (done.stderr or done.stdout).strip().removeprefix("sbatch: ")


def requeue(job: str) -> str | None:
    """Puts this running job back into the queue; gives SLURM's words where that is refused."""
    return _refused(["scontrol", "requeue", job])


def update(job: str, **changes: str) -> str | None:
    """Changes a job that waits; gives SLURM's words where that is refused."""
    return _refused(["scontrol", "update", f"JobId={job}", *(f"{name}={value}" for name, value in changes.items())])


def _refused(command: Sequence[str]) -> str | None:
    try:
        done = _run(command)
    except LauncherError as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip()


def cluster() -> str:
    """What tells this cluster from others that share a home."""
    environment = question_environment()
    return " ".join([platform.node(), *(environment.get(name, "") for name in ("SLURM_CONF", "SLURM_CLUSTERS"))])


def move_dependents(job: str, successor: str) -> list[str]:
    """Has one's own jobs that wait for the good end of a job wait for the one that resumes it; gives them."""
    try:
        rows = _said(["squeue", "--me", "--noheader", "--states=PENDING", "--format=%i|%E"]).splitlines()
    except LauncherError:
        return []
    waits = re.compile(rf"\b(after(?:ok|corr)):{re.escape(job)}(?![\w+])")
    moved = []
    for number, _, dependency in (row.partition("|") for row in rows):
        plain = re.sub(r"\([^()]*\)", "", dependency)  # afterok:7(unfulfilled)
        if waits.search(plain) and update(number, Dependency=waits.sub(rf"\g<1>:{successor}", plain)) is None:
            moved.append(number)
    return moved


def seconds_left(job: str) -> int | None:
    """Until its limit ends a running job; None where it has none, or the cluster does not say."""
    try:
        return seconds_in(_said(["squeue", "--noheader", "--format=%L", f"--jobs={job}"]).strip())
    except LauncherError:
        return None


def states(job: str) -> set[str] | None:
    """SLURM's words for a job that waits, runs or ends; none where it is over, None where the cluster does not say."""
    try:
        done = _run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"])
    except LauncherError:
        return None
    if done.returncode:
        return set() if "Invalid job id" in done.stderr else None  # so old that the controller has forgotten it
    return {*done.stdout.split()} - {"PENDING"}


def freeze_this_start() -> None:
    """Stops what this start of the job has on this node, this process last: batch script, srun, ranks.

    For a node that SLURM has lost, and whose job it has started again elsewhere under the same number. Whatever ended
    here would be told as an end of the new start's step, which has the same number too: SLURM then kills that. What is
    stopped tells nobody, and SLURM clears it away when the node comes back.
    """
    import psutil

    own = os.getpid()
    for process in sorted(psutil.process_iter(), key=psutil.Process.create_time):  # the script before its srun
        with suppress(psutil.Error):
            if process.pid != own and is_of_this_start(process.environ()):
                process.suspend()
    os.kill(own, signal.SIGSTOP)
    time.sleep(1)  # another thread may hear the signal: until then this one would go on


def cancel(jobs: Sequence[str], signal: str | None = None) -> None:
    """Ends jobs, or sends a signal to their steps; one call for all of them.

    Raises:
        LauncherError: SLURM refuses.
    """
    if jobs:
        _said(["scancel", *([f"--signal={signal}"] if signal else []), *jobs])


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


def offers() -> list[Offer]:
    """What the nodes of the cluster offer; the poorest in CPUs come first.

    Raises:
        LauncherError: The cluster does not answer.
    """
    output = _said(["sinfo", "--noheader", "--Format=PartitionName:64|,CPUs:16|,Gres:256|,NodeList:4096"])
    rows = [[field.strip() for field in row.split("|")] for row in output.splitlines() if row.count("|") == 3]
    usable = _usable_cpus({_first_node(nodes) for *_, nodes in rows})
    node_offers = [
        Offer(name, usable.get(_first_node(nodes), _first_number(cpus)), *_gpus(gres))
        for name, cpus, gres, nodes in rows
    ]
    return list(dict.fromkeys(sorted(node_offers, key=lambda offer: offer.cpus)))


def _first_node(nodes: str) -> str:
    """The first of a node list, which sinfo may have cut off."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*(?:\]|$)", r"\1", first)


def _usable_cpus(nodes: Iterable[str]) -> dict[str, int]:
    """The CPUs that jobs may have of each node: some are kept for the system (CoreSpecCount)."""
    try:
        shown = _said(["scontrol", "show", "node", "--oneliner", ",".join(sorted(filter(None, nodes)))])
    except LauncherError:
        return {}
    cpus: dict[str, int] = {}
    for line in shown.splitlines():
        facts = dict(re.findall(r"(\w+)=(\S*)", line))
        counted = re.search(r"\bcpu=(\d+)", facts.get("CfgTRES", ""))
        count = facts.get("CPUEfctv") or (counted[1] if counted else "")
        if count.isdigit():
            cpus[facts.get("NodeName", "")] = int(count)
    return cpus


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
    jobs: dict[str, Queued] = {}
    for row in rows:
        number, *rest = row.split("|")
        if len(rest) == 7:
            name, state, reason, start, left, nodes, limit = rest
            jobs[number] = jobs[name] = Queued(state, reason, start.replace("N/A", ""), left, nodes, limit)
    return jobs


def seconds_in(text: str) -> int | None:
    """A time as SLURM writes it (`10:00`, `2:00:00`, `1-00:00:00`); None for UNLIMITED and the like."""
    days, is_long, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in (*parts, *([days] if is_long else []))):
        return None
    hours, minutes, seconds = [0] * (3 - len(parts)) + [int(part) for part in parts][:3]
    return (int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds


def _said(command: Sequence[str]) -> str:
    done = _run(command)
    if done.returncode:
        raise UsageError(_refusal(done.stderr)) if command[0] == "sbatch" else LauncherError(_words(command, done))
    return done.stdout


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = job_environment() if command[0] == "sbatch" else question_environment()
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
    lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
    return f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: ').removeprefix('error: ')}"


# what sbatch refuses, and the setting that it means
_MEANT = (
    ("partition", "slurm.partition"),
    ("account", "slurm.account"),
    ("time limit", "slurm.time"),
    ("qos", "slurm.qos"),
    ("gres", "slurm.gpus_per_node"),
    ("gpu", "slurm.gpus_per_node"),
    ("memory", "slurm.mem"),
    ("cpu count", "slurm.cpus_per_task, or more processes than a node has CPUs"),
    ("node count", "--nodes"),
    ("node configuration", "slurm.gpus_per_node, slurm.cpus_per_task, slurm.mem, or --nodes"),
)


def _refusal(output: str) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in output.strip().splitlines()]
    text = "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason was given"
    meant = next((setting for word, setting in _MEANT if word in text.lower()), None)
    return f"sbatch refused the job: {text}" + (f" (this means {meant})" if meant else "")
