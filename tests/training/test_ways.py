"""Ways to step: several optimizers, closures, turns, frozen parts, functions after a step: the loops by hand."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from places import RECIPES
from tiers import rounds
from worlds import Trained, in_world, result_of, train_here

from launcher.errors import LauncherError
from recipes import halves, ways

RECIPE = RECIPES / "ways.yaml"


def train(folder: str, name: str, *overrides: str, faults: str | None = None) -> str:
    own = ways.WAYS[name][0]
    remove = ("loss",) if "loss=null" in own else ()
    said = (*(one for one in own if one != "loss=null"), *overrides)
    return train_here(f"{folder}/{name}", said, str(RECIPE), remove, faults)


def train_all(folder: str, *overrides: str) -> None:
    for name in ways.WAYS:
        assert train(folder, name, *overrides) == "finished"


MICRO = {1: ("data.micro_batch_size=3",), 2: ()}  # by the number of processes


@pytest.fixture(scope="module", params=[2, pytest.param(1, marks=pytest.mark.long)])
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """All ways, with nothing in between, on so many processes."""
    size, folder = request.param, tmp_path_factory.mktemp("straight")
    in_world(size, train_all, str(folder), *MICRO[size], timeout=200)
    return size, folder


def stop_and_resume_all(folder: str, *overrides: str) -> None:
    for name in ways.WAYS:
        with pytest.raises(Exception, match="a fault at step"):
            train(folder, name, "save.every=3 steps", *overrides, faults="raise@step:7")
        assert train(folder, name, "save.every=3 steps", *overrides, faults="") == "finished"


def losses_of(folder: Path, name: str) -> list[float]:
    return result_of(folder / name).column("loss")


def test_each_way_is_that_of_a_loop_by_hand(straight: tuple[int, Path]) -> None:
    for name, (_, by_hand) in ways.WAYS.items():
        expected = by_hand()
        assert losses_of(straight[1], name) == pytest.approx(expected, rel=1e-9), name
        assert expected[18] != pytest.approx(expected[0], rel=0.01), name  # of the same batch: it learns


def test_each_way_resumes_bit_for_bit(tmp_path: Path, straight: tuple[int, Path]) -> None:
    size, folder = straight
    in_world(size, stop_and_resume_all, str(tmp_path), *MICRO[size], timeout=200)
    for name in ways.WAYS:
        expected, resumed = (result_of(each / name) for each in (folder, tmp_path))
        assert resumed.column("loss") == expected.column("loss"), name
        assert resumed.distance(expected) == 0, name


def _resumed_alone(folder: str) -> None:
    with pytest.raises(LauncherError, match="which were 2 and are 1; resume with --processes 2"):
        train(folder, "divided", faults="")


def _stopped(folder: str) -> None:
    with pytest.raises(Exception, match="a fault at step"):
        train(folder, "divided", "save.every=3 steps", faults="raise@step:4")


def test_a_state_that_ranks_divide_is_not_resumed_by_fewer(tmp_path: Path) -> None:
    in_world(2, _stopped, str(tmp_path))
    in_world(1, _resumed_alone, str(tmp_path))


def test_a_line_has_what_each_turn_gave_last_since_the_line_before(tmp_path: Path) -> None:
    in_world(1, train, str(tmp_path / "each"), "now and then")
    in_world(2, train, str(tmp_path / "some"), "now and then", "track.every=2 steps", "evaluate.every=100 steps")
    each, some = (result_of(tmp_path / name / "now and then") for name in ("each", "some"))
    given, gathered = (
        {line["step"]: line["loss/generator"] for line in run.lines if "loss/generator" in line} for run in (each, some)
    )
    assert [*given] == [3, 6, 9, 12, 15, 18]
    assert gathered == pytest.approx({step + step % 2: value for step, value in given.items()}, rel=1e-9)


# ---------------------------------------------------------------------- functions of one's own


NOISE = ("train.after_step=ways.py:shaken", "data.validation={_target_: ways.py:Points}", "evaluate.every=5 steps")


@rounds("size", plain=[2], long=[1])
def test_what_a_function_after_a_step_draws_is_the_same_on_every_rank_and_after_a_stop(
    tmp_path: Path, size: int
) -> None:
    straight = trained(tmp_path / "straight", *NOISE, size=size)
    in_world(size, stop_and_resume, str(tmp_path / "resumed"), NOISE)
    assert result_of(tmp_path / "resumed").distance(straight) == 0
    assert straight.distance(trained(tmp_path / "quiet", *NOISE[1:], size=size)) > 1e-3


def stop_and_resume(folder: str, overrides: tuple[str, ...]) -> None:
    for faults in ("raise@step:8", ""):
        with pytest.raises(Exception, match="a fault at step") if faults else nullcontext():
            train_here(folder, (*overrides, "save.every=3 steps"), str(RECIPE), (), faults)


def trained(folder: Path, *overrides: str, size: int = 1) -> Trained:
    in_world(size, train_here, str(folder), overrides, str(RECIPE))
    return result_of(folder)


AFTER = "evaluate.after={_target_: ways.py:Looked}"


@rounds("size", plain=[2], long=[1])
def test_a_function_after_an_evaluation_logs_and_changes_nothing(tmp_path: Path, size: int) -> None:
    plain = trained(tmp_path / "plain", *NOISE, size=size)
    looked = trained(tmp_path / "looked", *NOISE, AFTER, size=size)
    assert looked.distance(plain) == 0
    assert looked.column("loss") == plain.column("loss")
    assert looked.column("times", "validation") == [1, 2, 3, 4]
    assert looked.column("drawn", "validation")[0] == looked.column("drawn", "validation")[1]
    names = sorted(path.name for path in (tmp_path / "looked" / "figures").iterdir())
    assert names == [f"{name}-{step:09}.png" for name in ("grey", "plot") for step in (5, 10, 15, 20)]
    from PIL import Image

    with Image.open(tmp_path / "looked" / "figures" / names[0]) as image:
        assert image.size == (3, 2)
        assert image.getpixel((2, 1)) == (255, 255, 255)
    in_world(size, stop_and_resume, str(tmp_path / "resumed"), (*NOISE, AFTER))
    assert result_of(tmp_path / "resumed").column("times", "validation") == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("moves", "evaluate.after: has changed 'scale'; what changes weights is train.after_step"),
        ("gives_text", "evaluate.after: 'words' is a str; give a number, a figure, or pixels"),
        ("gives_a_number", "evaluate.after: gave a float; return {name: number or figure}, or nothing"),
        ("renames", "evaluate.after: 'loss' cannot be logged; give it a name of its own, a word"),
    ],
)
def test_what_a_function_after_an_evaluation_may_not_do(tmp_path: Path, function: str, message: str) -> None:
    with pytest.raises(LauncherError, match=message):
        train_here(str(tmp_path / "run"), (*NOISE, f"evaluate.after=ways.py:{function}"), str(RECIPE))


@pytest.mark.parametrize(
    "optimizer",
    [
        "optimizer._groups_={embed.*: {lr: 1}, head.*: {lr: 0.2}}",
        "optimizer={a: {_target_: SGD, lr: 0.2, _params_: [embed.*, head.*]}, b: {_target_: SGD, lr: 0.1}}",
    ],
)
def test_a_pattern_of_what_is_frozen_is_no_mistake(tmp_path: Path, optimizer: str) -> None:
    frozen = ("train.freeze={embed.*: always}", "train.steps=3")
    for name, said in (("plain", "optimizer._groups_={head.*: {lr: 0.2}}"), ("run", optimizer)):
        train_here(str(tmp_path / name), (said, *frozen), str(RECIPE))
    assert result_of(tmp_path / "run").distance(result_of(tmp_path / "plain")) == 0


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.freeze={blok.*: 1 epoch}",), "train.freeze.blok.*: no parameter is named like 'blok.*'"),
        (
            ("model={_target_: ways.py:tied}", "train.freeze={head.*: 1 epoch}"),
            "train.freeze.head.*: 'head.weight' is 'embed.we",
        ),
        (
            ("model={_target_: ways.py:tied}", "optimizer._groups_={head.*: {lr: 1}}"),
            "_groups_.head.*: 'head.weight' is 'embed.",
        ),
        (("optimizer._groups_={embed.*: {lr: 1}, '*.bias': {lr: 2}, embed.bias: {lr: 3}}",), "a pattern before it, or"),
        (
            (
                "optimizer={embed: {_target_: SGD}, rest: {_target_: SGD}}",
                "train.freeze={embed.*: always}",
            ),
            "optimizer.embed: all of its parameters are frozen (embed.*), by train.freeze or by the model itself",
        ),
        (("train.freeze={'*': 1 epoch}",), "train.freeze: nothing is left to train in the first step; freeze less"),
        (("train.freeze={'*': never}",), "'never' does not say how long; write '3 epochs', '500 steps', '10%' or alwa"),
        (("train.freeze={'*': always}",), "no parameter requires a gradient: there is nothing to train"),
        (
            ("train.clip_grad_value=1.0", "train.clip_grad_norm=1.0"),
            "cannot be combined with clip_grad_norm; keep one of them",
        ),
        (
            ("model={_target_: ways.py:Turning}", "train.clip_grad_value=1.0"),
            "train.clip_grad_value: the model has complex numbers, and which of them is the larger is not said",
        ),
        (("train.ema=0.9", "train.swa={}"), "train.swa: cannot be combined with ema; keep one of them"),
        (
            ("optimizer={a: {_target_: SGD, _params_: head.*}, b: {_target_: SGD, _params_: embed.*}}",),
            "optimizer: no optimizer has scale, blocks.0.weight, blocks.0.bias, blocks.1.weight, …; name them",
        ),
        (
            ("optimizer={a: {_target_: SGD, _params_: head.*}, b: {_target_: SGD}, c: {_target_: SGD}}",),
            "optimizer.c: only one optimizer may have the rest, and 'b' has no _params_ either",
        ),
        (
            ("optimizer={a: {_target_: SGD, _params_: heads.*}, b: {_target_: SGD}}",),
            "optimizer.a._params_: no parameter is named like 'heads.*'",
        ),
        (
            ("train.step={_ref_: ways.py:critic, _every_: 2}",),
            "train.step._every_: is for turns by name, as in train.step",
        ),
        (
            (
                *ways.TURNS[:2],
                "train.step={critic: {_ref_: ways.py:critic, _every_: 2}, "
                "generator: {_ref_: ways.py:generator, _every_: 3}}",
            ),
            "train.step: each turn has _every_, and some steps would do nothing; remove that of one",
        ),
        (
            (*ways.TURNS[:2], "train.step={critic: {_ref_: ways.py:critic, _every_: 1 epoch}, generator: x.py:g}"),
            "train.step.critic._every_: '1 epoch' is not a number of steps; write 5 or '5 steps'",
        ),
        (("optimizer._params_=head.*",), "one optimizer has all parameters; freeze the others in train.freeze"),
        (
            ("optimizer={a: {_target_: SGD, _params_: head.*}, b: {_target_: LBFGS}}",),
            "optimizer: SGD; LBFGS: one that calls the loss itself must be alone",
        ),
        (("optimizer={_target_: LBFGS}", "train.non_finite=skip"), "none of its updates can be skipped; say stop"),
        (
            ("train.step={critic: ways.py:critic, generator: ways.py:generator}",),
            "each turn has an optimizer of its name: train.step has critic, generator, optimizer has one for all",
        ),
        (
            (ways.SEVERAL[0], "scheduler={_target_: StepLR, step_size: 2}"),
            r"there are several optimizers; say it by their names: {matrices: {…}, rest: {…}}",
        ),
        (
            (ways.SEVERAL[0], "scheduler={matrixes: {_target_: StepLR, step_size: 2}}"),
            "there is no optimizer 'matrixes'; did you mean 'matrices'?",
        ),
        (
            ("model={_target_: ways.py:Flat}", "optimizer={_target_: SGD, _layer_decay_: 0.5}"),
            "optimizer._layer_decay_: the model has no stack of layers, a ModuleList or a Sequential",
        ),
        (("optimizer={_target_: SGD, _layer_decay_: 2}",), "must be a number above 0 and up to 1, as in 0.75"),
        (("save={average_last: 5}",), "save.average_last: 5 are more checkpoints than are kept; state save.keep: 5"),
        (("evaluate.after=ways.py:moves",), "follows evaluations, and there are none; state data.validation"),
    ],
)
def test_what_is_refused(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(LauncherError) as caught:
        train_here(str(tmp_path / "run"), overrides, str(RECIPE))
    assert message in str(caught.value)


def test_an_optimizer_that_misses_its_closure_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.cli.main import main

    assert main(["check", str(RECIPE), "optimizer={_target_: ways.py:Sam}"]) == 2
    said = capsys.readouterr().err
    assert "Sam requires closure" in said
    assert "it calls the loss itself: write _closure_: true beside its _target_" in said


@pytest.mark.parametrize("name", ways.WAYS)
def test_each_way_is_rehearsed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.cli.main import main

    own = ways.WAYS[name][0]
    remove = ["--remove", "loss"] if "loss=null" in own else []
    assert main(["check", str(RECIPE), *remove, *(one for one in own if one != "loss=null")]) == 0
    assert "nothing wrong was found" in capsys.readouterr().out


def test_nothing_is_kept_of_what_is_frozen_until_it_thaws(tmp_path: Path) -> None:
    from launcher.checkpoints import format as checkpoints

    own = (*ways.WAYS["frozen"][0], "save={every: 1 steps, keep: 30, background: false}")
    assert train_here(str(tmp_path / "run"), own, str(RECIPE)) == "finished"
    for step, thawed in ((4, False), (5, False), (6, True), (7, True)):
        state = checkpoints.verify(tmp_path / "run" / "checkpoints" / checkpoints.name_of(step)).training()["optimizer"]
        assert ("blocks.0.weight" in state["state"]) is thawed, step
        assert "embed.weight" not in state["state"]
    assert float(state["state"]["blocks.0.weight"]["step"]) == 2.0


def test_layers_are_counted_from_the_input() -> None:
    from launcher.objective.patterns import layers_of

    layers = layers_of(ways.Stack())
    assert layers["scale"] == layers["embed.weight"] == 0
    assert (layers["blocks.0.bias"], layers["blocks.1.weight"], layers["head.bias"]) == (1, 2, 3)
    assert set(
        layers_of(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))).values()
    ) == {1, 2}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("blocks.*", {"blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias"}),
        ("blocks.* dim>=2", {"blocks.0.weight", "blocks.1.weight"}),
        ("dim == 1 *bias", {"embed.bias", "blocks.0.bias", "blocks.1.bias", "head.bias"}),
        ("dim<1", set()),
    ],
)
def test_patterns_of_names_and_shapes(pattern: str, expected: set[str]) -> None:
    from launcher.objective.patterns import chosen

    named: dict[str, Any] = dict(ways.Stack().named_parameters())
    assert set(chosen([pattern], named)[pattern]) == expected


# ---------------------------------------------------------------------- in half precision

PLAIN = "_target_: SGD, lr: 0.05, fused: false"  # a fused kernel rounds otherwise
CALLS = {
    "parts": ("train.step=halves.py:step", f"optimizer={{{PLAIN}}}"),
    "turns": (
        "train.step={step: halves.py:step, mean: halves.py:mean}",
        f"optimizer={{step: {{{PLAIN}, _params_: [first.*, norm.*]}}, mean: {{{PLAIN}}}}}",
    ),
}
HALVES = (
    "model={_target_: halves.py:Parts}",
    "train.count=halves.py:samples",
    "data.validation={_target_: ways.py:Points}",
)


def train_in_each_precision(folder: str) -> None:
    for precision in ("no", "bf16", "bf16-true"):
        for name, own in CALLS.items():
            said = (*HALVES, *own, f"device.precision={precision}")
            train_here(f"{folder}/{precision}/{name}", said, str(RECIPE), ("loss",))


@rounds("size", plain=[2], long=[1])
def test_a_whole_step_function_is_under_autocast_whatever_it_calls(tmp_path: Path, size: int) -> None:
    in_world(size, train_in_each_precision, str(tmp_path))
    for precision in ("no", "bf16", "bf16-true"):
        for name, functions in (("parts", (halves.step,)), ("turns", (halves.step, halves.mean))):
            losses, evaluated = halves.by_hand(precision, *functions)
            run = result_of(tmp_path / precision / name)
            close = 1e-6 if size == 1 or precision == "no" else 0.1  # other sums, rounded
            assert run.column("loss") == pytest.approx(losses, rel=close), (precision, name)
            assert run.column("loss", "validation")[-1] == pytest.approx(evaluated, rel=close), (precision, name)
            assert set(run.column("half")) == {float(precision != "no")}


# ---------------------------------------------------------------------- gradients of nothing


@pytest.mark.parametrize("bad", [False, True])
def test_gradients_of_nothing_are_finite(bad: bool) -> None:
    """Of a table of which a batch used no row, and of a parameter of no numbers beside a complex one."""
    from launcher.training.nonfinite import NonFiniteGuard

    table, nothing = torch.nn.Embedding(3, 2, padding_idx=0, sparse=True), torch.nn.Parameter(torch.zeros(0, 3))
    turn = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    for parameters in ([table.weight], [turn, nothing], [nothing]):
        torch.stack([table(torch.zeros(2, dtype=torch.long)).sum(), nothing.sum(), turn.abs().sum()]).sum().backward()
        if bad and turn.grad is not None:
            turn.grad.fill_(float("nan"))
        guard = NonFiniteGuard(torch.optim.SGD(parameters), None, torch.device("cpu"), skips=True)
        assert guard.allows(0) is not (bad and parameters[0] is turn)
