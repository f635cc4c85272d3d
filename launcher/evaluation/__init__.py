"""Phase 6, evaluation: figures of a model, the best, predictions."""
