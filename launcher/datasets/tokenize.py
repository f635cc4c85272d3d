"""Rows of text as a model of transformers wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Tokenize:
    """What `HubDataset` makes of a row with texts: `input_ids`, `attention_mask` and `labels`, as lists of any length.

    A collator of transformers pads them to batches.

    Args:
        tokenizer: Of transformers, as in `"${define.tokenizer}"`.
        text: The column with the text; two columns of texts that belong together in a list.
        label: The column with a class, or a number, for each row.
        target: The column with the text that is to be said, for models that translate. With neither, the labels are
            the text's own tokens, as causal models learn them.
        max_length: Tokens of a text; the rest is cut off.
        end: Whether the end of the text is a token too, so that a causal model learns to stop.

    Raises:
        ValueError: Both a label and a target are named.
    """

    def __init__(
        self,
        tokenizer: Any,
        text: str | list[str] = "text",
        *,
        label: str | None = None,
        target: str | None = None,
        max_length: int = 512,
        end: bool = False,
    ):
        if label is not None and target is not None:
            raise ValueError("label and target are both the labels; name one of them")
        self._tokenizer, self._label, self._target = tokenizer, label, target
        self._texts = [text] if isinstance(text, str) else list(text)
        self._max_length, self._end = max_length, end

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row in tokens.

        Raises:
            KeyError: It has no such column.
        """
        made = {name: value for name, value in self._tokens(*self._texts, row=row).items() if name != "labels"}
        if self._label is not None:
            return {**made, "labels": _column(row, self._label)}
        if self._target is None:
            return {**made, "labels": list(made["input_ids"])}
        asked = {"text_target": _column(row, self._target), "truncation": True, "max_length": self._max_length}
        return {**made, "labels": list(self._tokenizer(**asked)["input_ids"])}

    def _tokens(self, *columns: str, row: Mapping[str, Any]) -> dict[str, Any]:
        length = self._max_length - self._end
        texts = (_column(row, name) for name in columns)
        made = dict(self._tokenizer(*texts, truncation=True, max_length=length))
        end = self._tokenizer.eos_token_id
        if self._end and end is not None and made["input_ids"][-1:] != [end]:
            last = {"input_ids": end, "attention_mask": 1}
            made = {name: [*value, last.get(name, value[-1] if value else 0)] for name, value in made.items()}
        return made


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise KeyError(f"a row has no '{name}'; it has: {', '.join(row)}")
    return row[name]
