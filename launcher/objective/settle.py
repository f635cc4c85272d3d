"""Settles, before anything is counted, what each loss of a run is a mean over; refuses what nobody can know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from launcher.data.load import Data, EvaluationLoader, TrainLoader
from launcher.data.parts import changed
from launcher.data.repeatable import differs_again
from launcher.device.coordination import Coordinator
from launcher.errors import LauncherError, RecipeError
from launcher.objective.calls import copied
from launcher.objective.loss import COUNT, Objective, Term
from launcher.objective.probe import call_once, measure
from launcher.objective.reading import Hints, Reading, tensors_in
from launcher.objective.run_length import At
from launcher.objective.split import split_losses
from launcher.objective.subject import LOOKED_AT, Samples, Subject
from launcher.objective.verdict import Verdict
from launcher.recipe.build import Builder
from launcher.text import words_of

_NEARLY = 1e-3  # off the whole: as a mean is over a count and a small constant beside it
_ELEMENTS = ("kept", "elements", "weights", "present", "mask", "outside", "positive", "from zero", "unlike")
_OF_PER = {"sample": ("samples", "rows"), "element": _ELEMENTS, "sum": ("sum",), "batch": ("batch",)}


@dataclass(frozen=True)
class Steps:
    """How a step is cut: in one piece, any reading gives the same training.

    Attributes:
        processes: The world's size.
        pieces: Micro-batches of a process.
        rows: Samples of a piece.
    """

    processes: int
    pieces: int
    rows: int = 1

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
    end: At,
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
        end: Where the last step stands: a step function is measured there, too.
        processes: How many there will be; None for those that there are.
        kept: What the checkpoint says; of a loss of the whole batch it says nothing for more pieces or processes.

    Raises:
        RecipeError: A loss cannot be put together from pieces, or nobody can tell how.
        Exception: What the model or a loss of the user's own raises of a batch as a step has it.
    """
    train = data.train
    steps = _steps_of(train, processes or coordinator.world_size)
    for term in objective.terms:
        if term.reading == Reading("batch") and steps.pieces > 1:
            message = (
                "_per_: batch needs a rank's whole share at once; remove data.micro_batch_size, or use more processes"
            )
            raise builder.wrong(term.key, message)
    objective.cut(whole=steps.is_whole)
    objective.take_entries(kept or {})
    split_by_name(builder, objective, model, train, coordinator, kept or {})
    take_up(
        objective,
        {key: manifest for key, manifest in (kept or {}).items() if steps.is_whole or manifest["kind"] != "batch"},
    )
    sets: list[TrainLoader | EvaluationLoader] = [train, *data.validation.values(), *data.test.values()]
    may_drop = any(loader.may_drop for loader in sets)
    for term in objective.terms:
        term.take(term.reading if may_drop else _simplified(term, objective, train))
    pads = train.reading.collate is not None and not steps.is_whole
    open_keys = [
        key for key, reading in objective.readings.items() if reading is None or (pads and reading.found == "known")
    ]
    if not open_keys:
        return
    samples = samples_of(train, are_steady=not differs_again(train), may_drop=may_drop)
    _settle_alike(
        builder,
        objective,
        {key: _settled(*objective.part(key), model, samples, steps, end) for key in open_keys},
        coordinator,
    )


