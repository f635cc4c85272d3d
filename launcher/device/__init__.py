"""Phase 2, device: where to compute, and what the ranks tell each other."""
