"""A sweep: many runs of one recipe over a space, and which of them was the best. `launcher.sweep()` makes one."""

from launcher.sweep import call as call
