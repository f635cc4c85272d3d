"""Runs as files: what a run writes about itself, and everything that reads it."""
