"""A script of the user's own as one process of a run: `python -m launcher.launch.script SCRIPT.py [ARGUMENTS]`."""

from __future__ import annotations

import runpy
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launcher.errors import EXIT_DONE, EXIT_PREEMPTED
from launcher.launch.postmortem import watched
from launcher.world import progress
from launcher.world.exit import ended_by
from launcher.world.peers import code_of_a_stop
from launcher.world.screen import prepare, take_any_letter
from launcher.world.signals import release, stop_requested
from launcher.world.world import World


def run_script(command: Sequence[str], world: World, again: str) -> int:
    """Runs a script as `python SCRIPT.py ARGUMENTS` would.

    Args:
        command: The script and its arguments.
        world: This process among the others.
        again: The command that started it.

    Returns:
        0, or 75 where it ended with that itself, or was asked to stop, has looked (`stop_requested`) and ended, and
        somebody hears it.

    Raises:
        SystemExit: It failed, and was reported.
    """
    is_stopped = False
    release()  # the script's own affair, until it asks
    with watched(world, again):
        progress.running()
        before = list(sys.argv), list(sys.path)
        sys.argv[:] = command
        sys.path.insert(0, str(Path(command[0]).resolve().parent))
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            if end.code not in (None, EXIT_DONE, EXIT_PREEMPTED):
                raise
            is_stopped = end.code == EXIT_PREEMPTED
        finally:
            sys.argv[:], sys.path[:] = before
    if is_stopped or stop_requested():
        progress.stopped()
        return code_of_a_stop(world)
    return EXIT_DONE


if __name__ == "__main__":
    prepare()
    take_any_letter()
    again = shlex.join(["launcher", "run", *sys.argv[1:]])
    ended_by(partial(run_script, sys.argv[1:], World.from_environ(), again))
