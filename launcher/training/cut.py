"""What a run depends on beside its recipe: how a step is cut into micro-batches, and what no checkpoint keeps.

Found by calling model and loss in train mode on a few samples, together and in two parts, and again on the same ones.
Nothing of it is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.checkpoints.format import copied
from launcher.checkpoints.weights import shapes_of
from launcher.data.parts import changed
from launcher.data.repeatable import differs_again, kept_draws
from launcher.data.transfer import moved
from launcher.errors import UsageError
from launcher.evaluation.modes import own_randomness
from launcher.evaluation.unmoved import Unmoved
from launcher.internals import batch_norms, dropouts
from launcher.objective.calls import is_large
from launcher.objective.loss import Objective
from launcher.objective.reading import Reading
from launcher.objective.run_length import At
from launcher.text import words_of
from launcher.training.batch_norm import takes_means
from launcher.training.beside import beside_states, changed_names, held_beside, is_known_code, listed
from launcher.training.kept_beside import Keeper
from launcher.training.loose_buffers import loose_in, print_of
from launcher.training.state import TrainState
from launcher.world.screen import unseen

_CUT = "another micro-batch size or number of processes gives other numbers"
_SAMPLES = 6
_MOST_WEIGHTS = 2**31  # bytes of parameters that are copied: gradients and an optimizer's state will take more
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3}  # of the largest value; half precision is as coarse as 0.05


@dataclass(frozen=True)
class Dependence:
    """What moves, or mixes, where nobody may expect it.

    Attributes:
        unsteady: In words, that samples are others when they are read again.
        unkept: What a forward changes each time, and no checkpoint keeps.
        moving: What a forward changes each time, in a checkpoint.
        loose: Those of them that are in no `state_dict`: a resume has them, and whoever is given the weights has not.
        mixes: How far what a model gives for samples together is from what it gives for them in parts; 0 for not.
        norms: Whether it has a BatchNorm of torch's.
        draws: Whether a forward in train mode is random, by a dropout or otherwise.
        grown: The model's state, where buffers have come or grown in it.
        fault: Why model and loss could not be called for it.
        noted: What is in no checkpoint and is changed by a forward, if only as a note of the last one; None where
            nobody has looked.
    """

    unsteady: str = ""
    unkept: Sequence[str] = ()
    moving: Sequence[str] = ()
    loose: Sequence[str] = ()
    mixes: float = 0.0
    norms: bool = False
    draws: bool = False
    grown: Mapping[str, Any] | None = None
    fault: str = ""
    noted: frozenset[str] | None = None

    def notes(self, objective: Objective, *, synchronised: bool, is_open: bool = False) -> Iterator[str]:
        """What the plan says of it.

        Args:
            objective: Knows whether a step is one forward pass on one process, which nothing cuts.
            synchronised: Whether batch norms take their means over all processes.
            is_open: Whether memory decides how a step is cut.
        """
        if self.unsteady:
            yield self.unsteady
        if self.unkept:
            yield (
                f"{listed(self.unkept)}: each forward changes it, and no checkpoint keeps it: where a number depends "
                "on it, a resume or another micro-batch size gives others; make it a buffer, or give it by "
                "get_extra_state or state_dict"
            )
        if self.loose:
            yield (
                f"{listed(self.loose)}: each forward changes it, and no state_dict has it: checkpoints keep it for a "
                "resume, and model_weights.pth is without it; make it a persistent buffer, or give it by "
                "get_extra_state"
            )
        if objective.is_whole and not is_open:
            return
        if self.draws:
            yield f"a step draws random numbers for each micro-batch, as in dropout: {_CUT}"
        if self.norms and not synchronised:
            yield f"model: BatchNorm takes the mean of each micro-batch of a process: {_CUT}"
        if self.mixes:
            yield (
                "model, loss: in train mode a sample's part depends on the others of its micro-batch, as under "
                f"BatchNorm or mixing (two parts put together are {self.mixes:.1g} off): {_CUT}"
            )
        if self.moving:
            yield f"{listed(self.moving)}: moves with each micro-batch of a process: {_CUT}"


def dependence_of(state: TrainState) -> Dependence:
    """What is found; nothing where the model cannot be called like that: the first step says why.

    Raises:
        UsageError: A call of the model leaves gradients in its parameters.
    """
    model, objective, train = state.model.bare, state.objective, state.data.train
    norms = takes_means(model)
    drops = any(isinstance(module, dropouts()) and getattr(module, "p", 0) > 0 for module in model.modules())
    is_cut = state.retry is not None or not objective.is_whole
    unsteady = differs_again(train) or kept_draws(train)
    if (not is_cut and _is_known(model, objective)) or train.num_readable() < 4:  # for which a stream is read
        return Dependence(unsteady, norms=norms, draws=drops)
    device = state.device.torch_device
    numbers = range(min(_SAMPLES, train.num_readable()))
    try:
        with _tried(state):
            batches = [moved(train.batch_of(part), device) for part in (numbers, numbers[:2], numbers[2:])]
            tried = _Tried(state)
            unkept, moving, grown, noted = tried.movements(batches[0], state.shapes)
            sizes = [len(numbers), 2, len(numbers) - 2]
            mixes = tried.mixing(batches, sizes) if is_cut and not unsteady else 0.0
    except Exception as error:  # somebody's code, called otherwise than in a step
        words = " ".join(words_of(error).split())[:120]
        return Dependence(unsteady, norms=norms, draws=drops, fault=f"{type(error).__name__}: {words}")
    _check_gradients(state)
    loose = [name for name in moving if name in tried.loose and name.startswith("model.")]
    return Dependence(unsteady, unkept, moving, loose, mixes, norms, drops or tried.draws, grown, "", noted)


def _check_gradients(state: TrainState) -> None:
    """Refuses a model or a step function that leaves gradients of its own, or clears those of other micro-batches.

    Raises:
        UsageError: It does.
    """
    own, is_step = state.objective.own_gradients, state.objective.step is not None
    if own.are_left:
        raise UsageError(
            f"{'train.step' if is_step else 'model'}: calls backward() when it is called, which leaves gradients in "
            f"{'the' if is_step else 'its'} parameters: those of the step would be added to them; take them by "
            "torch.autograd.grad" + (", or call model.zero_grad() after it" if is_step else "")
        )
    if own.are_cleared and (state.retry is not None or len(state.data.train.sampler.shares(0)) > 1):
        raise UsageError(
            "train.step: calls zero_grad() itself, which forgets the gradients of the micro-batches before; take those "
            "that it wants by torch.autograd.grad, or remove data.micro_batch_size"
        )


@contextmanager
def as_it_was(state: TrainState) -> Iterator[None]:
    """What copies share (classes, globals), or what is too large to be copied and is called itself, is as it was."""
    model, objective = state.model.bare, state.objective
    if _is_known(model, objective) and not is_large(model):
        yield
        return
    unmoved = Unmoved.of_run(model, objective)
    try:
        yield
    finally:
        unmoved.put_back()


def _is_known(model: nn.Module, objective: Objective) -> bool:
    """Whether all code is torch's and ours."""
    return all(is_known_code(part) for part in (*model.modules(), *objective.brought.values()))


