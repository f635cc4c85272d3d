"""States that a run can be in, and the orders of `launcher runs --sort`."""

from __future__ import annotations

STATES = ("running", "queued", "finished", "stopped", "failed", "dead")
ORDERS = ("age", "best", "name", "recipe", "state", "step", "world")  # of `launcher runs --sort`
