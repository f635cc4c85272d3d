"""Where a key stands, and what is wrong there."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import Problem, RecipeError

Key = str | int
Path = tuple[Key, ...]  # ("optimizer", "betas", 0)
MAX_PROBLEMS = 100


def dotted(path: Path) -> str:
    """A path as users write it: `("optimizer", "betas", 0)` is `optimizer.betas[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was set: `recipes/x.yaml:14:3`, `override 'optimizer.lr=3e-4'` or `default`.

    Attributes:
        source: The file as the user spelled it, or words for any other source.
        line: From 1; None where the source has no lines.
        column: From 1, in characters.
    """

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.source, self.line, self.column) if part is not None)


class Problems(list[Problem]):
    """The mistakes found so far. Raises them all once there are more than anybody would read."""

    def add(self, origin: Origin, path: Path, message: str) -> None:
        """Notes one mistake.

        Raises:
            RecipeError: There is room for no more.
        """
        self.append(Problem(str(origin), dotted(path), message))
        if len(self) >= MAX_PROBLEMS:
            raise RecipeError([*self, Problem("", "", f"only the first {MAX_PROBLEMS} mistakes are shown")])


def by_place(problem: Problem) -> tuple[str, int, int, str]:
    """Sorts problems by where they stand."""
    source, *numbers = problem.where.rsplit(":", 2)
    if len(numbers) == 2 and all(number.isdigit() for number in numbers):
        return source, int(numbers[0]), int(numbers[1]), problem.path
    return problem.where, 0, 0, problem.path
