"""The recipe's sections: one frozen model each. A field's text is its documentation everywhere it is shown."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
)

from launcher.recipe.component import Component
from launcher.recipe.duration import Duration, Unit, duration_pattern, share_of_train
from launcher.recipe.expressions import Expression
from launcher.recipe.generation import Generate
from launcher.recipe.places import Path
from launcher.recipe.sbatch import SBATCH_OPTIONS, SLURM_TIME
from launcher.recipe.section import Section as Section
from launcher.recipe.tree import Document

INTERFACES = r"^[A-Za-z0-9_.:@-]+(,[A-Za-z0-9_.:@-]+)*$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  # a name that becomes a path


def _component(value: Any) -> Any:
    if not isinstance(value, Component):
        is_name = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./:-]{0,60}", value)
        raise ValueError(f"is not a component; write {{_target_: {value if is_name else 'NAME'}, argument: value, …}}")
    return value


def _duration(*units: Unit, example: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, Duration):
            return value
        duration = Duration.parse(value) if isinstance(value, str) else None
        if duration is None or duration.unit not in units:
            raise ValueError(f"is not a duration that fits here; write words such as {example}")
        return duration

    return read


def _evaluation_set(value: Any) -> Any:
    """One component, several by name, or a share such as `10% of train`."""
    if isinstance(value, str):
        if share_of_train(value) is None:
            raise ValueError(f"is neither a component nor a share; write {{_target_: …}}, or '{_likely_share(value)}'")
    elif isinstance(value, float) and 0 < value < 1:
        raise ValueError(f"is not a share; write '{100 * value:g}% of train'")
    elif isinstance(value, Mapping):
        if not value or not all(isinstance(item, Component) for item in value.values()):
            raise ValueError("is neither a component nor several by name; write {_target_: NAME, …}")
        if any("_share_" in item.options for item in value.values()):
            raise ValueError("has a share of train among several sets; a share goes alone: {_share_: 20% of train}")
    elif value is not None:
        return _component(value)
    return value


def _likely_share(text: str) -> str:
    number = re.match(r"\s*(\d+(?:\.\d+)?)\s*%", text)
    return f"{number[1] if number and 0 < float(number[1]) < 100 else 10}% of train"


def _test_set(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("is not a data set: only validation may be a share of train; write {_target_: NAME, …}")
    return _evaluation_set(value)


def _loss(value: Any) -> Any:
    several = isinstance(value, Mapping) and value and all(isinstance(item, Component) for item in value.values())
    if isinstance(value, Expression) and value.names[0].startswith("model."):
        own = f"{{_target_: my_task.py:Loss, part: '{value.text}'}}"
        raise ValueError(
            f"is a part of the model; write {own} with a class of your own that calls it, or 'model' where "
            "forward gives the loss"
        )
    if not (value is None or value == "model" or isinstance(value, Component) or several):
        raise ValueError(
            "is not a loss; write {_target_: CrossEntropyLoss}, my_task.py:loss, several by name, or 'model'"
        )
    return value


COLLATED = ("train", "evaluate")  # whose batches a collate of their own may make


def _collate(value: Any, what: str = "collate") -> Any:
    """One for all sets, or one for training and one for evaluating."""
    if not isinstance(value, Mapping):
        return _component(value) if value is not None else value
    value = {name: item for name, item in value.items() if item is not None}  # torch's default
    if not value or not all(isinstance(item, Component) for item in value.values()):
        raise ValueError(
            f"is not a {what}; write {{_target_: …}} or {{_ref_: …}}, or {{train: {{…}}, evaluate: {{…}}}}"
        )
    if strange := [name for name in value if name not in COLLATED]:
        raise ValueError(f"has '{strange[0]}'; allowed: {', '.join(COLLATED)}, each a {what}")
    return value


def _one_model(value: Any) -> Any:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    if sum(isinstance(item, Component) for item in items) > 1:
        raise ValueError("a recipe has one model; write one module that holds both, and let optimizer name its parts")
    return _component(value)


def _one_or_named(value: Any) -> Any:
    """A component, or several by name."""
    if isinstance(value, Mapping):
        if value and all(isinstance(item, Component) for item in value.values()):
            return value
        raise ValueError("is neither a component nor several by name; write {_target_: NAME, …}, or {a: {…}, b: {…}}")
    if isinstance(value, list):
        raise ValueError("is a list; several have names: {a: {_target_: NAME, …}, b: {_target_: NAME, …}}")
    return _component(value)


COMPONENT_SCHEMA = {
    "type": "object",
    "properties": {
        "_target_": {"type": "string", "description": "What is called: AdamW, torch.nn.Linear, my_model.py:Net."},
        "_args_": {"type": "array", "description": "Positional arguments."},
        "_partial_": {"type": "boolean", "description": "Pass the callable with these arguments."},
        "_ref_": {"type": "string", "description": "The thing itself, not called: torch.float32, my_task.py:function."},
    },
    "not": {"required": ["_target_", "_ref_"]},
}
_SEVERAL = {"type": "object", "additionalProperties": COMPONENT_SCHEMA}
_TEXT = {"type": "string"}
_SEVERAL_OR_NAMES = {"type": "object", "additionalProperties": {"anyOf": [COMPONENT_SCHEMA, _TEXT]}}
_NULL = {"type": "null"}


def _written(*options: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(options)} if len(options) > 1 else options[0])


class _ByName:
    """Marks a field whose component may be written in short: `my_task.py:step` is `{_ref_: my_task.py:step}`."""


AComponent = Annotated[Component, BeforeValidator(_component), _written(COMPONENT_SCHEMA)]
AModel = Annotated[Component, BeforeValidator(_one_model), _written(COMPONENT_SCHEMA)]
OneOrNamed = Annotated[
    Component | dict[str, Component], BeforeValidator(_one_or_named), _written(COMPONENT_SCHEMA, _SEVERAL)
]
AFunction = Annotated[Component, BeforeValidator(_component), _ByName(), _written(COMPONENT_SCHEMA, _TEXT)]
Steppers = Annotated[
    Component | dict[str, Component],
    BeforeValidator(_one_or_named),
    _ByName(),
    _written(COMPONENT_SCHEMA, _TEXT, _SEVERAL_OR_NAMES),
]
Weights = Annotated[Component | str, _ByName(), _written(COMPONENT_SCHEMA, _TEXT)]
EvaluationSet = Annotated[
    Component | dict[str, Component] | str | None,
    BeforeValidator(_evaluation_set),
    _written(COMPONENT_SCHEMA, _SEVERAL, _TEXT, _NULL),
]
TestSet = Annotated[
    Component | dict[str, Component] | None,
    BeforeValidator(_test_set),
    _written(COMPONENT_SCHEMA, _SEVERAL, _NULL),
]
Collate = Annotated[
    Component | dict[str, Component] | None,
    BeforeValidator(_collate),
    _ByName(),
    _written(
        COMPONENT_SCHEMA,
        {"type": "object", "properties": dict.fromkeys(COLLATED, COMPONENT_SCHEMA), "additionalProperties": False},
        _TEXT,
        _NULL,
    ),
]
OnDevice = Annotated[
    Component | dict[str, Component] | None,
    BeforeValidator(lambda value: _collate(value, "transform")),
    _ByName(),
    _written(
        COMPONENT_SCHEMA,
        {"type": "object", "properties": dict.fromkeys(COLLATED, COMPONENT_SCHEMA), "additionalProperties": False},
        _TEXT,
        _NULL,
    ),
]
Loss = Annotated[
    Component | dict[str, Component] | Literal["model"] | None,
    BeforeValidator(_loss),
    _ByName(),
    _written(COMPONENT_SCHEMA, _SEVERAL_OR_NAMES, _TEXT, _NULL),
]


def _length(*units: Unit, example: str) -> tuple[BeforeValidator, WithJsonSchema]:
    about = f"Words such as {example}."
    words = {"type": "string", "pattern": duration_pattern(*units), "description": about, "patternErrorMessage": about}
    return BeforeValidator(_duration(*units, example=example)), _written(words)


_period = _length("epochs", "steps", "samples", "seconds", example="'1 epoch', '500 steps' or '10 minutes'")
_time = _length("seconds", example="'30 seconds' or '2 hours'")
_steps = _length("steps", "samples", example="'10 steps'")
_batches = _length("batches", example="'50 batches'")
_share = _length("epochs", "steps", "samples", "percent", example="'75%', '10 epochs' or '500 steps'")
Length = Annotated[Duration, _share[0], _share[1]]
Period = Annotated[Duration, _period[0], _period[1]]
Time = Annotated[Duration, _time[0], _time[1]]
Steps = Annotated[Duration, _steps[0], _steps[1]]
Batches = Annotated[Duration, _batches[0], _batches[1]]
Positive = Annotated[int, Field(gt=0)]
MOST_THREADS = 4096  # of a process: of more the kernel makes none


class Data(Section):
    """Phase 1, data: what is read, and how it is cut into batches."""

    train: AComponent = Field(description="The training data set.")
    validation: EvaluationSet = Field(
        None,
        description="One data set, several by name, or '10% of train'; {_share_: 10% of train, argument: value} is "
        "that share with other arguments.",
    )
    test: TestSet = Field(None, description="One data set, or several by name, evaluated once, at the end.")
    global_batch_size: Positive | None = Field(
        None, description="Samples of one optimizer step, over all processes; required without a batch_sampler."
    )
    batch_sampler: AComponent | None = Field(
        None,
        description="Chooses the samples of each step, in place of global_batch_size: MPerClass, LengthBuckets, "
        "TokenBudget, Mixture, or any batch sampler of torch's kind.",
    )
    micro_batch_size: Positive | Literal["auto"] | None = Field(
        None,
        description="Samples of one forward pass on one process; null: the process's whole share at once; auto: the "
        "most that fit its memory.",
    )
    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = Field(
        "auto", description="Processes that read samples, for each training process."
    )
    shuffle: bool = Field(True, description="Mix the order of each epoch, the same for every number of processes.")
    drop_last: bool = Field(False, description="Drop an epoch's last, short batch.")
    collate: Collate = Field(
        None,
        description="Makes a batch of a list of samples, in place of torch's default; or {train: …, evaluate: …}.",
    )
    on_device: OnDevice = Field(
        None,
        description="Changes each training batch where the model is (Mixup, CutMix, my_data.py:augment); or {train: …, "
        "evaluate: …}.",
    )
    weights: Weights | None = Field(
        None, description="A weight per sample (a function's result, or a .npy file): drawn with replacement."
    )
    sample_seeds: bool | Literal["auto"] = Field(
        "auto",
        description="Seed random, NumPy and torch before each sample, so that augmentation is reproducible; auto seeds "
        "those that samples draw from.",
    )
    split_by_rank: bool = Field(
        False, description="Each process's training set holds its own part already, and is read as it is."
    )
    timeout: Time = Field(Duration(600, "seconds", "10 minutes"), description="How long a batch may take to be read.")
    scratch: str | None = Field(
        None, description="A folder on a disk of each machine, where data sets that take one are copied once, and read."
    )


def held_back(section: Data) -> str | None:
    """What share of the training set `validation` is, as in `10% of train`; None where it is a set of its own."""
    stated = section.validation
    share = stated.options.get("_share_") if isinstance(stated, Component) else stated
    return share if isinstance(share, str) else None


def micro_batch(section: Data) -> int | None:
    """The samples of one forward pass that a recipe states; None for a whole share, or as many as will fit."""
    return section.micro_batch_size if isinstance(section.micro_batch_size, int) else None


Part = int | str  # a position, a key or an attribute of a batch, or a path of them, as in `x.left`


def _input(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) != {"_value_"}:
        raise ValueError("is neither a part of a batch nor a constant; write a position, a key, or {_value_: 0.5}")
    return value


_PART_SCHEMA = {"type": ["integer", "string"], "description": "A position, a key, or a path such as x.left."}
_CONSTANT_SCHEMA = {
    "anyOf": [
        {"type": ["null", "boolean"], "description": "A constant."},
        {"type": "object", "properties": {"_value_": {}}, "required": ["_value_"], "additionalProperties": False},
    ]
}
Input = Annotated[
    Part | bool | dict[str, Any] | None, BeforeValidator(_input), _written(_PART_SCHEMA, _CONSTANT_SCHEMA)
]


def _first() -> list[Input] | dict[str, Input]:
    return [0]


def _second() -> list[Part]:
    return [1]


class Batch(Section):
    """Which parts of a batch the model and the loss get."""

    inputs: list[Input] | dict[str, Input] | Literal["whole"] = Field(
        default_factory=_first,
        description="Positions, keys or paths (x.left) in a batch: a list calls model(*x), a mapping model(**x), "
        "'whole' model(batch). Constants: null, true, false, {_value_: 0.5}.",
    )
    targets: list[Part] = Field(
        default_factory=_second,
        description="Positions, keys or paths handed to the loss after the outputs; none with 'inputs: whole'.",
    )
    outputs: list[Part] | None = Field(
        None, description="Positions, keys or attributes of the model's result; null: the whole result."
    )
    loss: Part | None = Field(
        None, description="Where the loss is in a tuple or mapping that the model returns, or your own loss."
    )
    adapt: AFunction | None = Field(
        None,
        description="Your own function (*outputs, *targets) that gives both as the loss and the metrics get them.",
    )


class Ddp(Section):
    """Handed to DistributedDataParallel."""

    find_unused_parameters: bool = Field(False, description="For models that leave parameters unused in a step.")
    static_graph: bool = Field(False, description="The same parameters are used in every step.")
    bucket_cap_mb: Annotated[int, Field(gt=0, le=1_000_000)] = Field(
        25, description="Size of a bucket of gradients, in MiB."
    )
    shared_memory: bool = Field(
        True, description="Up to eight processes on the CPUs of one machine add gradients up in memory that they share."
    )


class Device(Section):
    """Phase 2, device: where it runs, and in which precision."""

    precision: Literal["no", "bf16", "fp16", "bf16-true"] = Field(
        "no", description="Automatic mixed precision; bf16-true: the parameters themselves are bfloat16."
    )
    timeout: Time = Field(
        Duration(1800, "seconds", "30 minutes"),
        description="The process group's: how long a collective may take.",
    )
    deterministic: bool = Field(False, description="Deterministic algorithms only, also on a GPU.")
    compile: bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        False,
        description="Compile the model's repeated blocks with torch.compile, or all of it where there are none, in its "
        "default mode or the one named.",
    )
    recompute: bool | Annotated[list[str], Field(min_length=1)] = Field(
        False,
        description="Keep no activations of the model's repeated blocks, or of modules by pattern, as in ['blocks.*']: "
        "they are computed again in the backward pass.",
    )
    channels_last: bool = Field(False, description="Store images and convolutions as NHWC.")
    tf32: bool | None = Field(
        None,
        description="On NVIDIA GPUs: float32 products and convolutions in TensorFloat-32; null: as torch has it.",
    )
    sync_batchnorm: bool = Field(False, description="Batch statistics over all processes (GPU only).")
    sharding: Literal["none", "full", "hybrid"] = Field(
        "none",
        description="Whether each process keeps a part of the model only: 'full' over all processes, 'hybrid' over "
        "those of a node, with a copy on each.",
    )
    shard: list[str] = Field(
        default_factory=list,
        description="Modules that are sharded one by one, by patterns of their names; empty: the repeated blocks.",
    )
    reduce: Literal["bf16"] | None = Field(
        None,
        description="What gradients of a sharded model are summed in; null: float32, or float64 where the model is.",
    )
    ddp: Ddp = Field(default_factory=lambda: Ddp(), description="Settings of DistributedDataParallel.")


class SwaSection(Section):
    """Stochastic weight averaging."""

    start: Length = Field(
        Duration(75, "percent", "75%"), description="When the first weights are taken, as in '75%' or '10 epochs'."
    )
    every: Length = Field(Duration(1, "epochs", "1 epoch"), description="How often from then on.")


def _frozen_for(value: Any) -> Any:
    if value == "always" or isinstance(value, Duration):
        return value
    duration = Duration.parse(value) if isinstance(value, str) else None
    if duration is None or duration.unit not in ("epochs", "steps", "samples", "percent"):
        raise ValueError("does not say how long; write '3 epochs', '500 steps', '10%' or always")
    return duration


FrozenFor = Annotated[
    Duration | Literal["always"],
    BeforeValidator(_frozen_for),
    _written({"type": "string", "description": "Words such as '3 epochs', '500 steps', '10%', or always."}),
]


class Train(Section):
    """Phase 5, training: how long, and what surrounds a step."""

    epochs: Positive | None = Field(None, description="Length of the run in passes over the data.")
    steps: Positive | None = Field(None, description="Length of the run in optimizer steps.")
    time: Time | None = Field(None, description="Length of the run in time, as in '2 hours'.")
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest norm of all gradients together."
    )
    clip_grad_value: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest size of each entry of a gradient."
    )
    freeze: dict[str, FrozenFor] = Field(
        default_factory=dict,
        description="Parameters by pattern that are not trained: until a time, as in '3 epochs', or 'always'.",
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay of an exponential moving average of the weights, evaluated and saved beside them.",
    )
    ema_warmup: bool = Field(True, description="Keep (1 + t) / (10 + t) of it in the first steps, where that is less.")
    swa: SwaSection | None = Field(
        None, description="A mean of the weights at equal distances, evaluated and saved beside them."
    )
    start_from: str | None = Field(
        None,
        description="Weights to start from: a .pth or .safetensors file, an index of such or its folder, a checkpoint, "
        "or a run's folder.",
    )
    step: Steppers | None = Field(
        None,
        description="Your own step function, in place of forward and loss; or several by the names of the optimizers, "
        "which take turns.",
    )
    after_step: AFunction | None = Field(
        None, description="Your own function (model, at), called on every rank after each update; may change weights."
    )
    count: AFunction | None = Field(
        None, description="What a batch counts, for your own step function or 'loss: model'; null: it is measured."
    )
    non_finite: Literal["stop", "skip"] = Field(
        "stop", description="What happens to a step whose gradients are not finite."
    )


class Best(Section):
    """What makes one evaluation better than another."""

    metric: str = Field(description="A metric by its name in evaluate.metrics, or 'loss'.")
    mode: Literal["min", "max"] = Field(description="Whether less or more is better.")
    of: str | None = Field(None, description="Which validation set decides, where there are several.")


class EarlyStop(Section):
    """Stop when evaluate.best has not improved."""

    patience: Positive = Field(description="How many evaluations without improvement.")
    min_delta: Annotated[float, Field(ge=0)] = Field(0.0, description="What counts as an improvement.")


class Evaluate(Section):
    """Phase 6, evaluation: when, on what, and by which measures."""

    every: Period = Field(Duration(1, "epochs", "1 epoch"), description="How often; always at the end too.")
    first: bool = Field(False, description="Also before the first step.")
    limit: Batches | None = Field(None, description="At most this much of each set, as in '50 batches'.")
    batch_size: Positive | None = Field(None, description="Samples of one forward pass; null: the micro-batch.")
    ranks: Literal["first", "all"] = Field("first", description="Who evaluates: rank 0, or all with a share each.")
    metrics: dict[str, AFunction] = Field(
        default_factory=dict, description="Metrics of torchmetrics, or functions of yours, each by a name of your own."
    )
    generate: Generate | None = Field(None, description="Texts that a language model makes, for metrics of texts.")
    best: Best | None = Field(None, description="Which evaluation was the best.")
    early_stop: EarlyStop | None = Field(None, description="Stop when the best does not improve.")
    after: AFunction | None = Field(
        None,
        description="Your own function (model, at, scores), called on rank 0 after each evaluation; changes nothing.",
    )
    timeout: Time | None = Field(None, description="How long an evaluation may make no progress.")


class Save(Section):
    """Phase 7, saving: checkpoints to resume from, and the final weights."""

    every: Period = Field(Duration(900, "seconds", "15 minutes"), description="How often; always at the end too.")
    keep: Positive = Field(3, description="How many checkpoints, besides the best.")
    background: bool | None = Field(
        None, description="Write while training continues; null: if a copy of the state fits into memory."
    )
    average_last: Annotated[int, Field(gt=1)] | None = Field(
        None, description="At the end, also the mean of the weights of this many last checkpoints."
    )
    final: Literal["last", "best"] = Field("last", description="Which weights are the final ones.")
    format: Literal["pth", "safetensors"] = Field(
        "pth",
        description="What final weights are written as: model_weights.pth; or model.safetensors, from 5 GB on several "
        "files with an index.",
    )
    pretrained: bool | None = Field(
        None,
        description="At the end, also a folder that from_pretrained loads; null: where the model can be loaded so.",
    )
    on_failure: Literal["stop", "warn"] = Field("stop", description="What happens to the run when a save fails.")


class Track(BaseModel):
    """Where numbers go besides the run folder: trackers by name, with their own settings."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")
    every: Steps = Field(Duration(10, "steps", "10 steps"), description="Steps between two lines of metrics.jsonl.")
    __pydantic_extra__: dict[str, dict[str, Any] | None]

    @property
    def trackers(self) -> dict[str, dict[str, Any]]:
        """The trackers asked for, each with its settings."""
        return {name: settings or {} for name, settings in (self.__pydantic_extra__ or {}).items()}


