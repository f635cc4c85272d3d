"""What a process knows of the run that it makes, kept by the session and the loop for the report of a failure.

It costs the loop an assignment a step and two a micro-batch. What a run knew when it failed goes with its exception, so
that no later run, and nothing that fails outside of it, is told of with another's steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.text import shapes

_ATTRIBUTE = "launcher_context"  # of an exception that has ended a run


@dataclass(slots=True)
class RunContext:
    """Where a run stands.

    Attributes:
        folder: The run's, once it is chosen.
        step: Optimizer steps completed, while the loop makes more of them; else None.
        steps_per_epoch: Optimizer steps of one pass over the data.
        shares: The global batch in words: what each process has of it.
        parameters: Names of the trained parameters, in the order in which DDP counts them.
        memory: What to do where memory has run out, if more is known than anybody could say.
        batch: The micro-batch that the model or the loss works on now; None in between.
        shapes: The same in words, once the run has failed.
    """

    folder: Path | None = None
    step: int | None = None
    steps_per_epoch: int = 1
    shares: str = ""
    parameters: Sequence[str] = ()
    memory: str = ""
    batch: Any = None
    shapes: str = ""

    @property
    def epoch(self) -> float | None:
        """Passes over the data completed, while the loop runs."""
        return None if self.step is None else self.step / self.steps_per_epoch


run = RunContext()  # of the innermost run in progress: read it as `context.run`, never import it by name


@contextmanager
def remembered() -> Iterator[RunContext]:
    """A context of a run's own for a while; of a run that raises, `known_of` gives it afterwards."""
    global run
    before, own = run, RunContext()
    run = own
    try:
        yield own
    except BaseException as error:
        with suppress(Exception):  # whatever state the program is in: its own error is what counts
            shapes = _in_words(own.batch) if own.batch is not None else ""
            vars(error).setdefault(_ATTRIBUTE, replace(own, batch=None, shapes=shapes))  # an inner run's is there first
        raise
    finally:
        run = before


def known_of(error: BaseException) -> RunContext:
    """What the run knew that this exception has ended; nothing where it has ended none."""
    context = None
    with suppress(Exception):  # its class may have an attribute of that name
        context = vars(error).get(_ATTRIBUTE)
    return context if isinstance(context, RunContext) else RunContext()


def _in_words(batch: Any) -> str:
    return f"({shapes(batch)})" if isinstance(batch, tuple | list) else shapes(batch)
