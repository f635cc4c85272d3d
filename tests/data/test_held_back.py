"""A share of train: with other arguments, and what is said where its samples are drawn at random."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from places import RECIPES

from launcher.cli.main import main
from launcher.data.load import Data, load_evaluation
from launcher.data.repeatable import differs_again, drawn_validation
from launcher.errors import RecipeError
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.runs.identity import identity_of
from launcher.training.build import open_run_data
from launcher.world.world import World

RECIPE = RECIPES / "waves.yaml"
AUGMENTED = "data.train.augment=true"
PLAIN = "data.validation={_share_: 25% of train, augment: false}"


def opened(*overrides: str) -> Data:
    recipe = load_recipe(RECIPE, overrides)
    return open_run_data(recipe, Builder(recipe), World())


def test_a_share_with_other_arguments_has_the_same_samples_built_with_them() -> None:
    plain, shared, own = opened(), opened(AUGMENTED), opened(AUGMENTED, PLAIN)
    rows = [data.validation[""].first_batch().data[0] for data in (plain, shared, own)]
    assert torch.equal(rows[2], rows[0])
    assert not torch.equal(rows[1], rows[0])
    assert torch.equal(own.train.batch_of([3, 5])[1], shared.train.batch_of([3, 5])[1])


def test_what_the_share_does_not_say_is_what_train_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(RECIPE, ["data.train.size=12", AUGMENTED, PLAIN])
    assert recipe.data.validation.kwargs == {"size": 12, "augment": False}  # type: ignore[union-attr]
    over = load_recipe(RECIPES / "data.yaml", ["data.validation={_share_: 50% of train}"])  # which states a set
    assert over.data.validation.options == {"_share_": "50% of train"}  # type: ignore[union-attr]
    monkeypatch.chdir(tmp_path)  # where its data is prepared
    components = "data.train={_target_: sources.py:Half, whole: {_target_: sources.py:Prepared, folder: a, words: [b]}}"
    share = load_recipe(
        RECIPES / "data.yaml", [components, "data.validation={_share_: 50% of train}"], ["data.validation"]
    )
    data = open_run_data(share, Builder(share), World())
    assert data.validation[""].num_samples() + len(data.train.dataset) == 3


def test_an_evaluation_of_its_own_opens_the_same_share() -> None:
    recipe = load_recipe(RECIPE, [AUGMENTED, PLAIN])
    sets = load_evaluation(
        Builder(recipe), recipe.data, World(), [("validation", "")], evaluate=recipe.evaluate, seed=recipe.seed
    )
    assert torch.equal(sets["validation", ""].first_batch().data[0], opened(PLAIN).validation[""].first_batch().data[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.validation={_share_: 25% of train, size: 30}"], "has 30 samples by number, and data.train has 40"),
        (["data.validation={_share_: 25%}"], "'25%' is not a share; write '20% of train'"),
        (["data.validation={a: {_target_: waves.py:Waves, _share_: 25% of train}}"], "a share goes alone"),
        (["data.validation=0.25"], "0.25 is not a share; write '25% of train'"),
        (["data.train=null", "data.validation={_share_: 25% of train}"], "say _target_ here too"),
        (["data.split_by_rank=true", PLAIN], "'25% of train' with split_by_rank"),
        (["data.test={_target_: waves.py:Waves, _share_: 25% of train}"], "unknown key"),
    ],
)
def test_a_share_that_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        opened(*overrides)


def test_the_share_is_part_of_what_a_run_is_and_its_other_arguments_are_not() -> None:
    identity = identity_of(load_recipe(RECIPE, [PLAIN]))
    assert [key for key in identity if key.startswith("data.validation")] == ["data.validation._share_"]


def test_samples_drawn_at_random_that_validation_shares_are_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert "are drawn at random, as those of data.train are" in drawn_validation(opened(AUGMENTED))
    for overrides in ([], [AUGMENTED, PLAIN], [AUGMENTED, "data.validation={_target_: waves.py:Waves}"]):
        assert not drawn_validation(opened(*overrides))
    assert main(["check", str(RECIPE), AUGMENTED]) == 0
    assert "note         data.validation: its samples are drawn at random" in capsys.readouterr().out


def test_samples_that_are_others_each_time_are_noticed_before_the_loss_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = (AUGMENTED, "data.train.own=true")
    assert "seed_sample(seed)" in differs_again(opened(*own).train)
    assert not differs_again(opened(AUGMENTED).train)
    for more in ([], ["launch.processes=2"], ["data.validation=null"]):
        assert main(["check", str(RECIPE), *own, *more]) == 0
        printed = capsys.readouterr().out
        assert "measured     loss: a mean over samples" in printed
        assert "on trust     data.train: samples 1 and" in printed


def test_a_loss_on_samples_that_cannot_be_read_once_and_cut_is_not_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = (AUGMENTED, "data.train.own=true", "data.train.size=4")
    assert main(["check", str(RECIPE), *few, "data.global_batch_size=3"]) == 0
    assert "of the whole batch" not in capsys.readouterr().out
    assert main(["check", str(RECIPE), *few, "data.global_batch_size=3", "launch.processes=2"]) == 2
    assert "could not be measured (its samples are others each time they are read)" in capsys.readouterr().err
