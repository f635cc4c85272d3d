"""A run as a SLURM job: what was submitted, how its starts went, and whether to queue it again.

`slurm.json` in the run's folder holds it. Only the batch script and the user's commands write it, never at once.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, EXIT_USAGE, LauncherError
from launcher.runs.folder import STATUS_FILE, create, read_json, write_json
from launcher.runs.job import Submission, forget_queue, mark_submitted, name_job
from launcher.runs.reading import Run
from launcher.world import slurm
from launcher.world.failure import Failure, exit_in_words
from launcher.world.failure_report import Report, host_at_fault, reported
from launcher.world.failure_report import exits as exits_in
from launcher.world.notes import Notes
from launcher.world.signals import ignoring

# about this submission, not about the job
_ONCE = ("--hold", "-H")
_ONCE_WITH_VALUE = ("--begin", "-b", "--dependency", "-d", "--deadline")
_EXCLUDE = "--exclude"
_LEAVING_SECONDS = 60.0  # what a job that is ending may take until the next one begins
# how a rank ends that is asked to stop while Python itself is loaded, or while it waits for such a one
_UNHEARD = {-signal.SIGUSR2, -signal.SIGTERM, EXIT_PREEMPTED}
NO_PROGRESS_STARTS = 3  # so many starts in a row from the same step, and a job is stopped


# ---------------------------------------------------------------------- in the job


def begin(folder: Path, job: str, max_requeues: int, restart: int = 0) -> str:
    """Notes a start of the job.

    Args:
        folder: The run's.
        job: Its number.
        max_requeues: How often it may be queued again.
        restart: How often SLURM has started the job before.

    Returns:
        What to say.

    Raises:
        LauncherError: It has been started too often for nothing, or was cancelled.
    """
    create(folder)
    submission, step = _succeeded(folder, Submission.read(folder), job), _step(folder)
    if submission.cancelled and job == submission.job:  # another number was submitted on purpose
        _close(folder, "stopped")
        raise LauncherError(f"job {job} was cancelled: not started again; to resume it: `launcher resume {folder}`")
    start: dict[str, Any] = {"job": job, "restart": restart, "time": time.time(), "step": step}
    if submission.signal_seconds is not None and (left := slurm.seconds_left(job)) is not None:
        start["ends"] = time.time() + left
    starts = [*submission.starts, start]
    replace(submission, job=job or submission.job, starts=starts, cancelled=False).write(folder)
    last = [start["step"] for start in starts[-NO_PROGRESS_STARTS - 1 :]]
    go_on = f"look at {folder / 'logs'}; `launcher resume {folder}` tries again"
    if len(last) > NO_PROGRESS_STARTS and len({*last}) == 1 and step is not None:
        _close(folder, "failed")
        raise LauncherError(f"{NO_PROGRESS_STARTS} starts in a row began at step {step}: not started again; {go_on}")
    if len(starts) > max_requeues + 1:
        _close(folder, "failed")
        raise LauncherError(f"slurm.max_requeues: started {max_requeues + 1} times: not started again; {go_on}")
    return f"start {len(starts)} of job {job}" + (f", from step {step:,}" if step else "")


def _succeeded(folder: Path, submission: Submission, job: str) -> Submission:
    """The submission whose last start is over, now that this job starts: its lock binds nobody any more.

    Raises:
        LauncherError: That start is another job's, which runs still.
    """
    *before, last = submission.starts or [{}]
    if not last or "code" in last:
        return submission
    other, deadline = str(last.get("job") or ""), time.monotonic() + _LEAVING_SECONDS
    while other not in (job, "") and (states := slurm.states(other)) != set():
        if states is None:  # nobody knows: then the lock decides
            return submission
        if states != {"COMPLETING"} or time.monotonic() > deadline:
            raise LauncherError(f"{folder}: job {other} is running still: job {job} is not started; cancel one of them")
        time.sleep(2)
    return replace(submission, starts=[*before, {**last, "lost": True}])


@dataclass(frozen=True)
class Ending:
    """How the ranks of a start have ended, and what the job allows.

    Attributes:
        folder: The run's.
        job: Its number.
        code: What srun ended with.
        cancelled: Whether the batch script itself was asked to end.
        max_requeues: How often the job may be queued again.
        max_restarts: How often of these after a failure.
        signal_seconds: How long before the limit it is asked to save.
        requeue: Whether SLURM may be asked to requeue it.
        restart: How often SLURM has started the job before.
    """

    folder: Path
    job: str
    code: int
    cancelled: bool = False
    max_requeues: int = 20
    max_restarts: int = 0
    signal_seconds: int = 120
    requeue: bool = True
    restart: int = 0

    def settle(self, say: Callable[[str], None]) -> int:
        """Queues the job again where that is right, and says so; gives the batch script's exit code."""
        submission = Submission.read(self.folder)
        last = submission.starts[-1] if submission.starts else {}
        if last.get("job") == self.job and last.get("restart", 0) > self.restart:  # this node was lost meanwhile
            say(f"job {self.job} has been started again elsewhere: there is nothing left to do here")
            return EXIT_DONE
        ending = self
        if self.code not in (EXIT_DONE, EXIT_PREEMPTED, EXIT_USAGE) and not self._was_unheard:
            failure, code = self._failure(float(last.get("time", 0.0)))
            ending = replace(self, code=code)
            if failure is not None:
                say(failure.line)
            elif code > 128:
                say(f"srun: {exit_in_words(128 - code)}")
        submission = ending._noted(submission)
        code = ending._settled(submission, say)
        is_cancelled = submission.cancelled or self.cancelled
        if is_cancelled or code not in (EXIT_DONE, EXIT_PREEMPTED):  # where nothing has begun, nobody else says so
            _close(self.folder, "stopped" if is_cancelled else "failed")
        shutil.rmtree(Notes(self.folder).folder, ignore_errors=True)
        if submission.cancelled:  # or the job would be a success, for which others may wait
            with ignoring("SIGTERM"), suppress(LauncherError):
                slurm.cancel([self.job])
        return code

    @property
    def _was_unheard(self) -> bool:
        """Whether the ranks were asked to stop before they could hear it: srun ends others so, but one fails first."""
        codes = {task_exit.exit_code for task_exit in exits_in(self._log)}
        return self.code == 128 + signal.SIGUSR2 or bool(codes and codes <= _UNHEARD)

    def _failure(self, began: float) -> tuple[Failure | None, int]:
        """What made this start fail, from the report of its ranks, or from what srun said of one that left no word.

        Returns:
            With the exit code of that. srun ends with the highest of all: 143, of those that it ends itself, hides 137.
        """
        known, exits = reported(self.folder, began), list(exits_in(self._log))
        if known is None or known.is_aftermath:  # then the first that was killed, but nobody who came after it
            task_exit = next((candidate for candidate in exits[:1] if candidate.exit_code < 0), None)
        else:
            task_exit = next(
                (candidate for candidate in exits if known.is_silent and candidate.rank == known.rank), None
            )
        if task_exit is None:
            return known, self.code
        failure = replace(task_exit, exit_code=EXIT_FAILED)
        if known is not None:
            failure = replace(failure, step=known.step, epoch=known.epoch, world=known.world)
        Report(failure, self.folder, "", shlex.join(["launcher", "resume", str(self.folder)])).write()
        return failure, 128 - task_exit.exit_code if task_exit.exit_code < 0 else self.code

    @property
    def _log(self) -> str:
        """What this start of the job has printed, where its script keeps that in the run's folder."""
        array, is_array, task = self.job.partition("_")
        name = f"slurm-{array}_{task}.out" if is_array else f"slurm-{self.job}.out"
        try:
            text = (self.folder / "logs" / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return text.rpartition("launcher: start ")[2]

    def _noted(self, submission: Submission) -> Submission:
        """With this start's exit code: all that is known of a script of one's own when its job has left the queue."""
        if not submission.starts:
            return submission
        *before, last = submission.starts
        noted = replace(submission, starts=[*before, {**last, "code": self.code}])
        noted.write(self.folder)
        return noted

    def _settled(self, submission: Submission, say: Callable[[str], None]) -> int:
        start: Mapping[str, Any] = submission.starts[-1] if submission.starts else {"time": 0.0, "step": None}
        state = self._state(float(start["time"]))
        if any(
            failure.exit_code == EXIT_USAGE and failure.time >= start["time"]
            for failure in Notes(self.folder).read().values()
        ):
            return EXIT_USAGE  # srun ends with what the others were ended with
        is_cancelled = self.cancelled or submission.cancelled
        is_script = self.code == EXIT_PREEMPTED and _step(self.folder) is None  # which has said that it has saved
        if self.code != EXIT_DONE and self._was_unheard and not state and not is_script:
            say("asked to save before there was anything to save")
            if not is_cancelled and len(submission.starts) <= self.max_requeues:
                return self._again(submission, say)
            return EXIT_DONE if submission.cancelled else self.code
        # torchrun and accelerate end with codes of their own: then only the run itself says that it has saved
        if self.code != EXIT_PREEMPTED and state != "stopped":
            is_lost = self.cancelled and state not in ("finished", "")  # srun that is cancelled itself ends with 0
            code = EXIT_FAILED if self.code == EXIT_DONE and is_lost else self.code
            may = code not in (EXIT_DONE, EXIT_USAGE) and not is_cancelled
            return self._restarted(submission, code, say) if may and self.max_restarts else code
        step, began = _step(self.folder), start["step"]
        saved = "saved" if step is None else f"saved at step {step:,}"
        again = f"to resume it: `launcher resume {self.folder}`"
        if submission.cancelled:
            say(f"{saved}; cancelled, and not queued again: {again}")
            return EXIT_DONE  # not 75: with RequeueExit=75 SLURM would start it again
        if self.cancelled:  # by scancel, or to make room: then SLURM starts it again
            say(f"{saved}; SLURM ends this job. Where it does not start it again, {again}")
            return EXIT_PREEMPTED
        if step is not None and began is not None and step <= began:
            say(f"{saved}, where this start began: not queued again; it needs a longer slurm.time. {again}")
            return EXIT_FAILED
        if len(submission.starts) > self.max_requeues:
            say(f"{saved}; not queued again: slurm.max_requeues is {self.max_requeues}. {again}")
            return EXIT_FAILED
        say(saved + _still_needed(self.folder, began, step))
        return self._again(_with_time_to_save(self.folder, submission, self.signal_seconds, start, say), say)

    def _restarted(self, submission: Submission, code: int, say: Callable[[str], None]) -> int:
        """After a failure: queues the job again, without a host that was first at fault twice running."""
        *before, last = submission.starts
        starts = [*before, {**last, "fault": host_at_fault(self.folder, float(last["time"]))}]
        submission = replace(submission, starts=starts)
        hosts = [str(start.get("fault", "")) for start in starts[-2:]]
        if len(hosts) == 2 and hosts[0] == hosts[1] != "":
            node = hosts[0].partition(".")[0]  # SLURM's names are the short ones
            say(f"{node} was the first to fail in two starts running: from now on without it")
            submission = replace(submission, excluded=sorted({*submission.excluded, node}))
        submission.write(self.folder)
        failed = sum("fault" in start for start in starts)
        if failed > self.max_restarts or len(starts) > self.max_requeues:
            which = "launch.max_restarts" if failed > self.max_restarts else "slurm.max_requeues"
            say(f"failed {failed} times: not started again ({which}); `launcher resume {self.folder}` tries again")
            return code
        say(f"restart {failed} of {self.max_restarts}, from the last checkpoint")
        return self._again(submission, say)

    def _state(self, since: float) -> str:
        """What the run says of this start; empty where it says nothing."""
        status = read_json(self.folder / STATUS_FILE)
        return str(status.get("state")) if float(status.get("started") or 0.0) >= since else ""

    def _again(self, submission: Submission, say: Callable[[str], None]) -> int:
        # a signal cannot be changed: the next start asks itself to save, if SLURM says when it ends
        if self.requeue and (submission.signal_seconds is None or slurm.seconds_left(self.job) is not None):
            say(f"queueing job {self.job} again")  # now: SLURM ends this script as well
            with ignoring("SIGTERM"):  # not before its nodes are set, which cannot be changed while it runs
                refused = slurm.requeue(self.job)
                nodes = ",".join(_excluded(submission))
                if refused is None and submission.excluded:
                    refused = slurm.update(self.job, ExcNodeList=nodes)
                    if refused is not None:
                        say(f"SLURM does not leave out {nodes}: {refused}")
                    return EXIT_PREEMPTED
            if refused is None:
                return EXIT_PREEMPTED
            say(f"SLURM does not do that: {refused}")
        if not submission.script:
            _, is_array, task = self.job.partition("_")
            again = f"sbatch --array={task}" if is_array else "sbatch"
            named = self.folder.parent if is_array and self.folder.name == task else self.folder
            say(f"to resume, submit the same script for the same folder: RUN={named} {again} SCRIPT …")
            return EXIT_PREEMPTED
        replace(submission, job="").write(self.folder)
        try:
            number = resubmit(submission)
        except LauncherError as error:
            say(f"{error}; to resume: {shlex.join(['sbatch', *_options(submission), submission.script])}")
            return EXIT_PREEMPTED
        name_job(self.folder, number)
        say(f"job {number} resumes it")
        for waiting in slurm.move_dependents(self.job, number):
            say(f"job {waiting} waits for that one now")
        return EXIT_DONE


def stop_in_time(folder: Path) -> None:
    """Asks this process to save where that takes longer than the job's own signal grants: SLURM cannot change that."""
    submission = Submission.read(folder)
    ends = submission.starts[-1].get("ends") if submission.starts else None
    if submission.signal_seconds is not None and ends is not None:
        wait = max(1.0, float(ends) - submission.signal_seconds - time.time())
        timer = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGUSR2))
        timer.daemon = True
        timer.start()


