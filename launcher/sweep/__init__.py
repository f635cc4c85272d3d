"""A sweep: many runs of one recipe over a space of values, each an ordinary run, and which of them was the best."""
