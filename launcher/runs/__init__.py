"""Runs as files: what a run writes about itself, and everything that reads it. `launcher.runs()` lists them."""

from launcher.runs import listing as listing
