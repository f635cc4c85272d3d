"""From Python or a notebook: the same seven phases, with objects in place of sections."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, TensorDataset

from launcher import run as phases
from launcher.checkpoints.saved_run import Saved, find_saved, take_weights
from launcher.checkpoints.weights import find_weights, read_weights
from launcher.device.device import use_cpu
from launcher.errors import Problem, RecipeError
from launcher.model.build import Model
from launcher.recipe.caller import KEYWORDS, Keyword, from_python
from launcher.recipe.directory import taken
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.recipe.slips import Output, check_arguments, check_call, hinting
from launcher.runs.folder import STATUS_FILE, read_json, weights_of
from launcher.runs.metrics import METRICS_FILE, Line, read_evaluations, read_metrics
from launcher.runs.options import Options
from launcher.runs.reading import Run, Score
from launcher.sweep.naming import saved_place
from launcher.training.resume import Finished
from launcher.world.obeying import obeying
from launcher.world.screen import prepare
from launcher.world.world import World

__all__ = ["Result", "check", "load", "train"]

RecipeSource = str | os.PathLike[str] | Mapping[str, Any]
DataSet = Dataset[Any]
DataSets = DataSet | Mapping[str, DataSet]


@dataclass(frozen=True)
class Result(phases.Result):
    """The result of a run, and what can be done with it.

    Attributes:
        recipe: What was trained, with the objects that were passed in.
        allow: Further packages that it may name.
    """

    recipe: Recipe = field(kw_only=True, repr=False)
    allow: tuple[str, ...] = field(default=(), kw_only=True, repr=False)

    @property
    def metrics(self) -> list[Line]:
        """Every line of metrics.jsonl, as rows for `pandas.DataFrame`."""
        return list(read_metrics(self.folder / METRICS_FILE))

    @property
    def best(self) -> Score | None:
        """The best evaluation by the recipe's `evaluate.best`, else by the loss; None where nothing was evaluated."""
        return Run(self.folder).best

    def predict(self, data: DataSet | Tensor | str | None = None, *, cpu: bool = False) -> Tensor | Any:
        """The trained model's output for every sample, in order.

        Args:
            data: A data set whose samples are as those in training; a tensor of inputs [samples, …]; or one of the
                recipe's sets by its name. None is the test set, else the validation set.
            cpu: Use the CPU even if there is a GPU.

        Returns:
            The outputs [samples, …], on the CPU. Of a model with several a mapping of such by their names, which are
            those of the columns of `launcher predict`; of a detector a list with a mapping for each sample.

        Raises:
            UsageError: There is no such set.
            LauncherError: Nothing of what the model gives has a row for each sample.
        """
        from launcher.evaluation.predict import outputs_of

        saved, split = self._saved(data)
        return outputs_of(saved, split, cpu=cpu)

    def evaluate(self, data: DataSet | str | None = None, *, cpu: bool = False) -> list[Line]:
        """Computes the recipe's loss and metrics with the trained weights.

        Args:
            data: A data set with targets, or one of the recipe's sets by its name; None is all that it has.
            cpu: Use the CPU even if there is a GPU.

        Returns:
            A line for each set, as in metrics.jsonl; the `split` of a data set that was passed in is `given`.
        """
        from launcher.evaluation.offline import evaluate_saved

        saved, split = self._saved(data)
        lines = evaluate_saved(saved, World(), split, cpu=cpu)
        return lines if data is None or isinstance(data, str) else [{**line, "split": "given"} for line in lines]

    def report(self) -> Path:
        """Makes the report of this run.

        Returns:
            The file.
        """
        from launcher.runs.report.page import REPORT_FILE, page, save

        path = self.folder / REPORT_FILE
        save(path, page([Run(self.folder)]))
        return path

    def _saved(self, data: DataSet | Tensor | str | None) -> tuple[Saved, str | None]:
        from launcher.evaluation.new_data import with_data

        recipe, split = self.recipe, data if isinstance(data, str) else None
        if data is not None and split is None:
            given = TensorDataset(data) if isinstance(data, Tensor) else data
            recipe, split = with_data(recipe, given), "test"
        weights = weights_of(self.folder)
        if weights is None:
            return replace(find_saved(self.folder), recipe=recipe, allow=self.allow), split
        return Saved(recipe, weights, self.allow), split


