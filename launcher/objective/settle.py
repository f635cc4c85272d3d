"""Settles, before anything is counted, what each loss of a run is a mean over; refuses what nobody can know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from launcher.data.load import Data, TrainLoader
from launcher.data.repeatable import differs_again
from launcher.device.coordination import Coordinator
from launcher.errors import LauncherError, RecipeError
from launcher.objective.loss import Objective, Term
from launcher.objective.pieces import mapped
from launcher.objective.probe import LOOKED_AT, Samples, Subject, copied, measure
from launcher.objective.reading import Hints, Reading, Verdict, tensors_in
from launcher.objective.run_length import At
from launcher.recipe.build import Builder
from launcher.text import words_of

_ELEMENTS = ("kept", "elements", "weights", "present", "mask", "positive")
_OF_PER = {"sample": ("samples", "rows"), "element": _ELEMENTS, "sum": ("sum",), "batch": ("batch",)}


@dataclass(frozen=True)
class Steps:
    """How a step is cut: in one piece, any reading gives the same training.

    Attributes:
        processes: The world's size.
        pieces: Micro-batches of a process.
    """

    processes: int
    pieces: int

    @property
    def is_whole(self) -> bool:
        """Whether a step is one forward pass on one process."""
        return self.processes == self.pieces == 1

    def __str__(self) -> str:
        parts = [f"{self.processes} processes"] if self.processes > 1 else []
        parts += [f"{self.pieces} micro-batches a process"] if self.pieces > 1 else []
        return " and ".join(parts)


def settle_losses(
    builder: Builder,
    objective: Objective,
    model: nn.Module,
    data: Data,
    coordinator: Coordinator,
    *,
    processes: int | None = None,
    kept: Mapping[str, Any] | None = None,
) -> None:
    """Finds out what is not known: from the checkpoint, else by measuring, on all ranks with the same samples.

    Args:
        builder: Says where the recipe names a loss.
        objective: Whose losses they are.
        model: The bare module; it is left as it was.
        data: Whose training samples are measured on.
        coordinator: Rank 0's word counts.
        processes: How many there will be; None for those that there are.
        kept: What the checkpoint says; of a loss of the whole batch it says nothing for more pieces or processes.

    Raises:
        RecipeError: A loss cannot be put together from pieces, or nobody can tell how.
    """
    train = data.train
    steps = Steps(processes or coordinator.world_size, train.sampler.accumulation(0))
    for term in objective.terms:
        if term.reading == Reading("batch") and steps.pieces > 1:
            message = (
                "_per_: batch needs a rank's whole share at once; remove data.micro_batch_size, or use more processes"
            )
            raise builder.wrong(term.key, message)
    objective.cut(whole=steps.is_whole)
    take_up(
        objective,
        {key: manifest for key, manifest in (kept or {}).items() if steps.is_whole or manifest["kind"] != "batch"},
    )
    for term in objective.terms:
        term.take(_simplified(term, objective, train))
    pads = train.reading.collate is not None and not steps.is_whole
    open_keys = [
        key for key, reading in objective.readings.items() if reading is None or (pads and reading.found == "known")
    ]
    if not open_keys:
        return
    samples = samples_of(train, are_steady=not differs_again(train))
    outcomes = {key: _settled(*objective.part(key), model, samples, steps) for key in open_keys}
    told: dict[str, Any] = coordinator.from_first(
        lambda: {key: outcome if isinstance(outcome, str) else outcome.manifest() for key, outcome in outcomes.items()}
    )
    faults = [(key, fault) for key, fault in told.items() if isinstance(fault, str)]
    if faults:
        raise RecipeError([problem for key, message in faults for problem in builder.wrong(key, message).problems])
    for key, manifest in told.items():
        objective.read(key, Reading.of_manifest(manifest, **_objects(objective, key)))


def take_up(objective: Objective, kept: Mapping[str, Any]) -> None:
    """Takes up what a checkpoint says of losses of which nothing is known."""
    for key, manifest in kept.items():
        if objective.readings.get(key, ...) is None:
            objective.read(key, Reading.of_manifest(manifest, **_objects(objective, key)))


def _simplified(term: Term, objective: Objective, train: TrainLoader) -> Reading | None:
    """The reading with what every sample counts, where the whole set's targets are one tensor that can be looked at."""
    reading, key = term.reading, objective.layout.section.targets[:1]
    if reading is None or reading.kind not in ("kept", "elements", "rows") or term.targets is not None:
        return reading
    targets = train.column(key[0]) if key else None
    if targets is None or not len(targets) or targets.is_floating_point() == (reading.kind == "kept"):
        return reading
    if reading.kind == "kept" and bool((targets == reading.ignored).any()):
        return reading
    return replace(reading, each=1.0 if reading.kind == "rows" else targets.numel() / len(targets))


