"""SLURM's short forms of node lists and task counts, read without `scontrol`, which containers do not have."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from launcher.errors import UsageError

MOST_NODES = 65_536  # more is not a list of nodes, but one made to fill the memory
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand(text: str) -> list[str]:
    """The nodes of a list such as `gpu[01-03,7],login`, in its order.

    Raises:
        UsageError: It is not a list of nodes, or one of more than 65,536.
    """
    nodes = list(itertools.islice(_nodes(text), MOST_NODES + 1))
    if len(nodes) > MOST_NODES:
        raise UsageError(f"SLURM's node list '{text[:80]}' names more than {MOST_NODES:,} nodes")
    return nodes


def expand_counts(text: str) -> list[int]:
    """Tasks of each node from `2(x3),1`: [2, 2, 2, 1].

    Raises:
        UsageError: It is not a list of counts.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = _COUNT.fullmatch(part)
        if match is None or int(match[2] or 1) > MOST_NODES:
            raise UsageError(f"SLURM's tasks per node, '{text[:80]}', are no list of counts such as 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _nodes(text: str) -> Iterator[str]:
    for part in _outer_parts(text):
        # words and brackets in turn: `r`, `1-2`, `n`, `01-03`
        pieces = re.split(r"\[([^\[\]]+)\]", part)
        if not part or any(mark in word for word in pieces[::2] for mark in "[] "):
            raise UsageError(f"SLURM's node list '{text[:80]}' cannot be read; it looks like gpu[01-03,7],login")
        choices = [list(_numbers(piece, text)) if index % 2 else [piece] for index, piece in enumerate(pieces)]
        for words in itertools.product(*choices):
            yield "".join(words)


def _outer_parts(text: str) -> list[str]:
    """What stands between commas that are in no brackets."""
    return re.split(r",(?![^\[]*\])", text.strip())


def _numbers(text: str, whole: str) -> Iterator[str]:
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or last < first or last - first > MOST_NODES:
            raise UsageError(
                f"SLURM's node list '{whole[:80]}' cannot be read: '{part[:40]}' is not a range of numbers"
            )
        for number in range(first, last + 1):
            yield f"{number:0{len(match[1])}}"
