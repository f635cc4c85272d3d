"""What `--json` prints: one object a line on standard output, each with its `kind`. Written down here for programs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Plan(_Object):
    """What will be done, once, before the first step."""

    kind: Literal["plan"]
    plan: dict[str, str] = Field(description="Text by label, as in `world: 2 processes`.")


class Metrics(BaseModel):
    """A line of `metrics.jsonl`: of training or of an evaluation, with a key for each metric."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["metrics"]
    split: Literal["train", "validation", "test"]
    step: int = Field(ge=0, description="Optimizer steps completed.")
    epoch: float = Field(0, ge=0, description="Passes over the data.")
    loss: float | Literal["NaN", "Infinity", "-Infinity"] | None = Field(None, description="As it was counted.")
    time: float = Field(description="When, in unix time.")


class Message(_Object):
    """Something that a person would be told."""

    kind: Literal["message"]
    message: str


class Warned(_Object):
    """Something that a person would be warned of."""

    kind: Literal["warning"]
    warning: str


class Failed(_Object):
    """Why the run or the command ended; a person is told the same on standard error."""

    kind: Literal["failure"]
    error: str = Field(description="What is wrong, with the remedy where one is known.")
    exit_code: int = Field(description="1: the run failed; 2: the recipe or the command line is wrong.")
    rank: int | None = Field(None, ge=0, description="The rank that failed first.")
    host: str | None = None
    step: int | None = Field(None, description="Optimizer steps completed by then.")
    place: str | None = Field(None, description="The line of code that failed, as in `model.py:12`.")
    checkpoint: str | None = Field(None, description="The newest checkpoint.")
    resume: str | None = Field(None, description="The command that resumes the run, or starts it again.")


class End(_Object):
    """How a start of the run ended. Absent where a process was killed."""

    kind: Literal["end"]
    outcome: Literal["finished", "stopped", "failed"]
    step: int = Field(ge=0, description="Optimizer steps completed.")
    saved: int | None = Field(description="The step of the newest checkpoint; null without one.")
    seconds: float = Field(ge=0, description="Time that this start took.")
    run: str = Field(description="The run's folder.")
    summary: list[dict[str, Any]] = Field(description="The last evaluations, as lines of `metrics.jsonl`.")


OutputLine = Annotated[Plan | Metrics | Message | Warned | Failed | End, Field(discriminator="kind")]


def lines_schema() -> dict[str, Any]:
    """The JSON Schema of a line."""
    schema = TypeAdapter(OutputLine).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "a line of --json", **schema}