def _objects(objective: Objective, key: str) -> dict[str, Any]:
    """What a reading needs that no manifest holds."""
    term = _term(objective, key)
    return {"weights": Hints.of(term.function).weights if term else None, "function": objective.count}


def _term(objective: Objective, key: str) -> Term | None:
    return next((term for term in objective.terms if term.key == key), None)


def _settled(objective: Objective, key: str, model: nn.Module, samples: Samples | None, steps: Steps) -> Reading | str:
    """What a loss is a mean over, or in a line why that cannot be determined."""
    term = _term(objective, key)
    hints = Hints.of(term.function) if term is not None else Hints(user=objective.count, of_batches=True)
    unread = Verdict(None, "failed", "its samples are others each time they are read")
    try:
        verdict = measure(_subject(objective, term), model, samples, hints) if samples is not None else unread
    except LauncherError:
        raise
    except Exception as error:  # somebody's model or data, whose own mistake the first step tells better
        verdict = Verdict(None, "failed", f"{type(error).__name__}: {' '.join(words_of(error).split())[:160]}")
    if term is not None and term.reading is not None:  # torch's own means what it says, unless a collate pads
        is_padded = verdict.reading is not None and verdict.reading.kind == "batch"
        return _fault(verdict, steps, has_term=True) if is_padded else term.reading
    if objective.count is not None:
        return _by_user(verdict, objective)
    if term is not None and term.per is not None:
        return _as_stated(term.per, verdict)
    if verdict.reading is not None and verdict.reading.kind != "batch":
        return _trusting(verdict.reading, verdict.also)
    if steps.is_whole:
        return verdict.reading or Reading("batch", found="trusted", why=verdict.detail)
    return _fault(verdict, steps, has_term=term is not None)


def _trusting(reading: Reading, also: Sequence[Reading]) -> Reading:
    """The reading with what is taken on trust: a count that these samples do not tell from it, and others may."""
    plain = ("samples", "rows", "elements", "present", "positive", reading.kind)
    others = [other for other in also if other.kind not in plain]
    if not others:
        return reading
    return replace(reading, untold=others[0].words.split(" over ")[1])


def _by_user(verdict: Verdict, objective: Objective) -> Reading | str:
    """The user's own count, unless another one is what fits."""
    fits = [verdict.reading, *verdict.also] if verdict.reading is not None else []
    own = next((reading for reading in fits if reading is not None and reading.kind == "user"), None)
    if own is not None:
        return own
    if verdict.reading is not None and verdict.reading.kind != "batch":
        return f"train.count is not what the loss is a mean over: it is {verdict.reading.words}; remove train.count"
    return Reading("user", found="stated", why=verdict.detail, function=objective.count)


def _as_stated(per: str, verdict: Verdict) -> Reading | str:
    """What the recipe's `_per_` means here, unless something else fits."""
    kinds = _OF_PER[per]
    fits = [reading for reading in (verdict.reading, *verdict.also) if reading is not None]
    agreed = next((reading for reading in fits if reading.kind in kinds), None)
    if agreed is not None:
        return agreed
    if verdict.reading is not None and verdict.reading.kind != "batch" and per != "batch":
        return f"_per_: {per} is not what it is a mean over: it is {verdict.reading.words}; remove _per_"
    kind = {"sample": "samples", "element": "elements"}.get(per, per)
    return Reading(kind, found="stated", why=verdict.detail)