def _keeps_weights(state: TrainState) -> bool:
    """Whether weights are put back that a forward may move, as one that has a teacher follow: unless they are many."""
    model, objective = state.model.bare, state.objective
    is_small = sum(parameter.nbytes for parameter in model.parameters()) <= _MOST_WEIGHTS
    return objective.moves_weights or (is_small and state.shards is None)


@contextmanager
def _tried(state: TrainState) -> Iterator[None]:
    """Train mode without what is random or of the whole batch by its nature; all is as it was afterwards."""
    model, objective = state.model.bare, state.objective
    roots = [model, *(part for part in objective.brought.values() if isinstance(part, nn.Module))]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    unmoved = Unmoved.of_run(model, objective, weights=_keeps_weights(state))
    apart = (*dropouts(), *batch_norms())
    try:
        with own_randomness(0, 0, state.device.torch_device), unseen():
            for module, _ in modes:
                module.training = not isinstance(module, apart)
            yield
    finally:
        unmoved.put_back()
        state.update.clear_gradients()  # a step function may call backward itself
        for module, training in modes:
            module.training = training


class _Tried:
    """Calls model and loss, and looks at what has moved.

    Args:
        state: Has them.

    Attributes:
        draws: Whether they were found to be random.
        loose: Names of what no `state_dict` has, and checkpoints keep all the same.
    """

    def __init__(self, state: TrainState):
        self.model, self.objective, self._device = state.model.bare, state.objective, state.device.torch_device
        self._change = state.data.train.reading.on_device
        self._keeps_weights = _keeps_weights(state)
        self.draws = False
        self._roots: Mapping[str, Any] = {"model": self.model, **self.objective.brought}
        self._states = {key: root.state_dict() for key, root in self._roots.items() if isinstance(root, nn.Module)}
        self._states["model"] = state.model.state_dict()
        names = () if state.shards is not None else loose_in(self.model, self._states["model"])
        self.loose = {f"model.{name}" for name in names}
        self._keeps_beside = state.shards is None

    def values(self, batch: Any, seed: int = 0) -> list[float]:
        """The value of each loss, from the state that it is in, which is put back."""
        back = Unmoved.of_run(self.model, self.objective)
        try:
            return self._called(batch, seed)
        finally:
            back.put_back()

    def _called(self, batch: Any, seed: int = 0) -> list[float]:
        with own_randomness(seed, 0, self._device):
            return self._called_so(batch)

    def _called_so(self, batch: Any) -> list[float]:
        objective, layout = self.objective, self.objective.layout
        batch = changed(batch, torch.clone)  # which somebody's code may change in place
        if self._change is not None:
            batch = self._change(batch)

        def values() -> list[torch.Tensor]:
            if objective.step is not None:
                return objective.evaluated_step(self.model, batch, At())[0]
            args, kwargs = layout.inputs(batch)
            result = self.model(*args, **kwargs)
            if not objective.terms:
                return [layout.loss(result)]
            return objective.values(result, batch)

        return [float(value) for value in objective.own_gradients.call(self.model, values)]

    def movements(
        self, batch: Any, shapes: Mapping[str, Any]
    ) -> tuple[list[str], list[str], Mapping[str, Any] | None, frozenset[str]]:
        """What equal calls change: what no checkpoint keeps, what one does, a state that has grown, and notes.

        What no checkpoint keeps must be changed by the second call too: else it is a mere note of the last one.
        """
        back = Unmoved.of_run(self.model, self.objective, weights=self._keeps_weights)
        before, given, at_first = self._kept(), self._given(), self._attributes()
        try:
            self._called(batch)
            attributes = self._attributes()
            self._called(batch)
            beside = changed_names(attributes, self._attributes())
            held = held_beside(self._roots) if self._keeps_beside else {}
            keeper = Keeper(self._roots)
            self.loose |= {name for name in beside if name in held and keeper.kept_of(held[name].value) is not None}
            unkept = [name for name in beside if name not in self.loose]
            moving = [name for name in beside if name in self.loose] + changed_names(before, self._kept())
            moving += changed_names(given, self._given())
            if others := {id(parameter) for parameter in back.moved_weights()}:
                self.objective.keep_weights(moved=True)
                moving += [f"model.{name}" for name, one in self.model.named_parameters() if id(one) in others]
            weights = self.model.state_dict()
            grown = copied(weights) if shapes_of(weights) != shapes else None
        finally:
            back.put_back()
        return unkept, moving, grown, frozenset((*beside, *changed_names(at_first, attributes)))

    def _attributes(self) -> dict[str, Any]:
        lost = {name: value for name, value, is_kept in self._buffers() if not is_kept}
        return lost | beside_states(self._roots)

    def _kept(self) -> dict[str, Any]:
        return {name: value for name, value, is_kept in self._buffers() if is_kept}

    def _given(self) -> dict[str, Any]:
        """What losses and a step that are no modules give by their `state_dict`: a hidden state, a queue."""
        owners = {key: one for key, one in self.objective.stateful.items() if not isinstance(one, nn.Module)}
        states = {key: one.state_dict() for key, one in owners.items()}
        mappings = {key: state for key, state in states.items() if isinstance(state, Mapping)}
        return {f"{key}.{name}": _prints(value) for key, state in mappings.items() for name, value in state.items()}

    def _buffers(self) -> Iterator[tuple[str, Any, bool]]:
        """Each buffer's name, value, and whether a checkpoint has it; a BatchNorm's are known to move."""
        for key, state in self._states.items():
            root = self._roots[key]
            for name, buffer in root.named_buffers():
                is_kept = name in state or f"{key}.{name}" in self.loose
                is_norms = isinstance(root.get_submodule(name.rpartition(".")[0]), batch_norms())
                if not (is_kept and name in state and is_norms):
                    yield f"{key}.{name}", print_of(buffer), is_kept

    def mixing(self, batches: Sequence[Any], samples: Sequence[int]) -> float:
        """How far two parts put together are from the whole, of the largest value; 0 where that is rounding."""
        whole, *parts = (self.values(batch) for batch in batches)
        if whole != self.values(batches[0], seed=1):
            self.draws = True
            return 0.0  # random in itself: a step shows no more
        objective = self.objective
        terms = [(term.reading, term.sums) for term in objective.terms] or [(objective.own, False)]
        counts = [objective.counted(batch, size) for batch, size in zip(batches, samples, strict=True)]
        off = [
            _off(reading, sums, [values[number] for values in (whole, *parts)], [count[number] for count in counts])
            for number, (reading, sums) in enumerate(terms)
        ]
        dtype = next((parameter.dtype for parameter in self.model.parameters()), torch.float32)
        return max(off, default=0.0) if max(off, default=0.0) > _ROUNDING.get(dtype, 0.05) else 0.0


def _prints(value: Any) -> Any:
    """A print of all that stands in a state."""
    if isinstance(value, Mapping):
        return [(key, _prints(part)) for key, part in value.items()]
    return list(map(_prints, value)) if isinstance(value, list | tuple) else print_of(value)


def _off(reading: Reading | None, sums: bool, values: Sequence[float], counts: Sequence[float]) -> float:
    if reading is None or reading.kind == "batch" or reading.found in ("trusted", "stated"):
        return 0.0
    whole, first, second = values
    counts = [reading.weight(count) for count in counts]
    scale = max(map(abs, values)) or 1.0
    if sums or reading.kind == "sum":
        together = first + second
    elif not counts[0] or not (counts[1] and counts[2]):
        return 0.0
    else:
        together = (first * counts[1] + second * counts[2]) / counts[0]
    off = abs(whole - together) / scale
    return off if np.isfinite(off) else 0.0