@hinting
def train(
    recipe: RecipeSource | None = None,
    *overrides: str,
    model: nn.Module | None = None,
    loss: Callable[..., Any] | Mapping[str, Callable[..., Any]] | str | None = None,
    optimizer: Optimizer | Callable[..., Optimizer] | Mapping[str, Optimizer | Callable[..., Optimizer]] | None = None,
    scheduler: Any = None,
    train: DataSet | None = None,
    validation: DataSets | str | None = None,
    test: DataSets | None = None,
    collate: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None,
    batch: Mapping[str, Any] | None = None,
    step: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None,
    count: Callable[..., Any] | None = None,
    metrics: Mapping[str, Callable[..., Any]] | None = None,
    global_batch_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    cpu: bool = False,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    allow: Sequence[str] = (),
    allow_changes: Sequence[str] = (),
    output: Output = "auto",
) -> Result:
    """Trains a recipe, in this process or in the launched world that it runs in.

    A resume needs the same call. An interrupt (Ctrl-C, the notebook's stop) saves first and then raises
    KeyboardInterrupt; SIGTERM saves, and then ends the script.

    Args:
        recipe: The YAML file, or its content as a mapping; None if the objects are enough.
        *overrides: `a.b=value`, as on the command line.
        model: In place of the section, like what follows; None leaves the section as it is.
        loss: `loss(outputs, targets)`, or several by name, which are added up; `model` is what the model brings.
        optimizer: An optimizer, or a function that makes one of the parameters; or several by name.
        scheduler: A scheduler, or a function that makes one of the optimizer.
        train: The training data set, `data.train`.
        validation: One data set, or several by name; `10% of train` holds a share back.
        test: One data set, or several by name.
        collate: Makes a batch of a list of samples.
        batch: Which parts of a batch model and loss get: `inputs`, `targets`, `outputs`, `adapt`.
        step: A step function in place of forward and loss, or one for each of several optimizers.
        count: What of a batch the loss is a mean over, `train.count`.
        metrics: By name, of torchmetrics or functions of outputs and targets, `evaluate.metrics`.
        global_batch_size: Samples of one optimizer step, over all processes.
        epochs: Length of the run in passes over the data.
        steps: Length of the run in optimizer steps.
        cpu: Use the CPU even if there is a GPU.
        run_dir: The run's folder, resumed if it holds a checkpoint; None chooses a new one.
        resume: Resume the newest unfinished run of this recipe, or start one.
        allow: Further packages that the recipe may name.
        allow_changes: Keys that may differ from the resumed run's, as in `optimizer.lr`; of objects too, whose classes
            and settings count as keys as far as they show.
        output: What is shown: `auto`, `quiet` or `json`.

    Returns:
        The run's folder, its state, its last scores, and the module in eval mode with the weights of
        model_weights.pth; of a run that is finished already, what it left.

    Raises:
        RecipeError: Everything that is wrong with the recipe, each with its place.
        UsageError: An argument is not what it must be, or it asks for processes that were not started.
        KeyboardInterrupt: It was interrupted, and has saved.
    """
    objects = {"model": model, "loss": loss, "optimizer": optimizer, "scheduler": scheduler, "train": train}
    objects |= {"validation": validation, "test": test, "collate": collate, "batch": batch, "step": step}
    objects |= {"count": count, "metrics": metrics}
    lengths = {"data.global_batch_size": global_batch_size, "train.epochs": epochs, "train.steps": steps}
    switches = {"cpu": cpu, "resume": resume}
    lists = {"allow": allow, "allow_changes": allow_changes}
    check_arguments(recipe, overrides, objects, lengths, switches, lists, output)
    prepare()
    given = {key: objects[name] for key, name in KEYWORDS.items() if objects[name] is not None}
    overrides = (*overrides, *(Keyword(f"{key}={value}") for key, value in lengths.items() if value is not None))
    options = Options(
        cpu=cpu,
        run_dir=None if run_dir is None else os.fspath(run_dir),
        resume=resume,
        allow=tuple(allow),
        allow_changes=tuple(allow_changes),
        output=output,
        how=_how(recipe, overrides, given, allow, cpu),
    )
    with taken(), obeying(), from_python():
        checked = load_recipe({} if recipe is None else recipe, overrides, given=given)
        world = World.from_environ()
        _refuse_processes(checked, world, cpu)
        try:
            left = phases.run(checked, world, options)
        except Finished as finished:
            if world.is_first and output == "auto":
                print(finished)
            left = _left_by(finished.folder, finished.model)
    left.model.eval()
    return Result(left.folder, left.state, left.step, left.scores, left.model, recipe=checked, allow=tuple(allow))


