"""A run's job on a cluster: what its folder says of it, and what the queue does."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError
from launcher.runs.folder import QUEUE_FILE, STATUS_FILE, read_json, write_json
from launcher.runs.metrics import METRICS_FILE, read_last
from launcher.runs.reading import Run
from launcher.text import duration, number
from launcher.world import slurm
from launcher.world.world import user_variable

REMEMBERED_STARTS = 100
_NUMBER = re.compile(r"\d{1,18}(_\d{1,18})?")


@dataclass(frozen=True)
class Submission:
    """What is known of a run's job.

    Attributes:
        job: Its number; of an array's task, `12_3`.
        script: What was submitted.
        task: Which task of an array this run is.
        options: What the script asks for, as words of sbatch's command line, where they win over `SBATCH_*` variables.
        extra: Words for sbatch that are no part of the script, as in `--nodelist=gpu7`.
        starts: Each start of it: `job`, `time`, the `step` that it began at (None for a script of one's own), the
            `code` that srun ended with (or `lost`, where SLURM says that the start is over), and `fault` where it has
            failed: the host that was first, empty where that is not known. `ends` is when its limit ends it, where
            that had to be asked.
        over: Starts before those, as in `1234.0`, which are over too.
        cancelled: Whether its user asked it to save and end.
        signal_seconds: How long before the limit it is asked to save, where that was changed.
        excluded: Nodes that were first at fault in two starts running.
        submitted: When, in unix time.
    """

    job: str = ""
    script: str = ""
    task: str | None = None
    options: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    starts: list[Mapping[str, Any]] = field(default_factory=list)
    over: list[str] = field(default_factory=list)
    cancelled: bool = False
    signal_seconds: int | None = None
    excluded: list[str] = field(default_factory=list)
    submitted: float = 0.0

    @staticmethod
    def read(folder: Path) -> Submission:
        """The submission of a run; an empty one where it never was."""
        fields = read_json(folder / QUEUE_FILE)
        empty = Submission()
        known = {name: value for name, value in fields.items() if name in Submission.__dataclass_fields__}
        known = {name: value for name, value in known.items() if _is_like(value, getattr(empty, name))}
        known["starts"] = [start for start in known.get("starts", ()) if isinstance(start, dict)]
        if (
            _NUMBER.fullmatch(known.get("job", "")) is None
        ):  # a word of somebody's, for SLURM's command line and a screen
            known.pop("job", None)
        return Submission(**known)

    @property
    def history(self) -> list[str]:
        """All starts so far, when none of them is in the queue any more."""
        starts = [f"{start.get('job')}.{start.get('restart', 0)}" for start in self.starts]
        return [*dict.fromkeys([*self.over, *starts])][-REMEMBERED_STARTS:]

    def write(self, folder: Path) -> None:
        """Keeps it."""
        write_json(folder / QUEUE_FILE, asdict(self))


def _is_like(value: Any, example: Any) -> bool:
    """Whether a value of a file is of the kind that stands there; where nothing need stand, a word or a number."""
    kinds = (str, int, type(None)) if example is None else (int, float) if isinstance(example, float) else type(example)
    return isinstance(value, kinds)


def mark_submitted(folder: Path, submission: Submission, *, is_recipe: bool = True) -> None:
    """Makes a run's folder say that it waits, unless it has begun already; a script of one's own has no state.

    Before the job is queued: it may start at once, and notes its starts in the same file.
    """
    replace(submission, submitted=time.time()).write(folder)
    if is_recipe and not (folder / STATUS_FILE).exists():
        write_json(folder / STATUS_FILE, {"state": "queued", "step": 0, "updated": time.time()})
    forget_queue()


def name_job(folder: Path, job: str) -> None:
    """Notes the job that was queued, unless it has started meanwhile and done so itself."""
    submission = Submission.read(folder)
    if not submission.job:
        replace(submission, job=job).write(folder)
    forget_queue()  # what is known of it is older than this job


def queue_now() -> dict[str, slurm.Queued]:
    """One's jobs in the queue, asked for at most once in half a minute: the answer is kept for the next command.

    Raises:
        LauncherError: The cluster does not answer.
    """
    cache, cluster = _cache(), slurm.cluster()
    kept = read_json(cache) if cache is not None else {}
    with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):  # another version's, or damaged
        if kept.get("cluster") == cluster and time.time() - float(kept.get("time", 0.0)) < slurm.ASK_SECONDS:
            return {name: slurm.Queued(**entry) for name, entry in kept["jobs"].items()}
    jobs = slurm.queue()
    if cache is not None:
        with contextlib.suppress(OSError):  # a home that is full, or not to be written: the next command asks too
            cache.parent.mkdir(parents=True, exist_ok=True)
            entries = {name: asdict(entry) for name, entry in jobs.items()}
            write_json(cache, {"cluster": cluster, "time": time.time(), "jobs": entries})
    return jobs


def with_job(run: Run, job: str, queue: Mapping[str, slurm.Queued]) -> Run:
    return replace(run, queued=queue.get(job), has_left_queue=bool(job) and job not in queue)


def with_jobs(runs: Iterable[Run]) -> list[Run]:
    """The runs, each with its job as the queue shows it; the queue is asked only where one of them may be in it.

    Where it cannot be asked, the runs are as their folders say.
    """
    run_list = list(runs)
    jobs = {run.folder: Submission.read(run.folder).job for run in run_list if run.state != "finished"}
    if not any(jobs.values()):
        return run_list
    try:
        queue = queue_now()
    except LauncherError:
        return run_list
    return [with_job(run, jobs.get(run.folder, ""), queue) for run in run_list]


def queue_line(run: Run, queue: Callable[[], Mapping[str, slurm.Queued]]) -> str:
    """How a run's job stands, for people; empty where there is none, or where nobody expects it in the queue.

    Args:
        run: The run.
        queue: Gives one's jobs; not called where the run has none.

    Raises:
        LauncherError: The cluster does not answer.
    """
    job = Submission.read(run.folder).job
    entry = queue().get(job) if job else None
    if entry is None:
        return in_words(job, None) if job and run.state in ("queued", "running", "dead") else ""
    return "; ".join(filter(None, (in_words(job, entry), advance_in_words(run, entry))))


def is_queued(folder: Path) -> bool:
    """Whether a run's job waits or runs, as far as the cluster says."""
    job = Submission.read(folder).job
    try:
        return bool(job) and job in queue_now()
    except LauncherError:
        return False


def _cache() -> Path | None:
    """Where the queue is kept for the next command; None where this user has no home."""
    home = user_variable("HOME")
    return Path(home) / ".cache" / "launcher" / "squeue.json" if home else None


def forget_queue() -> None:
    """A job has come or gone: the next command asks again."""
    if (cache := _cache()) is not None:
        with contextlib.suppress(OSError):
            cache.unlink(missing_ok=True)


_REASONS = {
    "Resources": "waits for free nodes",
    "Priority": "other jobs come first",
    "Dependency": "waits for another job",
    "BeginTime": "waits for its start time, as a requeued job does for two minutes",
    "None": "just queued",
    "PartitionTimeLimit": "asks for more time than its partition gives (slurm.time)",
    "PartitionNodeLimit": "asks for more nodes than its partition has (--nodes)",
    "Nodes required for job are DOWN": "the nodes that it asks for are down or reserved",
    "ReqNodeNotAvail": "the nodes that it asks for are down or reserved",
    "JobHeldUser": "held: scontrol release JOB",
    "JobHeldAdmin": "held by an administrator",
    "DependencyNeverSatisfied": "the job that it waits for has failed",
    "AssocGrpGRES": "the account's GPUs are all in use",
    "QOSMaxJobsPerUserLimit": "you have as many jobs running as are allowed",
}


def in_words(job: str, entry: slurm.Queued | None) -> str:
    """How a job stands, for people."""
    if entry is None:
        return f"job {job} is not in the queue any more"
    if entry.state == "PENDING":
        known = (text for name, text in _REASONS.items() if entry.reason.startswith(name))
        reason = next(known, entry.reason)
        start = f", expected to start {entry.start.replace('T', ' ')}" if entry.start else ""
        return f"job {job} waits: {reason}{start}"
    return f"job {job} is {entry.state.lower()} on {entry.nodes or 'no node yet'}, {entry.left} left"


def advance_in_words(run: Run, entry: slurm.Queued) -> str:
    """How far a run is and how fast, and how many jobs like the one in the queue it still needs; empty if unknown."""
    total = run.total_steps
    words = [f"step {run.step:,}" + (f" of {total:,}" if total else "")] if run.step else []
    rate = read_last(run.folder / METRICS_FILE, "samples_per_second").get("samples_per_second")
    if not words or not rate:
        return "".join(words)
    words.append(f"{number(rate)} samples/s")
    batch, limit = run.recipe.get("data.global_batch_size", ""), slurm.seconds_in(entry.limit)
    if total and limit and batch.isdigit() and total > run.step:
        jobs = (total - run.step) * int(batch) / rate / limit
        words.append(f"needs about {max(0.1, jobs):.1f} jobs of {duration(limit)} at this speed")
    return ", ".join(words)
