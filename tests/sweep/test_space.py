"""How a space is written, what a point of it is in the recipe's words, and what is refused in one line each."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT, TINY
from simulated import settings

from launcher.errors import EXIT_USAGE, LauncherError, RecipeError, UsageError
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.sweep.begin import Asked, grow, sought
from launcher.sweep.grammar import flow, plain, read_alternatives
from launcher.sweep.metric import metric_of
from launcher.sweep.plan import Length, Sources, check_space, digest_of, locate, questions, settle
from launcher.sweep.ranges import RangeError, read_range
from launcher.sweep.record import Record, create
from launcher.sweep.space import is_same, read_space

RECIPE = str(ROOT / "recipes" / "digits_mlp.yaml")
ACCURACY = "evaluate.metrics.accuracy"
BOTH = "optimizer={_target_: AdamW, lr: 3e-3},{_target_: SGD, lr: 1e-3..1e-1:log, momentum: 0.5..0.9}"


@pytest.mark.parametrize(
    ("text", "first", "last", "size"),
    [
        ("1e-4..1e-2:log", 1e-4, 1e-2, None),
        ("0.0..1.0", 0.0, 1.0, None),
        ("1..5", 1, 5, 5),
        ("-3..3", -3, 3, 7),
        ("1..64:log", 1, 64, 64),
        ("0..10:5", 0, 10, 3),
        ("0.1..0.3:0.1", 0.1, 0.3, 3),
        ("1..2:0.25", 1.0, 2.0, 5),
        ("16..256:x2", 16, 256, 5),
        ("1e-4..1e-1:x10", 1e-4, 1e-1, 4),
    ],
)
def test_a_range_has_both_its_ends(text: str, first: float, last: float, size: int | None) -> None:
    found = read_range(text)
    assert found is not None
    assert (found.at(0.0), found.at(1.0), found.size) == (first, last, size)
    assert type(found.at(0.5)) is type(first)
    assert all(found.holds(found.at(step / 97)) for step in range(98))
    assert read_range(str(found)) == found
    if size:
        assert [found.value(index) for index in range(size)] == sorted({found.at(step / 997) for step in range(998)})


@pytest.mark.parametrize(
    "text",
    ["../data/x", "a..b", "2026-01-01..2026-02-01", "v1.0..v2.0", "1.0.0..2.0.0", "..", "1..2..3", "x..2", "1 .. 2"],
)
def test_a_text_stays_a_text(text: str) -> None:
    assert read_range(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5..1", "5..1 is empty; write 1..5"),
        ("1..1", "1..1 is one value; write 1"),
        ("0..1:log", "0 has no logarithm"),
        ("-1.0..1.0:log", "-1.0 has no logarithm"),
        ("1..10:4", "its last value is 9; end at 9 or 13"),
        ("0.0..1.0:0.3", "its last value is 0.9; end at 0.9 or 1.2"),
        ("1..8:x3", "its last value is 3; end at 3 or 9"),
        ("1..2:-1", "a step is more than 0"),
        ("1..8:x1", "a factor is more than 1"),
        ("1..2:lgo", "write log, a step as in 1..2:2, or x2 for a factor"),
        ("1...2", "'.2' needs a digit before the point: 0.2"),
        (".5...7", "'.5' needs a digit before the point: 0.5"),
        ("1_000..2_000", "'1_000' is not a number of a recipe; it is 1000"),
        ("0x10..0x20", "'0x10' is written in digits here: 16"),
        ("..2", "one end is missing"),
        ("1..", "one end is missing"),
        ("${a}..${b}", "an end cannot be a reference"),
        ("1..1e400", "has no end"),
        ("0.0..1.0:1e-9", "1,000,000,001 values"),
        (f"1..{'9' * 400}", "a number of 400 characters"),
    ],
)
def test_a_range_that_is_none_says_what_to_write(text: str, words: str) -> None:
    with pytest.raises(RangeError) as caught:
        read_range(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def overrides(words: Sequence[str]) -> list[list[str]]:
    space = read_space(RECIPE, words)
    return [space.overrides(space.point(index)) for index in range(space.size or 0)]


def test_points_are_changes_to_the_recipe_in_its_own_words() -> None:
    assert overrides(["model.hidden=[64],[256,256]", "train.epochs=3", "data.workers=0..1"]) == [
        ["train.epochs=3", "model.hidden=[64]", "data.workers=0"],
        ["train.epochs=3", "model.hidden=[64]", "data.workers=1"],
        ["train.epochs=3", "model.hidden=[256,256]", "data.workers=0"],
        ["train.epochs=3", "model.hidden=[256,256]", "data.workers=1"],
    ]
    assert overrides(["a='x,y',z"]) == [["a='x,y'"], ["a=z"]]
    assert overrides(["a=it's,that's"]) == [["a=it's"], ["a=that's"]]
    assert overrides(["evaluate.every=1 epoch,2 epochs"]) == [["evaluate.every=1 epoch"], ["evaluate.every=2 epochs"]]
    assert overrides(["a='1..2',\"3..4\""]) == [["a='1..2'"], ['a="3..4"']]


def test_a_components_ranges_exist_where_it_is_chosen() -> None:
    space = read_space(RECIPE, [BOTH])
    assert [parameter.name for parameter in space.parameters] == ["optimizer", "optimizer#1.lr", "optimizer#1.momentum"]
    point = {"optimizer": 1, "optimizer#1.lr": 0.01, "optimizer#1.momentum": 0.75}
    assert space.overrides(point) == ["optimizer={_target_: SGD, lr: 0.01, momentum: 0.75}"]
    assert space.overrides({"optimizer": 0}) == ["optimizer={_target_: AdamW, lr: 3e-3}"]
    assert space.shown(point) == {"optimizer": "SGD", "optimizer.lr": "0.01", "optimizer.momentum": "0.75"}
    assert load_recipe(RECIPE, space.overrides(point)).optimizer.kwargs == {"lr": 0.01, "momentum": 0.75}  # type: ignore[union-attr]  # one
    check_space(Sources(RECIPE), space)


def test_seeds_are_repeats_of_a_point() -> None:
    space = read_space(RECIPE, ["optimizer.lr=1e-3,1e-2", "seed=0..2"])
    assert space.seeds == (0, 1, 2)
    assert space.size == 2
    assert space.overrides(space.point(1), 2) == ["optimizer.lr=1e-2", "seed=2"]


def test_the_section_says_the_same_and_the_command_line_goes_before_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    section = """
sweep:
  trials: 12
  metric: validation/accuracy:max
  space:
    optimizer.lr: {from: 1e-4, to: 1e-2, scale: log}
    model.hidden: [[64], [256, 256]]
    data.global_batch_size: {from: 16, to: 64, factor: 2}
    scheduler:
      - {_target_: CosineAnnealingLR, T_max: "${train.steps}", eta_min: 1e-6..1e-4:log}
      - null
    seed: 0..1