def _fault(verdict: Verdict, steps: Steps, has_term: bool) -> str:
    """Why a loss cannot be put together from pieces, and what to do."""
    nearest = verdict.reading.why if verdict.reading is not None else verdict.detail
    detail = f" ({nearest})" if nearest else ""
    whole = "use one process and no data.micro_batch_size"
    say = "say _per_: sample, element or sum" if has_term else "name a function of the batch that counts: train.count"
    if verdict.reading is not None:
        own = "say _per_: batch and remove data.micro_batch_size" if steps.pieces > 1 else "say _per_: batch"
        remedy = f"{own}, or {whole}" if has_term else whole
        return f"its value is of the whole batch{detail}, and {steps} would give other numbers; {remedy}"
    why = {
        "unknown": "it is a mean over something that no tensor of a batch shows",
        "ambiguous": "what it is a mean over cannot be determined",
        "constant": "what it is a mean over cannot be measured",
        "random": "what it is a mean over cannot be measured",
        "failed": "what it is a mean over could not be measured",
    }[verdict.reason]
    return f"{why}{detail}, and {steps} need it; {say}, or {whole}"


def _subject(objective: Objective, term: Term | None) -> Subject:
    layout = objective.layout

    def result(model: nn.Module, batch: Any) -> Any:
        args, kwargs = layout.inputs(batch)
        return model(*args, **kwargs)

    if term is not None:
        return Subject(
            parts=lambda batch: term.targets_of(layout, batch),
            outputs=lambda model, batch: term.outputs_of(layout, result(model, batch)),
            function=term.function,
        )
    if objective.step is None:
        return Subject(parts=lambda batch: batch, value=lambda model, batch: layout.loss(result(model, batch)))
    return Subject(parts=lambda batch: batch, value=lambda model, batch: _stepped(objective, model, batch))


def _stepped(objective: Objective, model: nn.Module, batch: Any) -> Any:
    """The loss of a copy of the user's step function."""
    twin = Objective([], objective.layout, step=copied(objective.step))
    if any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):  # else rounding would be measured
        twin.under(objective.autocast)
    return twin.stepped(model, batch, At())["loss"]


def samples_of(train: TrainLoader, *, are_steady: bool = True) -> Samples | None:
    """The training set's first samples, in batches that are made for the measurement alone.

    Args:
        train: Reads them.
        are_steady: Whether they are the same when they are read again.

    Returns:
        None where a batch cannot be read in pieces: they are not steady, and no rows of what is read once.
    """
    collates = train.reading.collate is not None
    whole = _batch_of_rows(train, are_steady) if collates or not are_steady else None
    if whole is not None:
        rows = min(LOOKED_AT, train.num_readable())
        return Samples(rows, lambda numbers: mapped(whole, lambda tensor: tensor[list(numbers)]))
    return Samples(train.num_readable(), train.batch_of, collates=collates) if are_steady else None


def _batch_of_rows(train: TrainLoader, are_steady: bool) -> Any:
    """A batch of the first samples, where a collate gives each one row that depends on the others, as mixing does.

    Rows of it are what a loss gets: collated again in pieces, they would be mixed otherwise, and read again, those that
    are not steady would be others. None where rows are the same whoever is with them, or where a collate pads: then
    their shapes differ.
    """
    size, few = min(LOOKED_AT, train.num_readable()), 4
    if size <= few:
        return None
    try:
        whole, part = train.batch_of(range(size)), train.batch_of(range(size - few, size))
    except Exception:  # the measurement tells it
        return None
    rows, others = dict(tensors_in(whole)), dict(tensors_in(part))
    if rows.keys() != others.keys() or not rows:
        return None
    if any(tensor.layout is not torch.strided for tensor in (*rows.values(), *others.values())):
        return None  # of which no rows can be taken
    are_rows = all(
        tensor.shape[:1] == (size,) and others[where].shape == (few, *tensor.shape[1:])
        for where, tensor in rows.items()
    )
    if not are_rows:
        return None
    if are_steady and all(torch.equal(others[where], tensor[-few:]) for where, tensor in rows.items()):
        return None
    return whole
