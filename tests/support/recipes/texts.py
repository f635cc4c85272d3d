"""Texts of made-up words, a tokenizer that knows them, and what is counted of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

WORDS = ["<pad>", "</s>", *(f"w{number}" for number in range(10))]


def tokenizer() -> Any:
    """Of whole words."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = WhitespaceSplit()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return make(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", padding_side="left")


class Echoes(Dataset[Any]):
    """A text of four words, and its first two again.

    Args:
        answers: What a batch has of them: `tokens`, or `text`.
    """

    def __init__(self, answers: str = "tokens", size: int = 24):
        self.answers, self.size = answers, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = torch.randint(2, 12, (4,), generator=torch.Generator().manual_seed(index))
        answer = torch.cat([tokens[:2], torch.tensor([1])])
        row = {"input_ids": tokens, "labels": answer, "mask": torch.ones_like(tokens)}
        whole = torch.cat([tokens, answer])
        row |= {"whole": whole, "whole_labels": torch.cat([torch.full_like(tokens, -100), answer])}
        return {**row, "answer": " ".join(WORDS[token] for token in answer[:-1].tolist())}


def equal(said: Sequence[str], wanted: Sequence[str]) -> float:
    """The share of texts that are as they should be."""
    return sum(a == b for a, b in zip(said, wanted, strict=True)) / len(said)


def longest(said: Sequence[str], wanted: Sequence[str]) -> float:
    """The most words of a text."""
    return float(max(len(text.split()) for text in said))