def _with_time_to_save(
    folder: Path, submission: Submission, stated_seconds: int, start: Mapping[str, Any], say: Callable[[str], None]
) -> Submission:
    """Doubles the time to save where more than half of it was needed."""
    granted = submission.signal_seconds or stated_seconds
    needed = _slowest_save(folder, float(start["time"]))
    if needed <= granted / 2:
        return submission
    say(f"a save took {needed:.0f} s, more than half of slurm.signal ({granted} s): {2 * granted} s from now on")
    longer = replace(submission, signal_seconds=2 * granted)
    longer.write(folder)
    return longer


def go_on(folder: Path, submission: Submission) -> str:
    """Queues a run's job once more, with all its requeues before it; gives the new job's number."""
    mark_submitted(folder, replace(submission, job="", starts=[], over=submission.history, cancelled=False))
    number = resubmit(submission)
    name_job(folder, number)
    return number


def go_on_with_tasks(folders: Sequence[Path]) -> str:
    """Queues tasks of one array once more, in one call; gives the new job's number.

    Raises:
        LauncherError: SLURM refuses it.
    """
    all_of_them = [Submission.read(folder) for folder in folders]
    signals = [submission.signal_seconds for submission in all_of_them if submission.signal_seconds is not None]
    together = replace(
        all_of_them[0],
        task=",".join(str(submission.task) for submission in all_of_them),
        signal_seconds=max(signals, default=None),
        excluded=sorted({node for submission in all_of_them for node in submission.excluded}),
    )
    for folder, submission in zip(folders, all_of_them, strict=True):
        mark_submitted(folder, replace(submission, job="", starts=[], over=submission.history, cancelled=False))
    number = slurm.submit(together.script, _options(together))
    for folder, submission in zip(folders, all_of_them, strict=True):
        name_job(folder, f"{number}_{submission.task}")
    return number


