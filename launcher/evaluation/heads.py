"""What of a model's result has a row for each sample: its outputs, by the names that `batch.outputs` has for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from torch import nn

from launcher.errors import LauncherError
from launcher.evaluation.output_files import Cell
from launcher.objective.batch import BatchLayout
from launcher.text import counted, shapes

Rows = torch.Tensor | list[Any]  # with a row, or an item, for each sample
_MOST_SAID = 8
_NO_PARTS = (torch.Tensor, nn.Module, str, bytes, int, float, complex, type(None))


class Heads:
    """Finds a model's outputs in its results, and which of them have a row for each sample: the first batch decides.

    A tensor has if its first dimension is the number of samples, a list if it has a mapping or a text for each. Both
    can be so by chance: where a result has several parts, the model is asked for one sample more, and what does not
    grow with it is none. Lists and tuples inside of a result (hidden states, a cache) are no outputs.

    Args:
        layout: What `batch.outputs` names; of a recipe without it all that the model gives.
        named: Further parts that losses and metrics get.
        turned: Those tensors of a result whose samples stand second, as CTCLoss wants them: they are turned.

    Attributes:
        left_out: What is of no sample, in words by its key.
    """

    def __init__(
        self,
        layout: BatchLayout,
        named: Sequence[int | str] = (),
        turned: Callable[[Any], Sequence[torch.Tensor]] = lambda result: (),
    ):
        self.left_out: dict[str, str] = {}
        self._layout, self._named, self._turned = layout, named, turned
        self._kept: frozenset[str] | None = None
        self._lists: frozenset[str] = frozenset()

    def of(self, result: Any, samples: int, grown: Callable[[], Any] = lambda: None) -> dict[str, Any]:
        """The outputs of a batch by their keys; the only one of a model that gives a tensor has an empty one.

        Args:
            result: What the model gave.
            samples: Of how many samples.
            grown: Gives its result of one sample more; None where that cannot be had.

        Raises:
            LauncherError: Nothing of the result has a row for each sample, or no longer.
        """
        if self._kept is None:
            return self._chosen(result, samples, None if isinstance(result, torch.Tensor) else grown())
        parts = dict(self._parts(result, lambda key, value: key in self._lists))
        for key in self._kept:
            if (rows := _length(parts.get(key))) != samples:
                given = f"{_words(parts[key])} for {counted(samples, 'sample')}" if rows is not None else "none"
                raise LauncherError(
                    f"the model's output{f' {key}' if key else ''} has a row for each sample in the first batch, and "
                    f"in another {given}; pick one of its parts with batch.outputs"
                )
        return {key: part for key, part in parts.items() if key in self._kept}

    def _chosen(self, result: Any, samples: int, more: Any) -> dict[str, Any]:
        def grows(key: str) -> bool:
            try:
                part = self._layout.picked_outputs(more, [key])[0] if key else more
            except LauncherError:
                return False
            return _length(self._samples_first(part, more)) == samples + 1

        def is_list(key: str, value: Any) -> bool:
            if not _is_sequence(value) or len(value) != samples:
                return False
            return grows(key) if more is not None else _are_each_one_s(value)

        parts = dict(self._parts(result, is_list))
        self._lists = frozenset(key for key, part in parts.items() if is_list(key, part))
        kept = {
            key: part
            for key, part in parts.items()
            if key in self._lists
            or (isinstance(part, torch.Tensor) and _length(part) == samples and (more is None or grows(key)))
        }
        self._kept = frozenset(kept)
        self.left_out = {key: _words(part) for key, part in parts.items() if key not in kept}
        if not kept:
            remedy = "name a part that has with batch.outputs, or have the model give one"
            if isinstance(result, torch.Tensor) and result.numel() == 1:
                remedy = "if it is a loss, and outputs come without targets, name the inputs alone: batch.inputs=[0]"
            raise LauncherError(
                f"the model's output, {described(self.left_out) or _words(result)}, has no row for each sample of a "
                f"batch of {samples}; {remedy}"
            )
        return kept

    def _parts(self, result: Any, is_list: Callable[[str, Any], bool]) -> Iterator[tuple[str, Any]]:
        """What the recipe names of a result, each once, with the samples first."""
        for key, part in self._as_given(result, is_list):
            yield key, self._samples_first(part, result)

    def _samples_first(self, part: Any, result: Any) -> Any:
        return part.movedim(1, 0) if any(part is tensor for tensor in self._turned(result)) else part

    def _as_given(self, result: Any, is_list: Callable[[str, Any], bool]) -> Iterator[tuple[str, Any]]:
        picked = self._layout.section.outputs
        if picked is None:
            parts = dict(_parts(result, "", is_list))
        else:
            pairs = zip(picked, self._layout.outputs(result), strict=True)
            parts = dict(part for key, value in pairs for part in _parts(value, str(key), is_list))
        yield from parts.items()
        for key in self._named:
            try:
                value = self._layout.picked_outputs(result, [key])[0]
            except LauncherError:  # of training only
                continue
            if not any(value is part or name.startswith(f"{key}.") for name, part in parts.items()):
                yield from ((name, part) for name, part in _parts(value, str(key), is_list) if name not in parts)


def _parts(
    value: Any, key: str, is_list: Callable[[str, Any], bool], is_inside: bool = False
) -> Iterator[tuple[str, Any]]:
    """The parts of a thing that are no mappings of others, by keys with dots between."""
    items = None if is_list(key, value) else _items(value, is_inside)
    if items is None:
        yield key, value
        return
    for name, item in items:
        if item is not None:
            yield from _parts(item, f"{key}.{name}" if key else str(name), is_list, is_inside=True)


def _items(value: Any, is_inside: bool) -> Iterable[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return value.items()
    if hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if is_inside or isinstance(value, _NO_PARTS):
        return None
    if _is_sequence(value):
        return enumerate(value)
    return [(name, item) for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) and not hasattr(value, "_fields")


def _are_each_one_s(items: Sequence[Any]) -> bool:
    """Whether these are of one sample each: detections, or texts. Tensors may be one output each."""
    return all(isinstance(item, Mapping) for item in items) or all(isinstance(item, str) for item in items)


def _length(part: Any) -> int | None:
    if isinstance(part, torch.Tensor):
        return part.size(0) if part.dim() else None
    return len(part) if _is_sequence(part) else None


def described(parts: Mapping[str, str]) -> str:
    """Parts by their keys, in a line."""
    words = [f"{key} ({part})" if key else part for key, part in parts.items()]
    return ", ".join(words[:_MOST_SAID]) + (f" and {len(words) - _MOST_SAID} more" if len(words) > _MOST_SAID else "")


def _words(part: Any) -> str:
    if _is_sequence(part):
        return f"a {type(part).__name__} of {len(part)}"
    return shapes(part)


# ---------------------------------------------------------------------- one sample more


def one_more(inputs: Any, samples: int) -> Any:
    """The inputs of a model, and those of the first sample once more.

    Raises:
        ValueError: Nothing shows which of their numbers are of which sample.
    """
    if isinstance(inputs, torch.Tensor) and inputs.dim() and len(inputs) == samples:
        return torch.cat([inputs, inputs[:1]])
    if isinstance(inputs, Mapping) and type(inputs) is dict:
        return {key: one_more(value, samples) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple) and type(inputs) in (list, tuple) and len(inputs) == samples:
        return type(inputs)([*inputs, inputs[0]])
    if isinstance(inputs, str | int | float | None) or (isinstance(inputs, torch.Tensor) and not inputs.dim()):
        return inputs
    raise ValueError(shapes(inputs))


# ---------------------------------------------------------------------- rows in host memory


def on_host(part: Any) -> Any:
    """Rows as they can be sent and written: tensors on the CPU, in plain lists and mappings."""
    if isinstance(part, torch.Tensor):
        part = part.detach()
        if part.is_nested:
            return [on_host(row) for row in part.unbind()]
        return (part if part.layout == torch.strided else part.to_dense()).cpu().clone()
    if isinstance(part, Mapping):
        return {str(key): on_host(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [on_host(item) for item in part]
    if isinstance(part, str | int | float | None):
        return part
    return part.tolist() if callable(getattr(part, "tolist", None)) else str(part)


def columns_of_rows(heads: Mapping[str, Rows]) -> dict[str, Rows]:
    """The same with a column for each key of the mappings that some have for each sample."""
    columns: dict[str, Rows] = {}
    for key, rows in heads.items():
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            for name in dict.fromkeys(name for row in rows for name in row):
                columns[f"{key}.{name}" if key else name] = [row.get(name) for row in rows]
        else:
            columns[key] = rows
    return columns


def listed(rows: Rows) -> list[Any]:
    """A value for each sample, as JSON has them: real numbers as float32 has them, a complex one as a pair."""
    if isinstance(rows, torch.Tensor):
        return list(_plain(rows))
    values = [_plain(row) for row in rows]
    return [Cell(value) if isinstance(value, list) else value for value in values]


def shortest_numbers(values: torch.Tensor | NDArray[Any]) -> Any:
    """Numbers, in lists, with as few digits as tell them from others of their type: 0.1, not 0.10000000149011612."""
    numbers = np.asarray(values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values, order="C")
    if numbers.dtype != np.float32 or not numbers.size:
        return numbers.tolist()
    if numbers.ndim and np.isfinite(numbers).all():
        return orjson.loads(orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY))
    return numbers.astype(str).astype(float).tolist()  # single ones, and what JSON has no word for


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        return shortest_numbers(value.float()) if value.is_floating_point() else value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
