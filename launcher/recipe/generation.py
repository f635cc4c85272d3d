"""The recipe's `evaluate.generate`: how a model's texts are made, for metrics that compare texts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from launcher.recipe.section import Section

Share = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class Generate(Section):
    """Texts that the model's own `generate` makes of each batch, for metrics with `_input_: text`."""

    inputs: dict[str, int | str] | None = Field(
        None,
        description="What generate() gets, by the names of its arguments; null: batch.inputs without the labels, which "
        "a causal model must not have.",
    )
    targets: int | str = Field("labels", description="Where a batch has the texts, or their tokens (-100 left out).")
    tokenizer: str | None = Field(
        None, description="The name under 'define' of what makes texts of tokens; null: the only one there."
    )
    max_new_tokens: Count = Field(64, description="At most so many.")
    min_new_tokens: Count | None = Field(None, description="At least so many.")
    num_beams: Count | None = Field(None, description="Beams of a search; null: the model's own setting.")
    length_penalty: float | None = Field(None, description="Above 0 beams prefer long texts.")
    early_stopping: bool | None = Field(None, description="Whether a search stops when it has as many texts as beams.")
    no_repeat_ngram_size: Count | None = Field(None, description="No so many tokens in a row come twice.")
    repetition_penalty: Share | None = Field(None, description="Above 1 what was said is less likely.")
    do_sample: bool | None = Field(None, description="Draw, from the evaluation's own randomness.")
    temperature: Share | None = Field(None, description="With do_sample: below 1 what is likely is likelier.")
    top_k: Count | None = Field(None, description="With do_sample: of so many likeliest tokens.")
    top_p: Share | None = Field(None, description="With do_sample: of the likeliest that together have so much.")

    @property
    def settings(self) -> dict[str, Any]:
        """What generate() is told besides its inputs."""
        return {
            name: value
            for name, value in self.model_dump(exclude={"inputs", "targets", "tokenizer"}).items()
            if value is not None
        }
