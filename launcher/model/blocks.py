"""3: model. The repeated blocks of a model, found by how it is built: what is sharded, or compiled, one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from launcher.model.kinds import class_of

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # they have no forward
_STACKS = (*_CONTAINERS, nn.Sequential)
_CHOSEN = "experts"  # what such a list is called of which each sample takes some: no batch is sure to call one
_TOO_LARGE = 0.25  # of the parameters: a block that holds more, and repeated blocks itself, is seen as these


@dataclass(frozen=True)
class Blocks:
    """Parts of a model that are treated one by one.

    Attributes:
        modules: The blocks by name, in the order of definition; none is inside another.
    """

    modules: Mapping[str, nn.Module]

    def describe(self) -> str:
        """`24 × Block, the rest as one`, for the plan."""
        return f"{self.counted}, the rest as one" if self.modules else "as one, since no block of it repeats"

    @property
    def counted(self) -> str:
        """`24 × Block`."""
        kinds = Counter(class_of(module).__name__ for module in self.modules.values())
        return ", ".join(f"{number} × {kind}" for kind, number in kinds.items())

    def __bool__(self) -> bool:
        return bool(self.modules)


def blocks_of(model: nn.Module, patterns: Sequence[str] = ()) -> Blocks:
    """The blocks of a model: by patterns of names where there are some, else those that are repeated.

    Repeated are the entries of one kind of a `ModuleList`, `Sequential` or `ModuleDict`, and attributes of one class of
    somebody's own, where they have parameters and are made of modules themselves. The outermost count, but for blocks
    that are a large part of the model and have blocks themselves, as a stage of a pyramid. Experts of a mixture are
    none.

    Args:
        model: The bare module.
        patterns: Such as `blocks.*`; of modules inside one another the outermost is meant.

    Raises:
        ValueError: A pattern has no module that could be a block.
    """
    if patterns:
        return Blocks(_named(model, patterns))
    return Blocks(dict(_repeated(model, "", _size(model), set())))


def _named(model: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Module]:
    candidates = {name: module for name, module in model.named_modules() if name}
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        names = [name for name in candidates if fnmatchcase(name, pattern)]
        fits = [name for name in names if _can_be_block(candidates[name])]
        if not fits:
            containers = " but a list of modules, which is never called: name its entries" if names else ""
            shown = ", ".join(list(candidates)[:8])
            raise ValueError(f"no module is named like '{pattern}'{containers}; there are: {shown}, …")
        chosen.update((name, candidates[name]) for name in fits)
    outer = [f"{name}." for name in chosen]
    return {
        name: module
        for name, module in candidates.items()
        if name in chosen and not any(name.startswith(prefix) for prefix in outer)
    }


def _repeated(module: nn.Module, prefix: str, whole: int, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """The outermost repeated blocks below a module, with their names."""
    children = [(name, child) for name, child in module.named_children() if id(child) not in seen]
    alike = Counter(kind for _, child in children if (kind := _kind(child, in_stack=isinstance(module, _STACKS))))
    for name, child in children:
        seen.add(id(child))
        path = f"{prefix}{name}"
        kind = _kind(child, in_stack=isinstance(module, _STACKS))
        inner = [] if name == _CHOSEN else list(_repeated(child, f"{path}.", whole, seen))
        is_block = kind is not None and alike[kind] > 1
        if is_block and not (inner and _size(child) > _TOO_LARGE * whole):
            yield path, child
        else:
            yield from inner


def _kind(module: nn.Module, *, in_stack: bool) -> object | None:
    """What a module must share with its siblings to be one of several; None where it is not a block."""
    if not _can_be_block(module) or not any(True for _ in module.children()):
        return None
    if isinstance(module, nn.Sequential):  # anybody's: its parts say what it is
        return tuple(class_of(child) for child in module.children()) if in_stack else None
    is_own = not class_of(module).__module__.startswith("torch.")
    return class_of(module) if in_stack or is_own else None


def _can_be_block(module: nn.Module) -> bool:
    return not isinstance(module, _CONTAINERS) and any(True for _ in module.parameters())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
