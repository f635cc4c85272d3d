"""What evaluation measures besides the loss: torchmetrics, and functions of one's own, over one rank or all."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torchmetrics
from torch import nn
from torchmetrics.text import Perplexity

from launcher.device.kind import Mark, kind_of
from launcher.errors import LauncherError, RecipeError
from launcher.evaluation.chunks import Chunk, is_exact, takes_any_numbers
from launcher.evaluation.generation import Generation, build_generation
from launcher.evaluation.outputs import check_alike, class_dimension, classes, probabilities
from launcher.internals import keep_to_rank, reductions
from launcher.objective.batch import BatchLayout, Evaluated, Picks
from launcher.objective.order import check_order
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.component import Component
from launcher.text import shapes

_BY_ITSELF = ", or write a torchmetrics.Metric, which gets each batch by itself"
Scores = dict[str, Any]  # "loss" and each metric by its name: a number, or a list of them per class


class OverSet(torchmetrics.Metric):
    """A function of one's own over a whole set, gathered in host memory: `function(*outputs, *targets) -> number`.

    Args:
        function: Gets the tensors of all batches, put together along the first dimension.
        parts: How many outputs and targets a batch has.
        names: The arguments that they are passed as; None for those that are passed by their place.
    """

    full_state_update = False
    part_names: Sequence[str]

    def __init__(self, function: Callable[..., Any], parts: int, names: Sequence[str | None] = ()):
        super().__init__()
        self.function = function
        self.argument_names = names
        self.part_names = [f"part{number}" for number in range(parts)]
        self._mark: Mark | None = None  # behind what is on its way
        for name in self.part_names:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, *parts: torch.Tensor) -> None:
        """Keeps a batch."""
        if len(parts) != len(self.part_names):
            raise ValueError(f"{len(parts)} outputs and targets, and not {len(self.part_names)}; name them in 'batch'")
        if other := next((type(part).__name__ for part in parts if not isinstance(part, torch.Tensor)), None):
            raise TypeError(f"a function of your own gets tensors, not a {other}; write a torchmetrics.Metric")
        for name, part in zip(self.part_names, parts, strict=True):
            held = getattr(self, name)
            check_alike([*held[:1], part], _BY_ITSELF)
            held.append(part.detach().to("cpu", non_blocking=True))
        if parts:
            self._mark = kind_of(parts[0].device).mark()

    def arrive(self) -> None:
        """Waits for what is on its way to host memory."""
        if self._mark is not None:
            self._mark.synchronize()

    def compute(self) -> Any:
        """What the function says of all of it."""
        return self.so_far()

    def so_far(self) -> Any:
        """The same, without torchmetrics' keeping of what was computed."""
        self.arrive()
        batches = [getattr(self, name) for name in self.part_names]
        for of_part in batches:  # those of another rank may be of another shape
            check_alike(of_part, _BY_ITSELF)
        parts = [torch.cat(of_part) for of_part in batches]
        pairs = list(zip(self.argument_names or [None] * len(parts), parts, strict=True))
        by_name = {name: part for name, part in pairs if name is not None}
        return self.function(*(part for name, part in pairs if name is None), **by_name)


