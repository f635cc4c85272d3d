"""Every key of a recipe with its text, its kind, its default and an example: what `launcher explain` shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from launcher.recipe.duration import Duration
from launcher.recipe.json_schema import recipe_schema
from launcher.recipe.schema import Recipe, model_in

# what is written after `KEY: `, where the default is not an example of itself
EXAMPLES: Mapping[str, str] = {
    "name": "digits",
    "seed": "1",
    "base": "base.yaml",
    "define": "{width: 256}",
    "data.train": "{_target_: launcher.datasets.Digits, split: train}",
    "data.validation": "10% of train",
    "data.test": "{_target_: launcher.datasets.Digits, split: test}",
    "data.global_batch_size": "64",
    "data.batch_sampler": "{_target_: MPerClass, m: 4, batch_size: 32}",
    "data.micro_batch_size": "16",
    "data.workers": "2",
    "data.shuffle": "false",
    "data.drop_last": "true",
    "data.collate": "{_ref_: my_data.py:collate}",
    "data.on_device": "{_target_: Mixup, classes: 10}",
    "data.weights": "weights.npy",
    "data.sample_seeds": "auto",
    "data.split_by_rank": "true",
    "data.timeout": "1 minute",
    "data.scratch": "/scratch",
    "batch.inputs": "[image]",
    "batch.targets": "[label]",
    "batch.outputs": "[logits]",
    "batch.adapt": "my_task.py:adapt",
    "batch.loss": "0",
    "device.precision": "bf16",
    "device.timeout": "1 hour",
    "device.deterministic": "true",
    "device.compile": "true",
    "device.recompute": "['blocks.*']",
    "device.channels_last": "true",
    "device.tf32": "false",
    "device.sync_batchnorm": "true",
    "device.sharding": "full",
    "device.shard": "[blocks.*]",
    "device.reduce": "bf16",
    "device.ddp.find_unused_parameters": "true",
    "device.ddp.static_graph": "true",
    "device.ddp.bucket_cap_mb": "100",
    "device.ddp.shared_memory": "false",
    "model": "{_target_: my_model.py:Net, width: 64}",
    "loss": "{_target_: CrossEntropyLoss}",
    "optimizer": "{_target_: AdamW, lr: 1e-3}",
    "scheduler": "{_target_: CosineAnnealingLR, T_max: '${train.steps}', _warmup_: 100}",
    "train.epochs": "20",
    "train.steps": "10000",
    "train.time": "2 hours",
    "train.clip_grad_norm": "1.0",
    "train.clip_grad_value": "0.5",
    "train.ema": "0.999",
    "train.ema_warmup": "false",
    "train.swa.start": "75%",
    "train.swa.every": "1 epoch",
    "train.freeze": "{'backbone.*': 3 epochs, 'embed.*': always}",
    "train.after_step": "my_task.py:after",
    "train.start_from": "runs/pretrained",
    "train.step": "my_task.py:step",
    "train.count": "my_task.py:count",
    "train.non_finite": "skip",
    "evaluate.every": "500 steps",
    "evaluate.first": "true",
    "evaluate.limit": "50 batches",
    "evaluate.batch_size": "256",
    "evaluate.ranks": "all",
    "evaluate.metrics": "{accuracy: {_target_: MulticlassAccuracy, num_classes: 10}}",
    "evaluate.generate.inputs": "{input_ids: prompt, attention_mask: prompt_mask}",
    "evaluate.generate.targets": "answer",
    "evaluate.generate.tokenizer": "tokenizer",
    "evaluate.generate.max_new_tokens": "32",
    "evaluate.generate.min_new_tokens": "1",
    "evaluate.generate.num_beams": "4",
    "evaluate.generate.length_penalty": "1.2",
    "evaluate.generate.early_stopping": "true",
    "evaluate.generate.no_repeat_ngram_size": "3",
    "evaluate.generate.repetition_penalty": "1.1",
    "evaluate.generate.do_sample": "true",
    "evaluate.generate.temperature": "0.7",
    "evaluate.generate.top_k": "50",
    "evaluate.generate.top_p": "0.9",
    "evaluate.after": "my_task.py:after",
    "evaluate.best.metric": "accuracy",
    "evaluate.best.mode": "max",
    "evaluate.best.of": "clean",
    "evaluate.early_stop.patience": "5",
    "evaluate.early_stop.min_delta": "0.001",
    "evaluate.timeout": "10 minutes",
    "save.every": "1 epoch",
    "save.keep": "1",
    "save.average_last": "3",
    "save.background": "false",
    "save.final": "best",
    "save.format": "safetensors",
    "save.pretrained": "false",
    "save.on_failure": "warn",
    "track.every": "50 steps",
    "launch.processes": "2",
    "launch.nodes": "2",
    "launch.threads": "1",
    "launch.max_restarts": "3",
    "launch.interface": "eth0",
    "launch.meeting_timeout": "10 minutes",
    "launch.stall": "5 minutes",
    "launch.on_stall": "stop",
    "slurm.partition": "gpu",
    "slurm.account": "my-project",
    "slurm.time": "'12:00:00'",
    "slurm.gpus_per_node": "4",
    "slurm.cpus_per_task": "8",
    "slurm.mem": "64G",
    "slurm.max_requeues": "5",
    "slurm.signal": "5 minutes",
    "sweep.space": "{optimizer.lr: 1e-4..1e-2:log, model.width: [8, 32]}",
    "sweep.method": "tpe",
    "sweep.trials": "64",
    "sweep.metric": "validation/accuracy:max",
    "sweep.parallel": "4",
    "sweep.processes_per_run": "2",
    "sweep.seed": "1",
    "sweep.lag": "8",
    "sweep.eta": "3",
    "sweep.first_rung": "25%",
    "sweep.budget": "12 hours",
    "sweep.keep": "all",
}


@dataclass(frozen=True)
class KeyText:
    """What there is to know of a key.

    Attributes:
        key: Dotted, as on the command line.
        text: What it is for.
        kind: What may be written, in words; `section` where keys follow.
        default: As it would be written; empty where there is none.
        is_required: Whether it must be written.
        example: What may be written after it; empty for a section.
    """

    key: str
    text: str
    kind: str
    default: str
    is_required: bool
    example: str

    @property
    def as_yaml(self) -> str:
        """The example as a line of a recipe."""
        *sections, name = self.key.split(".")
        line = f"{name}: {self.example}"
        for section in reversed(sections):
            line = f"{section}: {{{line}}}"
        return line


@cache
def all_keys() -> Mapping[str, KeyText]:
    """Every key of the schema by its dotted name, in the schema's order."""
    return {entry.key: entry for entry in _keys_of(Recipe, ())}


