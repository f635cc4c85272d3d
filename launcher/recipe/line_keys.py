"""The keys of a line of metrics.jsonl that are no metric of the user's."""

# what a line of metrics.jsonl says by itself: no metric and no scalar of a step function may have such a name
LINE_KEYS = frozenset(
    {
        *("step", "epoch", "split", "name", "loss", "time", "lr", "grad_norm", "samples_per_second", "data_wait"),
        *("seconds", "gpu_memory", "host_memory"),
    }
)
