"""What a loss is a mean over: found rightly, or asked for; and nothing is left behind by looking."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_cases import ASKED, BATCH, CASES, MEAN, SUM, Batch, Case, Centered, Draw, Focal, normal, whole
from randomness import states
from torch import Generator, Tensor, nn

from launcher.data.parts import changed
from launcher.errors import LauncherError
from launcher.objective.batch import BatchLayout
from launcher.objective.calls import Caller
from launcher.objective.halves import still_holds
from launcher.objective.known import known
from launcher.objective.loss import Objective, Term
from launcher.objective.order import names_given
from launcher.objective.probe import measure
from launcher.objective.reading import Hints, Reading
from launcher.objective.subject import Samples, Subject
from launcher.objective.verdict import Verdict
from launcher.recipe import schema

EXACT = 2e-6


class Same(nn.Module):
    """Gives what it gets."""

    def forward(self, batch: Any) -> Any:
        """The outputs are in the batch already."""
        return batch


def take(tree: Any, numbers: Sequence[int], of: int) -> Any:
    """Some samples of a batch: along the first dimension, the second, or so many rows for each."""

    def each(tensor: Tensor) -> Tensor:
        if tensor.dim() and tensor.shape[0] == of:
            return tensor[list(numbers)]
        if tensor.dim() > 1 and tensor.shape[1] == of:
            return tensor[:, list(numbers)]
        return tensor.view(of, -1, *tensor.shape[1:])[list(numbers)].flatten(0, 1)

    return changed(tree, each)


def verdict_of(
    loss: Any, draw: Draw, seed: int = 0, count: Any = None, size: int = 64, *, may_drop: bool = False
) -> Verdict:
    """What measuring a loss on data finds."""
    data = draw(Generator().manual_seed(seed), size, False)
    samples = Samples(size, lambda numbers: take(data, numbers, size), may_drop=may_drop)
    subject = Subject(parts=lambda batch: batch[1], outputs=lambda model, batch: batch[0], function=loss)
    return measure(subject, Same(), samples, Hints.of(loss, count))


def off_by(loss: Any, reading: Reading, data: Batch, size: int, seed: int) -> float:
    """How far a batch's value is from that of three pieces put together by the reading."""
    caller = Caller(loss)
    order = torch.randperm(size, generator=Generator().manual_seed(seed)).tolist()
    cuts = sorted((torch.randperm(size - 1, generator=Generator().manual_seed(seed + 1))[:2] + 1).tolist())
    pieces = [order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :]]
    doubled = changed(data, lambda one: one.double() if one.is_floating_point() else one)
    values = [caller.value(*take(doubled, numbers, size)) for numbers in (order, *pieces)]
    if None in values:
        return 0.0  # such data the loss does not know
    entire, *parts = (float(one) for one in values if one is not None)
    if reading.kind == "sum":
        return abs(sum(parts) - entire) / max(abs(entire), 1e-12)
    counts = [reading.count(take(data[1], numbers, size), len(numbers)) for numbers in pieces]
    weights = [reading.weight(count) for count in counts]
    divisor = sum(counts) + reading.beside
    together = sum(weight * part for weight, part in zip(weights, parts, strict=True) if weight) / divisor
    return abs(together - entire) / max(abs(entire), 1e-12)


def check_right(name: str, case: Case, seed: int) -> None:
    """The verdict is the truth, and puts data together that has what the measured data may have lacked."""
    verdict = verdict_of(case.loss, case.draw, seed, case.count)
    if case.truth == ASKED:
        assert verdict.reading is None, f"{name}: {verdict.reading}"
        return
    assert verdict.reading is not None, f"{name}: {verdict.reason}, {verdict.detail}"
    assert {"sum": SUM, "batch": BATCH}.get(verdict.reading.kind, MEAN) == case.truth, f"{name}: {verdict}"
    if case.truth != BATCH:
        check_exact(name, case.loss, case.draw, verdict.reading)


def check_exact(name: str, loss: Any, draw: Draw, reading: Reading, tries: int = 6) -> None:
    for seed in range(tries):
        off = off_by(loss, reading, draw(Generator().manual_seed(1000 + seed), 12, True), 12, seed)
        assert off < EXACT, f"{name}: {reading} is {off:.1g} off"