"""
    recipe.write_text((ROOT / "recipes" / "digits_mlp.yaml").read_text(encoding="utf-8") + section, encoding="utf-8")
    space = read_space(recipe, ["model.hidden=[32],[64]", "train.epochs=2"])
    assert space.words == (
        "optimizer.lr=0.0001..0.01:log",
        "data.global_batch_size=16..64:x2",
        'scheduler={_target_: CosineAnnealingLR, T_max: "${train.steps}", eta_min: 1e-6..1e-4:log},null',
        "seed=0..1",
        "model.hidden=[32],[64]",
        "train.epochs=2",
    )
    assert read_space(RECIPE, space.words) == space
    baseline = check_space(Sources(recipe), space)
    asked = settle(baseline, space, Sources(recipe), 2, Length(100))
    assert (asked.trials, str(asked.metric), asked.seeds) == (12, "validation/accuracy:max", (0, 1))
    assert load_recipe(recipe).sweep is not None  # `launcher train` leaves it alone


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES, VALUES)
def test_whatever_stands_in_a_list_is_written_as_one_would_on_the_command_line(value: object, other: object) -> None:
    if any(isinstance(each, str) and ".." in each for each in (value, other)):
        return  # a range, or what looks like one
    words = f"{flow(value)},{flow(other)}"
    alternatives = read_alternatives(words)
    assert [str(alternative) for alternative in alternatives] == [flow(value), flow(other)]
    for alternative, meant in zip(alternatives, (value, other), strict=True):
        assert is_same(plain(str(alternative)), meant)
        assert not alternative.holes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model.width: []", "an empty list has no alternatives"),
        ("optimizer.lr: {from: 1e-4}", "a range has two ends"),
        ("optimizer.lr: {from: 1e-2, to: 1e-4, scale: log}", "0.01..0.0001 is empty"),
        ("optimizer.lr: {from: 0, to: 1, scale: log}", "0 has no logarithm"),
        ("optimizer.lr: {from: 1e-4, to: 1e-2, scale: loq}", "is neither linear nor log"),
        ("optimizer.lr: {from: 1, to: 4, step: 1, factor: 2}", "keep one"),
        ("optimizer.lr: {from: low, to: 1}", "'from: low' is not a number"),
        ("optimizer.lr: [1e-3, 1e-3]", "'0.001' is there twice"),
        ("name: [a, b]", "'name' says a run's name"),
        ("optimizer.lr: 1...2", "needs a digit before the point"),
    ],
)
def test_a_bad_section_is_a_line_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    (recipe := tmp_path / "recipe.yaml").write_text(f"sweep:\n  space:\n    {line}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_space(recipe, [])
    assert str(caught.value).startswith(f"{recipe}:3:")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=8,8.0"], "'8' and '8.0' are one value; omit one"),
        (["a=[1, 2],[1,2]"], "are one value"),
        (["a=8,8..10"], "'8' is within 8..10; omit it"),
        (["a=2,"], "an alternative is missing behind '2'"),
        (["a=,2"], "an alternative is missing before the first comma"),
        (["a=1,,2"], "an alternative is missing behind '1'"),
        (["a=[1,2"], "a bracket is not closed"),
        (["a=1]"], "a closing bracket"),
        (["a='1,2"], "a quote ' is not closed"),
        (["name=a,b"], "'name' says a run's name"),
        (["track.every=1 step,2 steps"], "'track' says where numbers go"),
        (["launch.processes=1,2"], "'launch' says how a run is started"),
        (["seed=0..4", "seed=7"], "'seed' is set twice; keep one"),
        (["optimizer.lr=1,2", "optimizer.lr=3,4"], "'optimizer.lr' is set twice; keep one"),
        (["optimizer.betas[0]=0.8,0.9", "optimizer.betas.0=0.7,0.6"], "is set twice"),
        (["optimizer.lr=1,2", BOTH], "'optimizer.lr' lies in 'optimizer', which varies"),
        (["optimizer.lr=1", BOTH], "'optimizer.lr' lies in 'optimizer', which varies"),
        (["seed=a,b"], "seeds are whole numbers from 0 on"),
        (["seed=0.1..0.5"], "whole numbers; write seed=0..4"),
        (["optimizer.lr=1e-2..1e-4:log"], "0.01..0.0001 is empty; write 0.0001..0.01:log"),
        (["optimizer={_target_: SGD, lr: 2..1},{_target_: AdamW}"], "2..1 is empty"),
        (["optimizer.lr=fast,1e-3"], "optimizer.lr: alternative fast: 'fast' does not fit: AdamW expects a number"),
        (["model.hiden=[64],[32]"], "MLP takes no 'hiden'; did you mean 'hidden'?"),
        (["optimiser.lr=1e-3,1e-2"], "unknown key; did you mean 'optimizer'?"),
        (["train.epochs=-1..3"], "-1 is not a number greater than 0"),
        (["optimizer={_target_: SGD, momentun: 0.5..0.9},{_target_: AdamW}"], "SGD takes no 'momentun'"),
        (
            ["optimizer.lr=1e-4 .. 1e-2"],
            "a range is written 0.0001..0.01 here; put a text that reads like one in quotes",
        ),
        (["optimizer.lr={from: 1e-4, to: 1e-2, scale: log}"], "a range is written 0.0001..0.01:log here"),
        (["optimizer.betas=[0.8..0.9, 0.99]"], "0.8..0.9 stands within a value, and a range is a whole alternative"),
        (["train.freeze={'layers.0*': 1..3},null"], "1..3 stands within a value"),
        (["optimizer.lr=nan..1.0"], "'nan' is not a number"),
        (["optimizer.lr=1e-4|1e-2"], "alternatives are separated by commas, as in optimizer.lr=1e-4,1e-2"),
        (["model.hidden=[64]|[256, 256]"], "alternatives are separated by commas, as in model.hidden=[64],[256, 256]"),
        (["train.epochs=1,2", "train.steps=100,200"], "'train.steps' takes the place of 'train.epochs'; keep one"),
        (["define.width=1,2"], "define.width: the recipe defines no 'width', and nothing refers to it"),
        (["data.global_batch_size=16.5..32.5"], "data.global_batch_size: with 16.5: 16.5 is not a whole number"),
        (["+optimizer.lr=1,2"], "alternative 1: a key is added like any other, without '+'"),
        (["optimizer.lr=1e-3,\0"], r"alternative \x00: the character U+0000 is not text"),
        (["data.global_batch_size=8,wide"], "data.global_batch_size: alternative wide: 'wide' is not a whole number"),
    ],
)
def test_a_bad_space_is_a_line_with_its_place(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_space(Sources(RECIPE), read_space(RECIPE, words))
    assert caught.value.exit_code == EXIT_USAGE
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith("space '")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "stated", "message"),
    [
        ([], {}, "nothing varies; write KEY=VALUE,VALUE or KEY=LOW..HIGH"),
        (["optimizer.lr=1e-4..1e-2:log"], {"method": "grid"}, "has no end of values; give it a step"),
        (["data.workers=0..1000000000"], {"method": "grid"}, "1,000,000,002 points; at most 10,000 are run"),
        (["data.workers=0,1"], {"trials": 9}, "the space has 3 runs with the baseline; write --trials 3"),
        (["data.workers=0,1"], {"trials": 2, "method": "grid"}, "the grid has 3 runs with the baseline"),
        (["data.workers=0..9", "seed=0..4"], {"trials": 12}, "each point is run with 5 seeds; write --trials 10 or 15"),
        (["data.workers=0,1"], {"metric": "validation/acuracy"}, "no validation set has it; did you mean 'accuracy'?"),
        (["data.workers=0,1"], {"metric": "test/accuracy"}, "'test' must not choose between trials"),
        (["data.workers=0,1"], {"metric": "validation/accuracy:most"}, "is not a metric"),
        (["data.workers=0,1"], {"method": "cmaes"}, "varies ranges, and there is none"),
        (["data.workers=0,1"], {"metric": "ema/loss"}, "no validation set has it"),
        (["data.workers=0,1"], {"method": "hyperband"}, "--method: 'hyperband' is not 'grid', 'random'"),
        (["optimizer.lr=1,2"], {"method": "halving", "eta": 200}, "a run has 100 steps, and the first rung is at 25"),
        (["optimizer.lr=1,2"], {"method": "halving", "eta": 5}, "write sweep.first_rung='20 steps', or less"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words: list[str], stated: dict[str, object], message: str) -> None:
    space = read_space(RECIPE, words)
    with pytest.raises(LauncherError) as caught:
        settle(load_recipe(RECIPE), space, Sources(RECIPE), 2, Length(100, 10), stated)
    assert caught.value.exit_code == EXIT_USAGE
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_point_without_the_metric_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        sought(Asked(RECIPE, words=("data.validation=null,10% of train", "optimizer.lr=1e-3,1e-2"), cpu=True))
    place = "space at data.validation=null optimizer.lr=1e-3"
    words = "trials are compared by validation/loss; there is no such validation set"
    assert str(caught.value) == f"{place}: {words}"


@dataclass(frozen=True)
class Counted(Sources):
    """From what is read, and what was."""

    seen: list[str] = field(default_factory=list)

    def read(self, overrides: Sequence[str]) -> Recipe:
        self.seen.append(" ".join(overrides))
        return super().read(overrides)


@pytest.mark.parametrize("wrong", [None, "-1", "2.5", "some", "[3]"])
def test_of_very_many_numbers_those_are_read_that_would_be_wrong_if_any_were(wrong: str | None) -> None:
    numbers = [*map(str, range(1, 1501)), *([wrong] if wrong else []), *map(str, range(1501, 3001))]
    source = Counted(RECIPE)
    space = read_space(RECIPE, [f"train.epochs={','.join(numbers)}", "optimizer.lr=1e-4..1e-2:log"])
    with pytest.raises(RecipeError, match=f"alternative {re.escape(wrong)}: ") if wrong else nullcontext():
        check_space(source, space)
    assert len(source.seen) < 20


@pytest.mark.parametrize(
    ("metric", "component", "mode"),
    [
        ("ece", "MulticlassCalibrationError, num_classes: 10", "min"),
        ("val_mae", "torchmetrics.MeanAbsoluteError", "min"),
        ("ppl", "Perplexity", "min"),
        ("psnr", "torchmetrics.image.PeakSignalNoiseRatio, data_range: 1.0", "max"),
        ("error_free", "Accuracy, task: multiclass, num_classes: 10", "max"),  # its class is known when it is made
        (
            "all/MulticlassHammingDistance",
            "torchmetrics.MetricCollection, metrics: [{_target_: MulticlassHammingDistance, num_classes: 10}]",
            "min",
        ),
        ("eer", "BinaryEER", None),
        ("lossless_ratio", "torchmetrics.SumMetric", None),
        ("bce", "torchmetrics.MeanMetric", None),
    ],
)
def test_the_direction_of_a_metric_is_its_class_s_or_asked_for(metric: str, component: str, mode: str | None) -> None:
    name = metric.partition("/")[0]
    recipe = load_recipe(RECIPE, [f"evaluate.metrics.{name}={{_target_: {component}}}"])
    builder = Builder(recipe)
    assert metric_of(recipe, f"validation/{metric}:max", builder).mode == "max"
    if mode is not None:
        assert str(metric_of(recipe, metric, builder)) == f"validation/{metric}:{mode}"
        return
    with pytest.raises(UsageError, match=f"^--metric {metric}: .* is not known; write {metric}:max or {metric}:min$"):
        metric_of(recipe, metric, builder)


@pytest.mark.parametrize(
    ("words", "metric", "mode"),
    [
        (["evaluate.best={metric: eer, mode: min}", "evaluate.metrics.eer={_target_: BinaryEER}"], "eer", "min"),
        (["train.ema=0.9"], "ema/loss", "min"),
        (["train.ema=0.9"], "ema/accuracy", "max"),
        (["train.ema=0.9", "evaluate.best={metric: accuracy, mode: max}"], None, "max"),
        ([], "loss", "min"),
    ],
)
def test_the_direction_follows_from_the_recipe(words: list[str], metric: str | None, mode: str) -> None:
    recipe = load_recipe(RECIPE, words)
    assert metric_of(recipe, metric, Builder(recipe)).mode == mode


@pytest.mark.parametrize(
    ("words", "metric", "message"),
    [
        (["evaluate.metrics.accuracy.average=none"], "accuracy:max", "a list, and only one number can be compared"),
        (
            ["evaluate.metrics.accuracy.average=none", "evaluate.best={metric: accuracy, mode: max}"],
            None,
            "it gives a list",
        ),
        ([], "swa/accuracy", "no validation set has it"),
        (
            [
                "data.validation={far: {_target_: Digits}, near: {_target_: Digits}}",
                f"{ACCURACY}._sets_=[near]",
            ],
            "far/accuracy:max",
            "it is measured on near, and trials are compared by 'far'",
        ),
    ],
)
def test_a_metric_that_no_evaluation_gives_as_one_number_is_refused(
    words: list[str], metric: str | None, message: str
) -> None:
    recipe = load_recipe(RECIPE, words)
    with pytest.raises(UsageError, match=message):
        metric_of(recipe, metric, Builder(recipe))


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["train.epochs=1,2"], "space at train.epochs=1: .*; omit train.epochs"),
        (["train={steps: 100},{epochs: 2}"], "omit train"),
        (["data.global_batch_size=8,32"], "space at data.global_batch_size=8: .*fix train.steps"),
        (["define.n=32,64", "train.steps=${define.n}"], "space at define.n=64: a run has 64 steps there, 32 as the"),
        (["define.n=32,64", "data.train.size=${define.n}"], "space at define.n=64: a run has 32 steps there, 16 as"),
        (["data.train.size=50..200:x4", "optimizer.lr=0.1,1.0"], "space at data.train.size=200 optimizer.lr="),
        (["data.global_batch_size=8,32", "train.steps=40"], None),
        (["data.train.size=50,64"], None),  # the same number of batches
        (["data.train.seed=0,1", "define.n=32,64"], None),
    ],
)
def test_under_halving_all_runs_have_one_length(tmp_path: Path, words: list[str], place: str | None) -> None:
    recipe = tmp_path / "lengths.yaml"
    recipe.write_text(f"{TINY.read_text().replace('epochs: 3', 'epochs: 8')}define: {{n: 32}}\n")
    shutil.copy(TINY.parent / "parts.py", tmp_path)
    validation = "data.validation={_target_: parts.py:WholeNumbers, size: 23}"
    halving = Asked(str(recipe), words=(validation, *words), method="halving", cpu=True)
    if place is None:
        assert sought(halving).settings.rungs
        return
    with pytest.raises(UsageError, match=rf"^--method halving: .*{place}"):
        sought(halving)


@pytest.mark.parametrize(
    ("words", "is_same"),
    [
        (["data.validation.split=test"], False),
        (["data.validation.on=1"], False),
        (["evaluate.every=2 epochs"], False),
        (["evaluate.metrics.accuracy.average=macro"], False),
        (["evaluate.best={metric: accuracy, mode: max}"], False),
        (["device.precision=bf16"], False),
        (["optimizer.lr=1.0"], False),
        (["track.every=3 steps", "save.keep=1", "launch.threads=2", "data.workers=3"], True),
    ],
)
def test_what_decides_a_figure_decides_whether_it_is_the_same_sweep(words: list[str], is_same: bool) -> None:
    assert (digest_of(load_recipe(RECIPE, words)) == digest_of(load_recipe(RECIPE))) is is_same


@pytest.mark.parametrize(
    ("words", "method", "had", "trials", "message"),
    [
        (["data.workers=0,1"], "random", 2, 9, "the space has 3 runs with the baseline; write --trials 3"),
        (["data.workers=0,1"], "grid", 3, 9, "the space has 3 runs with the baseline, and the sweep has all"),
        (["data.workers=0..9", "seed=0..1"], "random", 4, 7, "each point is run with 2 seeds; write --trials 6 or 8"),
        (["data.workers=0..9"], "random", 6, 4, "the sweep has 6 already; write more than that, or omit it"),
        (["data.workers=0..9"], "tpe", 6, 0, "--trials: 0 is not a number greater than 0"),
        (["data.workers=0..9"], "halving", 6, 99, "the space has 11 runs with the baseline; write --trials 11"),
        (["data.workers=0..9"], "random", 6, 6, None),
        (["data.workers=0..9"], "random", 6, 11, None),
        (["optimizer.lr=1e-4..1e-2:log"], "tpe", 6, 500, None),
    ],
)
def test_more_trials_are_checked_as_the_first_were(
    tmp_path: Path, words: list[str], method: str, had: int, trials: int, message: str | None
) -> None:
    space, recipe = read_space(RECIPE, words), load_recipe(RECIPE)
    draws = "grid" if method == "grid" else "random"
    asked = settings(words=space.words, method=method, draws=draws, trials=had, seeds=space.seeds)
    record = create(tmp_path / "sweep", asked)
    if message is None:
        grow(record, Asked(RECIPE, trials=trials), recipe, space)
        assert max(Record(record.folder).budgets) == trials
        return
    with pytest.raises(UsageError, match=message):
        grow(record, Asked(RECIPE, trials=trials), recipe, space)
    assert Record(record.folder).budgets == [had], "nothing was written"


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["optimizer.foreach=null,true"], None),  # stated nowhere: its point is one of its own
        (["loss.label_smoothing=null,0.1"], None),
        (["train.ema=null,0.9"], {"train.ema": 0}),  # a key of the recipe's own, which is null where nothing stands
        (["optimizer.lr=1e-4..1e-2:log"], {"optimizer.lr": 0.003}),
        (["optimizer.lr=1e-5..1e-4:log"], None),
        (["model.hidden=[64],[256,256]"], {"model.hidden": 1}),
        (["data.workers=1,auto"], {"data.workers": 1}),
        (["train.clip_grad_norm=null,1.0"], {"train.clip_grad_norm": 0}),
    ],
)
def test_the_baseline_is_run_once_though_it_lies_in_the_space(words: list[str], where: dict[str, float] | None) -> None:
    space = read_space(RECIPE, words)
    assert locate(space, load_recipe(RECIPE)) == where


def test_a_range_over_many_orders_is_asked_about() -> None:
    (question,) = read_space(RECIPE, ["optimizer.lr=1e-5..1e-1"]).questions
    assert question.endswith("did you mean 1e-5..0.1:log?")
    assert not read_space(RECIPE, ["optimizer.lr=1e-5..1e-1:log", "model.dropout=0.0..0.9"]).questions


@pytest.mark.parametrize(
    "word",
    [
        "optimizer.lr=1e-4..1e-2:log",
        "optimizer.lr=1e-3,1e-2",
        "train.epochs=1..5",
        "train.epochs=1,2",
        "train.epochs=1|2",
        "data.shuffle=true,false",
        "device.precision=bf16,fp16",
        "evaluate.every=1 epoch,2 epochs",
        "model.hidden=[64],[256,256]",
        "optimizer={_target_: AdamW, lr: 1e-3},{_target_: SGD, lr: 0.1}",
    ],
)
def test_elsewhere_a_space_is_told_where_it_is_read(word: str) -> None:
    with pytest.raises(RecipeError, match="launcher sweep") as caught:
        Builder(load_recipe(RECIPE, [word])).check()
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("word", ["name=a.b", "define.x='1..2'", "define.y=8,32", "define.z=../data"])
def test_elsewhere_a_text_may_look_like_a_space(word: str) -> None:
    load_recipe(RECIPE, [word])


def test_whole_numbers_for_a_real_value_are_asked_about() -> None:
    recipe = load_recipe(RECIPE, ["model.dropout=0.1"])
    (question,) = questions(read_space(RECIPE, ["model.dropout=0..1"]), recipe)
    assert question.endswith("did you mean 0.0..1.0?")
    assert not questions(read_space(RECIPE, ["model.dropout=0.0..1.0", "data.workers=0..2"]), recipe)


def test_without_optuna_the_remedy_is_said_and_points_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    space = read_space(RECIPE, ["optimizer.lr=1e-4..1e-2:log"])
    assert settle(load_recipe(RECIPE), space, Sources(RECIPE), 2, Length(100)).method == "random"
    with pytest.raises(UsageError, match=r"pip install 'torchlauncher\[sweep\]'"):
        settle(load_recipe(RECIPE), space, Sources(RECIPE), 2, Length(100), {"method": "tpe"})


def test_a_recipe_put_over_may_vary_and_comes_before_the_other_changes() -> None:
    space = read_space(RECIPE, ["train.epochs=2", "optimizer.lr=1e-3,1e-2", "base=small.yaml,big.yaml"])
    assert space.overrides(space.point(1)) == ["base=big.yaml", "train.epochs=2", "optimizer.lr=1e-3"]
