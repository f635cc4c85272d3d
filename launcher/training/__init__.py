"""Phase 5, training: the loop, and a run in progress around it."""
