"""6: evaluation. The texts that a language model makes of a batch, for metrics that compare texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from launcher.errors import LauncherError
from launcher.model.kinds import class_of
from launcher.objective.batch import BatchLayout
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.generation import Generate
from launcher.text import words_of

KEY = "evaluate.generate"
_OF_TRAINING = ("labels", "decoder_input_ids", "decoder_attention_mask", "position_ids")
_IGNORED = -100


class Generation:
    """Makes texts of batches; several metrics ask for those of the same batch, which are made once.

    Args:
        section: How.
        batch: What the model gets in training.
        tokenizer: Makes texts of tokens.
    """

    def __init__(self, section: Generate, batch: schema.Batch, tokenizer: Any):
        self._section, self._tokenizer = section, tokenizer
        stated = section.inputs
        if stated is None and isinstance(batch.inputs, dict):
            stated = {name: key for name, key in batch.inputs.items() if name not in _OF_TRAINING}  # type: ignore[misc]
        inputs: Any = stated if stated is not None else batch.inputs
        self._layout = BatchLayout(batch.model_copy(update={"inputs": inputs, "adapt": None}))
        self._last: tuple[Any, tuple[list[str], list[str]]] | None = None

    def texts(self, model: nn.Module, data: Any) -> tuple[list[str], list[str]]:
        """What the model says to a batch, and what it should say.

        Args:
            model: The bare module, in eval mode.
            data: The batch, on its device.

        Raises:
            LauncherError: The model makes no texts, or not of this.
        """
        if self._last is None or self._last[0] is not data:
            self._last = data, (self._said(model, data), self._wanted(data))
        return self._last[1]

    def _said(self, model: Any, data: Any) -> list[str]:
        if not callable(getattr(model, "generate", None)):
            raise LauncherError(f"{KEY}: {class_of(model).__name__} has no generate(); remove it")
        has_encoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        if self._section.inputs is None and not has_encoder:
            say = "say where a batch has the prompts alone: inputs: {input_ids: prompt, attention_mask: prompt_mask}"
            raise LauncherError(f"{KEY}: {class_of(model).__name__} continues what it is given; {say}")
        args, kwargs = self._layout.inputs(data)
        try:
            tokens = model.generate(*args, **kwargs, **self._section.settings)
        except Exception as error:  # of a model that cannot take what it is given
            raise LauncherError(f"{KEY}: {type(error).__name__}: {' '.join(words_of(error).split())[:400]}") from error
        prompt = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
        if not has_encoder and prompt is not None:
            tokens = tokens[:, prompt.shape[1] :]
        return list(self._tokenizer.batch_decode(tokens, skip_special_tokens=True))

    def _wanted(self, data: Any) -> list[str]:
        (wanted,) = self._layout.picked_targets(data, [self._section.targets])
        if isinstance(wanted, list | tuple) and all(isinstance(text, str) for text in wanted):
            return list(wanted)
        if not isinstance(wanted, torch.Tensor):
            raise LauncherError(f"{KEY}: targets: a batch has a {type(wanted).__name__} there; name texts, or tokens")
        rows = [[token for token in row if token != _IGNORED] for row in wanted.tolist()]
        return list(self._tokenizer.batch_decode(rows, skip_special_tokens=True))


def build_generation(builder: Builder, section: Generate, batch: schema.Batch) -> Generation:
    """What makes the texts, with the recipe's tokenizer.

    Raises:
        RecipeError: It has none, or several and does not say which.
    """
    made: Mapping[str, Any] = {
        str(component.path[1]): thing
        for component in builder.defined
        if len(component.path) == 2 and hasattr(thing := builder.build(component), "batch_decode")
    }
    names = list(made) if section.tokenizer is None else [name for name in made if name == section.tokenizer]
    if len(names) != 1:
        there = f"there are: {', '.join(made)}" if made else "there is none"
        raise builder.wrong(
            KEY,
            f"needs the tokenizer that makes texts of tokens, under 'define'; {there}; write define: {{tokenizer: "
            "{_target_: transformers.AutoTokenizer.from_pretrained, …}}, and tokenizer: NAME where there are several",
        )
    return Generation(section, batch, made[names[0]])