@pytest.mark.parametrize("name", CASES)
def test_every_loss_is_read_rightly_or_asked_for(name: str) -> None:
    check_right(name, CASES[name], 0)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_every_loss_is_read_rightly_on_other_samples(name: str) -> None:
    for seed in range(1, 6):
        check_right(name, CASES[name], seed)


# ---------------------------------------------------------------------- random losses

Each = Callable[[Tensor, Tensor], Tensor]
ENTRIES: dict[str, Each] = {
    "square": lambda o, t: (o - t) ** 2,
    "absolute": lambda o, t: (o - t).abs(),
    "classes": lambda o, t: F.cross_entropy(o, t, reduction="none"),
}


def drawn(seed: int) -> tuple[Any, Draw, str]:
    """A loss made of an entry, weights, a denominator and what is done with the whole; and its data."""
    choose = random.Random(seed)
    entry = choose.choice([*ENTRIES])
    weights = choose.choice(["none", "mask", "real", "target", "length"])
    below = choose.choice(["rows", "elements", "weights", "one", "256", "kept", "means", "root", "largest"])
    outer = choose.choice(["", "", "", "sqrt", "log1p", "plus"])
    long, ignores, at_once, full = (
        choose.choice([1, 4, 6]),
        choose.random() < 0.5,
        choose.random() < 0.5,
        choose.random() < 0.3,
    )

    def draw(g: Generator, n: int, later: bool) -> Batch:
        targets = whole(g, 5, n, long) if entry == "classes" else normal(g, n, long)
        if entry == "classes" and ignores and (later or at_once):
            holes = torch.rand(n, long, generator=g) < 0.3
            holes[:, 0] = False
            targets = targets.masked_fill(holes, -100)
        outputs = normal(g, n, 5, long) if entry == "classes" else normal(g, n, long)
        mask = (torch.arange(long) <= whole(g, long, n, 1)).float()
        if full and not later:
            mask = torch.ones(n, long)
        extra = {"mask": mask, "real": torch.rand(n, long, generator=g) + 0.1, "length": whole(g, 8, n) + 1}
        return (outputs,), (targets, extra[weights]) if weights in extra else (targets,)

    def loss(o: Tensor, t: Tensor, *extra: Tensor) -> Tensor:
        each = ENTRIES[entry](o, t)
        kept = t != -100
        w = torch.ones_like(each)
        if weights == "target":
            w = (1 + t.abs().to(each.dtype)) * kept
        elif extra:
            w = extra[0].to(each.dtype).view(len(t), -1).expand_as(each)
        if below == "means":
            value = ((each * w).sum(1) / w.sum(1)).mean()
        else:
            under: dict[str, Any] = {"rows": len(t), "elements": t.numel(), "weights": w.sum(), "one": 1, "256": 256}
            under |= {"kept": kept.sum(), "root": len(t) ** 0.5, "largest": w.max()}
            value = (each * w).sum() / under[below]
        done: dict[str, Callable[[Tensor], Tensor]] = {
            "sqrt": torch.sqrt,
            "log1p": torch.log1p,
            "plus": lambda v: v + 0.3,
        }
        return done[outer](value) if outer else value

    return loss, draw, f"{seed}: {entry}, {weights} weights, / {below}, {outer}, {long} long"


def check_drawn(seeds: range) -> int:
    decided = 0
    for seed in seeds:
        loss, draw, words = drawn(seed)
        verdict = verdict_of(loss, draw, seed)
        if verdict.reading is not None and verdict.reading.kind != "batch":
            check_exact(words, loss, draw, verdict.reading, tries=4)
            decided += 1
    return decided


def test_no_random_loss_is_read_wrongly() -> None:
    assert check_drawn(range(48)) > 16


@pytest.mark.long
def test_none_of_many_random_losses_is_read_wrongly() -> None:
    assert check_drawn(range(1000, 2000)) > 350


# ---------------------------------------------------------------------- known


def test_what_is_known_of_torchs_own_is_what_measuring_finds() -> None:
    found = {name: known(case.loss) for name, case in CASES.items()}
    assert sum(reading is not None for reading in found.values()) > 30
    for name, reading in found.items():
        if reading is not None:
            check_exact(name, CASES[name].loss, CASES[name].draw, reading)


