"""Whether more or less of a metric is better: what is known of that, and the question where nothing is."""

from __future__ import annotations

from collections.abc import Mapping

AVERAGES = ("ema", "swa")  # before the names of what averaged weights give, as in `ema/loss`
MODES = ("min", "max")


def bare(key: str) -> str:
    """A number's name without its weights': `loss` of `ema/loss`."""
    kind, _, rest = key.partition("/")
    return rest if rest and kind in AVERAGES else key


def direction(key: str, best: tuple[str, str] | None, said: Mapping[str, str]) -> str | None:
    """`min` or `max`; None where nothing tells, as a name does not.

    Args:
        key: As it stands in a line of `metrics.jsonl`.
        best: Metric and mode of `evaluate.best`.
        said: What the metrics' own classes say (`higher_is_better`), by key.
    """
    for name in (key, bare(key)):
        if best is not None and name == best[0]:
            return best[1]
        if name in said:
            return said[name]
    return "min" if bare(key) == "loss" else None


def question(place: str, text: str) -> str:
    """What to write where the direction is not known."""
    return f"{place}: whether more or less of it is better is not known; write {text}:max or {text}:min"
