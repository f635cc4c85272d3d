"""A confusion matrix as a drawing as wide as there is room: with numbers up to 30 classes, without them up to 100."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.runs.report.predictions import Mistakes

MOST_CLASSES = 100  # of a matrix in which one finds a cell
_MOST_NUMBERED = 30  # in whose cells a number can be read
_LETTER = 0.62  # of a letter's height is its width
_LONGEST = 22  # letters of a class's name, the rest of which is told by a hover


@dataclass(frozen=True)
class Cell:
    """Some samples of one class that were predicted alike.

    Attributes:
        row: Their class.
        column: The predicted one.
        count: How many they are; never 0.
        share: Of their class.
    """

    row: int
    column: int
    count: int
    share: float

    @property
    def is_right(self) -> bool:
        """Whether they were predicted correctly."""
        return self.row == self.column


@dataclass(frozen=True)
class Matrix:
    """What to draw, in units that are a pixel each where there is room.

    Attributes:
        names: The classes, whole.
        cells: Those that are not empty.
        size: Of a cell.
        font: The height of a letter of a name.
        margin: Room for the names, left of the rows and above the columns.
        is_numbered: Whether the counts stand in the cells.
    """

    names: Sequence[str]
    cells: Sequence[Cell]
    size: float
    font: float
    margin: float
    is_numbered: bool

    @property
    def width(self) -> float:
        """Of the whole, which is a square."""
        return self.margin + self.size * len(self.names) + 2

    @property
    def narrowest(self) -> float:
        """How narrow it may get on a screen and still be read."""
        return 0.0 if len(self.names) <= 12 else 0.8 * self.width

    def short(self, name: str) -> str:
        """A name in the room that there is."""
        return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def matrix_of(mistakes: Mistakes) -> Matrix | None:
    """The drawing; None where there are too many classes to find one."""
    names = [name or " " for name in mistakes.classes]
    if len(names) > MOST_CLASSES:
        return None
    size = 36.0 if len(names) <= 12 else 26.0 if len(names) <= _MOST_NUMBERED else 11.0
    font = 12.0 if len(names) <= _MOST_NUMBERED else 9.0
    longest = min(_LONGEST, max(map(len, names), default=1))
    totals = mistakes.matrix.sum(axis=1)
    cells = [
        Cell(int(row), int(column), int(count), float(count / totals[row]))
        for row, column in zip(*mistakes.matrix.nonzero(), strict=True)
        if (count := mistakes.matrix[row, column])
    ]
    return Matrix(names, cells, size, font, font * _LETTER * longest + 10, len(names) <= _MOST_NUMBERED)