class Launch(Section):
    """How many processes, where nobody else has started them."""

    processes: Positive | Literal["auto"] = Field(
        "auto", description="World size over all nodes; auto: every GPU, or one process on a CPU."
    )
    nodes: Positive = Field(1, description="How many machines.")
    threads: Annotated[int, Field(gt=0, le=MOST_THREADS)] | Literal["auto"] = Field(
        "auto", description="CPU threads of a process; auto: OMP_NUM_THREADS, or its share of the CPUs that are there."
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(0, description="Restarts after a crash.")
    interface: Annotated[str, Field(pattern=INTERFACES)] | None = Field(
        None, description="The network interface between machines, as in eth0; null: the one of the route to rank 0."
    )
    meeting_timeout: Time = Field(
        Duration(300, "seconds", "5 minutes"), description="How long ranks wait at the start for others to come."
    )
    stall: Time | None = Field(
        None,
        description="How long a rank may make no progress before the stacks of all are written down; null: never, on "
        "several GPUs four fifths of device.timeout.",
    )
    on_stall: Literal["warn", "stop"] = Field("warn", description="What happens to the run then.")


class Slurm(BaseModel):
    """What the job asks for; options of sbatch that ask for something are allowed too, by their full names."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")
    partition: str | None = Field(None, description="The queue.")
    account: str | None = Field(None, description="Who pays.")
    time: Annotated[str, Field(pattern=SLURM_TIME)] | None = Field(
        None, description="Time limit, as in '02:00:00' or '1-00:00:00'."
    )
    gpus_per_node: Positive | str | None = Field(None, description="GPUs of a node, as in 4 or h100:4.")
    cpus_per_task: Positive | None = Field(None, description="CPUs of a process.")
    mem: str | None = Field(None, description="Memory of a node, as in 64G.")
    max_requeues: Annotated[int, Field(ge=0)] = Field(20, description="How many times the job may requeue itself.")
    signal: Time = Field(
        Duration(120, "seconds", "2 minutes"), description="How long before the limit to save and end."
    )
    __pydantic_extra__: dict[str, str | int | float | bool]


class Sweep(Section):
    """What `launcher sweep` tries; `launcher train` leaves it alone."""

    space: dict[str, Any] = Field(
        default_factory=dict, description="Keys that vary, each with a list of alternatives, or with a range."
    )
    method: Literal["grid", "random", "tpe", "cmaes", "halving"] | None = Field(
        None, description="How points are chosen; null: all where they can be counted, else tpe or random."
    )
    trials: Positive | None = Field(None, description="How many runs, those of all seeds counted.")
    metric: str | None = Field(
        None, description="What is compared, as in validation/accuracy:max; null: evaluate.best, or the loss."
    )
    parallel: Positive | Literal["auto"] = Field("auto", description="Trials at a time; auto: as the GPUs suffice for.")
    processes_per_run: Positive = Field(1, description="Processes of each trial.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="The proposals follow from it.")
    lag: Annotated[int, Field(ge=0)] | None = Field(
        None, description="How many trials before it a proposal does not wait for; null: two a slot; 0: waits for none."
    )
    eta: Annotated[int, Field(gt=1)] = Field(2, description="Of halving: one in so many is promoted at each rung.")
    first_rung: Length | None = Field(None, description="Of halving: where trials are first compared; null: 25%.")
    budget: Time | None = Field(
        None, description="Training that all trials together may take; null: until they are done."
    )
    keep: Literal["best", "all"] = Field("best", description="Whose weights stay: the best trial's, or all.")


def sbatch_options() -> list[str]:
    """What a recipe's `slurm:` may say: its own keys, and options of sbatch by full name."""
    return [*Slurm.model_fields, *sorted(SBATCH_OPTIONS)]


class Recipe(Section):
    """What to train. Where is decided by the launcher."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = Field(
        "run", description="Names the runs' folder: letters, digits, '.', '_' and '-'."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Everything random follows from it.")
    base: str | list[str] | None = Field(
        None, description="Another recipe that this one changes, or several, of which later ones win."
    )
    define: dict[str, Any] = Field(default_factory=dict, description="Values and components under free names.")
    data: Data = Field(description="Phase 1: what is read, and how it is cut into batches.")
    batch: Batch = Field(default_factory=lambda: Batch(), description="What the model and the loss get from a batch.")
    device: Device = Field(
        default_factory=lambda: Device(), description="Phase 2: where it runs, and in which precision."
    )
    model: AModel = Field(description="Phase 3: the model, any torch.nn.Module.")
    loss: Loss = Field(None, description="Phase 4: the loss; 'model' where the model returns its own.")
    optimizer: OneOrNamed = Field(description="Phase 4: the optimizer, or several by name, each with its _params_.")
    scheduler: OneOrNamed | None = Field(
        None, description="Phase 4: the learning-rate schedule, or several by optimizer."
    )
    train: Train = Field(description="Phase 5: how long, and what surrounds a step.")
    evaluate: Evaluate = Field(
        default_factory=lambda: Evaluate(), description="Phase 6: when, on what, and by which measures."
    )
    save: Save = Field(
        default_factory=lambda: Save(), description="Phase 7: checkpoints to resume from, and the final weights."
    )
    track: Track = Field(default_factory=lambda: Track(), description="Where numbers go.")
    launch: Launch = Field(default_factory=lambda: Launch(), description="How many processes.")
    slurm: Slurm = Field(default_factory=lambda: Slurm(), description="What a SLURM job asks for.")

    sweep: Sweep | None = Field(None, description="What launcher sweep tries.")

    _document: Document = PrivateAttr()

    @property
    def document(self) -> Document:
        """The recipe as it was read: every value's origin."""
        return self._document


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field's annotation means, where it means one."""
    options = (annotation, *typing.get_args(annotation))
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def fields_by_name(model: type[BaseModel] = Recipe, path: Path = ()) -> Iterator[Path]:
    """Where a component may be written in short, as `my_task.py:step`."""
    for name, field in model.model_fields.items():
        if any(isinstance(mark, _ByName) for mark in (*field.metadata, *_marks(field.annotation))):
            yield (*path, name)
        elif section := model_in(field.annotation):
            yield from fields_by_name(section, (*path, name))


def _marks(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for inner in typing.get_args(annotation):
        yield from _marks(inner)