class Called(nn.MSELoss):
    """Torch's forward, and another call."""

    def __call__(self, *args: Any) -> Any:
        """Twice as much."""
        return super().__call__(*args) * 2


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Called as torch's own."""
    return F.cross_entropy(outputs, targets, reduction="none").sum()


def hooked() -> nn.Module:
    loss = nn.MSELoss()
    loss.register_forward_hook(lambda module, args, value: value * len(args[0]))
    return loss


def patched() -> nn.Module:
    loss = nn.MSELoss()
    loss.forward = lambda a, b: ((a - b) ** 2).sum()  # type: ignore[method-assign,assignment]  # as people do
    return loss


@pytest.mark.parametrize(
    "loss", [Focal(), Called(), cross_entropy, hooked(), patched(), functools.partial(F.cross_entropy, torch.zeros(1))]
)
def test_a_name_or_an_attribute_makes_nothing_known(loss: Any) -> None:
    assert known(loss) is None


def test_settings_of_torchs_own_are_known() -> None:
    half = functools.partial(F.cross_entropy, ignore_index=3, reduction="mean")
    assert known(half) == Reading("kept", ignored=3)
    assert known(nn.KLDivLoss(reduction="batchmean")) == Reading("rows")
    assert known(functools.partial(F.mse_loss, reduction="sum")) == Reading("sum")
    for function in (F.mse_loss, F.l1_loss, F.huber_loss):  # torch divides by their sum
        assert known(function, names_given(function, [0], {"target": 1, "weight": 2})) is None
        settled: Any = functools.partial
        assert known(settled(function, weight=torch.ones(1))) is None
    assert known(F.cross_entropy, names_given(F.cross_entropy, [0], [1, 2])) is None
    assert known(F.mse_loss, names_given(F.mse_loss, {"input": 0}, {"target": 1})) == Reading("elements")

    class Mine(nn.CrossEntropyLoss):
        """Torch's code runs."""

    assert str(known(Mine())) == "a mean over the targets that are not -100 (known: torch's own)"


# ---------------------------------------------------------------------- nothing is left behind


