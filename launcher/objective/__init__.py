"""Phase 4, objective: batch layout, loss, optimizer, schedule."""
