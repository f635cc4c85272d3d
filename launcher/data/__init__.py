"""Phase 1, data: batches for the loop, from any data set. The sets that ship are in `launcher.datasets`."""