class Noisy(nn.Module):
    """Counts its calls, moves a buffer, draws from three generators; in eval mode its value is one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer, self.calls = nn.BatchNorm1d(6), nn.Linear(6, 3), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        """A batch with outputs."""
        self.calls += 1
        self.seen.add_(1)  # type: ignore[operator]  # a buffer
        random.random(), np.random.rand(), torch.rand(())  # as augmentation does
        return self.layer(self.norm(x))


def test_measuring_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    model, loss = Noisy().train(), Centered()
    inputs, targets = torch.randn(40, 6), torch.randn(40, 3)
    before, kept = states(), copy.deepcopy(model.state_dict())
    subject = Subject(lambda batch: (batch[1],), lambda twin, batch: (twin(batch[0]),), loss)
    samples = Samples(40, lambda numbers: (inputs[list(numbers)], targets[list(numbers)]))
    first = measure(subject, model, samples, Hints.of(loss))
    assert first.reading == measure(subject, model, samples, Hints.of(loss)).reading == Reading("samples")
    assert states() == before
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert (model.calls, loss.calls, float(loss.center)) == (0, 0, 0.0)  # a buffer
    assert all(module.training for module in model.modules())


# ---------------------------------------------------------------------- batches that are not their pieces side by side


def sequences(size: int) -> list[Tensor]:
    g = Generator().manual_seed(3)
    return [normal(g, 1 + int(whole(g, 8, 1)), 4) for _ in range(size)]


def padded(rows: Sequence[Tensor], numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    chosen = [rows[number] for number in numbers]
    pad = functools.partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return pad(chosen), pad([row.sum(1, keepdim=True) for row in chosen]), pad([torch.ones(len(r), 1) for r in chosen])


def of_padded(loss: Any, targets: slice) -> Verdict:
    torch.manual_seed(0)
    rows = sequences(48)
    subject = Subject(lambda batch: batch[targets], lambda model, batch: (model(batch[0]),), loss)
    samples = Samples(48, lambda numbers: padded(rows, numbers), collates=True)
    return measure(subject, nn.Linear(4, 1), samples, Hints.of(loss))


def test_what_a_collate_pads_is_collated_anew() -> None:
    verdict = of_padded(lambda o, y, mask: ((o - y) ** 2 * mask).sum() / mask.sum(), slice(1, 3))
    assert verdict.reading == Reading("mask", (1,))
    assert of_padded(nn.MSELoss(), slice(1, 2)).reading == Reading("batch")
    assert of_padded(nn.MSELoss(reduction="sum"), slice(1, 2)).reading != Reading("sum")  # of what is padded, too


def test_rows_of_graphs_and_samples_that_a_collate_drops() -> None:
    rows = sequences(48)
    verdicts: Iterator[Verdict] = (
        measure(
            Subject(
                lambda batch: batch[1:], lambda model, batch: (model(batch[0]),), lambda o, y: (o - y).abs().mean()
            ),
            nn.Linear(4, 1),
            Samples(48, collate, collates=True),
            Hints(),
        )
        for collate in (
            lambda numbers: tuple(
                map(torch.cat, zip(*((rows[n], rows[n].sum(1, keepdim=True)) for n in numbers), strict=True))
            ),
            lambda numbers: (
                torch.stack([rows[n][0] for n in numbers if n % 3]),
                torch.stack([rows[n][0, :1] for n in numbers if n % 3]),
            ),
        )
    )
    assert [verdict.reading for verdict in verdicts] == [Reading("rows")] * 2


# ---------------------------------------------------------------------- a model's own loss


class Language(nn.Module):
    """Gives its own loss: of each token from those before it, or not; with dropout, or a balance of experts.

    One refuses double precision; its head is of zeros, or nearly.
    """

    def __init__(
        self, shifts: bool = False, dropout: float = 0.0, balance: float = 0.0, single: bool = False, head: float = 0.0
    ):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.drop = nn.Embedding(7, 8), nn.Linear(8, 7), nn.Dropout(dropout)
        self.shifts, self.balance, self.single = shifts, balance, single
        nn.init.constant_(self.head.bias, 0.1)
        nn.init.normal_(self.head.weight, std=head)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        scores = self.head(self.drop(self.embed(ids)))
        assert scores.dtype == torch.float32 or not self.single
        if self.shifts:
            scores, labels = scores[:, :-1], labels[:, 1:]
        share = scores.softmax(-1).mean((0, 1))
        balancing: Tensor = self.balance * (share**2).sum()
        return F.cross_entropy(scores.flatten(0, 1), labels.flatten()) + balancing


@pytest.mark.parametrize(
    ("model", "reading"),
    [
        (Language(), Reading("kept", ("labels",))),
        (Language(dropout=0.5), Reading("kept", ("labels",))),
        (Language(shifts=True), Reading("kept", ("labels",), shifted=True)),
        (Language(balance=3.0), Reading("batch")),
        (Language(single=True), Reading("kept", ("labels",))),
        (Language(single=True, head=1e-4), Reading("kept", ("labels",))),
        (Language(single=True, head=1e-4, shifts=True), Reading("kept", ("labels",), shifted=True)),
    ],
)
@pytest.mark.parametrize("has_ignored", [True, False])
def test_a_models_own_loss(model: nn.Module, reading: Reading, has_ignored: bool) -> None:
    g = Generator().manual_seed(1)
    ids = whole(g, 7, 48, 6)
    labels = torch.where((torch.arange(6) > whole(g, 5, 48, 1) + 1) & has_ignored, -100, ids)
    samples = Samples(48, lambda numbers: {"ids": ids[list(numbers)], "labels": labels[list(numbers)]})
    subject = Subject(parts=lambda batch: batch, value=lambda twin, batch: twin(batch["ids"], batch["labels"]))
    assert measure(subject, model.train(), samples, Hints()).reading == reading


# ---------------------------------------------------------------------- kin of those


class Padded(nn.Module):
    """A language model on padded batches, with a loss of four kinds."""

    def __init__(self, kind: str):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.kind = nn.Embedding(7, 8), nn.Linear(8, 7), kind

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        scores = self.head(self.embed(ids)).transpose(1, 2)
        if self.kind == "all":
            return F.cross_entropy(scores, ids)
        if self.kind == "labels":
            return F.cross_entropy(scores, labels)
        if self.kind == "mask":
            each = F.cross_entropy(scores[..., :-1], ids[:, 1:], reduction="none")
            return (each * mask[:, 1:]).sum() / mask[:, 1:].sum()
        each = F.cross_entropy(scores, labels, reduction="none")
        return (each.sum(1) / mask.sum(1)).mean()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("labels", "a mean over the entries of 'labels' that are not -100"),
        ("mask", "a mean over the entries of 'mask' that are not 0, the first of each row left out"),
        ("rows", "a mean over samples"),
        ("all", "of the whole batch"),
    ],
)
def test_a_models_own_loss_of_padded_batches(kind: str, words: str) -> None:
    g = Generator().manual_seed(0)
    rows = [whole(g, 6, 2 + int(whole(g, 8, 1))) + 1 for _ in range(48)]
    pad = functools.partial(nn.utils.rnn.pad_sequence, batch_first=True)

    def collate(numbers: Sequence[int]) -> dict[str, Tensor]:
        chosen = [rows[number] for number in numbers]
        return {"ids": pad(chosen), "mask": (pad(chosen) > 0).long(), "labels": pad(chosen, padding_value=-100)}

    subject = Subject(parts=lambda batch: batch, value=lambda twin, batch: twin(**batch))
    verdict = measure(subject, Padded(kind), Samples(48, collate, collates=True), Hints(of_batches=True))
    assert verdict.reading is not None
    assert verdict.reading.words == words


class Detector(nn.Module):
    """Gives losses in train mode, and what it found in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.line = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        """A mapping of losses, or a list."""
        scores = self.line(self.drop(self.norm(x)))
        return {"class": F.cross_entropy(scores, y), "size": (scores**2).mean()} if self.training else [scores]


