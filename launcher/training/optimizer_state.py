"""An optimizer's state by the names of its parameters.

torch keeps it by their places. Two lines of a model exchanged, a loss with one parameter more, and the moments of one
would be loaded by another silently, or be of another size than a fused kernel believes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from launcher.model.rows import shape_of
from launcher.model.sharding import Shards
from launcher.objective.loss import loss_key
from launcher.objective.several import Optimizers, Several
from launcher.training import fast_step
from launcher.training.inner_optimizers import groups_in_common, inner_optimizers, unkept

_STEP = "step"  # the one entry whose device and dtype torch chooses by the kernel that will read it


def parameter_names(model: nn.Module, losses: Mapping[str, nn.Module]) -> dict[int, str]:
    """The name of each parameter by its identity, as `optimizer._groups_` knows it; the first of a tied one."""
    names: dict[int, str] = {}
    for prefix, module in (("", model), *((f"{loss_key(name)}.", loss) for name, loss in losses.items())):
        for name, parameter in module.named_parameters():
            names.setdefault(id(parameter), prefix + name)
    return names


@dataclass(frozen=True)
class NamedOptimizer:
    """An optimizer as a part of a checkpoint.

    One that has a `state_dict` of its own keeps it as it is, with a table of names beside it. What it has not of the
    optimizers inside it is kept beside that.

    Attributes:
        optimizer: The run's.
        names: Of its parameters, by their identity.
        shards: What this process holds of them, where they are sharded.
    """

    optimizer: Optimizer
    names: Mapping[int, str]
    shards: Shards | None = None

    def state_dict(self) -> dict[str, Any]:
        """The parameters by name, the settings of each group, each parameter's state, and what is not a parameter's."""
        own = self.optimizer.state_dict()
        kept: dict[str, Any] = {"parameters": self._described()}
        if inner := unkept(self.optimizer, own):
            kept["inner"] = {name: self._inside(one).state_dict() for name, one in inner.items()}
        if not self._is_torchs(own):
            return {**kept, "own": own}
        names = dict(enumerate(self._by_name()))
        return {
            **kept,
            "groups": [_without_parameters(group) for group in own["param_groups"]],
            "state": {names[key]: self._kept(names[key], value) for key, value in own["state"].items() if key in names},
            "others": {key: value for key, value in own["state"].items() if key not in names},
        }

    def load_state_dict(self, saved: Mapping[str, Any], /) -> None:
        """Takes a state up, with the kernels that this start has chosen.

        Raises:
            ValueError: It is of other parameters.
        """
        _compare(self._described(), saved["parameters"], in_order="own" in saved)
        with groups_in_common(self.optimizer):
            self._take_up(saved)
            self._take_up_inner(saved.get("inner", {}))
        fast_step.lay_out_state(self.optimizer)

    def _take_up(self, saved: Mapping[str, Any]) -> None:
        if self.shards is not None and "own" not in saved:
            parameters = self._by_name()
            taken = {name: self._taken(parameters[name], entries) for name, entries in saved["state"].items()}
            saved = {**saved, "state": taken}
        if "own" in saved:
            self.optimizer.load_state_dict(self._stepped_alike(saved["own"]))
        else:
            here, there = len(self.optimizer.param_groups), len(saved["groups"])
            if here != there:
                raise ValueError(f"the optimizer has {here} groups of parameters here and {there} there")
            self.optimizer.load_state_dict(self._stepped_alike(self._in_places(saved)))
            self._put_back(saved)

    def _take_up_inner(self, saved: Mapping[str, Any]) -> None:
        inner = inner_optimizers(self.optimizer)
        for name, state in saved.items():
            if name not in inner:
                raise ValueError(f"the optimizer had another one inside, '{name}', which is not here")
            self._inside(inner[name]).load_state_dict(state)

    def _inside(self, inner: Optimizer) -> NamedOptimizer:
        """An optimizer inside this one, as a part of its state."""
        return NamedOptimizer(inner, self.names, self.shards)

    def _is_torchs(self, state: Any) -> bool:
        """Whether a state is made, and taken up, as torch does it."""
        kind, methods = type(self.optimizer), ("state_dict", "load_state_dict")
        is_own = any(
            name in vars(self.optimizer) or getattr(kind, name) is not getattr(Optimizer, name) for name in methods
        )
        return not is_own and isinstance(state, dict) and state.keys() == {"state", "param_groups"}

    def _parameters(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        for group, settings in enumerate(self.optimizer.param_groups):
            yield from ((group, place, parameter) for place, parameter in enumerate(settings["params"]))

    def _by_name(self) -> dict[str, torch.Tensor]:
        """The parameters in torch's order; one that belongs to neither model nor loss is called after its place."""
        return {
            self.names.get(id(parameter), f"#{group}.{place}"): parameter
            for group, place, parameter in self._parameters()
        }

    def _described(self) -> list[list[Any]]:
        """Name, shape and dtype of each parameter, in torch's order; where it is sharded, of the whole."""
        shards = self.shards
        wholes = {
            name: parameter if shards is None else shards.whole(parameter)
            for name, parameter in self._by_name().items()
        }
        return [[name, list(parameter.shape), _dtype(parameter)] for name, parameter in wholes.items()]

    def _kept(self, name: str, entries: Any) -> Any:
        """What is kept beside a parameter; of what is as large as one that is sharded, its rows."""
        shards = self.shards
        if shards is None or not isinstance(entries, Mapping):
            return entries
        parameter = self._by_name()[name]
        shapes = {tuple(parameter.shape), tuple(shards.whole(parameter).shape)}

        def kept(value: Any) -> Any:
            if not shape_of(value):
                return value
            is_like_it, is_distributed = shape_of(value) in shapes, hasattr(value, "to_local")
            if not is_like_it:
                return value.full_tensor() if is_distributed else value
            return shards.rows(value.to_local() if is_distributed else value, parameter)

        return {key: kept(value) for key, value in entries.items()}

    def _taken(self, parameter: torch.Tensor, entries: Any) -> Any:
        """This process's rows of what was kept beside a parameter."""
        shards = self.shards
        if shards is None or not isinstance(entries, Mapping):
            return entries
        whole = shards.whole(parameter)

        def taken(value: Any) -> Any:
            if not shape_of(value):
                return value.clone() if isinstance(value, torch.Tensor) else value
            if shape_of(value) != tuple(whole.shape):
                return value.clone() if isinstance(value, torch.Tensor) else value.whole()
            rows = shards.taken(value, parameter)
            return shards.distributed(rows, parameter) if parameter is whole else rows

        return {key: taken(value) for key, value in entries.items()}

    def _in_places(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """A saved state as torch keeps it, by the places that the parameters have now."""
        places = {name: place for place, name in enumerate(self._by_name())}
        groups, first = [], 0
        for index, group in enumerate(self.optimizer.param_groups):
            last = first + len(group["params"])
            groups.append({**saved["groups"][index], "params": list(range(first, last))})
            first = last
        state = {places[name]: value for name, value in saved["state"].items()}
        return {"state": {**state, **saved["others"]}, "param_groups": groups}

    def _put_back(self, saved: Mapping[str, Any]) -> None:
        """Entries as they were: torch gives them the dtype of their parameter, and takes a text for a list."""
        parameters = self._by_name()
        for name, entries in saved["state"].items():
            parameter = parameters[name]
            if not isinstance(entries, Mapping):
                self.optimizer.state[parameter] = _placed(entries, parameter.device)
                continue
            kept = {key: _placed(value, parameter.device) for key, value in entries.items() if key != _STEP}
            self.optimizer.state[parameter].update(kept)

    def _stepped_alike(self, state: Any) -> Any:
        """A state whose groups step as those of this start: the device or the precision may be another."""
        own = self.optimizer.param_groups
        groups = state.get("param_groups") if isinstance(state, Mapping) else None
        if not isinstance(groups, list) or len(groups) != len(own):
            return state  # which the optimizer may refuse
        chosen = [{key: group[key] for key in _KERNELS if key in group} for group in own]
        return {**state, "param_groups": [{**settings, **keys} for settings, keys in zip(groups, chosen, strict=True)]}

    @property
    def parts(self) -> Mapping[str, NamedOptimizer]:
        """Itself, without a name."""
        return {"": self}

    @property
    def param_groups(self) -> Sequence[Mapping[str, Any]]:
        """Those of the optimizer."""
        return self.optimizer.param_groups


@dataclass(frozen=True)
class NamedOptimizers:
    """Several optimizers as a part of a checkpoint, each under its name.

    Attributes:
        parts: The optimizers.
    """

    parts: Mapping[str, NamedOptimizer]

    def state_dict(self) -> dict[str, Any]:
        """The state of each."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, saved: Mapping[str, Any], /) -> None:
        """Takes up the state of each.

        Raises:
            ValueError: There are others than were saved.
        """
        if saved.keys() != self.parts.keys():
            raise ValueError(f"the optimizers are {', '.join(self.parts)} here and {', '.join(saved)} there")
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])

    @property
    def param_groups(self) -> Sequence[Mapping[str, Any]]:
        """Those of all."""
        return [group for part in self.parts.values() for group in part.param_groups]


def named_optimizer(
    optimizer: Optimizers, names: Mapping[int, str], shards: Shards | None = None
) -> NamedOptimizer | NamedOptimizers:
    """The run's optimizer, or all of them, as a part of a checkpoint."""
    if not isinstance(optimizer, Several):
        return NamedOptimizer(optimizer, names, shards)
    return NamedOptimizers({name: NamedOptimizer(one, names, shards) for name, one in optimizer.named.items()})


_KERNELS = ("fused", "foreach")


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _placed(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return type(value)((key, _placed(item, device)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_placed(item, device) for item in value)
    return value


def _compare(now: Sequence[Sequence[Any]], saved: Sequence[Sequence[Any]], *, in_order: bool) -> None:
    """Whether a saved state is of these parameters.

    Raises:
        ValueError: It is not; the message names the first that differs.
    """
    here, there = ({name: (list(shape), dtype) for name, shape, dtype in table} for table in (now, saved))
    for name in (*here, *there):
        if name not in there or name not in here:
            where = "is not in it" if name in here else "is only in it"
            raise ValueError(f"the optimizer's parameter '{name}' {where}")
        if here[name] != there[name]:
            raise ValueError(f"'{name}' is {_said(*here[name])} here and {_said(*there[name])} there")
    if in_order and list(here) != list(there):
        key, other = next(pair for pair in zip(here, there, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"the optimizer's own state goes by the order of the parameters, and '{key}' stands where '{other}' stood"
        )


def _said(shape: Sequence[int], dtype: str) -> str:
    return f"{'×'.join(map(str, shape)) or 'one number'} {dtype}"
