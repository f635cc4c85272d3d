"""Stands for transformers: the same shapes, names and arguments, small enough for a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Tokenizer:
    """Characters to numbers; the first is for padding."""

    def __init__(self, alphabet: str, pad_token: str = "<pad>") -> None:
        self.tokens = [pad_token, *alphabet]
        self.pad_token_id = 0

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's characters."""
        return [self.tokens.index(character) for character in text]


class Sentences(Dataset[list[int]]):
    """Texts of several lengths as numbers."""

    def __init__(self, tokenizer: Tokenizer, lines: Sequence[str]) -> None:
        self.rows = [tokenizer.encode(line) for line in lines]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[int]:
        return self.rows[index]


class Collator:
    """Rows of one length, and labels in which padding does not count."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.pad = tokenizer.pad_token_id

    def __call__(self, rows: list[list[int]]) -> dict[str, Tensor]:
        longest = max(map(len, rows))
        padded = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])
        return {"input_ids": padded, "labels": padded.masked_fill(padded == self.pad, -100)}


@dataclass
class GPT2Config:
    """The sizes of a model."""

    vocab_size: int
    n_positions: int = 32
    n_embd: int = 16
    n_layer: int = 2
    n_head: int = 2
    pad_token_id: int = 0


class GPT2LMHeadModel(nn.Module):
    """A transformer that returns its own loss."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        layer = nn.TransformerEncoderLayer(config.n_embd, config.n_head, 4 * config.n_embd, 0.0, batch_first=True)
        self.h = nn.TransformerEncoder(layer, config.n_layer)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Map numbers [N, T] to logits [N, T, vocab_size] and the loss of the next ones."""
        length = input_ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.h(self.wte(input_ids) + self.wpe(torch.arange(length)), mask=mask, is_causal=True)
        logits = self.lm_head(hidden)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}
