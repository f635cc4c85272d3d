"""What the end of a trial's process means: it has come to its rung, was stopped, or failed."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import EXIT_DONE, EXIT_PREEMPTED, EXIT_USAGE
from launcher.runs.folder import read_json
from launcher.runs.logs import tail_of
from launcher.runs.metrics import METRICS_FILE, read_evaluations
from launcher.runs.reading import Run
from launcher.world.failure import exit_in_words
from launcher.world.failure_report import FAILURE_FILE

_ASKED_TO_STOP = tuple(-number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP))
# what no recipe is to blame for: disks, files on other machines, a GPU that broke, a network
_MACHINE = re.compile(
    r"No space left|Input/output error|Stale file handle|Disk quota exceeded|Too many open files|Cannot allocate memory"
    r"|Connection (reset|closed)|[Uu]ncorrectable ECC|unspecified launch failure|device-side hardware|NCCL|SaveError"
    r"|saving .*checkpoints"
)


@dataclass(frozen=True)
class Ending:
    """How a trial's process ended.

    Attributes:
        kind: `reached`, `stopped` or `failed`.
        step: Optimizer steps completed, as far as is known.
        message: What it failed of.
        is_machine: Whether the machine was at fault, so that it is tried again.
    """

    kind: str
    step: int = 0
    message: str = ""
    is_machine: bool = False


def ending_of(folder: Path, code: int, wanted: int | None, output: Path, since: float) -> Ending:
    """Reads from a run's folder what became of it.

    Args:
        folder: The run's.
        code: Its process's exit code, negative for a signal.
        wanted: How many steps it was to come to; None is to its end.
        output: What its process has printed.
        since: When that was started, in unix time.
    """
    run = Run(folder)
    step, state = run.step, run.status.get("state")
    if code == EXIT_DONE and state == "finished":
        return Ending("reached", step)
    if code == EXIT_PREEMPTED and wanted is not None and step >= wanted and _is_evaluated(run, wanted):
        return Ending("reached", step)
    if code == EXIT_PREEMPTED or code in _ASKED_TO_STOP:
        return Ending("stopped", step)
    message = _message(folder, code, output, since)
    is_machine = code < 0 or (code != EXIT_USAGE and bool(_MACHINE.search(message)))
    return Ending("failed", step, f"{message}, after step {step:,}" if code < 0 else message, is_machine)


def _is_evaluated(run: Run, wanted: int) -> bool:
    """Whether the last step was evaluated: a run that is asked to stop in that leaves it to the next start."""
    lines = read_evaluations(run.folder / METRICS_FILE, "validation")
    return any(int(line.get("step", -1)) >= wanted for line in lines)


def _message(folder: Path, code: int, output: Path, since: float) -> str:
    """In a line, what it failed of: as its report says it, or the signal, or the last line that it has printed."""
    failure = read_json(folder / FAILURE_FILE)
    if failure.get("what") and failure.get("time", 0.0) >= since:
        place = f"{failure['culprit']}: " if failure.get("culprit") else ""
        return f"{place}{str(failure['what']).strip().splitlines()[0]}"
    if code < 0:
        return exit_in_words(code)
    lines = [line.strip() for line in tail_of(output).splitlines() if line.strip()]
    return lines[-1] if lines else exit_in_words(code)