def _how(
    recipe: RecipeSource | None, overrides: Sequence[str], objects: Mapping[str, Any], allow: Sequence[str], cpu: bool
) -> dict[str, Any]:
    """What started the run; where a file says all of it, enough for the command line to start it again."""
    is_file = isinstance(recipe, str | os.PathLike)
    name = os.fspath(recipe) if isinstance(recipe, str | os.PathLike) else "{…}"
    again = {"overrides": list(overrides), "remove": [], "allow": list(allow), "cpu": cpu, "objects": list(objects)}
    source = {"recipe": os.path.abspath(name)} if is_file and not objects else {}
    return {"command": ["launcher.train", name, *overrides], **again, **source}


@hinting
def load(run: str | os.PathLike[str], *, model: nn.Module | None = None, cpu: bool = False) -> nn.Module:
    """The trained model of a run, in eval mode.

    Args:
        run: A run by its folder or name (`latest`, `digits@2`), a checkpoint, or a file of weights inside a run.
        model: Gets the weights, where it is, in place of one that is made as the recipe says: for a run whose model
            was passed in as an object. An adapter's weights go into a model that stands on the same base.
        cpu: Use the CPU even if there is a GPU.

    Returns:
        The module with its final weights, or those of its newest checkpoint where it is not finished.

    Raises:
        UsageError: There is no such run, the weights do not fit, or it was started from Python with objects that no
            recipe names, and no model is given.
    """
    from launcher.evaluation.offline import opened

    with taken(), from_python():
        place = saved_place(os.fspath(run))
        if model is not None:
            take_weights(model, find_weights(place.absolute()))
            return model.eval()
        with opened(find_saved(place), World(), [], cpu) as built:
            return built.model.bare.eval()


@hinting
def check(recipe: RecipeSource, *overrides: str, allow: Sequence[str] = ()) -> list[Problem]:
    """What is wrong with a recipe, as far as it shows without opening data: keys, types, components, arguments.

    Args:
        recipe: The YAML file, or its content as a mapping.
        *overrides: `a.b=value`, as on the command line.
        allow: Further packages that the recipe may name.

    Returns:
        Each mistake with its place; none where nothing was found.

    Raises:
        UsageError: An argument is not what it must be.
    """
    from launcher.recipe.build import Builder

    check_call("launcher.check", recipe, overrides, {}, {"allow": allow})
    try:
        with taken():
            Builder(load_recipe(recipe, overrides), tuple(allow)).check()
    except RecipeError as error:
        return list(error.problems)
    return []


def _refuse_processes(recipe: Recipe, world: World, cpu: bool) -> None:
    stated = recipe.launch.processes
    if isinstance(stated, int) and stated != world.size:
        place = recipe.document.origin(("launch", "processes"))
        on_cpu = " --cpu" if use_cpu(world, cpu) else ""
        problem = (
            f"launcher.train() trains in the {world.size} process{'es' * (world.size > 1)} that called it; start the "
            f"script with `launcher run --processes {stated}{on_cpu} SCRIPT.py`, or omit it"
        )
        raise RecipeError([Problem(str(place), "launch.processes", problem)])


def _left_by(folder: Path, model: Model) -> phases.Result:
    """The result of a finished run, with its weights in the model."""
    model.load_state_dict(read_weights(find_weights(folder)))
    scores: list[Line] = []
    for split in ("validation", "test"):
        lines = list(read_evaluations(folder / METRICS_FILE, split))
        last = [line for line in lines if line["step"] == lines[-1]["step"]]
        scores += [{key: value for key, value in line.items() if key != "time"} for line in last]
    return phases.Result(folder, "finished", read_json(folder / STATUS_FILE)["step"], scores, model.bare)
