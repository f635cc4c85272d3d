"""Optimizers inside an optimizer, as SAM and Lookahead have one: their state is a part of the outer one's.

torch's `state_dict` knows nothing of them, and its `load_state_dict` puts new groups in the place of those that the two
had in common: a rate that a schedule sets in one would not reach the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from launcher.checkpoints.format import tensors_in
from launcher.internals import has_storage, parts_of, storage_id


def inner_optimizers(outer: Optimizer) -> dict[str, Optimizer]:
    """Those that are attributes of an optimizer, or stand in a list or mapping that is one, by name."""
    inner = {name: one for key, value in vars(outer).items() for name, one in _named(key, value) if one is not outer}
    return {name: one for place, (name, one) in enumerate(inner.items()) if one not in [*inner.values()][:place]}


def unkept(outer: Optimizer, kept: Any) -> dict[str, Optimizer]:
    """Those inside whose state a `state_dict` of the outer one has not.

    Args:
        outer: The optimizer.
        kept: What its `state_dict` gave.
    """
    there = _places_of(kept)
    return {
        name: one
        for name, one in inner_optimizers(outer).items()
        if not _places_of(one.state) <= there or unkept(one, kept)
    }


class groups_in_common:  # noqa: N801  # a context manager named as what it says
    """The groups that an optimizer has in common with those inside, it has in common after a state was loaded.

    Args:
        outer: The optimizer.
    """

    def __init__(self, outer: Optimizer):
        places = {id(group): place for place, group in enumerate(outer.param_groups)}
        self._outer = outer
        self._common = [
            (group, places[id(group)], inner, number)
            for inner in all_inside(outer)
            for number, group in enumerate(inner.param_groups)
            if id(group) in places
        ]

    def __enter__(self) -> None:
        """Nothing is done yet."""

    def __exit__(self, *_: object) -> None:
        for before, place, inner, number in self._common:
            if self._outer.param_groups[place] is before:  # it has loaded the inner one's alone
                self._outer.param_groups[place] = inner.param_groups[number]
            else:
                inner.param_groups[number] = self._outer.param_groups[place]


def all_inside(outer: Optimizer) -> Iterator[Optimizer]:
    """Those inside an optimizer, and inside those."""
    for inner in inner_optimizers(outer).values():
        yield inner
        yield from all_inside(inner)


def _named(key: str, value: Any) -> Iterator[tuple[str, Optimizer]]:
    if isinstance(value, Optimizer):
        yield key, value
    elif isinstance(value, Mapping | list | tuple) and key not in ("param_groups", "state", "defaults"):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        yield from ((f"{key}.{name}", part) for name, part in parts if isinstance(part, Optimizer))


def _places_of(state: Any) -> set[tuple[int, int]]:
    """Where the tensors of a state lie that hold something: by their storage, as without values all lie at 0."""
    return {
        (storage_id(part.untyped_storage()), int(part.storage_offset())) if has_storage(part) else (id(part), 0)
        for tensor in tensors_in(state)
        for part in parts_of(tensor)
        if part.numel()
    }
