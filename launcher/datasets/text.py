"""Text as characters: the data set of a small language model."""

from __future__ import annotations

import codecs
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from launcher.datasets.files import FOLDER, atomic_write, cache_path, checked_file, state_of, temporary_folder
from launcher.datasets.splits import check_split
from launcher.recipe.directory import absolute

LARGE_BYTES = 64 * 2**20  # tokens of a larger text are written to a file once and mapped into memory
_BLOCK_BYTES = 16 * 2**20  # of text tokenised at once
_ALL_CHARACTERS = 0x110000

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
    moved on by one. A window that would run over the end of its part is dropped.

    Args:
        path: A UTF-8 text file, relative to the working directory; None reads the source of a few dozen
            modules of the Python standard library, which every machine has.
        split: `train` is the front of the text, `validation` its end.
        context: Characters in a window.
        validation_fraction: The share of the text kept for validation, between 0 and 1.
        stride: Characters between the starts of two windows. None is 1 for training, where every offset
            is a sample, and `context` for validation, where every character is predicted once.
        scratch: Where the tokens of a text above 64 MiB are kept (`data.scratch`); None is `~/.cache`.

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
        scratch: str | Path | None = None,
    ) -> None:
        check_split(split, ("train", "validation"))
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction is {validation_fraction}; allowed: between 0 and 1")
        if context < 1 or (stride is not None and stride < 1):
            raise ValueError(f"context is {context} and stride {stride}; allowed: 1 or more")
        self.characters, tokens = _tokens_of(path, scratch)
        boundary = int(len(tokens) * (1 - validation_fraction))
        part = tokens[:boundary] if split == "train" else tokens[boundary:]
        if len(part) <= context:
            raise ValueError(
                f"the {split} part of {path or 'the text'} has {len(part)} characters and a window needs"
                f" {context + 1} (context + 1); use a longer text or a smaller context"
            )
        stride = stride or (1 if split == "train" else context)
        self._windows = part.unfold(0, context + 1, stride)  # a view: overlapping windows share their memory

    @staticmethod
    def prepare(path: str | Path | None = None, scratch: str | Path | None = None) -> None:
        """Tokenises a large text, once for all processes of a machine."""
        if path is not None and checked_file(path, "a UTF-8 text").stat().st_size > LARGE_BYTES:
            _tokens_of(path, scratch)

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
        """Reads many samples at once: inputs and targets, both int64 of shape [N, context]."""
        windows = self._windows.index_select(0, indices)
        return windows[:, :-1].long(), windows[:, 1:].long()

    def encode(self, text: str) -> Tensor:
        """Turns text into tokens, int64 of shape [len(text)].

        Raises:
            ValueError: If a character is not in the vocabulary.
        """
        if unknown := sorted(set(text) - set(self.characters)):
            raise ValueError(f"not in the vocabulary: {unknown}; it has {self.vocab_size} characters")
        return torch.tensor([self.characters.index(character) for character in text], dtype=torch.int64)

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """Turns tokens, in one dimension, back into text."""
        return "".join(self.characters[int(token)] for token in tokens)


# ---------------------------------------------------------------------- tokens


def _tokens_of(path: str | Path | None, scratch: str | Path | None) -> tuple[str, Tensor]:
    """The vocabulary, and each character's place in it in the smallest type that holds it."""
    if path is None:
        folder = Path(sysconfig.get_path("stdlib"))
        return _tokenized([folder / f"{name}.py" for name in _LIBRARY_MODULES])
    file = checked_file(path, "a UTF-8 text")
    if file.stat().st_size <= LARGE_BYTES:
        return _tokenized([file])
    kept = cache_path("text", state_of(file))
    if scratch is not None:
        kept = absolute(scratch) / FOLDER / kept.name
    try:
        _keep_tokens(file, kept)
    except OSError:
        if scratch is not None:
            raise
        kept = temporary_folder() / kept.name  # a home that is full, or not to be written
        _keep_tokens(file, kept)
    characters = "".join(map(chr, json.loads((kept / "vocabulary.json").read_text(encoding="utf-8"))))
    # copy-on-write: torch wants memory that may be written to, and the file stays as it is
    return characters, torch.from_numpy(np.load(kept / "tokens.npy", mmap_mode="c"))


def _tokenized(files: Sequence[Path]) -> tuple[str, Tensor]:
    codes = np.concatenate([np.empty(0, dtype=np.uint32), *(block for file in files for block in _codes(file))])
    vocabulary, places = _vocabulary([codes])
    return "".join(map(chr, vocabulary)), torch.from_numpy(places[codes])


def _keep_tokens(file: Path, kept: Path) -> None:
    if not kept.exists():
        with atomic_write(kept) as part:
            _write_tokens(file, part)


def _write_tokens(file: Path, folder: Path) -> None:
    """Tokenises a text in two passes, a block at a time."""
    vocabulary, places = _vocabulary(_codes(file))
    folder.mkdir()
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary.tolist()), encoding="utf-8")
    length = sum(len(block) for block in _codes(file))
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", mode="w+", dtype=places.dtype, shape=(length,))
    done = 0
    for block in _codes(file):
        tokens[done : done + len(block)] = places[block]
        done += len(block)
    tokens.flush()


def _vocabulary(blocks: Iterable[NDArray[np.uint32]]) -> tuple[NDArray[np.int64], NDArray[np.unsignedinteger]]:
    """The code points that occur, ascending, and for every code point its place among them."""
    occurs = np.zeros(_ALL_CHARACTERS, dtype=np.bool_)
    for block in blocks:
        occurs[block] = True
    vocabulary = np.flatnonzero(occurs)
    places = np.zeros(_ALL_CHARACTERS, dtype=np.min_scalar_type(max(len(vocabulary) - 1, 0)))
    places[vocabulary] = np.arange(len(vocabulary))
    return vocabulary, places


def _codes(path: Path) -> Iterator[NDArray[np.uint32]]:
    """The text's code points, a block at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        block = b"-"
        while block:
            pending, before = len(decoder.getstate()[0]), file.tell()
            block = file.read(_BLOCK_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = before - pending + error.start
                raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {place}") from None
            yield np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
