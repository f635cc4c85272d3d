"""A job as a batch script: pure text. The scripts in `slurm/` come from the same template."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.errors import UsageError

Value = str | int | float | bool
_BARE = re.compile(r"[\w./:,=@%+*&|!\[\]()-]+")
_NAME = re.compile(r"[A-Za-z_]\w*")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
SCRIPT_FILE = "job.sbatch"


@dataclass(frozen=True)
class Job:
    """What a batch script says. Texts of shell are quoted already, by `quoted`.

    Attributes:
        head: Comments at its top, one line each.
        options: Long options of sbatch, without dashes; True stands alone, False is left out.
        launch: Shell: the command that starts the ranks and waits for them.
        python: Shell: the Python that they run with.
        host: Shell: the one of the batch script itself, where the ranks run in a container that has another.
        run: Shell: the run's folder.
        directory: Shell: where it starts; None for the directory of the submission.
        setup: Lines of shell to begin with.
        environment: Variables.
        tasks: What each task of an array changes in the recipe; empty where it is not an array.
        max_requeues: How many times the job may requeue itself.
        max_restarts: How often of these after a failure.
        signal_seconds: How long before the limit it is asked to save.
        requeue: Whether it may.
        once: Whether it is only to be seen: nothing follows, and 75 is as good as 0.
    """

    head: Sequence[str]
    options: Mapping[str, Value]
    launch: Sequence[str]
    python: str
    run: str
    host: str | None = None
    directory: str | None = None
    setup: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    tasks: Sequence[Sequence[str]] = ()
    max_requeues: int = 20
    max_restarts: int = 0
    signal_seconds: int = 120
    requeue: bool = True
    once: bool = False


def render(job: Job) -> str:
    """The batch script.

    Raises:
        UsageError: A value cannot be written in one, such as one with a line break.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # this is not a page: each value is quoted for the shell or for sbatch
    )
    text = environment.get_template("job.sbatch.jinja").render(
        head=["".join(character if character.isprintable() else "?" for character in line) for line in job.head],
        options=[option(name, value) for name, value in job.options.items() if value is not False],
        exports=[(_variable(name), expanded(value)) for name, value in job.environment.items()],
        tasks=[" ".join(map(quoted, words)) for words in job.tasks],
        **{name: getattr(job, name) for name in ("launch", "python", "host", "run", "directory", "setup")},
        **{name: getattr(job, name) for name in ("max_requeues", "max_restarts", "signal_seconds", "requeue", "once")},
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def quoted(text: str) -> str:
    """One word for the shell, whatever it holds.

    Raises:
        UsageError: It holds control characters.
    """
    return shlex.quote(printable(text))


def expanded(text: str) -> str:
    """One word for the shell in which `$NAME` and `${NAME}` are variables of the job, and all else is text.

    Raises:
        UsageError: It holds control characters.
    """
    pieces = _VARIABLE.split(printable(text))  # text and names in turn, two groups to a name
    literals = [quoted(piece) for piece in pieces[::3]]
    names = [f'"${{{braced or bare}}}"' for braced, bare in zip(pieces[1::3], pieces[2::3], strict=True)]
    mixed = [literals[0], *(part for pair in zip(names, literals[1:], strict=True) for part in pair)]
    return "".join(part for part in mixed if part != "''") or "''"


def printable(text: str) -> str:
    """The text itself.

    Raises:
        UsageError: It holds control characters.
    """
    if not text.isprintable():
        raise UsageError(f"{text[:80]!r} holds line breaks or other control characters; no job can be told that")
    return text


def command_words(options: Mapping[str, Value]) -> list[str]:
    """The options as words of sbatch's command line, where nothing is quoted.

    Raises:
        UsageError: A value holds control characters.
    """
    flags = {name.replace("_", "-"): value for name, value in options.items() if value is not False}
    return [f"--{name}" + ("" if value is True else f"={printable(str(value))}") for name, value in flags.items()]


def option(name: str, value: Value) -> str:
    """An option as a `#SBATCH` line has it. sbatch knows quotes there, and no shell reads the line.

    Raises:
        UsageError: sbatch cannot be told this value.
    """
    name = name.replace("_", "-")
    if value is True:
        return f"--{name}"
    text = printable(str(value))
    if _BARE.fullmatch(text):
        return f"--{name}={text}"
    if '"' in text or "\\" in text:
        raise UsageError(f"slurm.{name}: {text!r} holds a quotation mark or backslash, which sbatch does not take")
    return f'--{name}="{text}"'


def _variable(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"site file: environment: {name!r} is not a name of a variable")
    return name
