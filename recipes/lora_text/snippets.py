"""Snippets of Python's own packages, and a small language model that learns which package one is from."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

PACKAGES = ("asyncio", "email", "unittest", "xml")
MODULES = ("argparse", "ast", "datetime", "decimal", "doctest", "difflib", "inspect", "pathlib", "typing")


class Snippets(TensorDataset):
    """Windows of the packages' source, byte by byte, each with the number of its package.

    Args:
        split: The last fifth of each package, or what is before it.
        length: Bytes of a snippet.
    """

    def __init__(self, split: str, length: int = 96) -> None:
        snippets, labels = [], []
        for label, name in enumerate(PACKAGES):
            folder = Path(inspect.getfile(sys.modules.get(name) or __import__(name))).parent
            source = b"".join(file.read_bytes() for file in sorted(folder.rglob("*.py")))
            cut = len(source) * 4 // 5
            part = source[:cut] if split == "train" else source[cut:]
            tokens = torch.frombuffer(bytearray(part), dtype=torch.uint8).long()
            snippets.append(tokens[: len(tokens) // length * length].view(-1, length)[:2000])
            labels += [label] * len(snippets[-1])
        super().__init__(torch.cat(snippets), torch.tensor(labels))


class Padded:
    """For the full-size form: a batch of texts as tokens, padded to the longest, and their labels."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Makes a batch of rows with `text` and `label`."""
        texts = [row["text"] for row in rows]
        tokens = self.tokenizer(texts, truncation=True, max_length=512, padding=True, return_tensors="pt")
        return {**tokens, "label": torch.tensor([row["label"] for row in rows])}


class Classifier(nn.Module):
    """A language model that has read other modules, and a new head over the mean of what it makes of each byte.

    It is pretrained here, by the plainest of loops, in seconds.
    """

    def __init__(self, steps: int = 200, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
        )
        language = LlamaForCausalLM(config)
        pretrain(language, steps)
        self.reader, self.head = language.model, nn.Linear(width, len(PACKAGES))

    def forward(self, snippets: Tensor) -> Tensor:
        """Maps bytes [N, T] to logits [N, packages]."""
        logits: Tensor = self.head(self.reader(input_ids=snippets).last_hidden_state.mean(1))
        return logits


def pretrain(model: LlamaForCausalLM, steps: int) -> None:
    """Teaches it to continue the source of a few modules."""
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


def baseline() -> float:
    """The accuracy of logistic regression on how often each byte is there."""
    seen, tested = Snippets("train"), Snippets("validation")
    counts = [nn.functional.one_hot(part.tensors[0], 256).sum(1).clamp(max=8).numpy() for part in (seen, tested)]
    judge = LogisticRegression(C=0.1, max_iter=1000).fit(counts[0], seen.tensors[1].numpy())
    return float(judge.score(counts[1], tested.tensors[1].numpy()))


if __name__ == "__main__":
    print(f"accuracy of logistic regression: {baseline():.3f}")
