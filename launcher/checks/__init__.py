"""What is found out before or beside a run: `check`, `verify-resume`, `doctor`, `--one-batch`."""
