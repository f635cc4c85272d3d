"""`launcher.train` and its kin as people call them from Python: objects, names, slips."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import pydoc
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.parts import Net, WholeNumbers
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from worlds import TINY, in_world

import launcher
from launcher.api import Result
from launcher.checkpoints.weights import read_weights
from launcher.errors import LauncherError, RecipeError, UsageError
from launcher.recipe.caller import Keyword
from launcher.recipe.load import load_recipe
from launcher.world.world import FAULTS_VARIABLE

SETTINGS: dict[str, Any] = {
    "train": WholeNumbers(),
    "validation": WholeNumbers(size=23, seed=2),
    "loss": nn.CrossEntropyLoss(),
    "optimizer": partial(torch.optim.SGD, lr=0.5),
    "global_batch_size": 16,
    "epochs": 2,
    "cpu": True,
    "output": "quiet",
}


def trained(folder: Path, *overrides: str, **changes: Any) -> Result:
    """A run of objects alone."""
    torch.manual_seed(3)
    return launcher.train(
        None, "launch.threads=1", *overrides, run_dir=folder, **{"model": Net(), **SETTINGS, **changes}
    )


# ---------------------------------------------------------------------- the module that comes back


WORST = ("evaluate={every: 2 steps, best: {metric: loss, mode: max}}", "save={every: 2 steps, final: best}")


def _schedule_free(parameters: Any) -> Any:
    import schedulefree

    return schedulefree.SGDScheduleFree(parameters, lr=0.5)


@pytest.mark.parametrize(
    ("overrides", "optimizer"),
    [
        (WORST, SETTINGS["optimizer"]),
        ((), _schedule_free),
        (WORST, _schedule_free),
        (("train.ema=0.9",), torch.optim.SGD),
    ],
    ids=["best", "schedule-free", "both", "ema"],
)
def test_the_module_has_the_weights_that_were_written(
    tmp_path: Path, overrides: tuple[str, ...], optimizer: Callable[..., Any]
) -> None:
    for result in (trained(tmp_path / "run", *overrides, optimizer=optimizer) for _ in range(2)):  # the second is over
        assert not result.model.training
        written = read_weights(result.folder / "model_weights.pth")
        torch.testing.assert_close(result.model.state_dict(), written, rtol=0, atol=0)
        with torch.no_grad():
            outputs = result.model(SETTINGS["validation"].inputs)
        torch.testing.assert_close(outputs, result.predict("validation", cpu=True), rtol=0, atol=0)
    step = result.best.step if result.best and overrides is WORST else result.step
    assert (step < result.step) == (overrides is WORST)


def _weights_here(folder: str) -> dict[str, Any]:
    return {name: value.tolist() for name, value in trained(Path(folder), *WORST).model.state_dict().items()}


def test_every_process_has_those_weights(tmp_path: Path) -> None:
    first, second = in_world(2, _weights_here, str(tmp_path / "run"))
    written = read_weights(tmp_path / "run" / "model_weights.pth")
    assert first == second == {name: value.tolist() for name, value in written.items()}


# ---------------------------------------------------------------------- a resume by another call


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trains four steps of eight and fails; two of them are saved."""

    def cut(folder: Path, **changes: Any) -> None:
        monkeypatch.setenv(FAULTS_VARIABLE, "raise@step:4")
        with pytest.raises(RuntimeError):
            trained(folder, "save.every=2 steps", **changes)
        monkeypatch.delenv(FAULTS_VARIABLE)

    return cut


def _sgd(**settings: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, **{"lr": 0.1, **settings})


def _grouped(rate: float) -> Callable[..., torch.optim.Optimizer]:
    def made(parameters: Any) -> torch.optim.Optimizer:
        first, *others = parameters
        return torch.optim.SGD([{"params": [first], "lr": rate}, {"params": others}], lr=0.1)

    return made


def _steps(**settings: Any) -> Callable[..., Any]:
    return partial(torch.optim.lr_scheduler.StepLR, **{"step_size": 3, "gamma": 0.5, **settings})


_WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("key", "before", "after", "shown"),
    [
        ("optimizer.lr", _sgd(), _sgd(lr=0.5), "was 0.1, is now 0.5"),
        ("optimizer._groups_.0.lr", _grouped(0.2), _grouped(0.5), "was 0.2, is now 0.5"),
        ("optimizer.momentum", torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9), "was 0, is now 0.9"),
        ("optimizer", _sgd(), partial(torch.optim.Adagrad, lr=0.1), 'Python: SGD", is now .*Python: Adagrad'),
        ("scheduler.gamma", _steps(), _steps(gamma=0.1), "was 0.5, is now 0.1"),
        ("loss.label_smoothing", nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), "was 0.0, is now"),
        ("loss.weight", nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=_WEIGHTS), r"not stated, is now \[1.0, 2.0"),
        (
            "loss",
            nn.CrossEntropyLoss(),
            nn.functional.cross_entropy,
            'Python: CrossEntropyLoss", is now .*cross_entropy',
        ),
        ("model", Net(), nn.Sequential(Net(), nn.Tanh()), "Python: Net, layers .* is now .*Sequential, layers"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_objects_decide_may_not_change_unseen(
    tmp_path: Path, cut: Callable[..., None], key: str, before: Any, after: Any, shown: str
) -> None:
    name = key.partition(".")[0]
    cut(tmp_path / "run", **{name: before})
    with pytest.raises(UsageError, match=rf"  {re.escape(key)}: .*{shown}") as refused:
        trained(tmp_path / "run", "save.every=2 steps", **{name: after})
    rows = [line.strip() for line in str(refused.value).splitlines()[1:-1]]
    assert all(row.startswith(key) for row in rows), rows  # and what is the same is not among them


def test_a_change_that_is_allowed_wins(tmp_path: Path, cut: Callable[..., None]) -> None:
    cut(tmp_path / "run", optimizer=_sgd())
    settings: dict[str, Any] = {"optimizer": _sgd(lr=0.05), "allow_changes": ["optimizer.lr"]}
    result = trained(tmp_path / "run", "save.every=2 steps", **settings)
    assert [line["lr"] for line in result.metrics if line["split"] == "train"] == [0.1] + [0.05] * 3


def test_the_same_objects_resume_though_a_run_has_changed_them(tmp_path: Path, cut: Callable[..., None]) -> None:
    model, loss = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=8)
    objects = {"model": model, "loss": loss, "optimizer": optimizer, "scheduler": scheduler}
    cut(tmp_path / "run", **objects)
    assert optimizer.param_groups[0]["momentum"] != 0.9
    assert trained(tmp_path / "run", "save.every=2 steps", **objects).step == 8


# ---------------------------------------------------------------------- one's own files


OWN = """
import helper
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, helper.WIDTH), nn.ReLU(), nn.Linear(helper.WIDTH, 3))
        self.double()
"""


@pytest.mark.parametrize("changed", ["named.py", "helper.py"])
def test_a_file_of_one_s_own_that_has_changed_since_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in {"named.py": OWN, "helper.py": "WIDTH = 4\n", "other.py": "WIDTH = 4\n"}.items():
        Path(name).write_text(text)
    recipe = {"model": {"_target_": "named.py:Net"}}
    objects = {key: value for key, value in SETTINGS.items() if key != "epochs"}

    def again() -> Result:
        return launcher.train(recipe, "train.steps=1", **objects)

    try:
        first = again()
        Path("other.py").write_text("WIDTH = 5\n")
        again()
        Path(changed).write_text(Path(changed).read_text() + "\nWIDTH = 8\n")
        with pytest.raises(RecipeError, match=rf"model._target_: {changed} has changed since it was imported: restart"):
            again()
        assert len(launcher.runs()) == 2
        assert first.model(SETTINGS["validation"].inputs).shape == (23, 3)
        importlib.invalidate_caches()
        importlib.reload(sys.modules[changed.removesuffix(".py")])
        assert again().model[0].out_features == (8 if changed == "helper.py" else 4)
    finally:
        for name in ("named", "helper"):
            sys.modules.pop(name, None)


# ---------------------------------------------------------------------- names, metrics, the batch


def _accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(1) == targets).double().mean()


