"""What a trained model is asked about: pictures, lines and rows of which nobody knows the target.

Each says by `row_of` what is added to its prediction: the file's name, say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.datasets.files import checked_file, needed
from launcher.datasets.images import EXTENSIONS, ImageFolder, readable_pictures
from launcher.recipe.inputs import unreadable
from launcher.text import shapes

JSON_LINES = (".jsonl", ".ndjson")
PIPED = "standard-input.jsonl"  # what was read there, in a folder that all processes know


def label_of(path: Path) -> str:
    """What a file is called in a message."""
    return "standard input" if path.name == PIPED else path.name


class Pictures(ImageFolder):
    """Every picture of a folder and below it, one picture, or those that JSON lines name; read as `ImageFolder` does.

    Sample *i* is a pair as in training, whose target is 0 and means nothing.

    Args:
        path: The folder, the picture, or a file of JSON lines: `"a.png"`, or `{"file": "a.png"}`.
        directory: From where the names in JSON lines are.
        classes: Names of the classes in the order of their numbers; None where they have none.
        transform: As in training.
        size: As in training.
        mode: As in training.
        corrupt: `skip` to leave out what cannot be read, or `error`.

    Attributes:
        unreadable: The files that were skipped.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It has no pictures.
    """

    def __init__(
        self,
        path: Path,
        directory: Path,
        classes: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        size: int | None = None,
        mode: Literal["RGB", "L"] = "RGB",
        corrupt: Literal["error", "skip"] = "skip",
    ) -> None:
        self._pillow = needed("PIL.Image", "images", "Pictures")
        self._fit = needed("PIL.ImageOps", "images", "Pictures").fit
        self.root = path if path.is_dir() else directory if path.suffix in JSON_LINES else path.parent
        self._names = _pictures_of(path, directory)
        if not self._names:
            raise ValueError(f"{path}: no pictures in it ({', '.join(EXTENSIONS)})")
        readable = readable_pictures(self.root, self._names) if corrupt == "skip" else [True] * len(self._names)
        self.unreadable = tuple(name for name, is_kept in zip(self._names, readable, strict=True) if not is_kept)
        self._names = [name for name, is_kept in zip(self._names, readable, strict=True) if is_kept]
        if not self._names:
            raise ValueError(self._why_none(path))
        self.classes = tuple(classes or ())
        self.transform, self.size, self.mode = transform, size, mode

    def _why_none(self, path: Path) -> str:
        if missing := next((name for name in self.unreadable if not (self.root / name).exists()), None):
            return f"{path}: there is no picture at {missing} (looked from {self.root})"
        if path.suffix in JSON_LINES or path.is_dir():
            return f"{path}: no picture can be read, {self.unreadable[0]} the first"
        return f"{path}: this picture cannot be read"

    def skipped(self) -> Iterator[str]:
        """What was left out, and why."""
        for name in self.unreadable:
            is_there = (self.root / name).exists()
            yield f"{name}: {'this picture cannot be read' if is_there else f'there is no such file in {self.root}'}"

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return self.root / self._names[index]

    def __len__(self) -> int:
        return len(self._names)

    def target(self, index: int) -> int:
        """Nobody knows it."""
        return 0


def _pictures_of(path: Path, directory: Path) -> list[str]:
    """The names of its files, sorted; those of JSON lines in their order."""
    if path.suffix in JSON_LINES:
        rows = json_lines(path)
        named = [(number, _text_in(path, number, row, ("file", "path", "image"))) for number, row in rows]
        for number, name in named:
            if fault := unreadable(directory / name):
                raise ValueError(f"{path.name}: line {number}: {name} {fault}; give the path of a picture")
        return [name for _, name in named]
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
        return sorted(os.fspath(file.relative_to(path)) for file in files)
    return [checked_file(path, "a picture, or a folder of pictures").name]


class Lines(Dataset[tuple[Tensor]]):
    """Each line of a text, as characters of a model that was trained on a `TextFile`; it predicts the next one.

    Args:
        path: A UTF-8 text, or JSON lines: `"a text"`, or `{"text": "a text"}`.
        characters: The vocabulary.
        context: As many characters, from a line's end, as the model looks back on.

    Attributes:
        classes: The characters.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8 text, is empty, or has characters that the vocabulary lacks.
    """

    def __init__(self, path: Path, characters: str, context: int) -> None:
        self.classes = tuple(characters)
        self._lines = _lines_of(checked_file(path, "a UTF-8 text"))
        if not self._lines:
            raise ValueError(f"{path}: no line in it has a character")
        places = {character: place for place, character in enumerate(characters)}
        for number, line in self._lines:
            if unknown := sorted(set(line) - set(characters)):
                odd = f"line {number} has {unknown[0]!r}, which the text of the training lacks"
                raise ValueError(f"{label_of(path)}: {odd}; remove it")
        self._tokens = [torch.tensor([places[letter] for letter in line[-context:]]) for _, line in self._lines]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (self._tokens[index],)

    def row_of(self, index: int) -> dict[str, Any]:
        """The line and its number."""
        number, text = self._lines[index]
        return {"line": number, "text": text}

    def last(self, output: Tensor) -> Tensor:
        """What the model says after the last character: [samples, characters], whichever dimension it has them in.

        An output of anything else stays as it is.
        """
        if output.dim() != 3 or len(self.classes) not in output.shape[1:]:
            return output
        return output[:, :, -1] if output.shape[1] == len(self.classes) else output[:, -1]


def _lines_of(path: Path) -> list[tuple[int, str]]:
    if path.suffix in JSON_LINES:
        rows = [(number, _text_in(path, number, row, ("text", "line", "prompt"))) for number, row in json_lines(path)]
    else:
        rows = list(enumerate(_utf8(path).splitlines(), start=1))
    return [(number, text) for number, text in rows if text]


class JsonRows(Dataset[Any]):
    """JSON lines as samples: a row holds what the model gets, by position or by name.

    `[0.5, 1.0]` and `{"x": [0.5, 1.0]}` are one input, `{"left": […], "right": […]}` are two, in their order or, where
    the recipe names the inputs of a batch, by their names.

    Args:
        path: The file.
        like: A sample of the training, whose types and shapes the values get; None makes numbers float32.
        by_name: Whether the recipe names the inputs.

    Attributes:
        like: That sample.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is not JSON, or does not fit the sample.
    """

    def __init__(self, path: Path, like: Any = None, by_name: bool = False) -> None:
        self._samples, self._lines, self.like = [], [], like
        self._name = label_of(path)
        for number, row in json_lines(checked_file(path, "JSON lines")):
            values = row if isinstance(row, dict) else {"": row}
            try:
                parts = {
                    key: _as_in(value, _part(like, place, key)) for place, (key, value) in enumerate(values.items())
                }
            except (TypeError, ValueError) as error:
                raise ValueError(f"{label_of(path)}: line {number}: {error}") from None
            self._samples.append(parts if by_name and "" not in parts else tuple(parts.values()))
            self._lines.append(number)
        if not self._samples:
            raise ValueError(f"{label_of(path)}: no row in it")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        return self._samples[index]

    @property
    def is_uniform(self) -> bool:
        """Whether all rows have the same shapes, and make a batch."""
        return len({shapes(sample) for sample in self._samples}) == 1

    def refusal(self, first: int, count: int, error: Exception) -> str:
        """Why a model cannot take some rows, in a line: the first whose shapes are not those of the training."""
        numbers = range(first, first + count)
        odd = next((number for number in numbers if not self._is_alike(self._samples[number])), first)
        words = " ".join(str(error).split())[:200]
        training = f"; a sample of the training has {shapes(self.like)}" if self.like is not None else ""
        return (
            f"{self._name}: line {self._lines[odd]}: the model cannot take it: {words}; it has "
            f"{shapes(self._samples[odd])}{training}"
        )

    def _is_alike(self, sample: Any) -> bool:
        parts = sample.items() if isinstance(sample, Mapping) else enumerate(sample)
        known = ((value, _part(self.like, place, str(key))) for place, (key, value) in enumerate(parts))
        return all(getattr(value, "shape", None) == getattr(like, "shape", None) for value, like in known)


def _part(like: Any, place: int, key: str) -> Any:
    """The part of a known sample that belongs to a value."""
    if isinstance(like, Mapping):
        return like.get(key, next(iter(like.values()), None) if not key else None)
    if isinstance(like, tuple | list):
        return like[place] if place < len(like) else None
    return like


def _as_in(value: Any, like: Any) -> Any:
    """A value as the training had it: of that type, and of that shape where the count of numbers fits."""
    if isinstance(value, str | None):
        return value
    known = torch.as_tensor(like) if isinstance(like, Tensor | int | float) or hasattr(like, "dtype") else None
    made = torch.tensor(value, dtype=torch.float32 if known is None else known.dtype)
    if known is None or made.shape == known.shape:
        return made
    if made.numel() == known.numel():
        return made.reshape(known.shape)
    if made.dim() != known.dim():
        shape = list(known.shape)
        raise ValueError(f"{made.numel()} numbers of shape {list(made.shape)}; a sample of the training has {shape}")
    return made


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Each line that is not blank, with its number.

    Raises:
        ValueError: One is not JSON.
    """
    for number, line in enumerate(_utf8(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                odd = f"line {number} is not JSON: {error}"
                raise ValueError(f"{label_of(path)}: {odd}; write a value on each line, a text in quotes") from None


def _utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _text_in(path: Path, number: int, row: Any, keys: Sequence[str]) -> str:
    """A row's text: the row itself, what stands under one of the keys, or its only value."""
    if isinstance(row, dict):
        row = next((row[key] for key in keys if key in row), next(iter(row.values())) if len(row) == 1 else None)
    if not isinstance(row, str):
        raise ValueError(f'{label_of(path)}: line {number} is not text; write "…" or {{"{keys[0]}": "…"}}')
    return row
