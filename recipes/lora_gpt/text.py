"""Texts that come with Python, and a small language model of one of them, which LoRA makes one of the other."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

MODULES = ("argparse", "ast", "datetime", "decimal", "doctest", "difflib", "inspect", "pathlib", "typing")


class Windows(Dataset[Mapping[str, Tensor]]):
    """Windows of tokens, which are the labels too: the model shifts them.

    Args:
        split: The last tenth of the text, or what is before it.
        path: A UTF-8 file; null is the reference of Python's language that `help()` shows.
        tokenizer: Of transformers; null takes each byte for a token.
        context: Tokens of a window.
    """

    def __init__(self, split: str, path: str | None = None, tokenizer: Any = None, context: int = 64) -> None:
        text = "\n".join(topics.topics.values()) if path is None else Path(path).read_text(encoding="utf-8")
        tokens = list(text.encode()) if tokenizer is None else tokenizer(text)["input_ids"]
        cut = len(tokens) * 9 // 10
        part = torch.tensor(tokens[:cut] if split == "train" else tokens[cut:])
        self.windows = part[: len(part) // context * context].view(-1, context)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        return {"input_ids": self.windows[index], "labels": self.windows[index]}


def base(steps: int = 200, width: int = 64, layers: int = 2) -> LlamaForCausalLM:
    """A Llama over bytes that has read some of Python's own source.

    It is pretrained here, by the plainest of loops, in seconds.
    """
    config = LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    source = "".join(inspect.getsource(__import__(name)) for name in MODULES).encode()
    tokens = torch.frombuffer(bytearray(source), dtype=torch.uint8).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - 64, (16, 1), generator=generator)
        windows = tokens[starts + torch.arange(64)]
        optimizer.zero_grad()
        model(input_ids=windows, labels=windows).loss.backward()
        optimizer.step()
    return model
