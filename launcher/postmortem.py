"""What a failing process still knows: read from the frames of its traceback, so that the loop carries nothing."""

from __future__ import annotations

import faulthandler
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.errors import EXIT_DONE, EXIT_USAGE, LauncherError
from launcher.launch import progress
from launcher.launch.failure import Failure, Notes, of_exception
from launcher.launch.signals import die_with_parent
from launcher.launch.stalls import report
from launcher.launch.world import World
from launcher.runs.logs import kept, log_of

_PACKAGE = Path(__file__).parent


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
        log = log_of(folder, world.rank) if folder is not None else None
        stack.enter_context(kept(log, world.rank, is_ours=world.supervisor is not None))
        stack.enter_context(_explained(world, again, debugger))
        yield


@contextmanager
def _explained(world: World, again: str, debugger: Callable[[BaseException], None] | None = None) -> Iterator[None]:
    """Turns what goes wrong inside into a report, or into a note for the supervisor that makes the report.

    Raises:
        LauncherError: A mistake of usage, as it came; the command line prints it.
        SystemExit: With the exit code, when all is said.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, LauncherError) and error.exit_code == EXIT_DONE:
            progress.done()
            raise
        if debugger is not None and isinstance(error, Exception) and not isinstance(error, LauncherError):
            debugger(error)
        failure = examined(error, world)
        if world.supervisor is not None and world.run_dir is not None and _leave_word(failure, Path(world.run_dir)):
            # 0: a mistake of usage is no reason for the agent to start everything again
            code = EXIT_DONE if failure.exit_code == EXIT_USAGE else failure.exit_code
            raise SystemExit(code) from None
        if failure.exit_code == EXIT_USAGE:
            raise
        _report(failure, error, again, world)
        raise SystemExit(failure.exit_code) from None
    progress.done()


def examined(error: BaseException, world: World) -> Failure:
    """The failure with what its frames know: step, epoch, batch, shapes, parameters without a gradient."""
    frames = list(_frames(error))
    loop = _locals(frames, "training.py", "train")
    details: dict[str, Any] = {"rank": world.rank, "world": world.size}
    if "done" in loop and "horizon" in loop:
        details |= {"step": loop["done"], "epoch": round(loop["horizon"].epoch(loop["done"]), 4)}
    facts: dict[str, str] = {}
    with suppress(Exception):  # whatever state the program is in: a report without a fact is better than none
        facts = dict(_facts(error, frames, loop, world))
    return of_exception(error, facts=facts, **details)


def _facts(
    error: BaseException, frames: list[FrameType], loop: Mapping[str, Any], world: World
) -> Iterator[tuple[str, str]]:
    from launcher.plan import describe_shares

    if "data" in loop:
        yield "batch", describe_shares(loop["data"].train.sampler, world.size)
    forward = _locals(frames, "training.py", "forward")
    if "batch" in forward:
        yield "shapes", f"the batch is {described(forward['batch'].data)}"
    if (trainable := loop.get("trainable")) is not None and (names := _without_gradient(str(error), trainable)):
        yield "unused", ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


def described(value: Any) -> str:
    """Shapes and types of a batch: `(float32 [64, 3], int64 [64])`."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).rpartition('.')[2]} {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {described(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(described, value)) + ")"
    return type(value).__name__


def _without_gradient(message: str, trainable: Any) -> list[str]:
    """The parameters that DDP names by number, by their names."""
    found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", message)
    if not found:
        return []
    names = [name for name, parameter in trainable.model.bare.named_parameters() if parameter.requires_grad]
    return [names[int(number)] for number in found[1].split() if int(number) < len(names)]


def _frames(error: BaseException) -> Iterator[FrameType]:
    one = error.__traceback__
    while one is not None:
        yield one.tb_frame
        one = one.tb_next


def _locals(frames: list[FrameType], file: str, function: str) -> Mapping[str, Any]:
    """Variables of the innermost of our functions of that name, empty where the exception did not pass it."""
    path = str(_PACKAGE / file)
    found = [one for one in frames if one.f_code.co_filename == path and one.f_code.co_name == function]
    return found[-1].f_locals if found else {}


def _leave_word(failure: Failure, folder: Path) -> bool:
    """For the supervisor; what Python would have printed goes to this rank's log. Whether word could be left."""
    _append(log_of(folder, failure.rank), failure.traceback)
    return Notes(folder).write(failure)


def _report(failure: Failure, error: BaseException, again: str, world: World) -> None:
    """Where nobody waits for notes: one process, or one rank of srun's, torchrun's or accelerate's."""
    folder = _folder(list(_frames(error)), world)
    if folder is not None:
        _append(log_of(folder, failure.rank), failure.traceback)
    if failure.is_aftermath:
        print(f"launcher: {failure.line}", file=sys.stderr)
        if world.step is None:  # nobody here knows of whose
            return
    report(failure, folder, world, again)


def _folder(frames: list[FrameType], world: World) -> Path | None:
    """The run's, if it was chosen by then."""
    if world.run_dir is not None:
        return Path(world.run_dir)
    session = _locals(frames, "run.py", "run").get("session")
    found = session.folder if session is not None else _locals(frames, "session.py", "open_session").get("folder")
    return found if isinstance(found, Path) else None


def _append(path: Path, text: str) -> None:
    with suppress(OSError), path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(text)


@contextmanager
def _crashes_written(path: Path) -> Iterator[None]:
    """Has the stacks of all threads written when compiled code crashes, where Python cannot say anything any more."""
    try:
        file = path.open("w")
    except OSError:
        yield
        return
    with file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()


def post_mortem(error: BaseException) -> None:
    """Python's debugger, where the exception was raised."""
    import pdb

    traceback.print_exception(error)
    pdb.post_mortem(error.__traceback__)