def test_several_of_a_kind_go_by_name(tmp_path: Path) -> None:
    result = trained(
        tmp_path / "run",
        validation={"one": WholeNumbers(size=23, seed=2), "two": WholeNumbers(size=9, seed=3)},
        test={"last": WholeNumbers(size=8, seed=4)},
        loss={"a": nn.CrossEntropyLoss(), "b": nn.functional.cross_entropy},
        collate={"train": torch.utils.data.default_collate},
        metrics={"mine": _accuracy, "theirs": MulticlassAccuracy(3, average="micro")},
    )
    assert [(line["split"], line["name"]) for line in result.scores] == [
        ("validation", "one"),
        ("validation", "two"),
        ("test", "last"),
    ]
    for line in result.scores:
        assert line["loss"] == pytest.approx(line["loss/a"] + line["loss/b"])
        assert line["mine"] == pytest.approx(line["theirs"])
    assert len(result.predict("two", cpu=True)) == 9
    sets = {"one": WholeNumbers(size=9)}
    said = ("launch.threads=1", "train.epochs=1")
    by_recipe = launcher.train(TINY, *said, validation=sets, cpu=True, run_dir=tmp_path / "two", output="quiet")
    assert by_recipe.scores[0]["name"] == "one"


def test_what_a_recipe_says_in_a_word_is_said_in_a_word(tmp_path: Path) -> None:
    assert trained(tmp_path / "run", validation="10% of train").scores[0]["split"] == "validation"
    component = {"_target_": "CrossEntropyLoss", "label_smoothing": 0.1}
    assert trained(tmp_path / "component", loss=component).scores
    with pytest.raises(LauncherError, match="loss: model: gave"):
        trained(tmp_path / "model", loss="model")
    for name in ("loss", "validation", "train", "model"):
        said = rf"given from Python: .*{name}: 'Named' is n.* write|^launcher.train: {name}: 'Named' is a name; pass"
        with pytest.raises(LauncherError, match=said) as refused:
            trained(tmp_path / "refused", **{name: "Named"})
        assert "\n" not in str(refused.value)