class OverTexts(torchmetrics.Metric):
    """A function of one's own over all texts: `function(said, wanted) -> number`.

    Args:
        function: Gets two lists of texts.
    """

    full_state_update = False

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function
        self.add_state("texts", [], dist_reduce_fx="cat")

    def update(self, said: Sequence[str], wanted: Sequence[str]) -> None:
        """Keeps those of a batch, as bytes in a tensor, which ranks can tell each other."""
        content = json.dumps([list(said), list(wanted)]).encode()
        self.texts: Any
        self.texts.append(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def compute(self) -> Any:
        """What the function says of all of them."""
        pairs = [json.loads(bytes(part.cpu().numpy())) for part in self.texts]
        return self.function(*([text for pair in pairs for text in pair[side]] for side in (0, 1)))


# ---------------------------------------------------------------------- what a metric gets

TEXT = "text"  # what evaluate.generate makes

_READ_AS: Mapping[str, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "probabilities": probabilities,
    "classes": classes,
    "logits": lambda outputs, target: outputs,
}


# ---------------------------------------------------------------------- one entry of evaluate.metrics


@dataclass
class Metric:
    """A metric by its name in the recipe.

    Attributes:
        name: That name.
        metric: Of torchmetrics: one, or a collection.
        takes: What it gets of the first output: `probabilities`, `classes` or `logits`, None for the output as it is.
        sets: The sets that it is for; None for all.
        outputs: Positions or keys of the outputs that it gets; None for `batch.outputs`.
        targets: Positions or keys of the targets that it gets; None for `batch.targets`.
        given: The shapes and types of the first batch since the reset, in words.
    """

    name: str
    metric: Any
    takes: str | None = None
    sets: Sequence[str] | None = None
    outputs: Sequence[int | str] | None = None
    targets: Sequence[int | str] | None = None
    given: str | None = None
    _looks_once: bool = False
    _validating: dict[int, bool] = field(default_factory=dict)
    generation: Generation | None = field(default=None, init=False, repr=False)
    _chunk: Chunk | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if is_exact(self.metric):
            self._chunk = Chunk(takes_any_numbers(self.metric))

    def is_for(self, name: str) -> bool:
        """Whether it measures on this set."""
        return self.sets is None or name in self.sets

    def reset(self, device: torch.device) -> None:
        """Forgets all batches."""
        self.given = None
        if self._chunk is not None:
            self._chunk.forget()
        self.metric.to(device)
        self.metric.reset()
        self._validate(True)
        self._looks_once = device.type != "cpu"

    def _validate(self, wanted: bool) -> None:
        """Whether torchmetrics looks at each batch for mistakes, for which a GPU would have to be waited for."""
        for module in _metrics(self.metric):
            if wanted and self._validating.get(id(module)):
                module.validate_args = True
            elif not wanted and getattr(module, "validate_args", False) is True:
                self._validating[id(module)] = True
                module.validate_args = False

    def see(self, layout: BatchLayout, batch: Evaluated, model: nn.Module, is_first: bool = False) -> None:
        """Takes what it gets of a batch.

        Args:
            layout: Knows the parts of a batch.
            batch: All that there is of it.
            model: Which says something to it, for a metric of texts.
            is_first: As for `update`.

        Raises:
            LauncherError: There is no such part, or the metric cannot take it.
        """
        if self.generation is not None:
            self._tell(self.generation.texts(model, batch.data))
            return
        outputs = batch.outputs if self.outputs is None else layout.picked_outputs(batch.result, self.outputs)
        targets = batch.targets if self.targets is None else layout.picked_targets(batch.data, self.targets)
        self.update(outputs, targets, is_first)

    def update(self, outputs: Sequence[Any], targets: Sequence[Any], is_first: bool = False) -> None:
        """Takes a batch in.

        Args:
            outputs: On the metric's device.
            targets: Likewise.
            is_first: Whether a function of one's own is tried at once: an error should not wait for the whole set.

        Raises:
            LauncherError: The metric cannot take them; the message names it, their shapes and types.
        """
        target = targets[0] if targets and isinstance(targets[0], torch.Tensor) else None
        if self.takes is not None and outputs:
            outputs = [_READ_AS[self.takes](outputs[0], target), *outputs[1:]]
        elif isinstance(self.metric, Perplexity) and target is not None and isinstance(outputs[0], torch.Tensor):
            # it wants the classes last, CrossEntropyLoss second: a model's output does for both
            over = class_dimension(outputs[0], target)
            outputs = [outputs[0] if over is None else outputs[0].movedim(over, -1), *outputs[1:]]
        parts = [*outputs, *targets]
        if self.given is None:
            self.given = _shapes(parts)
            self._tell(parts)  # by itself: what it cannot take is told at once
        elif self._chunk is None:
            self._tell(parts)
        else:
            for chunk in self._chunk.add(parts):
                self._tell(chunk)
        if is_first and isinstance(self.metric, OverSet):
            self._try()
        if self._looks_once:  # the first batch of each evaluation was looked at
            self._looks_once = False
            self._validate(False)

    def _tell(self, parts: Sequence[Any]) -> None:
        try:
            self.metric.update(*map(_laid_out, parts))
        except Exception as error:
            raise self._refused(parts, error) from error

    def _try(self) -> None:
        try:
            self.metric.so_far()
        except Exception as error:
            raise self._refused([getattr(self.metric, name)[0] for name in self.metric.part_names], error) from error

    def _refused(self, parts: Sequence[Any], error: Exception) -> LauncherError:
        cannot = f"{self._called} does not accept outputs and targets of {_shapes(parts)}"
        return LauncherError(
            f"evaluate.metrics.{self.name}: {cannot}: {str(error).rstrip('.')}{self._of_classes(parts)}"
        )

    def _of_classes(self, parts: Sequence[Any]) -> str:
        """What to set where a metric is of another number of classes than the outputs."""
        stated = getattr(self.metric, "num_classes", None)
        output = parts[0] if parts else None
        if len(parts) == 2 and stated is None and _are_scores_of_classes(*parts):
            kind = f"MulticlassAccuracy, num_classes: {parts[0].shape[1]}"
            return f"; the outputs are scores of {parts[0].shape[1]} classes, as for {{_target_: {kind}}}"
        if not isinstance(stated, int) or not isinstance(output, torch.Tensor) or output.dim() < 2:
            return ""
        given = output.shape[1]
        if stated == given:
            return ""
        remedy = f"evaluate.metrics.{self.name}.num_classes={given}"
        return f"; the outputs have {given} classes and the metric {stated}: {remedy}"

    def _tell_rest(self) -> None:
        for chunk in () if self._chunk is None else self._chunk.rest():
            self._tell(chunk)

    @property
    def _called(self) -> str:
        metric = self.metric
        own = getattr(metric.function, "__name__", "the function") if isinstance(metric, OverSet) else None
        return own or type(metric).__name__

    def scores(self) -> Scores:
        """Its value over the batches since the reset, or its values by `name/key` for a collection.

        Raises:
            LauncherError: They have none.
        """
        self._tell_rest()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a rank whose share is empty has seen nothing, and that is right
                value = self.metric.compute()
        except Exception as error:
            seen = f"; the first batch had outputs and targets of {self.given}" if self.given else ""
            raise LauncherError(f"evaluate.metrics.{self.name}: {self._called}: {error}{seen}") from error
        if isinstance(value, Mapping):
            return {f"{self.name}/{key}": _plain(score) for key, score in value.items()}
        return {self.name: _plain(value)}

    @property
    def modes(self) -> dict[str, str]:
        """See `modes_of`."""
        return modes_of(self.name, self.metric)

    def state(self) -> list[Any]:
        """What it keeps of its batches, in host memory: of each metric in it, tensors and lists of them."""
        self._tell_rest()
        for module in _metrics(self.metric):
            if isinstance(module, OverSet):
                module.arrive()
        self.metric.to("cpu")
        return [getattr(metric, name) for metric in _holders(self.metric) for name in reductions(metric)]

    def join(self, ranks: Sequence[Iterator[Any]]) -> None:
        """Makes its state that of all ranks' batches together, as if this rank had seen them.

        The sums of all ranks are added and their lists joined in the order of the ranks, before anything is computed:
        a mean of the ranks' means would count samples unequally.

        Args:
            ranks: What `state` gave on each rank, taken from its beginning.
        """
        for metric in _holders(self.metric):
            for name, reduction in reductions(metric).items():
                setattr(metric, name, _joined([next(rank) for rank in ranks], reduction))


def modes_of(name: str, metric: Any) -> dict[str, str]:
    """Whether more or less of a metric's numbers is better, as far as its class says: `min` or `max`, by their keys."""
    is_several = isinstance(metric, torchmetrics.MetricCollection)
    parts = {f"{name}/{key}": part for key, part in metric.items()} if is_several else {name: metric}
    stated = {key: getattr(part, "higher_is_better", None) for key, part in parts.items()}
    return {key: "max" if more else "min" for key, more in stated.items() if isinstance(more, bool)}


def _joined(states: Sequence[Any], reduction: Any) -> Any:
    """One state of all ranks' put together; a rank whose share is empty has an empty list."""
    if isinstance(states[0], list):
        return [tensor for state in states for tensor in state]
    stacked = torch.stack(list(states))
    return reduction(stacked) if callable(reduction) else stacked


def _holders(metric: Any) -> Iterator[torchmetrics.Metric]:
    """All that hold a state, each once: the metrics of a collection, and those inside a wrapper, which may share it."""
    for module in metric.modules():
        if isinstance(module, torchmetrics.MetricCollection):
            module.values()  # gives those that were computed as one a state each
    yield from {id(reductions(holder)): holder for holder in _metrics(metric) if reductions(holder)}.values()


def _metrics(metric: Any) -> Iterator[torchmetrics.Metric]:
    return (module for module in metric.modules() if isinstance(module, torchmetrics.Metric))


def _laid_out(part: Any) -> Any:
    """A tensor in the order of its dimensions: some of torchmetrics' cannot look at a transposed one."""
    return part.contiguous() if isinstance(part, torch.Tensor) and part.layout is torch.strided else part


def _shapes(parts: Sequence[Any]) -> str:
    tensors = [value for value in parts if isinstance(value, torch.Tensor)]
    return shapes(tensors) or "no tensors"


def _plain(value: Any) -> Any:
    """Numbers and lists, whatever a metric gives: tensors, or tuples of them (a curve's)."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def build_metrics(builder: Builder, section: schema.Evaluate, batch: schema.Batch) -> list[Metric]:
    """The recipe's metrics, told never to talk to other ranks by themselves.

    torchmetrics' `compute()` gathers over the main process group and would hang where one rank evaluates.

    Args:
        builder: Builds the components.
        section: The recipe's `evaluate`.
        batch: How many outputs and targets there are.

    Raises:
        RecipeError: Something else than a metric came out.
    """
    generation = build_generation(builder, section.generate, batch) if section.generate is not None else None
    metrics = [_metric(builder, name, component, batch) for name, component in section.metrics.items()]
    for made in metrics:
        for module in _metrics(made.metric):  # those inside a wrapper too
            keep_to_rank(module)
        made.generation = generation if made.takes == TEXT else None
    return metrics


def _metric(builder: Builder, name: str, component: Component, batch: schema.Batch) -> Metric:
    metric, options = builder.build(component), component.options
    outputs, targets = options.get("_outputs_"), options.get("_targets_")
    given = (batch.outputs or [0] if outputs is None else outputs, batch.targets if targets is None else targets)
    named = [side for side in given if isinstance(side, Mapping)]
    if not isinstance(metric, torchmetrics.Metric | torchmetrics.MetricCollection):
        if not callable(metric):
            raise _no_metric(builder, component, metric)
        if batch.adapt is None or named or outputs is not None or targets is not None:
            check_order(builder, component, metric, *given)
        metric = _over_all(metric, given, is_of_texts=options.get("_input_") == TEXT)
    elif named:
        message = f"{component.target} gets its arguments in order: write lists, as in _outputs_: [0], _targets_: [1]"
        raise builder.wrong(component.path, message)
    return Metric(name, metric, options.get("_input_"), options.get("_sets_"), _in_order(outputs), _in_order(targets))


def _over_all(function: Callable[..., Any], given: tuple[Picks, Picks], *, is_of_texts: bool) -> Any:
    """A function of one's own as a metric."""
    if is_of_texts:
        return OverTexts(function)
    names = [str(name) if isinstance(side, Mapping) else None for side in given for name in side]
    return OverSet(function, len(names), names)


def _in_order(picks: Picks | None) -> Sequence[int | str] | None:
    return list(picks.values()) if isinstance(picks, Mapping) else picks


def _no_metric(builder: Builder, component: Component, made: Any) -> RecipeError:
    message = f"{component.target} gave a {type(made).__name__}, not a metric, nor a function (outputs, targets)"
    return builder.wrong(component.path, message)


def _are_scores_of_classes(output: Any, target: Any) -> bool:
    """Whether these are a score for each class, and a class for each sample."""
    are_tensors = isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)
    return are_tensors and output.dim() == 2 and target.dim() == 1 and not target.is_floating_point()
