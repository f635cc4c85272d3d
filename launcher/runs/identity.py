"""What may not change between two starts of one run, and in words what did.

The world, the device, the micro-batch, workers and tracking may. Data, batch, model, loss, optimizer and length
decide what is learned: a change there is another run, unless it is allowed by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.errors import UsageError
from launcher.recipe.caller import option
from launcher.recipe.schema import Recipe
from launcher.recipe.show import resolved, scalar
from launcher.text import flat

_KEPT = ("seed", "define", "data", "batch", "model", "loss", "optimizer", "scheduler", "train")
_FREE = (
    "data.micro_batch_size",
    "data.workers",
    "data.timeout",
    "data.scratch",
    "data.collate.evaluate",
    "data.test",
    "optimizer.fused",  # how a step is computed, and not what
    "optimizer.foreach",
    "train.start_from",  # says where a run begins, and this one has begun
)


def identity_of(recipe: Recipe) -> dict[str, str]:
    """The recipe's values that decide what is learned, by dotted key, as they are written in YAML."""
    tree = {name: value for name, value in resolved(recipe).items() if name in _KEPT}
    return {
        key: scalar(value) for key, value in flat(tree) if not _lies_in(key, _FREE) and not _only_evaluates(key, tree)
    }


def _only_evaluates(key: str, tree: Mapping[str, Any]) -> bool:
    """A validation set of its own may change; a share of the training set decides what is left to train on."""
    is_share = isinstance(tree["data"].get("validation"), str) or key == "data.validation._share_"
    return _lies_in(key, ("data.validation",)) and not is_share


def _lies_in(key: str, places: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{place}.") for place in places)


def digest(identity: Mapping[str, str]) -> str:
    """One hash for all of it."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(was: Mapping[str, str], now: Mapping[str, str], allowed: Sequence[str] = ()) -> list[str]:
    """Keys whose values differ and whose change is not allowed, by themselves or by what they lie in."""
    keys = dict.fromkeys([*was, *now])
    return [key for key in keys if was.get(key) != now.get(key) and not _lies_in(key, allowed)]


def check_same(place: str, was: Mapping[str, str], now: Mapping[str, str], allowed: Sequence[str]) -> list[str]:
    """Compares what a run was with what it is to be resumed as.

    Returns:
        The keys that changed and may.

    Raises:
        UsageError: Something else changed; the message shows both values and the flag that allows it.
    """
    wrong = differences(was, now, allowed)
    if wrong:
        rows = [f"  {key}: was {was.get(key, 'not stated')}, is now {now.get(key, 'not stated')}" for key in wrong]
        raise UsageError(
            f"{place}: this is not the recipe that the run was started with:\n"
            + "\n".join(rows)
            + f"\nput it back, start a new run (another {option('run_dir')}, or none), or allow it: "
            + option("allow_changes", *wrong)
        )
    return differences(was, now)
