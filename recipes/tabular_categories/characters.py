"""Unicode's table, which Python ships: of what kind a character is (Lu, Nd, Sm, …), by what else is known of it."""

import unicodedata
from collections import Counter
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

BLOCK, MANY = 128, ("CJK", "HANGUL", "TANGUT", "KHITAN", "NUSHU")  # scripts of thousands that are all alike
COLUMNS = ("direction", "width", "block", "script", "last word")


def table() -> list[tuple[list[str], list[float], str]]:
    """The categories, numbers and kind of each named character."""
    rows = []
    for code in range(0x20000):
        character = chr(code)
        words = unicodedata.name(character, "").split()
        if words and words[0] not in MANY:
            marks = [unicodedata.bidirectional(character), unicodedata.east_asian_width(character)]
            numbers = [len(words), len(unicodedata.decomposition(character)), unicodedata.mirrored(character)]
            kind = unicodedata.category(character)
            rows.append(([*marks, str(code // BLOCK), words[0], words[-1]], [*map(float, numbers)], kind))
    return rows


class Characters(TensorDataset):
    """Categories [5], numbers [3] and kind of 31,000 characters; a tenth by chance to validate, a tenth to test.

    Args:
        split: Which part.
        rare: Of how few rows a category is the one for all that are rare.
    """

    def __init__(self, split: Literal["train", "validation", "test"], rare: int = 3) -> None:
        rows = table()
        columns = [[row[0][number] for row in rows] for number in range(len(COLUMNS))]
        categories, self.sizes = zip(*(coded(column, rare) for column in columns), strict=True)
        kinds, self.kinds = coded([row[2] for row in rows], rare=0)
        numbers = torch.tensor([row[1] for row in rows]).log1p()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        tenth = len(rows) // 10
        part = {"validation": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}[split]
        super().__init__(torch.stack(categories, 1)[part], numbers[part], kinds[part])


def coded(column: list[str], rare: int) -> tuple[Tensor, int]:
    """Categories as numbers, 0 for the rare ones, and how many numbers there are."""
    common = [name for name, count in sorted(Counter(column).items()) if count > rare]
    number = {name: index for index, name in enumerate(common, start=bool(rare))}
    return torch.tensor([number.get(name, 0) for name in column]), len(common) + bool(rare)


class Entities(nn.Module):
    """An embedding for each column of categories (Guo and Berkhahn, 2016), joined with the numbers; then two layers.

    Args:
        sizes: How many categories each column has.
        numbers: How many columns of numbers there are.
        kinds: How many kinds are told apart.
        width: Of the layers.
    """

    def __init__(self, sizes: tuple[int, ...], numbers: int, kinds: int, width: int = 128) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 16) for size in sizes)
        self.layers = nn.Sequential(
            nn.Linear(16 * len(sizes) + numbers, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, kinds)
        )

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """Maps categories [N, 5] and numbers [N, 3] to logits [N, kinds]."""
        embedded = [embedding(column) for embedding, column in zip(self.embeddings, categories.unbind(1), strict=True)]
        logits: Tensor = self.layers(torch.cat([*embedded, numbers], dim=1))
        return logits


def baseline() -> float:
    """The accuracy of who says what kind most characters of the block are, on the test's part."""
    seen, tested = Characters("train"), Characters("test")
    counts = torch.zeros(seen.sizes[2], seen.kinds)
    counts.index_put_((seen.tensors[0][:, 2], seen.tensors[2]), torch.tensor(1.0), accumulate=True)
    return float((counts.argmax(1)[tested.tensors[0][:, 2]] == tested.tensors[2]).float().mean())


if __name__ == "__main__":
    print(f"accuracy of the commonest kind of the block: {baseline():.3f}")