def _keys_of(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[KeyText]:
    definitions = _schema()["$defs"]
    schema = _schema() if model is Recipe else definitions[model.__name__]
    for name, field in model.model_fields.items():
        key, section = ".".join((*above, name)), model_in(field.annotation)
        written: Mapping[str, Any] = schema["properties"][name]
        yield KeyText(
            key=key,
            text=(section.__doc__ or "") if section is not None else field.description or "",
            kind="section" if section is not None else " or ".join(_kinds(written, _is_duration(field.annotation))),
            default="" if section is not None or field.is_required() else _default(written, field.default_factory),
            is_required=field.is_required(),
            example="" if section is not None else EXAMPLES.get(key, ""),
        )
        if section is not None:
            yield from _keys_of(section, (*above, name))


@cache
def _schema() -> Mapping[str, Any]:
    return recipe_schema()


def _default(written: Mapping[str, Any], factory: Any) -> str:
    value = factory() if factory is not None else written.get("default")
    return json.dumps(value) if not isinstance(value, str) else value


_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_BOUNDS = {
    "exclusiveMinimum": "greater than",
    "minimum": "of at least",
    "exclusiveMaximum": "less than",
    "maximum": "of at most",
}


def _is_duration(annotation: Any) -> bool:
    return annotation is Duration or any(map(_is_duration, get_args(annotation)))


def _kinds(schema: Mapping[str, Any], is_duration: bool = False) -> list[str]:
    """What may be written, each in words; references are described once for all keys, and not here."""
    if options := schema.get("anyOf", schema.get("oneOf")):
        kinds = [kind for option in options if not _is_reference(option) for kind in _kinds(option, is_duration)]
        return sorted(dict.fromkeys(kinds), key=lambda kind: kind == "null")
    if "$ref" in schema:
        return [f"a {schema['$ref'].rpartition('/')[2].lower()}"]
    if "const" in schema or "enum" in schema:
        return [
            json.dumps(value) if not isinstance(value, str) else value
            for value in schema.get("enum", [schema.get("const")])
        ]
    if is_duration and schema.get("type") == "string":
        return ["a duration"]
    bounds = [f"{words} {schema[bound]:,}" for bound, words in _BOUNDS.items() if bound in schema]
    return [
        " ".join(
            [_TYPES.get(str(schema.get("type")), "anything"), *bounds[:1], *(f"and {other}" for other in bounds[1:])]
        )
    ]


def _is_reference(schema: Mapping[str, Any]) -> bool:
    return schema.get("pattern") == r"\$\{"
