"""7: saving. A folder that `from_pretrained` loads, compared on a real batch before it is called saved.

For what has `save_pretrained`: models of transformers and diffusers, peft's adapters, and classes of one's own with
`huggingface_hub.PyTorchModelHubMixin`. Tokenizers and processors that the recipe has built stand beside the weights.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.checkpoints.compare import Batch, agreed, distance
from launcher.checkpoints.format import copied
from launcher.errors import LauncherError
from launcher.model.adapt import Built

FOLDER = "pretrained"  # in a run's folder
_MOST_IN_A_FILE = "5GB"  # all of a file is in memory while it is written
_BESIDE = ("PreTrainedTokenizerBase", "ProcessorMixin", "ImageProcessingMixin", "FeatureExtractionMixin")
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings")


def is_loadable(module: nn.Module) -> bool:
    """Whether `from_pretrained` can load what it saves."""
    return callable(getattr(module, "save_pretrained", None)) and callable(getattr(module, "from_pretrained", None))


def beside(objects: Iterable[Any]) -> list[Any]:
    """The tokenizers and processors among what a recipe has built."""
    return [
        thing
        for thing in objects
        if any(kind.__name__ in _BESIDE for kind in type(thing).__mro__) and hasattr(thing, "save_pretrained")
    ]


def save_folder(target: Path, model: Built, fresh: Callable[[], Built], batch: Batch, objects: Iterable[Any]) -> str:
    """Writes the folder whole or not at all; gives how it was compared, in a few words.

    Args:
        target: The folder, which is not there yet.
        model: In eval mode.
        fresh: Builds another, of which an adapter's base is taken.
        batch: What the model is called with.
        objects: What the recipe has built.

    Raises:
        LauncherError: It cannot be saved so, or gives other outputs when it is loaded again.
    """
    hidden = target.parent / f".{target.name}.{os.getpid()}"
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        with _without_bars():
            _write(hidden, model)
            again = _loaded(hidden, model, fresh)
        found = distance(model.module, again, batch)
        named = [type(thing).__name__ for thing in beside(objects) if thing.save_pretrained(str(hidden)) or True]
        hidden.rename(target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    stands_by = f"; beside it {', '.join(named)}" if named else ""
    return f"{agreed(found)}{stands_by}"


def _write(folder: Path, model: Built) -> None:
    module: Any = model.module
    if not is_loadable(module):
        raise LauncherError(
            f"{type(module).__name__} has no save_pretrained and from_pretrained, as transformers' models have; export "
            "its weights instead: --to model.safetensors"
        )
    if _is_peft(module):
        module.save_pretrained(str(folder), save_embedding_layers=_adapts_embeddings(module))
    elif "max_shard_size" in inspect.signature(module.save_pretrained).parameters:
        module.save_pretrained(str(folder), max_shard_size=_MOST_IN_A_FILE)
    else:
        module.save_pretrained(str(folder))


def _loaded(folder: Path, model: Built, fresh: Callable[[], Built]) -> nn.Module:
    """What a stranger gets who loads the folder, on the model's device."""
    module: Any = model.module
    first = next(module.parameters())
    with _own_generator():
        if _is_peft(module):
            import peft

            adapted: Any = fresh().module
            again: Any = peft.PeftModel.from_pretrained(_base_of(adapted), str(folder))
        else:
            again = type(module).from_pretrained(str(folder))
    return again.to(first.device).eval()  # type: ignore[no-any-return]  # from_pretrained is Any


def _base_of(adapted: Any) -> nn.Module:
    """The model that peft has adapted, as it was before."""
    if not hasattr(adapted, "unload"):  # a prompt stands beside the base, not in its layers
        base: nn.Module = adapted.get_base_model()
        return base
    try:
        base = adapted.unload()
    except Exception as error:  # AdaLoRA's, in peft 0.21
        kind = type(adapted.peft_config["default"]).__name__.removesuffix("Config")
        message = (
            f"peft cannot take {kind} off its model again, to compare what it saves ({type(error).__name__}: {error})"
        )
        raise LauncherError(message) from error
    return base


@contextmanager
def _without_bars() -> Iterator[None]:
    """Transformers draws a bar for each file, and warns of names by which peft asks it."""
    logging = sys.modules.get("transformers.utils.logging")
    has_bars = logging is not None and logging.is_progress_bar_enabled()
    if logging is not None and has_bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if logging is not None and has_bars:
            logging.enable_progress_bar()


def _is_peft(module: nn.Module) -> bool:
    return any(kind.__module__ == "peft.peft_model" for kind in type(module).__mro__)


def _adapts_embeddings(module: Any) -> bool:
    """Whether an adapter trains embeddings; peft would ask the hub to find out whether they have grown."""
    targets = getattr(module.peft_config["default"], "target_modules", None) or ()
    return any(name.rpartition(".")[2] in _EMBEDDINGS for name in targets) if not isinstance(targets, str) else False


@contextmanager
def _own_generator() -> Iterator[None]:
    """What loading draws, to be written over, is drawn from nobody's generator."""
    with torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def holding(model: Any, weights: Mapping[str, Any] | None) -> Iterator[None]:
    """Other weights in a model for a while; None leaves its own."""
    if weights is None:
        yield
        return
    kept = copied(model.state_dict())
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(kept)
