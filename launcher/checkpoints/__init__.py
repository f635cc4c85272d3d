"""Phase 7, saving: checkpoints, final weights, export.

What scripts of a user's own import (`from launcher.scripting import checkpoints`) is handed on here.
"""

from launcher.checkpoints.format import Checkpoint, DamagedError, SaveError, Snapshot, save, save_weights, verify
from launcher.checkpoints.retention import listed, load, newest, prune

__all__ = [
    "Checkpoint",
    "DamagedError",
    "SaveError",
    "Snapshot",
    "listed",
    "load",
    "newest",
    "prune",
    "save",
    "save_weights",
    "verify",
]
