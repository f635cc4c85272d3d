"""`validation: {_share_: 20% of train, augment: false}`: what a share says stands in place of what train says."""

from __future__ import annotations

from dataclasses import replace

from launcher.recipe.places import Problems
from launcher.recipe.tree import Node

SHARE = "_share_"


def with_train_s_arguments(root: Node, problems: Problems) -> Node:
    """The recipe, its share of train completed with what it does not say: the target and arguments of `data.train`.

    Args:
        root: The recipe, before its references are resolved: what train builds as an argument, both use.
        problems: Receives what is wrong.
    """
    data = root.value.get("data") if isinstance(root.value, dict) else None
    share = data.value.get("validation") if data is not None and isinstance(data.value, dict) else None
    if share is None or not isinstance(share.value, dict) or SHARE not in share.value or "_target_" in share.value:
        return root
    assert data is not None
    assert isinstance(data.value, dict)
    assert isinstance(root.value, dict)
    train = data.value.get("train")
    if train is None or not train.states_component():
        problems.add(share.origin, ("data", "validation"), "data.train states no _target_; say _target_ here too")
        return root
    theirs = {key: _referred(str(key), child) for key, child in train.items() if not str(key).startswith("_")}
    ours = {key: child for key, child in train.items() if str(key).startswith("_")}
    completed = replace(share, value={**ours, **theirs, **share.value})
    return replace(root, value={**root.value, "data": replace(data, value={**data.value, "validation": completed})})


def _referred(key: str, argument: Node) -> Node:
    """A plain value as it is; what may hold something to be built by reference, so that it is built once."""
    is_inner = isinstance(argument.value, dict | list)
    return replace(argument, value=f"${{data.train.{key}}}") if is_inner and key.isidentifier() else argument