def resubmit(submission: Submission) -> str:
    """Submits a run's script again; gives the new job's number.

    Raises:
        LauncherError: SLURM refuses it.
    """
    number = slurm.submit(submission.script, _options(submission))
    return number if submission.task is None else f"{number}_{submission.task}"


def _options(submission: Submission) -> list[str]:
    lasting = [*submission.options, *lasting_words(submission.extra)]
    words, _ = _without_excluded(lasting)
    if nodes := _excluded(submission):  # of several such words sbatch hears the last one
        words.append(f"{_EXCLUDE}={','.join(nodes)}")
    if submission.signal_seconds is not None:
        words.append(f"--signal=USR2@{submission.signal_seconds}")
    if submission.task is not None:
        words = [*(word for word in words if not word.startswith("--array=")), f"--array={submission.task}"]
    return words


def _excluded(submission: Submission) -> list[str]:
    """All nodes that the run's jobs must not run on."""
    _, nodes = _without_excluded([*submission.options, *lasting_words(submission.extra)])
    return [*nodes, *submission.excluded]


def _without_excluded(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words without those that exclude nodes, and the nodes."""
    rest, nodes = list[str](), list[str]()
    remaining = iter(words)
    for word in remaining:
        flag, has_value, value = word.partition("=")
        if flag == _EXCLUDE or word == "-x":
            nodes.append(value if has_value else next(remaining, ""))
        elif word.startswith("-x"):
            nodes.append(word[2:])
        else:
            rest.append(word)
    return rest, nodes


def lasting_words(extra: Iterable[str]) -> Iterator[str]:
    """The words for sbatch that are about a job, without those about one submission of it."""
    words = iter(extra)
    for word in words:
        if word in _ONCE_WITH_VALUE:
            next(words, None)
        elif word not in _ONCE and not word.startswith(tuple(f"{option}=" for option in _ONCE_WITH_VALUE)):
            yield word


def _close(folder: Path, state: str) -> None:
    """How a run ended that was queued and never began; one that has begun says so itself."""
    status = read_json(folder / STATUS_FILE)
    if status.get("state") == "queued":
        write_json(folder / STATUS_FILE, {**status, "state": state, "ended": time.time()})


def _step(folder: Path) -> int | None:
    """The newest checkpoint's step: what a start can begin from; None where the run has no status of ours."""
    if not (folder / STATUS_FILE).exists():
        return None
    steps = [path.name.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def _slowest_save(folder: Path, since: float) -> float:
    times = [event for event in Run(folder).events if event["event"] == "save" and event["time"] >= since]
    return max((float(event.get("seconds", 0.0)) for event in times), default=0.0)


def _still_needed(folder: Path, began: int | None, step: int | None) -> str:
    """How many more starts like this one the run needs."""
    total = Run(folder).total_steps
    if total is None or step is None or began is None:
        return ""
    return f" of {total:,}; needs about {(total - step) / (step - began):.1f} more starts like this one"


# ---------------------------------------------------------------------- from outside


def cancel(folders: Iterable[Path], now: bool, queue: Mapping[str, slurm.Queued]) -> Iterator[tuple[Path, str]]:
    """Ends the jobs of runs, which save first where they run, in two calls at most; yields what has been done to each.

    Args:
        folders: The runs'.
        now: Whether they do not save first.
        queue: One's jobs as they are now.

    Raises:
        LauncherError: SLURM refuses.
    """
    submissions = {folder: Submission.read(folder) for folder in folders}
    waiting, saving = list[str](), list[str]()
    for folder, submission in submissions.items():
        if (entry := queue.get(submission.job)) is not None:
            replace(submission, cancelled=True).write(folder)
            (saving if entry.state == "RUNNING" and not now else waiting).append(submission.job)
    slurm.cancel(waiting)
    slurm.cancel(saving, "TERM")
    forget_queue()
    for folder, submission in submissions.items():
        entry = queue.get(submission.job)
        if entry is None:
            yield folder, f"job {submission.job} is not in the queue any more"
            continue
        if entry.state == "PENDING":
            _close(folder, "stopped")
        how = "asked to save and end" if submission.job in saving else "cancelled"
        yield folder, f"job {submission.job} is {how}; to resume it: `launcher resume {folder}`"
