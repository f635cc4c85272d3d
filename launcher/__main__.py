"""`python -m launcher`, the command `launcher`, and what accelerate and torchrun start."""

import signal
import sys

from launcher.launch.start import leave_working_directory


def start() -> None:
    """Runs the command line as a process of its own."""
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not in a shell's background
    if is_interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while modules are loaded ends this without a traceback
    from launcher.world.system import unsupported

    if reason := unsupported():
        print(reason, file=sys.stderr)
        sys.exit(2)
    from launcher.world.signals import own_process

    own_process()  # before all that takes time
    from launcher.world.exit import ended_by
    from launcher.world.screen import let_go, prepare, take_any_letter

    def program() -> int:
        from launcher.cli.main import main

        if is_interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return main()
        finally:
            let_go()

    prepare()
    take_any_letter()
    ended_by(program)


if __name__ == "__main__":
    leave_working_directory()  # before anything is imported that could lie there
    start()
