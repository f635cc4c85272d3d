"""Which of a model's outputs are scores of classes, or answers yes or no, and what they say of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import default_collate

from launcher.data.loaders import MicroBatch
from launcher.data.parts import changed
from launcher.datasets.unlabelled import JsonRows
from launcher.errors import LauncherError
from launcher.evaluation.heads import Rows, listed, shortest_numbers
from launcher.evaluation.output_files import Cell
from launcher.evaluation.outputs import score_classes
from launcher.evaluation.predictions import columns_of, decisions
from launcher.objective.batch import BatchLayout
from launcher.objective.loss import Objective, Term

Kind = Literal["classes", "answers", "unknown", "neither"]


class Deciders:
    """What says which outputs decide: losses of torch's for classes; without them targets that number some.

    Args:
        objective: The losses.
        dataset: Of which the outputs are.
        names: Of its classes.
    """

    def __init__(self, objective: Objective, dataset: Any, names: Sequence[str]):
        self._layout, self._dataset, self._names = objective.layout, dataset, names
        kinds: tuple[Kind, ...] = ("classes", "answers")
        known = [term for kind in kinds for term in objective.terms if _kind(term) == kind]
        self._terms: list[Term | None] = [*known] or [*objective.terms, None]
        self._kinds: list[Kind] = ["unknown" if term is None else _kind(term) for term in self._terms]

    def scores(self, result: Any, data: Any, batch: MicroBatch, heads: Mapping[str, Any]) -> list[Any]:
        """What each looks at: the key of an output, what `batch.adapt` makes of one, or None.

        Args:
            result: The model's.
            data: The batch on the device.
            batch: The same in host memory.
            heads: The outputs by their keys.
        """
        scores = [self._score(term, result, data, batch.samples, heads) for term in self._terms]
        for number, (term, score) in enumerate(zip(self._terms, scores, strict=True)):
            if self._kinds[number] == "unknown":
                is_meant = self._number_classes(term, heads[score] if isinstance(score, str) else score, batch)
                self._kinds[number] = "classes" if is_meant else "neither"
        return scores

    def columns(
        self, scores: Sequence[Any], outputs: Mapping[str, Rows], tails: Mapping[str, str]
    ) -> tuple[dict[str, list[Any]], set[str]]:
        """The classes' names, their numbers, and how sure that is; and of which tails names belong to the parts.

        Args:
            scores: See `scores`.
            outputs: The outputs by their keys.
            tails: What stands behind the columns' names.
        """
        columns: dict[str, list[Any]] = {}
        named: set[str] = set()
        for term, kind, score in zip(self._terms, self._kinds, scores, strict=True):
            tail = tails[score] if isinstance(score, str) else ""
            logits = outputs[score] if isinstance(score, str) else score
            if not isinstance(logits, torch.Tensor) or f"prediction{tail}" in columns:
                continue
            if kind not in ("classes", "answers") or (kind == "classes" and logits.dim() < 2):
                continue
            chosen = columns_of(logits, None) if kind == "classes" else decisions(logits)
            decided = {name: shortest_numbers(chosen[name]) for name in ("prediction", "probability") if name in chosen}
            if self._names and self._are_named(term):
                columns[f"class{tail}"] = _named(self._names, decided["prediction"])
                named.add(tail)
            columns |= {f"{name}{tail}": column for name, column in decided.items()}
        return columns | self._of_labels(outputs, tails), named

    def _of_labels(self, outputs: Mapping[str, Rows], tails: Mapping[str, str]) -> dict[str, list[Any]]:
        """The names of what was detected, by the key that detectors and their metrics have for it."""
        labels = {key: listed(rows) for key, rows in outputs.items() if key.rpartition(".")[2] == "labels"}
        return {
            f"class{tails[key]}": [Cell(_named(self._names, row)) for row in rows]
            for key, rows in labels.items()
            if self._names and isinstance(outputs[key], list) and all(_are_numbers(row) for row in rows)
        }

    def _are_named(self, term: Term | None) -> bool:
        """Whether the data set's classes are those of a loss: they are the first target's."""
        if term is None or term.targets is None or len(self._terms) == 1:
            return True
        picked = list(term.targets.values() if isinstance(term.targets, Mapping) else term.targets)
        return picked[:1] == self._layout.section.targets[:1]

    # ------------------------------------------------------------------ which output it is

    def _score(self, term: Term | None, result: Any, data: Any, samples: int, heads: Mapping[str, Any]) -> Any:
        outputs = _outputs(self._layout, term, result)
        first = outputs[0] if outputs else None
        if self._layout.adapt is not None and (term is None or (term.outputs is None and term.targets is None)):
            adapted = _adapted(self._layout, outputs, data, samples, _device(heads))
            first = first if adapted is None else adapted
        tensors = {key: head for key, head in heads.items() if isinstance(head, torch.Tensor) and not head.is_nested}
        if not isinstance(first, torch.Tensor) and len(tensors) == 1:
            return next(iter(tensors))
        key = next((key for key, head in tensors.items() if head is first), None)
        is_row_wise = isinstance(first, torch.Tensor) and first.dim() > 0 and len(first) == samples
        return key if key is not None else first if is_row_wise else None

    def _number_classes(self, term: Term | None, scores: Any, batch: MicroBatch) -> bool:
        """Whether the first batch's targets, where there are any, number classes that these may be scores of."""
        if not isinstance(scores, torch.Tensor):
            return False
        try:
            data = batch.data
            if isinstance(self._dataset, JsonRows):  # rows have none, and the training has
                data = default_collate([self._dataset.like] * batch.samples)
            targets = self._layout.targets(data) if term is None else term.targets_of(self._layout, data)
            target = next(iter(targets.values())) if isinstance(targets, Mapping) else targets[0]
        except Exception:  # new data of anybody's own have no targets, or others
            return False
        fits = not self._names or scores.shape[1:] == (len(self._names),)
        return isinstance(target, torch.Tensor) and fits and score_classes(scores, target.to(scores.device))


