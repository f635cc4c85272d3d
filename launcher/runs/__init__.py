"""Runs as files: what a run writes about itself, and everything that reads it."""

STATES = ("running", "queued", "finished", "preempted", "failed", "dead")
ORDERS = ("age", "best", "name", "recipe", "state", "step", "world")  # of `launcher runs --sort`
