"""3: model. Blocks that keep no activations: what their backward pass needs is computed again there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from launcher.data.generators import UNKNOWN_TO_TORCH
from launcher.internals import has_hooks, parts_of
from launcher.model.blocks import blocks_of
from launcher.recipe.build import Builder

_KNOWN_CODE = ("torch", "launcher")  # draws from torch's generators only, whose states torch keeps itself
_OF_CHECKPOINT = frozenset(
    ("use_reentrant", "context_fn", "determinism_check", "debug", "early_stop", "preserve_rng_state")
)


def recompute(builder: Builder, bare: nn.Module, wanted: Literal[True] | list[str]) -> str:
    """Has blocks of a model computed again in the backward pass; gives what the plan says of it.

    Args:
        builder: Says where something is wrong.
        bare: The module.
        wanted: The recipe's `device.recompute`: true for the repeated blocks, or patterns of names.

    Raises:
        RecipeError: There are no such blocks.
    """
    try:
        blocks = blocks_of(bare, wanted if isinstance(wanted, list) else ())
    except ValueError as error:
        raise builder.wrong("device.recompute", str(error)) from error
    if not blocks:
        message = "no block of the model is repeated; name the modules to compute again, as in ['encoder.*']"
        raise builder.wrong("device.recompute", message)
    for block in blocks.modules.values():
        block.forward = Recomputed(block)
    return f"{blocks.counted}: activations are computed again in the backward pass, and not kept"


def recomputed_in(module: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model that are computed again, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(vars(part).get("forward"), Recomputed)}


@contextmanager
def never_called(module: nn.Module) -> Iterator[dict[str, None]]:
    """The names of those blocks that nothing calls meanwhile, in their order: known when it is over."""
    blocks = recomputed_in(module)
    idle = dict.fromkeys(blocks)
    hooks = [blocks[name].register_forward_pre_hook(lambda *_, name=name: idle.pop(name, None)) for name in blocks]
    try:
        yield idle
    finally:
        for hook in hooks:
            hook.remove()


class Recomputed:
    """The forward of a module that is called again in its backward pass.

    It is set on the instance: names, class and state_dict stay as they are, and a copy of the module has its own. The
    second call finds all generators and buffers as the first did, and leaves them as they are.

    Attributes:
        inner: The forward that is called.
        moving: Buffers that a forward changes, for each set of modes that its modules were in, where all of them are
            layers of torch's or ours, which do the same each time; anybody else's code may begin to change one later.
        keeps_buffers: Whether buffers are kept at all; not where none has values.

    Args:
        module: The module, which may have a forward of its own already.
    """

    def __init__(self, module: nn.Module):
        self._module, self.inner = module, module.forward
        self._draws_anywhere = any(not _is_known(type(part)) for part in module.modules())
        self._is_steady = not any(_may_change_its_mind(part) for part in module.modules())
        self.moving: dict[tuple[bool, ...], list[_Place]] = {}
        self.keeps_buffers = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it, and keeps nothing but the arguments where there will be a backward pass."""
        if not torch.is_grad_enabled():
            return self.inner(*args, **kwargs)
        forward = self.inner
        if not _OF_CHECKPOINT.isdisjoint(kwargs):
            forward, kwargs = partial(forward, **kwargs), {}
        if torch.compiler.is_compiling():  # which keeps generators and buffers itself
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=self._twice, **kwargs)

    def _twice(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """What surrounds the first call, and what the second."""
        before = _Before(self._draws_anywhere)
        return self._first(before), before.again()

    @contextmanager
    def _first(self, before: _Before) -> Iterator[None]:
        modes = tuple(part.training for part in self._module.modules())
        known = self.moving.get(modes) if self.keeps_buffers else []
        before.keep([*_buffers_of(self._module)] if known is None else known)
        yield
        if known is None and self._is_steady:
            moved = [place for place, value in before.buffers.items() if not _equal(value, _get(place))]
            before.buffers = {place: before.buffers[place] for place in moved}
            self.moving[modes] = moved


_Place = tuple[nn.Module, str]  # of a buffer


class _Before:
    """What a forward finds: buffers that it changes, and generators that torch knows nothing of."""

    def __init__(self, draws_anywhere: bool):
        self._draws_anywhere = draws_anywhere
        self._generators: list[Any] = []
        self.buffers: dict[_Place, torch.Tensor] = {}

    def keep(self, places: list[_Place]) -> None:
        """Keeps it."""
        self.buffers = {place: _get(place).detach().clone() for place in places}
        if self._draws_anywhere:
            self._generators = [generator.look() for generator in UNKNOWN_TO_TORCH]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Puts it in place for a second call; then all is again as it was."""
        now = {place: _get(place) for place in self.buffers}
        generators = [generator.look() for generator in UNKNOWN_TO_TORCH] if self._draws_anywhere else []
        try:
            for place, value in self.buffers.items():
                _put(place, value.clone())  # others, and not other values: a backward pass may have kept these
            _put_back(self._generators)
            yield
        finally:
            for place, value in now.items():
                _put(place, value)
            _put_back(generators)


def _buffers_of(module: nn.Module) -> Iterator[_Place]:
    for part in module.modules():
        yield from ((part, name) for name, _ in part.named_buffers(recurse=False))


def _get(place: _Place) -> torch.Tensor:
    buffer: torch.Tensor = getattr(*place)
    return buffer


def _put(place: _Place, value: torch.Tensor) -> None:
    setattr(*place, value)


def _equal(before: torch.Tensor, after: torch.Tensor) -> bool:
    pairs = zip(parts_of(before), parts_of(after), strict=True)  # of a sparse one its indices and values
    return all(part.shape == other.shape and torch.equal(part, other) for part, other in pairs)


def _put_back(looks: list[Any]) -> None:
    for generator, look in zip(UNKNOWN_TO_TORCH, looks, strict=False):  # no looks where nothing else could draw
        generator.put_back(look)


def _may_change_its_mind(part: nn.Module) -> bool:
    """Whether a module may change other buffers later than in its first call, as an observer does that is delayed."""
    kind = type(part).__module__
    return not _is_known(type(part)) or kind.startswith("torch.ao.") or has_hooks(part)


def _is_known(kind: Callable[..., Any]) -> bool:
    return kind.__module__.partition(".")[0] in _KNOWN_CODE
