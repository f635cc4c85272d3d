"""A case: the parts that somebody brings, the recipe that names them, and the loop that their author writes by hand.

The recipe is written from the parts, the loop calls them: nothing of this program decides what the loop computes. Only
which samples a step reads, and with which seeds, is taken from where the documentation says it.
"""

from __future__ import annotations

import copy
import functools
import itertools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from nets import Lin
from sets import Reg
from torch import Tensor, nn
from torch.utils.data import default_collate

from launcher.data.sampler import StepSampler
from launcher.data.seeds import seed_generators
from launcher.objective.run_length import At

STEPS, BATCH, EVERY = 6, 8, 2  # of a run; an evaluation comes every so many steps
Forward = Callable[[nn.Module, Any, Any], Tensor]  # of model, batch and loss


def of_pair(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    """The loss of what nearly everybody writes: `(input, target)`."""
    value: Tensor = loss(model(batch[0]), batch[1])
    return value


def sgd(params: Any) -> torch.optim.Optimizer:
    """What a case has that is about something else."""
    return torch.optim.SGD(params, lr=0.1)


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: In words.
        recipe: Overrides of `brought.yaml`, beside those that follow from the parts.
        model: Makes the module.
        data: Makes the data set.
        validation: Makes the one that is evaluated; None for the same again.
        loss: A class or a function, or `partial` of one; None where the model or a step function brings it.
        optimizer: Makes the optimizer of parameters; None for SGD with 0.1.
        scheduler: Makes the schedule of an optimizer.
        collate: Makes a batch.
        forward: The loss of a batch, as the author means it.
        score: The same, in an evaluation of the whole set.
        clip: The largest norm of all gradients.
        after: Is called after each step.
        shuffled: Whether epochs are mixed.
        worlds: The numbers of processes that it is trained with.
        pieces: Whether a step may be cut in micro-batches: what is said of the whole batch may not.
        exact: How far off it may be; what is kept in 32 bits is not exact to 1e-9 in another order of summation.
        refused: For so many processes, `check` must refuse it, as `refused.txt` says; 0 for none.
        allow: Packages that the recipe names.
        steps: How many it is trained for.
        adapted: Whether the recipe adapts the model: then what is frozen of it is not saved.
        heavy: Whether its package takes seconds to import: in the plain tier it is trained with two processes alone.
    """

    name: str
    recipe: tuple[str, ...] = ()
    model: Any = Lin
    data: Any = Reg
    validation: Any = None
    loss: Any = nn.MSELoss
    optimizer: Any = None
    scheduler: Any = None
    collate: Any = None
    forward: Forward = of_pair
    score: Forward | None = None
    clip: float | None = None
    after: Any = None
    shuffled: bool = False
    worlds: tuple[int, ...] = (1, 2, 3)
    pieces: bool = True
    exact: float = 1e-9
    refused: int = 0
    allow: tuple[str, ...] = ()
    steps: int = STEPS
    adapted: bool = False
    heavy: bool = False

    @property
    def overrides(self) -> list[str]:
        """The recipe, as far as it differs from `brought.yaml`."""
        parts = {"model": self.model, "data.train": self.data, "loss": self.loss, "optimizer": self.optimizer}
        parts |= {"scheduler": self.scheduler, "data.collate": self.collate, "train.after_step": self.after}
        said = {override.partition("=")[0] for override in self.recipe}
        said |= {"loss"} if "train.step" in said else set()
        named = [f"{key}={written(part)}" for key, part in parts.items() if part is not None and key not in said]
        clip = [f"train.clip_grad_norm={self.clip}"] if self.clip else []
        steps = [f"train.steps={self.steps}"] if self.steps != STEPS else []
        return [*named, *clip, *steps, *(["data.shuffle=true"] if self.shuffled else []), *self.recipe]

    @property
    def removed(self) -> tuple[str, ...]:
        """What of `brought.yaml` it has not."""
        return ("loss",) if any(one.startswith(("train.step=", "loss={a: ")) for one in self.recipe) else ()


def written(part: Any) -> str:
    """A part as a recipe names it: `{_target_: nets.py:Lin, outputs: 3}`."""
    if isinstance(part, Tensor):
        return f"{{_target_: torch.tensor, _args_: [{part.tolist()}], dtype: {{_ref_: {part.dtype}}}}}"
    if isinstance(part, torch.dtype):
        return f"{{_ref_: {part}}}"
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{key}: {written(value)}" for key, value in part.items()) + "}"
    if isinstance(part, list | tuple):
        return f"[{', '.join(map(written, part))}]"
    if part is None or isinstance(part, bool):
        return {None: "null", True: "true", False: "false"}[part]
    if not callable(part):
        return repr(part)
    return _named(part)


def _named(part: Any) -> str:
    function, keywords = (part.func, part.keywords) if isinstance(part, functools.partial) else (part, {})
    module, name = function.__module__, function.__qualname__
    target = f"{module}.py:{name}" if module in OWN else f"{_HOMES.get(module, module)}.{name}"
    settings = "".join(f", {key}: {written(value)}" for key, value in keywords.items())
    if isinstance(function, type) or not _is_handed_on(function):
        return f'{{_target_: "{target}"{settings}}}'
    return f'{{_target_: "{target}", _partial_: true{settings}}}' if settings else f'{{_ref_: "{target}"}}'


OWN = (
    "sets",
    "nets",
    "layers",
    "losses",
    "optimizers",
    "steps",
    "packaged",
    "pictured",
    "rarer",
    "keeping",
    "everyday",
    "published",
)  # files of people's own
_HOMES = {"torch._C._nn": "torch.nn.functional"}


def _is_handed_on(function: Any) -> bool:
    """Whether the function itself is meant, and not what it makes."""
    makes = getattr(function, "makes", False)
    return isinstance(function, types.FunctionType | types.BuiltinFunctionType) and not makes


# ---------------------------------------------------------------------- the loop by hand


@dataclass
class Told:
    """What a loop gave.

    Attributes:
        losses: Of each step.
        scores: The loss of each evaluation.
        weights: Of the module, as it is evaluated.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)


