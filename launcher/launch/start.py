"""How a process begins: with the modules that it would have anywhere, not with those of the working directory.

Run as a file by our supervisor, `python launch/start.py FOLDERS MODULE ARGUMENTS`, in place of `python -m MODULE
ARGUMENTS`, for which Python looks into the working directory first: an unused `random.py` there would be everybody's.
Nothing is imported here that could lie there.
"""

import os
import sys


def leave_working_directory() -> None:
    """Puts the working directory behind all else where `python -m` has put it first."""
    if not getattr(sys.flags, "safe_path", False) and sys.path[:1] in ([_here()], [""]):
        sys.path.append(sys.path.pop(0))


def started(module: str, *arguments: str) -> tuple[str, ...]:
    """What Python is told to run a module of ours as a process of its own."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    folders = [package, *([_here()] if _here() in sys.path else [])]
    return (os.path.join(package, "launcher", "launch", "start.py"), os.pathsep.join(folders), module, *arguments)


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _main() -> None:
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # this file's folder
    sys.path += [folder for folder in sys.argv[1].split(os.pathsep) if folder not in sys.path]
    import runpy

    module = sys.argv[2]
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
