"""What no state_dict has comes back with a checkpoint, wherever Python lets somebody keep it."""

from __future__ import annotations

import io
import itertools
from array import array
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from launcher.checkpoints.format import Snapshot
from launcher.checkpoints.plain import restored, unwrapped
from launcher.checkpoints.saving import UnresumableError
from launcher.checkpoints.weights import shapes_of
from launcher.evaluation.unmoved import Unmoved
from launcher.objective.reading import tensors_in
from launcher.training.beside import beside_states, changed_names
from launcher.training.kept_beside import Keeper, KeptBeside
from launcher.training.optimizer_state import named_optimizer, parameter_names
from launcher.training.proof import Proof
from recipes import beside

HOST = torch.device("cpu")
KINDS = ("InClass", "InModule", "InClosure", "InDefault", "InObject", "InDeque", "InMapping", "InList", "InGenerator")


def through_a_file(state: Any) -> Any:
    """As a checkpoint gives it."""
    file = io.BytesIO()
    torch.save(unwrapped(state), file)
    file.seek(0)
    return restored(torch.load(file, weights_only=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_continues_where_it_was(kind: str) -> None:
    model, x = getattr(beside, kind)(), torch.ones(2, 4, dtype=torch.float64)
    kept, fresh = KeptBeside({"model": model}, HOST), Unmoved(model)
    assert not kept.state_dict()
    for _ in range(3):
        model(x)
    state = through_a_file(kept.state_dict())
    expected = model(x)
    fresh.put_back()
    assert not torch.equal(model(x), expected)
    fresh.put_back()
    kept.load_state_dict(state)
    assert torch.equal(model(x), expected)


class Phase(Enum):
    """Of which there is one of each."""

    FIRST = 1
    SECOND = 2


class Ways(Flag):
    """Which may be put together."""

    BY = 1
    ON = 2


class Priority(IntEnum):
    """A number too."""

    LOW = 1
    HIGH = 2


class Seconds(float):
    """A number of somebody's own."""


class Meter:
    """An object of somebody's own."""

    def __init__(self) -> None:
        self.count, self.held = 0, object()


@dataclass(slots=True)
class Slotted:
    """An object without a `__dict__`."""

    count: int = 0
    _own: float = 0.0


class Linked:
    """Knows who has it."""

    def __init__(self, above: Any = None) -> None:
        self.count, self.above = 0, above
        self.below = Linked(self) if above is None else None


class Holding(nn.Module):
    """Has a value."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.ones(2))


Pair = namedtuple("Pair", ["a", "b"])
VALUES: list[tuple[Any, Any]] = [
    (0, 3),
    (None, 0.5),
    ("a", "b"),
    (np.float32(1), np.float32(2)),
    (None, torch.ones(2)),
    (torch.zeros(2), torch.ones(3)),
    (np.zeros(2), np.ones(2)),
    ([1], [1, 2]),
    ((1, 2), (2, 3)),
    ({1}, {2, 3}),
    ({}, {"a": [1, {"b": (2, torch.ones(1))}], 3: None}),
    (defaultdict(int), {"a": 1}),
    (Counter("a"), {"b": 2}),
    (OrderedDict(), {"a": 1}),
    (Phase.FIRST, Phase.SECOND),
    (Ways.BY, Ways.BY | Ways.ON),
    (Priority.LOW, Priority.HIGH),
    (Pair(0, [1]), Pair(torch.ones(1), [1, 2])),
    (Seconds(0), Seconds(3)),
    (frozenset((1,)), frozenset(((1, 2), Phase.FIRST))),
    (timedelta(0), timedelta(1)),
    (Decimal(0), Decimal("0.1")),
    (Fraction(0), Fraction(1, 3)),
    (bytearray(b"a"), bytearray(b"bc")),
    (array("d", [0]), array("d", [1, 2])),
    (range(3), range(2, 5)),
    (torch.float32, torch.bfloat16),
    (torch.Size((1,)), torch.Size((2, 3))),
    ({}, {(1, "a"): 2, Phase.FIRST: 3}),
    ({1}, {(1, 2), Phase.FIRST}),
    (np.array([None, 1]), np.array([[0.5], "a"], dtype=object)),
    (np.zeros(1, [("a", "i8")]), np.ones(2, [("a", "i8")])),
    (np.array(["2020-01-01"], "M8[D]"), np.array(["2021-01-01"], "M8[D]")),
    (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()),
    (torch.zeros(2**23), torch.ones(2**23)),
    ([0] * 5_000, [0] * 4_999 + [1]),
    ([[[[[[[0]]]]]]], [[[[[[[1]]]]]]]),
]


@pytest.mark.parametrize(("before", "after"), VALUES)
def test_a_value_comes_back_into_what_has_it(before: Any, after: Any) -> None:
    model = Holding(before)
    kept = KeptBeside({"model": model}, HOST)
    if isinstance(before, dict):
        before.update(after)
    else:
        model.value = after
    now = repr(model.value)
    state = through_a_file(kept.state_dict())
    model.value = type(before)() if isinstance(before, dict) else before
    if isinstance(before, defaultdict):
        model.value = defaultdict(int)
    kept.load_state_dict(state)
    assert repr(model.value) == now


ITERATORS: dict[str, Callable[[], Any]] = {
    "count": lambda: itertools.count(2),
    "cycle": lambda: itertools.cycle([1, 2]),
    "chain": lambda: itertools.chain([1, 2], [3, 4, 5, 6]),
    "of a list": lambda: iter([1, 2, 3, 4, 5]),
    "of a range": lambda: iter(range(9)),
    "enumerated": lambda: enumerate("abcdef"),
}


@pytest.mark.parametrize("kind", ITERATORS)
def test_an_iterator_goes_back_and_comes_back(kind: str) -> None:
    model = Holding([ITERATORS[kind]()])
    kept, before = KeptBeside({"model": model}, HOST), Unmoved(model)
    first, second = next(model.value[0]), next(model.value[0])
    state, third = through_a_file(kept.state_dict()), next(model.value[0])
    before.put_back()
    assert [next(model.value[0]) for _ in range(3)] == [first, second, third]
    model.value = [ITERATORS[kind]()]
    kept.load_state_dict(state)
    assert next(model.value[0]) == third


@pytest.mark.parametrize("kind", [Slotted, Linked, SimpleNamespace])
def test_what_an_object_has_goes_back_and_comes_back(kind: Any) -> None:
    model = Holding(kind(count=0) if kind is SimpleNamespace else kind())
    value = model.value
    kept, before = KeptBeside({"model": model}, HOST), Unmoved(model)
    value.count = 3
    state = through_a_file(kept.state_dict())
    before.put_back()
    assert value.count == 0
    kept.load_state_dict(state)
    assert (model.value, value.count) == (value, 3)


def test_attributes_of_a_parameter_go_back_and_come_back() -> None:
    model: Any = Holding(0)
    kept, before = KeptBeside({"model": model}, HOST), Unmoved(model)
    model.weight.moment = torch.ones(2)
    state = through_a_file(kept.state_dict())
    before.put_back()
    assert not hasattr(model.weight, "moment")
    kept.load_state_dict(state)
    assert torch.equal(model.weight.moment, torch.ones(2))


def test_what_nobody_can_keep_is_named_while_it_moves() -> None:
    model = Holding(number for number in range(9))
    before = beside_states({"model": model})
    next(model.value)
    assert changed_names(before, beside_states({"model": model})) == ["model.value"]
    assert Keeper({}).kept_of(model.value) is None


def test_a_parameter_in_the_place_of_one_that_is_trained_ends_the_run() -> None:
    model: Any = nn.Linear(2, 1)
    named = named_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), parameter_names(model, {}))
    proof = Proof(named, shapes_of(model.state_dict()), lambda: model, partial(parameter_names, model, {}))
    snapshot = Snapshot(model.state_dict(), {}, {}, None)
    proof.again(snapshot)
    model.weight = nn.Parameter(torch.ones(1, 2))
    with pytest.raises(UnresumableError, match="'weight' is no longer the parameter that the optimizer trains"):
        proof.again(snapshot)


def test_nothing_is_made_but_values() -> None:
    model = Holding(0)
    kept = KeptBeside({"model": model}, HOST)
    for maker in ("os.system", "builtins.eval", f"{Meter.__module__}.Meter", "no.such"):
        kept.load_state_dict({"model.value": {"value": {"kind": "made", "class": maker, "of": ["1"], "place": None}}})
        assert (model.value, kept.lost) == (0, ["model.value"])
    endless = {"kind": "made", "class": "itertools.count", "of": [0], "place": None}
    for maker, of in (
        ("builtins.frozenset", endless),
        ("builtins.bytearray", 2**60),
        (f"{Phase.__module__}.Phase", "GONE"),
    ):
        made = {"kind": "made", "class": maker, "of": [of], "place": None}
        for value in (made, {"kind": "dict", "class": "builtins.dict", "of": [[made, 1]]}):
            kept.load_state_dict({"model.value": {"value": value}})
            assert (model.value, kept.lost) == (0, ["model.value"])


def test_what_is_shared_stays_shared() -> None:
    model = Holding([0])
    other: Any = model.value
    kept = KeptBeside({"model": model}, HOST)
    model.value.append(1)
    state = through_a_file(kept.state_dict())
    model.value.pop()
    kept.load_state_dict(state)
    assert other == [0, 1]
    assert model.value is other


def test_an_attribute_that_a_step_has_made_comes_back() -> None:
    model: Any = Holding(1)
    kept = KeptBeside({"model": model}, HOST)
    model.late = 2
    state = through_a_file(kept.state_dict())
    del model.late
    kept.load_state_dict(state)
    assert model.late == 2


def test_settings_of_torch_s_modules_come_back() -> None:
    model: Any = nn.Sequential(nn.Dropout(0.1), nn.BatchNorm1d(2, momentum=None))
    kept = KeptBeside({"model": model}, HOST)
    model[0].p, model[1].momentum = 0.5, 0.01
    state = through_a_file(kept.state_dict())
    model[0].p, model[1].momentum = 0.1, None
    kept.load_state_dict(state)
    assert (model[0].p, model[1].momentum) == (0.5, 0.01)


def test_an_object_is_filled_and_stays_what_it_is() -> None:
    model = Holding(Meter())
    meter, held = model.value, model.value.held
    kept = KeptBeside({"model": model}, HOST)
    meter.count = 3
    state = through_a_file(kept.state_dict())
    meter.count = 0
    kept.load_state_dict(state)
    assert (model.value, meter.count, meter.held) == (meter, 3, held)


def test_weights_are_not_kept_twice_and_may_be_keys() -> None:
    model = Holding({})
    kept = KeptBeside({"model": model}, HOST)
    weight = model.weight
    model.value |= {"by it": {weight: 1.0}, "by id": {id(weight): 2.0}, "own": [weight]}
    state = through_a_file(kept.state_dict())
    assert not list(tensors_in(state))
    model.value |= {"by it": {}, "by id": {}}
    kept.load_state_dict(state)
    assert model.value == {"by it": {weight: 1.0}, "by id": {id(weight): 2.0}, "own": [weight]}


@pytest.mark.parametrize(
    "value",
    [{object(): 1}, np.ma.array([1]), torch.ones(1, requires_grad=True) * 2, map(str, [1])],
    ids=["strange keys", "a masked array", "of a graph", "a function of an iterator"],
)
def test_what_cannot_be_made_again_is_not_kept(value: Any) -> None:
    assert Keeper({}).kept_of([value]) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, Meter()), ([], [Meter()]), ({}, {"a": [Meter()]})],
    ids=["an attribute", "in a list", "in a mapping"],
)
def test_what_steps_have_made_of_objects_is_named_where_nothing_is_there(before: Any, after: Any) -> None:
    model = Holding(before)
    kept = KeptBeside({"model": model}, HOST)
    model.value = after
    state = through_a_file(kept.state_dict())
    model.value = before
    kept.load_state_dict(state)
    assert (model.value, kept.lost) == (before, ["model.value"])
    model.value = after
    kept.load_state_dict(state)
    assert (model.value, kept.lost) == (after, [])


@pytest.mark.parametrize("name", ["__class__", "__dict__", "__call__", "a b", ""])
def test_a_checkpoint_makes_no_other_thing_of_an_object(name: str) -> None:
    model = Holding(Meter())
    before, its = dict(vars(model)), dict(vars(model.value))
    empty = {"kind": "dict", "class": "builtins.dict", "of": []}
    inside = {"kind": "inside", "class": f"{Meter.__module__}.Meter", "of": {name: empty}}
    kept = KeptBeside({"model": model}, HOST)
    kept.load_state_dict({f"model.{name}": {"value": empty}, "model.value": {"value": inside}})
    assert kept.lost == [f"model.{name}"]
    assert (vars(model), vars(model.value)) == (before, its)
