"""The page of a run, and of several."""