class Gradients(nn.Module):
    """Calls autograd in its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A mean of squares of slopes."""
        (slopes,) = torch.autograd.grad(self.line(x.requires_grad_()).sum(), x, create_graph=True)
        return (slopes**2).mean()


class Large(nn.Module):
    """Too large to be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)
        self.rest = nn.Parameter(torch.empty(65 * 2**20), requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy."""
        assert not self.training
        return F.cross_entropy(self.drop(self.line(x)), y)


@pytest.mark.parametrize(
    ("model", "reading"),
    [(Detector(), Reading("samples")), (Gradients(), Reading("samples")), (Large(), Reading("kept", (1,)))],
    ids=["Detector", "Gradients", "Large"],
)
def test_models_that_want_to_be_called_in_a_way_of_their_own(model: nn.Module, reading: Reading) -> None:
    g = Generator().manual_seed(0)
    x, y = normal(g, 48, 4), whole(g, 3, 48)
    layout = BatchLayout(schema.Batch())
    subject = Subject(parts=lambda batch: batch, value=lambda twin, batch: layout.loss(twin(*batch)))
    samples = Samples(48, lambda numbers: (x[list(numbers)], y[list(numbers)]))
    verdict = measure(subject, model.train(), samples, Hints(of_batches=True))
    assert verdict.reading == reading
    assert all(module.training for module in model.modules())


def test_a_loss_that_only_ignores_later_on_is_read_through_a_step_function() -> None:
    g = Generator().manual_seed(0)
    x, y = normal(g, 48, 4), whole(g, 3, 48)
    subject = Subject(parts=lambda batch: batch, value=lambda twin, batch: F.cross_entropy(twin(batch[0]), batch[1]))
    samples = Samples(48, lambda numbers: (x[list(numbers)], y[list(numbers)]))
    assert measure(subject, nn.Linear(4, 3), samples, Hints(of_batches=True)).reading == Reading("kept", (1,))


def test_too_few_samples_tell_nothing() -> None:
    data = CASES["MSELoss"].draw(Generator().manual_seed(0), 2, False)
    samples = Samples(2, lambda numbers: take(data, numbers, 2))
    subject = Subject(parts=lambda batch: batch[1], outputs=lambda model, batch: batch[0], function=nn.MSELoss())
    verdict = measure(subject, Same(), samples, Hints())
    assert (verdict.reading, verdict.reason) == (None, "failed")


# ---------------------------------------------------------------------- a reading, and the audit


def test_a_reading_is_kept_in_a_manifest() -> None:
    verdict = verdict_of(CASES["shifted, -100"].loss, CASES["shifted, -100"].draw)
    assert verdict.reading is not None
    assert Reading.of_manifest(verdict.reading.manifest()) == verdict.reading
    assert str(verdict.reading) == (
        "a mean over the targets that are not -100, the first of each row left out (measured)"
    )


