"""Where the launcher runs at all: it needs what Unix has, and says so in one line elsewhere."""

import importlib.util

_OF_UNIX = ("fcntl", "pwd", "resource")


def unsupported() -> str:
    """Why it cannot run here, in a line; empty where it can."""
    missing = next((name for name in _OF_UNIX if importlib.util.find_spec(name) is None), None)
    if missing is None:
        return ""
    return f"launcher: this Python has no '{missing}', as on Windows; run it on Linux, or in WSL 2"