def _steps_of(train: TrainLoader, processes: int) -> Steps:
    pieces = train.sampler.accumulation(0)
    return Steps(processes, pieces, max(1, train.sampler.batch_size(0) // (processes * pieces)))


def settle_evaluation(
    builder: Builder,
    objective: Objective,
    model: nn.Module,
    loader: EvaluationLoader,
    coordinator: Coordinator,
    at: At,
) -> list[str]:
    """Finds out what nothing beside saved weights says, on the set that they are evaluated on.

    Args:
        builder: Says where the recipe names a loss.
        objective: Whose losses they are, as they are called in evaluations.
        model: The bare module; it is left as it was.
        loader: Reads the set.
        coordinator: Rank 0's word counts.
        at: Where the weights' training stood.

    Returns:
        What could not be found out, and is taken over batches, in words.

    Raises:
        RecipeError: A loss is not what the recipe says.
    """
    split_by_name(builder, objective, model, loader, coordinator)
    open_keys = [key for key, reading in objective.readings.items() if reading is None]
    if not open_keys:
        return []
    for owner in objective.brought.values():
        if isinstance(owner, nn.Module):
            owner.eval()
    samples, whole = samples_of(loader, may_drop=loader.may_drop), Steps(1, 1)
    outcomes = {key: _settled(*objective.part(key), model, samples, whole, at) for key in open_keys}
    _settle_alike(builder, objective, outcomes, coordinator)
    return [
        f"{key}: {reading or 'not known'}; it is a mean over the batches of this evaluation"
        for key, reading in objective.readings.items()
        if key in open_keys and (reading is None or reading.kind == "batch") and not _is_stated(objective, key)
    ]


def split_by_name(
    builder: Builder,
    objective: Objective,
    model: nn.Module,
    loader: TrainLoader | EvaluationLoader,
    coordinator: Coordinator,
    kept: Mapping[str, Any] | None = None,
    *,
    most: int = LOOKED_AT,
) -> None:
    """Splits losses that give several numbers by name; of those that a checkpoint knows it is known.

    Args:
        builder: Says where the recipe names a loss.
        objective: Whose losses they are.
        model: The bare module; it is left as it was.
        loader: Reads the samples that they are called on.
        coordinator: Rank 0's word counts.
        kept: What a checkpoint says of them.
        most: Samples that may be looked at.

    Raises:
        RecipeError: What one gives cannot be added up.
    """
    known = kept or {}
    is_open = any(
        term.entry is None and term.key not in known and (term.reading is None or term.reading.found != "known")
        for term in objective.terms
    )
    samples = samples_of(loader, may_drop=loader.may_drop) if is_open else None
    if samples is not None:
        split_losses(builder, objective, model, replace(samples, number=min(samples.number, most)), coordinator)


def _is_stated(objective: Objective, key: str) -> bool:
    term = _term(objective, key)
    return term is not None and term.per is not None


def _settle_alike(
    builder: Builder, objective: Objective, outcomes: Mapping[str, Reading | str], coordinator: Coordinator
) -> None:
    """Takes up on all ranks what rank 0 found.

    Raises:
        RecipeError: What it found are faults.
    """
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
    objective.take_entries(kept)
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


def _settled(
    objective: Objective, key: str, model: nn.Module, samples: Samples | None, steps: Steps, end: At
) -> Reading | str:
    """What a loss is a mean over, or in a line why that cannot be determined."""
    term = _term(objective, key)
    unread = Verdict(None, "failed", "its samples are others each time they are read")
    verdict = _measured(objective, term, model, samples, end) if samples is not None else unread
    if term is not None and term.reading is not None:  # torch's own means what it says, unless a collate pads
        is_padded = verdict.reading is not None and verdict.reading.kind == "batch"
        return _fault(verdict, steps, has_term=True) if is_padded else term.reading
    if term is not None and term.per is not None:
        return _as_stated(term.per, verdict)
    if objective.count is not None:
        return _by_user(verdict, objective)
    if verdict.reading is not None and verdict.reading.kind != "batch":
        return _trusting(verdict.reading, verdict.also)
    if steps.is_whole:
        return verdict.reading or Reading("batch", found="trusted", why=verdict.detail)
    if verdict.reason == "failed" and samples is not None:
        call_once(_subject(objective, term, At()), model, samples, steps.rows)
    return _fault(verdict, steps, has_term=term is not None)


def _measured(objective: Objective, term: Term | None, model: nn.Module, samples: Samples, end: At) -> Verdict:
    """What a loss is, by measuring: of a step function in the first step and in the last."""
    counts = _is_counted(objective, term)
    hints = Hints.of(term.function if term is not None else None, objective.count if counts else None)
    hints = replace(hints, of_batches=counts or term is None)
    places = dict.fromkeys((At(), end)) if objective.step is not None else (At(),)
    try:
        verdicts = [measure(_subject(objective, term, at), model, samples, hints) for at in places]
    except LauncherError:
        raise
    except Exception as error:  # somebody's model or data, whose own mistake the first step tells better
        return Verdict(None, "failed", f"{type(error).__name__}: {' '.join(words_of(error).split())[:160]}")
    return verdicts[0] if len(verdicts) == 1 else _of_both(*verdicts)


def _of_both(first: Verdict, last: Verdict) -> Verdict:
    """What holds in the first step and in the last one."""
    if first.reading is None:
        return last if first.reason == "constant" else first
    if last.reading is None:
        return first if last.reason == "constant" else last
    both = [reading for reading in first.fitting() if reading in last.fitting()]
    if not both:
        why = f"{first.reading.words} in the first step, and {last.reading.words} in the last"
        return Verdict(Reading("batch", why=why))
    unless = tuple(dict.fromkeys((*first.reading.unless, *last.reading.unless)))
    return replace(first, reading=replace(both[0], unless=unless), also=tuple(both[1:]))


def _is_counted(objective: Objective, term: Term | None) -> bool:
    """Whether the recipe's own count is of this loss."""
    return objective.count is not None and (term is None or (term.reading is None and term.per is None))


def _trusting(reading: Reading, also: Sequence[Reading]) -> Reading:
    """The reading with what is taken on trust: a count that these samples do not tell from it, and others may."""
    plain = {"samples", "rows", "elements", "present", "filled", "told", "planes", reading.kind}
    plain |= set() if reading.kind == "unlike" else {"positive", "from zero", "unlike"}
    others = [other for other in also if other.kind not in plain]
    if reading.kind in ("mask", "outside"):  # of which the sum is the count
        others = [other for other in others if other.where != reading.where]
    if not others:
        return reading
    return replace(reading, untold=others[0].words.split(" over ")[1])


def _by_user(verdict: Verdict, objective: Objective) -> Reading | str:
    """The user's own count, unless it does not fit: what was measured to be wrong is never believed."""
    own = next((reading for reading in verdict.fitting() if reading.kind == "user"), None)
    if own is not None:
        return own
    if verdict.reading is not None and verdict.reading.kind != "batch":
        return f"train.count is not what the loss is a mean over: it is {verdict.reading.words}; remove train.count"
    off = verdict.off.get(Reading("user"), 0.0)
    if off > _NEARLY and "train.step" not in objective.stateful:  # its state goes into what is measured: believed
        return f"train.count is not what the loss is a mean over: put together by it, pieces are {off:.1g} off"
    return Reading("user", found="stated", why=verdict.detail, function=objective.count)


def _as_stated(per: str, verdict: Verdict) -> Reading | str:
    """What the recipe's `_per_` means here, where it fits, or where nothing could be measured."""
    kinds = _OF_PER[per]
    agreed = next((reading for reading in verdict.fitting() if reading.kind in kinds), None)
    if agreed is not None:
        return agreed
    if per != "batch":
        wrong = f"_per_: {per} is not what it is a mean over: "
        if verdict.is_misfit:
            nearest = verdict.reading.why if verdict.reading is not None else verdict.detail
            say = "say _per_: batch, or " if verdict.reading is not None else ""
            return f"{wrong}pieces put together by it give other values ({nearest}); {say}{COUNT}"
        if verdict.reading is not None:
            return f"{wrong}it is {verdict.reading.words}; remove _per_"
        if verdict.also:
            return f"{wrong}{verdict.detail}; {COUNT}"
    kind = {"sample": "samples", "element": "elements"}.get(per, per)
    return Reading(kind, found="stated", why=verdict.detail)


def _fault(verdict: Verdict, steps: Steps, has_term: bool) -> str:
    """Why a loss cannot be put together from pieces, and what to do."""
    nearest = verdict.reading.why if verdict.reading is not None else verdict.detail
    detail = f" ({nearest})" if nearest else ""
    whole = "use one process and no data.micro_batch_size"
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
    say = f"say _per_: sample, element or sum, or {COUNT}" if has_term and verdict.reason != "unknown" else COUNT
    return f"{why}{detail}, and {steps} need it; {say}, or {whole}"


def _subject(objective: Objective, term: Term | None, at: At) -> Subject:
    layout = objective.layout

    def result(model: nn.Module, batch: Any) -> Any:
        args, kwargs = layout.inputs(batch)
        return model(*args, **kwargs)

    if term is not None:
        subject = Subject(
            parts=lambda batch: term.targets_of(layout, batch),
            outputs=lambda model, batch: term.outputs_of(layout, result(model, batch)),
            function=term.alone,
        )
        if _is_counted(objective, term):
            return replace(subject, parts=lambda batch: batch, targets=subject.parts)
        return subject
    if objective.step is None:
        return Subject(parts=lambda batch: batch, value=lambda model, batch: layout.loss(result(model, batch)))
    return Subject(parts=lambda batch: batch, value=lambda model, batch: _stepped(objective, model, batch, at))


def _stepped(objective: Objective, model: nn.Module, batch: Any, at: At) -> Any:
    """The loss of a copy of the user's step function."""
    twin = Objective([], objective.layout, step=copied(objective.step))
    if any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):  # else rounding would be measured
        twin.under(objective.autocast)
    return twin.stepped(model, batch, at)["loss"]


def samples_of(
    loader: TrainLoader | EvaluationLoader, *, are_steady: bool = True, may_drop: bool = False
) -> Samples | None:
    """A set's first samples, in batches that are made for the measurement alone.

    Args:
        loader: Reads them.
        are_steady: Whether they are the same when they are read again.
        may_drop: Whether batches may have fewer samples than were asked for.

    Returns:
        None where a batch cannot be read in pieces: they are not steady, and no rows of what is read once.
    """
    collates = loader.reading.collate is not None
    whole = _batch_of_rows(loader, are_steady) if collates or not are_steady else None
    if whole is not None:
        rows = min(LOOKED_AT, loader.num_readable())
        return Samples(rows, lambda numbers: changed(whole, lambda tensor: tensor[list(numbers)]), may_drop=may_drop)
    return Samples(loader.num_readable(), loader.batch_of, collates=collates, may_drop=may_drop) if are_steady else None


def _batch_of_rows(loader: TrainLoader | EvaluationLoader, are_steady: bool) -> Any:
    """A batch of the first samples, where a collate gives each one row that depends on the others, as mixing does.

    Rows of it are what a loss gets: collated again in pieces, they would be mixed otherwise, and read again, those that
    are not steady would be others. None where rows are the same whoever is with them, or where a collate pads: then
    their shapes differ.
    """
    size, few = min(LOOKED_AT, loader.num_readable()), 4
    if size <= few:
        return None
    try:
        whole, part = loader.batch_of(range(size)), loader.batch_of(range(size - few, size))
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