def test_a_batch_is_laid_out_and_a_loss_handed_in_stays_as_it_is(tmp_path: Path) -> None:
    loss = nn.CrossEntropyLoss()
    adapted = trained(tmp_path / "a", loss=loss, batch={"adapt": lambda outputs, targets: (outputs * 0, targets)})
    assert adapted.scores[0]["loss"] == pytest.approx(math.log(3))
    plain = trained(tmp_path / "b", loss=loss, batch={"inputs": [0], "targets": [1]})
    assert plain.scores[0]["loss"] != pytest.approx(math.log(3))
    with pytest.raises(LauncherError, match="a batch has no 5"):
        trained(tmp_path / "c", batch={"inputs": [5]})


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            {"evaluate": {"metrics": {"mine": _accuracy}}},
            "evaluate.metrics.mine: .*the whole of it by keyword: met",
        ),
        ({"model": {"_target_": "torch.nn.Linear", "dtype": torch.float64}}, "model.dtype: .*by keyword: model=…"),
        ({"loss": nn.CrossEntropyLoss()}, "loss: holds an object, .*; pass it by keyword: loss=…"),
        ({"model": {"_target_": nn.Linear}}, "model._target_: .*write its name: 'torch.nn.modules.linear.Linear'"),
        ({"define": {"sizes": [{"a": torch.float64}]}}, r"define.sizes\[0\].a: .*own file, and name that: {_target_"),
    ],
)
def test_an_object_in_a_mapping_is_told_with_its_place(recipe: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        launcher.train(recipe, **SETTINGS)


# ---------------------------------------------------------------------- slips


@pytest.mark.parametrize(
    ("positional", "changes", "said"),
    [
        ((None,), {"output": "silent"}, "output: 'silent' is not allowed; write 'auto', 'quiet' or 'json'"),
        ((None,), {"allow": "wandb"}, r"allow: 'wandb' is one text; write a list: allow=\['wandb'\]"),
        ((None,), {"cpu": "yes", "resume": 1}, "cpu: 'yes' is neither True nor False\nlauncher.train: resume: 1 is"),
        ((None,), {"epochs": "3"}, "epochs: '3' is not a whole number of at least 1"),
        ((None,), {"steps": 9}, "launcher.train: epochs=2 and steps=9 both say how long a run is; keep one"),
        (({}, "train.time=1 hour"), {}, "train.time=1 hour and epochs=2 both say"),
        (({}, ["optimizer.lr=1"]), {}, r"\['optimizer.lr=1'\] is not a change to the recipe; write each by itself"),
        ((None,), {"steps": True}, "steps: True is not a whole number"),
        ((None,), {"global_batch_size": 1.5}, "global_batch_size: 1.5 is not a whole number"),
        ((None,), {"train": (torch.zeros(8, 6), torch.zeros(8))}, "train: a tuple is not a data set; .*TensorDataset"),
        ((None,), {"optimizer": "Adam"}, "optimizer: 'Adam' is a name; pass a function of the parameters, as in torch"),
        (
            (None,),
            {"model": "Net"},
            "model: 'Net' is a name; pass the module itself, or what a recipe says: {'_target_'",
        ),
        ((None,), {"train": None}, "without a recipe it needs train= as well"),
        ((None,), {"metrics": _accuracy}, "metrics: function is not a mapping; write metrics={'accuracy': …}"),
        ((Net(),), {}, "a recipe comes first, and this is a Net; pass objects by keyword: model=…"),
        (("train.epochs=3",), {}, "'train.epochs=3' is an override, and a recipe comes first; without one write None"),
    ],
)
def test_a_slip_is_told_in_a_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positional: tuple[Any, ...], changes: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        launcher.train(*positional, **{"model": Net(), **SETTINGS, **changes})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "arguments", "changes", "said"),
    [
        (launcher.check, (3,), {}, "launcher.check: a recipe comes first, and this is a int"),
        (launcher.check, (None,), {}, "launcher.check: a recipe comes first"),
        (launcher.check, (TINY, ["a=1", "b=2"]), {}, "write each by itself: 'a=1', 'b=2'"),
        (launcher.check, (TINY,), {"allow": "numpy"}, r"allow: 'numpy' is one text; write a list: allow=\['numpy'\]"),
        (launcher.check, (TINY,), {"allow": 3}, "allow: 3 is not a list of texts"),
        (launcher.sweep, (TINY, ["seed=0,1"]), {}, "launcher.sweep: .*write each by itself: 'seed=0,1'"),
        (launcher.sweep, (TINY, "seed=0,1"), {"cpu": 1}, "cpu: 1 is neither True nor False"),
        (launcher.sweep, (TINY, "seed=0,1"), {"method": "hyperband"}, "method: 'hyperband' is not 'grid', 'random',"),
        (launcher.sweep, (TINY, "seed=0,1"), {"keep": "none"}, "keep: 'none' is not 'best' or 'all'"),
        (launcher.sweep, (TINY, "seed=0,1"), {"trials": -3, "lag": -5}, "trials: -3 is not .*\nlag: -5 is not"),
        (launcher.sweep, (TINY, "seed=0,1"), {"trials": "5"}, "trials: '5' is not a whole number"),
        (launcher.sweep, (TINY, "seed=0,1"), {"parallel": 0}, "parallel: 0 is not a number greater than 0 or 'auto'"),
        (launcher.sweep, (TINY, "seed=0,1"), {"processes_per_run": 0}, "processes_per_run: 0 is not"),
        (launcher.sweep, (TINY, "seed=0,1"), {"budget": 3600}, "budget: 3600 is not a duration that fits here"),
        (launcher.sweep, (TINY, "seed=0,1"), {"metric": 3}, "metric: 3 is not a word"),
    ],
)
def test_a_slip_in_another_call_is_told_in_lines_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    changes: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        call(*arguments, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [launcher.sweep, launcher.check, launcher.load])
def test_a_keyword_that_another_call_does_not_have_may_mean_one(call: Callable[..., Any]) -> None:
    unknown: dict[str, Any] = {"trails" if call is launcher.sweep else "alow" if call is launcher.check else "modle": 3}
    with pytest.raises(TypeError, match=r"did you mean '(trials|allow|model)'"):
        call("tiny.yaml", **unknown)


@pytest.mark.parametrize(
    ("name", "meant"), [("batch_size", "global_batch_size"), ("epoch", "epochs"), ("net", "model")]
)
def test_a_keyword_that_there_is_not_may_mean_another(name: str, meant: str) -> None:
    unknown: dict[str, Any] = {name: 3}
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'; did you mean '{meant}'"):
        launcher.train(TINY, **unknown)


