"""Where lines of metrics go: terminal, metrics.jsonl, trackers."""