def test_an_audit_finds_what_does_not_hold_any_more() -> None:
    g = Generator().manual_seed(0)
    outputs, targets, mask = normal(g, 8, 4), normal(g, 8, 4), (torch.arange(4) < whole(g, 4, 8, 1) + 1).float()
    loss = lambda o, y, m: ((o - y) ** 2 * m).sum() / m.sum()  # noqa: E731
    assert still_holds(loss, Reading("mask", (1,)), (outputs,), (targets, mask), 8) is None
    assert (still_holds(loss, Reading("samples"), (outputs,), (targets, mask), 8) or 0) > 1e-3
    column = still_holds(nn.MSELoss(), Reading("elements"), (outputs[:, :1],), (targets[:, 0],), 8)
    assert column is not None
    assert still_holds(nn.MSELoss(), Reading("elements"), (outputs,), (targets,), 8) is None


def test_an_audit_cuts_rows_lists_and_later_dimensions() -> None:
    g = Generator().manual_seed(0)
    tokens, classes = normal(g, 4, 8, 5), whole(g, 5, 4, 8)  # [T, N, C] and [T, N]

    def flat(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(o.reshape(-1, 5), y.reshape(-1))

    def weighted(o: Tensor, y: Tensor) -> Tensor:
        return flat(o, y) * (1 + o.shape[1])

    assert still_holds(flat, Reading("elements"), (tokens,), (classes,), 8) is None
    assert still_holds(weighted, Reading("elements"), (tokens,), (classes,), 8) is not None
    rows = (normal(g, 30, 5),), (whole(g, 5, 30),)  # of 8 graphs
    assert still_holds(F.cross_entropy, Reading("rows"), *rows, 8) is None
    assert still_holds(lambda o, y: F.cross_entropy(o, y, reduction="sum"), Reading("rows"), *rows, 8) is not None
    boxes = [normal(g, 1 + n % 3, 5) for n in range(8)]
    of_lists = lambda o, ts: torch.stack([(o[n] - t).abs().mean() for n, t in enumerate(ts)]).mean()  # noqa: E731
    assert still_holds(of_lists, Reading("samples"), (normal(g, 8, 5),), (boxes,), 8) is None
    assert still_holds(of_lists, Reading("sum"), (normal(g, 8, 5),), (boxes,), 8) is not None


def test_a_refusal_names_the_nearest_reading() -> None:
    verdict = verdict_of(CASES["masked mean + 0.0015"].loss, CASES["masked mean + 0.0015"].draw)
    assert verdict.reading == Reading("batch")
    assert verdict.reading.why.startswith("nearest: a mean over what mask [1] lets through, off by ")


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "the entries of the batch that are not -100"), ("labels", "the entries of labels that are not -100")],
)
def test_a_batch_that_is_one_tensor_has_a_name_too(name: str, words: str) -> None:
    assert Reading("kept", name=name, ignored=-100).words == f"a mean over {words}"


def test_a_piece_of_which_nothing_counts_ends_the_run_where_it_has_a_part() -> None:
    """As a survival's, by its events: without one it is infinite, and what it would add to the whole is lost."""

    def draw(g: Generator, size: int, later: bool) -> Batch:
        return (normal(g, size, 1),), (normal(g, size).abs(), (torch.arange(size) % 3 > 0).double())

    def survival(o: Tensor, time: Tensor, event: Tensor) -> Tensor:
        return (o[:, 0].exp() * time - event * o[:, 0]).sum() / event.sum()

    def of_events(o: Tensor, time: Tensor, event: Tensor) -> Tensor:
        return ((o[:, 0] - time).square() * event).sum() / event.sum()

    needs = verdict_of(survival, draw).reading
    plain = verdict_of(of_events, draw).reading
    assert needs is not None
    assert needs.needs
    assert plain is not None
    assert not plain.needs
    assert Reading.of_manifest(needs.manifest()).needs
    objective = Objective([Term("", survival, 1.0, None, needs)], BatchLayout(schema.Batch(targets=[1, 2])))
    objective.settle()
    batch = torch.ones(2, 1), torch.ones(2), torch.zeros(2)
    with pytest.raises(LauncherError, match=r"of 2 samples that a process takes at once nothing counts"):
        objective.counts(batch, 2)
    assert objective.counts(batch, 0) == [0.0]  # a stand-in