class Loop:
    """One process, whole batches: forward, loss, backward, step.

    Args:
        case: What it trains.
        evaluates: Whether it evaluates every two steps.
    """

    def __init__(self, case: Case, *, evaluates: bool):
        self.case, self.evaluates = case, evaluates
        self.data, self.model = case.data(), case.model()
        self.loss = _made(case.loss)
        self.collate = case.collate or default_collate
        own = [*self.loss.parameters()] if isinstance(self.loss, nn.Module) else []
        trained = [parameter for parameter in (*self.model.parameters(), *own) if parameter.requires_grad]
        self.optimizer = (case.optimizer or sgd)(trained)
        self.scheduler = case.scheduler(self.optimizer) if case.scheduler else None
        self.told = Told()

    def train(self) -> Told:
        """All steps."""
        self._switch("train")
        for step, (epoch, indices) in enumerate(self._order()):
            batch = self.batch(epoch, indices)
            seed_generators(0, step, 0)  # as it is documented
            value = self.case.forward(self.model, batch, self.loss)
            self.optimizer.zero_grad()
            value.backward()
            if self.case.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.case.clip)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            if self.case.after is not None:
                with torch.no_grad():
                    self.case.after(self.model, At(step))
            self.told.losses.append(value.item())
            if self.evaluates and (step + 1) % EVERY == 0:
                self.told.scores.append(self.score())
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()
        frozen = {name for name, value in self.model.named_parameters() if not value.requires_grad}
        left_out = frozen if self.case.adapted else set()
        kept = ((name, value) for name, value in _tensors(self.model) if name not in left_out)
        self.told.weights = {name: value.detach().clone() for name, value in kept}
        return self.told

    def batch(self, epoch: int, indices: Sequence[int]) -> Any:
        """Samples read one by one, each with seeds of its own, and collated."""
        samples = []
        for told in (self.data, self.collate):
            if hasattr(told, "set_epoch"):
                told.set_epoch(epoch)
        for index in indices:
            seed_generators(0, epoch, index, 0)
            samples.append(self.data[index])
        seed_generators(0, epoch, indices[0], 1)
        return self.collate(samples)

    def score(self) -> float:
        """The loss of the whole set: of the weights that `eval()` makes, and nothing is left behind but these."""
        self._switch("eval")
        modules = [part for part in (self.model, self.loss) if hasattr(part, "state_dict")]
        kept = [copy.deepcopy(module.state_dict()) for module in modules]
        batch = self.batch(0, range(len(self.data)))  # a validation set of its own has the same samples
        seed_generators(0, 6, 0)  # an evaluation's own
        with torch.no_grad():
            value = (self.case.score or self.case.forward)(self.model, batch, self.loss)
        for module, state in zip(modules, kept, strict=True):
            module.load_state_dict(state)
        self._switch("train")
        return value.item()

    def _order(self) -> Iterable[tuple[int, list[int]]]:
        sampler = StepSampler(self.data, global_batch_size=BATCH, shuffle=self.case.shuffled)
        for step in range(self.case.steps):
            yield step // sampler.steps_per_epoch, sampler.shares(step)[0].indices.tolist()

    def _switch(self, mode: str) -> None:
        for part in (self.model, self.loss, self.optimizer):
            if hasattr(part, "train") and hasattr(part, "eval"):
                getattr(part, mode)()


def _made(loss: Any) -> Any:
    """A class is called, a function is handed on."""
    function = loss.func if isinstance(loss, functools.partial) else loss
    is_maker = isinstance(function, type) or getattr(function, "makes", False)
    return loss() if is_maker else loss


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return ((name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor))


# ---------------------------------------------------------------------- the table

CASES: dict[str, Case] = {}


def case(name: str, *recipe: str, **parts: Any) -> None:
    """Adds a line to the table."""
    assert name not in CASES, name
    CASES[name] = Case(name, recipe, **parts)


def number_of(name: str) -> int:
    """The line's number, by which the plain tier spreads what a case meets."""
    return next(number for number, other in zip(itertools.count(), CASES, strict=False) if other == name)
