"""What only the whole recipe shows, before anything is imported: sections that contradict each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from launcher.errors import Problem
from launcher.recipe.component import Component, components_in
from launcher.recipe.component_syntax import number_of_steps
from launcher.recipe.duration import Duration
from launcher.recipe.expressions import Expression
from launcher.recipe.line_keys import LINE_KEYS
from launcher.recipe.places import Path, dotted
from launcher.recipe.sbatch import SBATCH_OPTIONS, SLURM_TIME, limit_seconds
from launcher.recipe.schema import Recipe, Slurm, Train, held_back, sbatch_options
from launcher.recipe.tree import Document
from launcher.text import brief, hint

Fault = tuple[Path, str]  # where, and what is wrong

WARMS_UP_ITSELF = ("OneCycleLR", "CyclicLR")
NEEDS_BEST = (
    "ReduceLROnPlateau follows a metric; write _monitor_: loss beside it, or state evaluate: {best: {metric: loss, "
    "mode: min}}"
)


def whole_problems(
    tree: Mapping[str, Any], recipe: Recipe, broken: Container[str], document: Document
) -> list[Problem]:
    """Everything that is wrong between sections, and between the keys of one.

    Args:
        tree: What was stated, right or wrong.
        recipe: The sections that are right; the others are no attributes of it.
        broken: The names of the others. What would need one of them is not looked at.
        document: Where each thing was set.
    """
    faults = list(_stated(tree))
    for check, needs in _CHECKS.items():
        if not any(name in broken for name in needs):
            faults += check(recipe)
    return [Problem(str(document.origin(path)), dotted(path), message) for path, message in faults]


def _stated(tree: Mapping[str, Any]) -> Iterator[Fault]:
    """Keys that go together or exclude each other, whatever their values are."""
    for path, value in _expressions(tree.get("track"), ("track",)):  # which no schema knows the settings of
        yield path, f"{brief(value.text)} is known when the data is opened; write a value here"
    data, train = tree.get("data"), tree.get("train", {})
    if isinstance(data, Mapping) and data.get("global_batch_size") is None and data.get("batch_sampler") is None:
        yield ("data", "global_batch_size"), "is required; write 'global_batch_size: 64', or a batch_sampler"
    if not isinstance(train, Mapping):
        return
    given = [name for name in ("epochs", "steps", "time") if train.get(name) is not None]
    misspelt = set(train) - set(Train.model_fields)  # which may be the length
    if "train" in tree and (len(given) > 1 or not (given or misspelt)):
        problem = f"says {' and '.join(given)}" if given else "does not say how long to train"
        yield ("train",), f"{problem}; state exactly one of epochs, steps, time"
    if tree.get("loss") is None and train.get("step") is None:
        yield ("loss",), "is required; write {_target_: CrossEntropyLoss}, 'model', or a train.step"


def _expressions(value: Any, at: Path) -> Iterator[tuple[Path, Expression]]:
    if isinstance(value, Expression):
        yield at, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _expressions(inner, (*at, key))


def _evaluation(recipe: Recipe) -> Iterator[Fault]:
    section, data = recipe.evaluate, recipe.data
    if section.metrics and data.validation is None and data.test is None:
        yield ("evaluate", "metrics"), "there is nothing to measure on; state data.validation, or remove the metrics"
    validations = list(data.validation) if isinstance(data.validation, Mapping) else []
    named = [*validations, *(data.test if isinstance(data.test, Mapping) else [])]
    for name, metric in section.metrics.items():
        if name in LINE_KEYS or name.partition("/")[0] in ("ema", "swa"):
            yield (
                ("evaluate", "metrics", name),
                f"a line of metrics.jsonl means something else by '{name}'; give it another name",
            )
        strange = [set_name for set_name in metric.options.get("_sets_", ()) if set_name not in named]
        if strange:
            listed = hint(strange[0], named, f"there are: {', '.join(named) or 'none with a name'}")
            where: Path = ("evaluate", "metrics", name, "_sets_")
            yield where, f"no evaluation set is named '{brief(strange[0])}'{listed}"
    of_texts = [name for name, metric in section.metrics.items() if metric.options.get("_input_") == "text"]
    if of_texts and section.generate is None:
        where = ("evaluate", "metrics", of_texts[0], "_input_")
        yield where, "text is what evaluate.generate makes; state it, as in generate: {max_new_tokens: 32}"
    if section.generate is not None and not of_texts:
        yield ("evaluate", "generate"), "no metric has its texts; write _input_: text beside one, or remove it"
    if section.after is not None and data.validation is None:
        yield ("evaluate", "after"), "follows evaluations, and there are none; state data.validation, or remove it"
    if section.early_stop is not None and section.best is None:
        yield ("evaluate", "early_stop"), "needs evaluate.best to say what improves; state it"
    if section.best is None:
        return
    path: Path = ("evaluate", "best")
    if fault := _unknown_metric(recipe, section.best.metric):
        yield (*path, "metric"), fault
    if data.validation is None:
        yield path, "there is nothing to judge on; state data.validation, or remove it"
        return
    sets = validations
    if section.best.of is not None and section.best.of not in sets:
        listed = f"there are: {', '.join(sets)}" if sets else "there is only one; remove the key"
        yield (
            (*path, "of"),
            f"no validation set is named '{brief(section.best.of)}'{hint(section.best.of, sets, listed)}",
        )


def _unknown_metric(recipe: Recipe, name: str) -> str | None:
    """What is wrong with the name of a metric that decides; None where evaluations give one."""
    metrics = recipe.evaluate.metrics
    known = [*metrics, "loss"]
    for kind, average in (("ema", recipe.train.ema), ("swa", recipe.train.swa)):
        known += [f"{kind}/{one}" for one in (*metrics, "loss")] if average is not None else []
    if name in known or name.partition("/")[0] in metrics:
        return None
    listed = hint(name, known, f"there are: {', '.join(known)}")
    return f"no metric is named '{brief(name)}'{listed}"


_BESIDE_SAMPLER = {
    "global_batch_size": "a step is one batch of the sampler, whatever its size",
    "shuffle": "the sampler says the order",
    "drop_last": "the sampler says which batches there are",
    "weights": "the sampler chooses the samples",
    "split_by_rank": "the sampler's batches are dealt out to all processes",
}


def _data(recipe: Recipe) -> Iterator[Fault]:
    stated = recipe.data.model_fields_set
    if recipe.data.batch_sampler is not None:
        for name, why in _BESIDE_SAMPLER.items():
            if name in stated and getattr(recipe.data, name) not in (None, False):
                yield ("data", name), f"goes without data.batch_sampler: {why}; remove one of the two"
    share = held_back(recipe.data)
    if recipe.data.split_by_rank and share is not None:
        message = "a share of train is a share of one process's part; pass a validation set that is whole"
        yield ("data", "validation"), f"'{share}' with split_by_rank: {message}"


def _saving(recipe: Recipe) -> Iterator[Fault]:
    if recipe.save.final == "best" and recipe.evaluate.best is None:
        yield ("save", "final"), "nothing says what is best; state evaluate.best, as in {metric: loss, mode: min}"
    last = recipe.save.average_last
    if last is not None and last > recipe.save.keep:
        yield ("save", "average_last"), f"{last} are more checkpoints than are kept; state save.keep: {last}"


def _processes(recipe: Recipe) -> Iterator[Fault]:
    processes, nodes, batch = recipe.launch.processes, recipe.launch.nodes, recipe.data.global_batch_size
    if processes == "auto":
        return
    if batch is not None and processes > batch:
        yield ("launch", "processes"), too_many(processes, batch)
    if processes < nodes:
        message = f"{processes} processes are too few for {nodes} nodes; it counts the processes of all nodes"
        yield ("launch", "processes"), message


def too_many(processes: int, batch: int) -> str:
    """What is wrong with more processes than a step has samples."""
    return f"{processes} processes cannot share a global batch of {batch}; use at most {batch}, or a larger batch"


def _optimizers(recipe: Recipe) -> Iterator[Fault]:
    """Several optimizers go by name with what belongs to each."""
    optimizer, turns = recipe.optimizer, recipe.train.step
    if isinstance(optimizer, Component) and "_params_" in optimizer.options:
        yield (*optimizer.path, "_params_"), "one optimizer has all parameters; freeze the others in train.freeze"
    names = [] if isinstance(optimizer, Component) else list(optimizer)
    if isinstance(turns, Mapping) and sorted(turns) != sorted(names):
        listed = f"optimizer has {', '.join(names)}" if names else "optimizer has one for all"
        yield ("train", "step"), f"each turn has an optimizer of its name: train.step has {', '.join(turns)}, {listed}"
    if isinstance(turns, Component) and "_every_" in turns.options:
        yield (*turns.path, "_every_"), "is for turns by name, as in train.step: {critic: …, generator: …}; remove it"
    if isinstance(turns, Mapping) and all(
        number_of_steps(one.options.get("_every_", 1)) != 1 for one in turns.values()
    ):
        yield ("train", "step"), "each turn has _every_, and some steps would do nothing; remove that of one"
    if recipe.train.clip_grad_norm is not None and recipe.train.clip_grad_value is not None:
        yield ("train", "clip_grad_value"), "cannot be combined with clip_grad_norm; keep one of them"
    if recipe.train.ema is not None and recipe.train.swa is not None:
        yield ("train", "swa"), "cannot be combined with ema; keep one of them"


def _scheduler(recipe: Recipe) -> Iterator[Fault]:
    sections = recipe.scheduler.values() if isinstance(recipe.scheduler, Mapping) else [recipe.scheduler]
    for section in sections:
        if section is not None and section.given is None:
            yield from _one_scheduler(recipe, section)


def _one_scheduler(recipe: Recipe, section: Component) -> Iterator[Fault]:
    name = section.target.rpartition(".")[2]
    if name in WARMS_UP_ITSELF and "_warmup_" in section.options:
        yield (*section.path, "_warmup_"), f"{name} warms up by itself; remove _warmup_"
    monitor = section.options.get("_monitor_")
    if name != "ReduceLROnPlateau":
        if monitor is not None and ".py:" not in section.target:
            yield (*section.path, "_monitor_"), f"{name} follows no metric, as ReduceLROnPlateau does; remove it"
        return
    best, mode = recipe.evaluate.best, section.kwargs.get("mode")
    if isinstance(monitor, str):
        if recipe.data.validation is None:
            yield (*section.path, "_monitor_"), "there is nothing to measure it on; state data.validation"
        elif fault := _unknown_metric(recipe, monitor):
            yield (*section.path, "_monitor_"), fault
    elif best is None:
        yield section.path, NEEDS_BEST
    elif isinstance(mode, str) and mode != best.mode:
        message = f"'{brief(mode)}' contradicts evaluate.best, whose mode is {best.mode}; remove it: best's is taken"
        yield (*section.path, "mode"), message


def _horizon(recipe: Recipe) -> Iterator[Fault]:
    """A run whose length is a time has no number of steps."""
    if recipe.train.time is None:
        return
    for path, value in _values(recipe):
        names = {"train.steps", "scheduler.steps"} & set(value.names if isinstance(value, Expression) else ())
        if names:
            message = f"a run of {recipe.train.time} has no number of steps; write a number, or state train.steps"
            yield path, f"{value.text}: {message}"
        duration = Duration.parse(value) if isinstance(value, str) and path[0] == "scheduler" else None
        if duration is not None and duration.unit == "percent":
            yield path, f"'{value}': a run of {recipe.train.time} has no number of steps; write it in steps or epochs"


def _values(recipe: Recipe) -> Iterator[tuple[Path, Any]]:
    for name in type(recipe).model_fields:
        section: Any = getattr(recipe, name, None)
        for component in components_in(dict(section) if hasattr(section, "model_fields_set") else section):
            yield from _arguments(component)
        if name == "define" and section is not None:
            yield from _plain_values(section, ("define",))


def _arguments(component: Component) -> Iterator[tuple[Path, Any]]:
    items = {**component.kwargs, **component.options, "_args_": list(component.args)}
    yield from _plain_values(items, component.path)


def _plain_values(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Component):
        yield from _arguments(value)
    elif isinstance(value, Mapping | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _plain_values(inner, (*path, key))
    else:
        yield path, value


_LISTED = "`launcher check --allowed` lists what it may say to sbatch"


def _slurm(recipe: Recipe) -> Iterator[Fault]:
    section = recipe.slurm
    known = sbatch_options()
    for name, value in (section.__pydantic_extra__ or {}).items():
        path: Path = ("slurm", name)
        full = name.replace("-", "_")
        if full in Slurm.model_fields:
            yield path, f"write {full}"
        elif full not in SBATCH_OPTIONS:  # sbatch would take every beginning of an option for it
            yield path, f"a recipe may not say this{hint(full, known, _LISTED)}"
        elif isinstance(value, str) and not value.isprintable():
            yield path, "must be one printable line"
        elif full in ("nodelist", "exclude") and "/" in str(value):
            yield path, "sbatch would read this as the name of a file; write the nodes, as in node[1-4]"
    shortest = (section.__pydantic_extra__ or {}).get("time_min")  # what SLURM may make of the limit
    for name, limit in (("time", section.time), ("time_min", shortest)):
        if limit is not None and (message := too_short(str(limit), section.signal.amount)):
            yield ("slurm", name), message


def too_short(time: str, signal_seconds: float) -> str | None:
    """What is wrong with a time limit that leaves no time before the job is asked to save; None where nothing is."""
    limit = limit_seconds(time) if re.fullmatch(SLURM_TIME, time) else None
    if limit is None or limit > signal_seconds:
        return None
    return (
        f"a limit of {limit} s is over before training begins: the job is asked to save {signal_seconds:g} s before "
        "it (slurm.signal); state a longer time, or a shorter slurm.signal"
    )


def _sharding(recipe: Recipe) -> Iterator[Fault]:
    """What cannot be had with a model that no process holds whole."""
    section = recipe.device
    if section.sharding == "none":
        for name in ("shard", "reduce"):
            if getattr(section, name):
                yield (
                    ("device", name),
                    "says how a model is sharded, and none is: say device.sharding, or remove it",
                )
        return
    if recipe.evaluate.ranks == "first" and "ranks" in recipe.evaluate.model_fields_set:
        yield (
            ("evaluate", "ranks"),
            "rank 0 alone has no whole model under device.sharding; say all, or remove it",
        )
    if section.precision == "fp16":
        yield ("device", "precision"), "fp16 scales gradients, which cannot be done to a part of them; say bf16"
    for name, what in (("channels_last", "parameters that lie otherwise"), ("sync_batchnorm", "another module")):
        if getattr(section, name):
            yield ("device", name), f"makes {what}, which device.sharding cannot cut into rows; remove one of the two"
    stated = sorted(section.ddp.model_fields_set - {"find_unused_parameters"})
    if stated:
        yield ("device", "ddp", stated[0]), "is a setting of DDP, which device.sharding does without; remove it"
    if isinstance(recipe.train.step, Mapping):
        yield ("train", "step"), "in turns: each calls a part of the model, and device.sharding shards it as a whole"


_CHECKS: Mapping[Callable[[Recipe], Iterator[Fault]], tuple[str, ...]] = {  # and the sections that each looks at
    _data: ("data",),
    _evaluation: ("data", "evaluate", "train"),
    _saving: ("evaluate", "save"),
    _processes: ("data", "launch"),
    _scheduler: ("data", "evaluate", "scheduler", "train"),
    _optimizers: ("optimizer", "train"),
    _horizon: ("train",),
    _slurm: ("slurm",),
    _sharding: ("device", "evaluate", "train"),
}
