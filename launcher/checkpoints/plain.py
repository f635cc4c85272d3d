"""A state as a file may hold it: what `weights_only` reads again, and how the rest is made of that and comes back.

NumPy's numbers become Python's. An array, and a tensor whose class wraps others (an optimizer's 8-bit state), become
mappings of plain tensors; no code stands in the file. Coming back, a class is looked for among the tensor classes
that are loaded already, never imported: the optimizer of the same recipe has loaded its own.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from launcher.internals import wraps_others

_ARRAY, _CLASS = "__array__", "__tensor_class__"


def plain(value: Any) -> Any:
    """A state of tensors and plain values, at any depth; keys and types of containers are kept."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is np.ndarray:
        return _of_array(value)
    if isinstance(value, Mapping):
        return made_like(value, ((plain(key), plain(item)) for key, item in value.items()))
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


def unwrapped(value: Any) -> Any:
    """The same, and tensors whose class wraps others as these: what an optimizer keeps, and not a model's weights."""
    if isinstance(value, torch.Tensor):
        return _of_wrapper(value) if wraps_others(value) else value
    if isinstance(value, Mapping):
        return made_like(value, ((plain(key), unwrapped(item)) for key, item in value.items()))
    if type(value) in (list, tuple):
        return type(value)(unwrapped(item) for item in value)
    return plain(value)


def restored(value: Any) -> Any:
    """What `plain` or `unwrapped` was given.

    Raises:
        ValueError: It has a tensor of a class that is not loaded here.
    """
    if isinstance(value, Mapping):
        if value.keys() == {_ARRAY}:
            return value[_ARRAY].numpy().copy()
        if _CLASS in value:
            return _wrapper(value)
        return made_like(value, ((key, restored(item)) for key, item in value.items()))
    if type(value) in (list, tuple):
        return type(value)(restored(item) for item in value)
    return value


def with_arrays(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights whose other entries, as those of `get_extra_state`, are again what a module gave."""
    return {name: value if isinstance(value, torch.Tensor) else restored(value) for name, value in weights.items()}


def made_like(like: Mapping[Any, Any], items: Iterable[tuple[Any, Any]]) -> Mapping[Any, Any]:
    """A mapping of the kinds that can be loaded safely: an OrderedDict stays one."""
    return OrderedDict(items) if isinstance(like, OrderedDict) else dict(items)


def _of_array(array: Any) -> Any:
    """An array as a tensor; itself where it is of text, dates or objects, which nobody reads back safely."""
    try:
        return {_ARRAY: torch.from_numpy(np.array(array, order="C"))}
    except (TypeError, ValueError):
        return array


def _of_wrapper(tensor: Any) -> dict[str, Any]:
    names, context = tensor.__tensor_flatten__()
    kind = type(tensor)
    return {
        _CLASS: f"{kind.__module__}:{kind.__qualname__}",
        "inner": {name: unwrapped(getattr(tensor, name)) for name in names},
        "context": plain(context),
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
    }


def _wrapper(kept: Mapping[str, Any]) -> torch.Tensor:
    inner = {name: restored(value) for name, value in kept["inner"].items()}
    made: Any = _loaded_class(kept[_CLASS])
    tensor: torch.Tensor = made.__tensor_unflatten__(
        inner, kept["context"], torch.Size(kept["shape"]), tuple(kept["strides"])
    )
    return tensor


def _loaded_class(name: str) -> type[torch.Tensor]:
    module, _, qualified = name.partition(":")
    own: Any = sys.modules.get(module)
    for part in qualified.split("."):
        own = vars(own).get(part) if hasattr(own, "__dict__") else None  # nothing is imported by looking
    if not (isinstance(own, type) and issubclass(own, torch.Tensor) and hasattr(own, "__tensor_unflatten__")):
        raise ValueError(f"its state has tensors of the class {name}, which is not loaded here")
    return own
