"""3: model. What a recipe's `model` comes to: a module, where it says so with an adapter around it, over a frozen base.

The base is what the model was before, if nothing of it is trained. No checkpoint holds it: a start reads it again
from where it came from, and its hash, which stands in the manifest, says whether it still is what it was.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launcher.data.seeds import seed_everything
from launcher.model.kinds import class_of
from launcher.model.rows import bytes_of
from launcher.recipe.build import Builder
from launcher.recipe.component import Component

OPTION = "_adapt_"
_KEEP_THE_BASE = (True, False, "gaussian", "orthogonal")  # ways to begin that leave the base's weights as they are


def whole_rows(parameter: nn.Parameter) -> list[torch.Tensor]:
    """Those of a parameter that is whole."""
    return [parameter.detach()]


@dataclass(frozen=True)
class Base:
    """The frozen part of an adapted model.

    Attributes:
        names: Of its parameters in the adapted model's state_dict; tied ones have several.
        renamed: What tensors of the model before are called now.
        config: Of peft's adapter; None where a function of the user's adapted the model.
    """

    names: frozenset[str]
    renamed: Mapping[str, str]
    config: Any = None

    def sha256(self, module: nn.Module, rows: Callable[[nn.Parameter], Iterable[torch.Tensor]] = whole_rows) -> str:
        """Of all names, dtypes, shapes and bytes.

        Args:
            module: The adapted model.
            rows: Gives the rows of a parameter in their order, in blocks.
        """
        digest, seen = hashlib.sha256(), set()
        for name, parameter in sorted(module.named_parameters(remove_duplicate=False)):
            if name in self.names and id(parameter) not in seen:
                seen.add(id(parameter))
                digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
                for block in rows(parameter):
                    digest.update(bytes_of(block))
        return digest.hexdigest()


@dataclass(frozen=True)
class Built:
    """A module and what of it is its base.

    Attributes:
        module: The bare module.
        base: None where nothing was adapted: then all of it is saved.
    """

    module: nn.Module
    base: Base | None = None

    def state_dict(self) -> dict[str, Any]:
        """What is saved: the module's state without its base."""
        return own_state(self.module, self.base)

    def load_state_dict(self, weights: Mapping[str, Any]) -> None:
        """Takes up what was saved; the base may be missing there.

        Raises:
            RuntimeError: It is of another model.
        """
        load_own(self.module, self.base, weights)

    def base_sha256(self) -> str:
        """The hash of its base; empty where it has none."""
        return "" if self.base is None else self.base.sha256(self.module)


def own_state(module: nn.Module, base: Base | None) -> dict[str, Any]:
    """A module's state_dict without its base."""
    state = dict(module.state_dict())
    return state if base is None else {name: value for name, value in state.items() if name not in base.names}


def load_own(module: nn.Module, base: Base | None, weights: Mapping[str, Any]) -> None:
    """Puts a state_dict, which may be without the base, into a module.

    Raises:
        RuntimeError: It is of another model.
    """
    if base is None:
        module.load_state_dict(weights)
        return
    missing, strange = module.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name not in base.names]
    if missing or strange:
        what = f"missing: {', '.join(missing[:4])}" if missing else f"not of this model: {', '.join(strange[:4])}"
        raise RuntimeError(f"the adapter's weights do not fit {class_of(module).__name__}; {what}")


def changed_base(label: str, kept: str, now: str, giver: str = "what `model` gives now") -> str:
    """What to say where the base is not the one that an adapter was trained on."""
    return (
        f"{label}: its adapter was trained on a base of sha256 {kept[:12]}…, and {giver} has "
        f"{now[:12]}…; bring back the weights that it was read from, or train the adapter again"
    )


def built(builder: Builder, component: Component) -> Built:
    """Builds the recipe's `model`, adapted where it says so; a second call gives the same.

    Raises:
        RecipeError: What came out is not a module, or the adapter does not fit it.
    """
    bare = builder.build(component)
    if not isinstance(bare, nn.Module):
        kind = type(bare).__name__
        if isinstance(bare, type) and component.given is not None:
            raise builder.wrong("model", f"is the class {bare.__name__}; pass a module made of it, {bare.__name__}(…)")
        made = "is" if component.given is not None else f"{component.target} gave"
        raise builder.wrong("model", f"{made} a {kind}, not a torch.nn.Module")
    wanted = component.options.get(OPTION)
    if wanted is None:
        return Built(bare)
    if component.path not in builder.adapted:
        adapted = _adapted(builder, bare, builder.build(wanted))
        builder.adapted[component.path] = adapted
        builder.meant[component.path] = adapted.module
    known: Built = builder.adapted[component.path]
    return known


def built_anew(builder: Builder, component: Component, seed: int | None = None) -> Built:
    """Another module of the recipe, with fresh weights: with the run's seed those that training began with."""
    if seed is not None:
        seed_everything(seed)
    return built(builder.another(), component)


def _adapted(builder: Builder, bare: nn.Module, adapter: Any) -> Built:
    """A model with an adapter around or in it."""
    before = dict(bare.state_dict(keep_vars=True))
    owned = {id(parameter) for parameter in bare.parameters()}
    is_function = callable(adapter) and not hasattr(adapter, "peft_type")
    try:
        module = adapter(bare) if is_function else _by_peft(bare, adapter)
    except Exception as error:  # whatever peft or the user's function says of layers that are not there
        words = " ".join(str(error).split())[:400]
        raise builder.wrong(f"model.{OPTION}", f"{type(error).__name__}: {words}") from error
    module = bare if module is None and is_function else module
    if not isinstance(module, nn.Module):
        raise builder.wrong(f"model.{OPTION}", f"gave a {type(module).__name__}; return the adapted module, or nothing")
    frozen = frozenset(
        name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if id(parameter) in owned and not parameter.requires_grad
    )
    if not frozen:
        raise builder.wrong(f"model.{OPTION}", "froze nothing of the model: there is no base to adapt; remove it")
    now = {id(tensor): name for name, tensor in module.state_dict(keep_vars=True).items()}
    renamed = {name: now[id(tensor)] for name, tensor in before.items() if id(tensor) in now}
    return Built(module, Base(frozen, renamed, None if is_function else adapter))


def _by_peft(bare: nn.Module, config: Any) -> nn.Module:
    """A model under one of peft's adapters."""
    import peft

    if not isinstance(config, peft.PeftConfig):
        raise TypeError(f"a {type(config).__name__} adapts nothing; name one of peft's configs, or a function")
    begins = getattr(config, "init_lora_weights", True)
    if begins not in _KEEP_THE_BASE:
        raise ValueError(
            f"init_lora_weights: {begins} changes the base, which is read again at each start; use true, gaussian or "
            "orthogonal"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is being given up
        module: nn.Module = peft.get_peft_model(bare, config)
    return module
