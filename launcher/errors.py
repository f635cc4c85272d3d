"""What can go wrong, in words a user can act on, and the exit code each kind ends the program with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2  # the recipe or the command line is wrong
EXIT_PREEMPTED = 75  # saved, to be continued (EX_TEMPFAIL)


class LauncherError(Exception):
    """A failure whose message is all that a user needs: printed without a traceback."""

    exit_code = EXIT_FAILED


class UsageError(LauncherError):
    """The command line, or the world that the program was started in, is wrong."""

    exit_code = EXIT_USAGE


class MissingPackageError(UsageError, ImportError):
    """An optional package is not installed; the message has the command that brings it."""


class SampleError(LauncherError):
    """A sample cannot be read, which an argument of its data set leaves out.

    Args:
        message: What is wrong, and what else to do.
        setting: That argument, as in `corrupt=skip`; whoever knows the data set's key says it before it.
    """

    def __init__(self, message: str, setting: str):
        super().__init__(f"{message}, or set {setting}")
        self.message, self.setting = message, setting

    def of(self, key: str) -> str:
        """What is wrong, with the whole override."""
        return f"{self.message}, or set {key}.{self.setting}"


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in a recipe.

    Attributes:
        where: The place: `recipes/x.yaml:14:3`, or `override 'optimizer.lr=fast'`.
        path: The key, dotted, as in `optimizer.lr`; empty for the recipe as a whole.
        message: What is wrong; what is allowed; what to do.
    """

    where: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


class RecipeError(LauncherError):
    """All mistakes found in a recipe, together."""

    exit_code = EXIT_USAGE

    def __init__(self, problems: Iterable[Problem]):
        self.problems: Sequence[Problem] = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PeerError(LauncherError):
    """Another rank failed in what this one was waiting for.

    Args:
        message: Its message.
        exit_code: Its exit code, which becomes this rank's too.
    """

    def __init__(self, message: str, exit_code: int = EXIT_FAILED):
        super().__init__(message)
        self.exit_code = exit_code
