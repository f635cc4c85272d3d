"""One process of a run, watched from within: what goes wrong becomes a report, with what the run knew of itself."""

from __future__ import annotations

import faulthandler
import inspect
import os
import pdb
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher.errors import EXIT_DONE, EXIT_USAGE, LauncherError
from launcher.runs.logs import kept, log_of
from launcher.text import told_by
from launcher.world import progress
from launcher.world.context import RunContext, known_of
from launcher.world.failure import Failure, of_exception
from launcher.world.notes import Notes
from launcher.world.patience import wait_without_limit
from launcher.world.signals import die_with_parent, is_listening, pause, stop_requested
from launcher.world.waiting import stop
from launcher.world.watchdog import report
from launcher.world.world import World

_HEARING_SECONDS = 1.0  # what lies between the first rank that hears a request to stop and the last


@contextmanager
def watched(world: World, again: str, debugger: Callable[[BaseException], None] | None = None) -> Iterator[None]:
    """Runs what stands inside as one process of the world: seen by our supervisor, if it started this; explained.

    Args:
        world: This process among the others.
        again: The command that started it.
        debugger: Gets an exception before anything else happens.
    """
    folder = Path(world.run_dir) if world.run_dir is not None else None
    with ExitStack() as stack:
        if world.supervisor is not None and folder is not None:
            die_with_parent(world.supervisor)
            notes = Notes(folder)
            progress.show_in(notes.progress_of(world.node, world.local_rank))
            stack.enter_context(_crashes_written(notes.stacks_of(world.rank)))
        elif not faulthandler.is_enabled():
            with suppress(OSError, ValueError, RuntimeError):  # a stream without a file behind it
                faulthandler.enable()
        if world.size > 1:
            stack.enter_context(_one_debugger(world))
        log = log_of(folder, world.rank) if folder is not None else None
        stack.enter_context(kept(log, world.rank, is_ours=world.supervisor is not None))
        stack.enter_context(_explained(world, again, debugger))
        yield


@contextmanager
def _explained(world: World, again: str, debugger: Callable[[BaseException], None] | None = None) -> Iterator[None]:
    """Turns what goes wrong inside into a report, or into a note for the supervisor that makes the report.

    Raises:
        LauncherError: A mistake of usage, as it came; the command line prints it.
        SystemExit: With the exit code, when all is reported.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not is_listening():
            raise  # a Ctrl-C
        if isinstance(error, LauncherError) and error.exit_code == EXIT_DONE:
            progress.done()
            raise
        if debugger is not None and isinstance(error, Exception) and not isinstance(error, LauncherError):
            debugger(error)
        failure = examined(error, world)
        if failure.is_aftermath:
            _stop_too(world)
        is_told = _told(failure, error, again, world)
        if failure.exit_code == EXIT_USAGE and not is_told:
            raise
        # 0: a mistake of usage is no reason for the agent to start everything again
        raise SystemExit(EXIT_DONE if failure.exit_code == EXIT_USAGE else failure.exit_code) from None
    progress.done()


def _stop_too(world: World) -> None:
    """Ends this process where another has left only because all were asked to stop, and no training has begun."""
    if progress.mine().state == progress.STARTING:
        pause(_HEARING_SECONDS)
        if stop_requested():
            stop("the other ranks", world)


def examined(error: BaseException, world: World) -> Failure:
    """The failure with what its run knew: step, epoch, batch, shapes, parameters without a gradient."""
    known = known_of(error)
    details: dict[str, Any] = {"rank": world.rank, "world": world.size}
    if known.step is not None and known.epoch is not None:
        details |= {"step": known.step, "epoch": round(known.epoch, 4)}
    return of_exception(error, facts=dict(_facts(known)), **details)


def _facts(known: RunContext) -> Iterator[tuple[str, str]]:
    if known.step is not None:
        yield "batch", known.shares
    if known.memory:
        yield "memory", known.memory
    if known.shapes:
        yield "shapes", f"the batch is {known.shapes}"


def _told(failure: Failure, error: BaseException, again: str, world: World) -> bool:
    """Tells of a failure, or leaves word of it for who does; not of a mistake of usage where nobody waits for word.

    What was wrong with the user's code may be wrong with what tells of it, as where something of Python's was replaced.
    """
    try:
        if world.supervisor is not None and world.run_dir is not None and _leave_word(failure, Path(world.run_dir)):
            return True
        if failure.exit_code == EXIT_USAGE:
            return False
        _report(failure, error, again, world)
    except Exception as fault:
        if failure.exit_code == EXIT_USAGE:
            return False
        print(f"launcher: {failure.line}; there is no report of it: {told_by(fault)}", file=sys.stderr, flush=True)
    return True


def _leave_word(failure: Failure, folder: Path) -> bool:
    """For the supervisor; what Python would have printed goes to this rank's log. Whether word could be left."""
    _append(log_of(folder, failure.rank), failure.traceback)
    return Notes(folder).write(failure)


def _report(failure: Failure, error: BaseException, again: str, world: World) -> None:
    """Where nobody waits for notes: one process, or one rank of srun's, torchrun's or accelerate's."""
    folder = Path(world.run_dir) if world.run_dir is not None else known_of(error).folder
    if folder is not None:
        _append(log_of(folder, failure.rank), failure.traceback)
    if failure.is_aftermath and world.step is None:  # nobody here knows of whose
        print(f"launcher: {failure.line}", file=sys.stderr)
        return
    report(failure, folder, world, again)


def _append(path: Path, text: str) -> None:
    with suppress(OSError), path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(text)


@contextmanager
def _crashes_written(path: Path) -> Iterator[None]:
    """Has the stacks of all threads written when compiled code crashes, where Python cannot say anything any more."""
    try:
        file = path.open("w", encoding="utf-8")
    except OSError:
        yield
        return
    with file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()


@contextmanager
def _one_debugger(world: World) -> Iterator[None]:
    """Gives the terminal to rank 0 alone at a `breakpoint()`: several that read it take each other's lines.

    The others, which pass over theirs, wait for it from then on without a limit.
    """
    before = sys.breakpointhook

    def stop(*arguments: Any, **options: Any) -> None:
        others = "rank 1 passes" if world.size == 2 else f"the other {world.size - 1} pass"
        waits = "waits" if world.size == 2 else "wait"
        print(f"\nrank 0 has the terminal; {others} over breakpoint() and {waits} for it without a timeout", flush=True)
        if "PYTHONBREAKPOINT" in os.environ:
            before(*arguments, **options)
        else:
            pdb.Pdb().set_trace(inspect.stack(context=0)[1].frame)  # where the user's code stands, and not here

    sys.breakpointhook = stop if world.is_first else lambda *_, **__: wait_without_limit()
    try:
        yield
    finally:
        sys.breakpointhook = before


def post_mortem(error: BaseException) -> None:
    """Python's debugger, where the exception was raised."""
    traceback.print_exception(error)
    pdb.post_mortem(error.__traceback__)
