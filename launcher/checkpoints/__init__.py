"""Phase 7, saving: checkpoints, final weights, export."""
