"""Finds out what a loss is a mean over, by calling it on pieces of a batch and on their unions.

Every rank makes the same calls with the same samples, so that a loss that speaks with other ranks is measured too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from launcher.data.parts import changed
from launcher.data.transfer import moved
from launcher.model.own_gradients import OwnGradients
from launcher.objective.calls import Caller, device_of, in_host, seed_all, twin_of, undisturbed
from launcher.objective.model_calls import as_one, model_trials
from launcher.objective.pieces import Joined, NotJoinedError
from launcher.objective.reading import TOLERANCE, Hints, Reading
from launcher.objective.subject import Found, Samples, Subject
from launcher.objective.verdict import Verdict, decide


def measure(subject: Subject, model: nn.Module, samples: Samples, hints: Hints) -> Verdict:
    """What a loss is a mean over; what it is called with is copied, and every generator is put back.

    Args:
        subject: The loss.
        model: Called in eval mode, or in train mode without dropout where it brings its loss itself.
        samples: Where batches come from.
        hints: Of the loss.
    """
    with undisturbed(), twin_of(model) as twin:
        groups = samples.groups(subject.parts, hints)
        if not groups:
            return Verdict(None, "failed", "there are too few samples to measure it on")
        is_of_targets = subject.outputs is not None and subject.targets is None
        joined = _joined(subject, twin, samples, groups) if is_of_targets else None
        findings: Found | Verdict = Found([], [], TOLERANCE[torch.float64])
        caller = Caller(subject.function)
        if joined is not None:
            findings = caller.trials(joined, hints)
        if caller.wants_graph and isinstance(findings, Verdict):
            subject, joined, findings = as_one(subject), None, Found([], [], TOLERANCE[torch.float64])
        if isinstance(findings, Found) and (joined is None or samples.collates):
            findings = model_trials(subject, twin, samples, groups, hints, findings)
        if isinstance(findings, Verdict):
            return findings
        verdict = decide(
            findings.trials, findings.injected, findings.tolerance, findings.tried, may_drop=samples.may_drop
        )
        if verdict.reading is not None and findings.draws:
            verdict = replace(verdict, reading=replace(verdict.reading, draws=True))
        if verdict.reading is None or joined is None:
            return verdict
        reading = caller.with_floor(joined[0], verdict.reading, findings.tolerance)
        if reading is None:
            return Verdict(Reading("batch", why=f"not {verdict.reading.words} where a piece has nothing to count"))
        return replace(verdict, reading=reading)


def call_once(subject: Subject, model: nn.Module, samples: Samples, rows: int) -> None:
    """Calls what could not be measured with a batch as a step has it; what fails there too raises its own error."""
    whole = subject if subject.value is not None else as_one(subject)
    assert whole.value is not None
    with undisturbed(), twin_of(model) as twin, torch.enable_grad():
        seed_all(0)
        whole.value(twin, moved(samples.batch(range(min(rows, samples.number))), device_of(twin)))


def _joined(
    subject: Subject, twin: nn.Module, samples: Samples, groups: Sequence[Sequence[Sequence[int]]]
) -> list[Joined] | None:
    """Each group's outputs and targets, where they are their pieces side by side."""
    assert subject.outputs is not None
    device, joined, own = device_of(twin), [], OwnGradients()
    for pieces in groups:
        made = []
        for numbers in (*pieces, list(itertools.chain(*pieces))):
            batch = moved(samples.batch(numbers), device)
            seed_all(0)
            outputs = own.call(twin, partial(subject.outputs, twin, batch))
            made.append(changed((outputs, subject.parts(batch)), in_host))
        try:
            joined.append(Joined(made[:3], made[3], [len(piece) for piece in pieces]))
        except (NotJoinedError, KeyError, IndexError, TypeError, AttributeError):
            return None
    return joined
