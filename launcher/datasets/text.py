"""Text as characters: the data set of a small language model."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.datasets.splits import check_split

# Single-file modules of every Python since 3.10: about 1.9 million characters of English and code.
_LIBRARY_MODULES = (
    *("argparse", "ast", "codecs", "configparser", "contextlib", "dataclasses", "difflib", "doctest"),
    *("enum", "functools", "imaplib", "inspect", "ipaddress", "mailbox", "optparse", "os", "pdb"),
    *("pickle", "pickletools", "random", "shutil", "smtplib", "socket", "statistics", "subprocess"),
    *("tarfile", "threading", "typing"),
)


class TextFile(Dataset[tuple[Tensor, Tensor]]):
    """Windows of `context` characters, each with its successors as target.

    Sample *i* is a pair of int64 tensors of shape [context]: characters `i * stride …` and the same
    moved on by one. A window that would run over the end of its part is left out.

    Args:
        path: A UTF-8 text file, relative to the working directory; None reads the source of a few dozen
            modules of the Python standard library, which every machine has.
        split: `train` is the front of the text, `validation` its end.
        context: Characters in a window.
        validation_fraction: The share of the text kept for validation, between 0 and 1.
        stride: Characters between the starts of two windows. None is 1 for training, where every offset
            is a sample, and `context` for validation, where every character is predicted once.

    Attributes:
        characters: The vocabulary: all characters of the whole text, sorted; a token is a place in it.
        vocab_size: Its length.

    Raises:
        FileNotFoundError: If `path` is not a file.
        ValueError: If the text is not UTF-8, its part is too short for one window, or an argument is
            out of range.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        split: Literal["train", "validation"] = "train",
        context: int = 64,
        validation_fraction: float = 0.1,
        stride: int | None = None,
    ) -> None:
        check_split(split, ("train", "validation"))
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction is {validation_fraction}; allowed: between 0 and 1")
        if context < 1 or (stride is not None and stride < 1):
            raise ValueError(f"context is {context} and stride {stride}; allowed: 1 or more")
        text = _standard_library() if path is None else _read(Path(path))
        self.characters, tokens = _tokenize(text)
        boundary = int(len(text) * (1 - validation_fraction))
        part = tokens[:boundary] if split == "train" else tokens[boundary:]
        if len(part) <= context:
            raise ValueError(
                f"the {split} part of {path or 'the text'} has {len(part)} characters and a window needs"
                f" {context + 1} (context + 1); use a longer text or a smaller context"
            )
        stride = stride or (1 if split == "train" else context)
        self._windows = part.unfold(0, context + 1, stride)  # a view: overlapping windows share their memory

    @property
    def vocab_size(self) -> int:
        """How many different characters the text has."""
        return len(self.characters)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window = self._windows[index]
        return window[:-1].long(), window[1:].long()

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Read many samples at once: inputs and targets, both int64 of shape [N, context]."""
        windows = self._windows[indices]
        return windows[:, :-1].long(), windows[:, 1:].long()

    def encode(self, text: str) -> Tensor:
        """Turn text into tokens, int64 of shape [len(text)].

        Raises:
            ValueError: If a character is not in the vocabulary.
        """
        if unknown := sorted(set(text) - set(self.characters)):
            raise ValueError(f"not in the vocabulary: {unknown}; it has {self.vocab_size} characters")
        return torch.tensor([self.characters.index(character) for character in text], dtype=torch.int64)

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """Turn tokens, in one dimension, back into text."""
        return "".join(self.characters[int(token)] for token in tokens)


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path} (looked from {Path.cwd()}); give the path of a text")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _standard_library() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    return "".join(_read(folder / f"{name}.py") for name in _LIBRARY_MODULES)


def _tokenize(text: str) -> tuple[str, Tensor]:
    """The vocabulary, and each character's place in it in the smallest type that holds it."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    vocabulary, tokens = np.unique(codes, return_inverse=True)
    dtype = np.min_scalar_type(max(len(vocabulary) - 1, 0))
    return "".join(map(chr, vocabulary)), torch.from_numpy(tokens.astype(dtype))