def of_ctc(objective: Objective, result: Any) -> list[torch.Tensor]:
    """What CTCLoss gets of a result: its samples stand second."""
    terms = [term for term in objective.terms if isinstance(term.function, nn.CTCLoss)]
    outputs = (_outputs(objective.layout, term, result)[:1] for term in terms)
    return [part for parts in outputs for part in parts if isinstance(part, torch.Tensor) and part.dim() > 2]


def _outputs(layout: BatchLayout, term: Term | None, result: Any) -> tuple[Any, ...]:
    """What a loss gets of a result, what it is about first."""
    try:
        outputs = layout.outputs(result) if term is None else term.outputs_of(layout, result)
    except LauncherError:  # it is of training only
        return ()
    if isinstance(outputs, Mapping):
        first = next((outputs[name] for name in ("input", "log_probs") if name in outputs), None)
        return tuple(outputs.values()) if first is None else (first,)
    return tuple(outputs)


def _kind(term: Term) -> Kind:
    if isinstance(term.function, nn.CrossEntropyLoss):
        return "classes"
    return "answers" if isinstance(term.function, nn.BCEWithLogitsLoss) else "unknown"


def _adapted(
    layout: BatchLayout, outputs: tuple[Any, ...], data: Any, samples: int, device: torch.device
) -> torch.Tensor | None:
    """The first output as `batch.adapt` gives it to the loss, where it has rows and the targets say nothing in it."""
    try:
        targets = layout.targets(data)
    except Exception:  # new data have none: any will do for an output that depends on none
        targets = tuple(torch.zeros(samples, dtype=torch.long, device=device) for _ in layout.section.targets)
    others = changed(targets, lambda target: (target == 0).to(target.dtype))
    try:
        first, again = (layout.adapted(outputs, some)[0][0] for some in (targets, others))
    except Exception:  # it needs other targets
        return None
    is_row_wise = isinstance(first, torch.Tensor) and first.dim() > 0 and len(first) == samples
    return first if is_row_wise and isinstance(again, torch.Tensor) and torch.equal(first, again) else None


def _device(heads: Mapping[str, Any]) -> torch.device:
    tensors = (head for head in heads.values() if isinstance(head, torch.Tensor))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _named(names: Sequence[str], numbers: Sequence[Any]) -> list[Any]:
    """Names of class numbers, in the same lists; None for a number that has none."""
    return [
        _named(names, number)
        if isinstance(number, list)
        else names[number]
        if isinstance(number, int) and 0 <= number < len(names)
        else None
        for number in numbers
    ]


def _are_numbers(row: Any) -> bool:
    return isinstance(row, list) and all(isinstance(number, int) and not isinstance(number, bool) for number in row)