@pytest.mark.parametrize(("name", "key"), [("name", "name"), ("lr", "optimizer.lr"), ("keep", "save.keep")])
def test_a_keyword_that_is_a_key_is_an_override(name: str, key: str) -> None:
    unknown: dict[str, Any] = {name: 3}
    with pytest.raises(TypeError, match=f"key of the recipe, which an override says: '{key}=…'"):
        launcher.train(TINY, **unknown)


def test_messages_speak_of_keywords(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^launcher.train: without a recipe it needs model=, .*epochs= or step"):
        launcher.train()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").touch()
    with pytest.raises(UsageError, match=r"^run_dir: .*other holds other things"):
        trained(tmp_path / "other")
    with pytest.raises(RecipeError, match=r"^epochs=0: train.epochs: 0 is not"):
        load_recipe(TINY, [Keyword("train.epochs=0")])
    with pytest.raises(RecipeError, match=r"launcher run --processes 2 --cpu SCRIPT.py"):
        launcher.train(TINY, "launch.processes=2", cpu=True)


# ---------------------------------------------------------------------- what is said


def test_a_finished_run_says_that_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run")
    capsys.readouterr()
    trained(tmp_path / "run")
    assert capsys.readouterr().out == ""
    trained(tmp_path / "run", output="auto")
    assert re.match(r".*run: this run is finished, after 8 steps; its weights are in", capsys.readouterr().out)


def test_parameters_that_no_optimizer_has_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run", optimizer=lambda parameters: torch.optim.SGD(list(parameters)[:1], lr=0.1), output="auto")
    assert re.search(r"optimizer: \d of \d parameter tensors are in no optimizer", capsys.readouterr().out)


# ---------------------------------------------------------------------- runs, afterwards


def test_a_run_of_objects_is_loaded_into_a_module(tmp_path: Path) -> None:
    result = trained(tmp_path / "run")
    with pytest.raises(UsageError, match=r"with model, .*.load\(RUN, model=…\), which puts .*model_weights.pth"):
        launcher.load(tmp_path / "run")
    loaded = launcher.load(tmp_path / "run", model=Net())
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), result.model.state_dict(), rtol=0, atol=0)
    with pytest.raises(UsageError, match=r"model_weights.pth does not fit the model: "):
        launcher.load(tmp_path / "run", model=nn.Linear(2, 2))
    (run,) = launcher.runs(tmp_path)
    assert repr(run) == f"Run('{tmp_path / 'run'}', finished, step 8 of 8)"


@pytest.mark.parametrize(("package", "argument"), [("runs", "name"), ("sweep", "trials")])
def test_a_package_that_is_called_is_shown_as_a_call(package: str, argument: str) -> None:
    called: Any = getattr(launcher, package)
    assert argument in inspect.signature(called).parameters
    text = pydoc.plain(pydoc.render_doc(called))
    assert f"{package}(" in text
    assert text.index("Args:") < text.index("PACKAGE CONTENTS")


SCRIPT = """
import launcher, sys
from parts import WholeNumbers
result = launcher.train(sys.argv[1], "launch.threads=1", "train.epochs=1", run_dir="runs/two", output="quiet")
print("came", result.folder.name)
"""


def test_a_script_s_run_may_lie_where_launcher_run_keeps_its_logs(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "launcher", "run", "--processes", "2", "--cpu", "two.py", str(TINY)]
    environment = {**os.environ, "PYTHONPATH": str(TINY.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "two" / "model_weights.pth").exists()


def test_what_recipes_name_is_there_by_the_same_name() -> None:
    words = "import launcher; print(launcher.datasets.Digits.__name__, launcher.models.MLP.__name__)"
    assert subprocess.check_output([sys.executable, "-c", words], text=True) == "Digits MLP\n"


def test_a_class_in_place_of_a_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model: is the class Net; pass a module made of it, Net\(…\)$"):
        trained(tmp_path / "run", model=Net)
    with pytest.raises(RecipeError, match=r"model: is a function, not a torch\.nn\.Module$"):
        trained(tmp_path / "run", model=lambda inputs: inputs)


def test_a_result_is_shown_in_a_line_without_its_model(tmp_path: Path) -> None:
    words = repr(trained(tmp_path / "run"))
    assert "state='finished'" in words
    assert "Linear" not in words
