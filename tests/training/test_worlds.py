"""Promise 1: the same run anywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from places import ROOT
from recipes.parts import Net, WholeNumbers
from tiers import rounds
from torch import nn
from worlds import Trained, train

from launcher.data.sampler import StepSampler

# 56 samples in batches of 18: the last batch has 2, so that it is short, uneven on 3 ranks, and leaves ranks of larger
# worlds with nothing; and a full one gives each rank of 1 to 4 enough to accumulate over 1 to 3 micro-batches
UNEVEN = ("data.train.size=56", "data.global_batch_size=18")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("alone") / "run", *UNEVEN)


@rounds(
    "size, accumulation",
    plain=[(1, 3), (2, 1), (2, 2), (3, 3), (4, 1), (4, 2)],
    long=[(1, 1), (1, 2), (2, 3), (3, 1), (3, 2), (4, 3)],
)
def test_every_world_and_every_accumulation_trains_the_same(
    tmp_path: Path, alone: Trained, size: int, accumulation: int
) -> None:
    micro = -(-18 // size // accumulation)
    sampler = StepSampler(WholeNumbers(56), global_batch_size=18, world_size=size, micro_batch_size=micro)
    assert sampler.accumulation(0) == accumulation
    run = train(tmp_path / "run", *UNEVEN, f"data.micro_batch_size={micro}", size=size)
    assert run.distance(alone) < 1e-9
    assert run.column("loss") == pytest.approx(alone.column("loss"), abs=1e-9)
    assert run.column("lr") == alone.column("lr")


def test_losses_and_weights_are_those_of_a_loop_written_by_hand(alone: Trained) -> None:
    dataset = WholeNumbers(56)
    sampler = StepSampler(dataset, global_batch_size=18, seed=3)
    torch.manual_seed(3)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step, rate in enumerate(alone.column("lr")):
        inputs, targets = dataset.get_batch(torch.from_numpy(sampler.shares(step)[0].indices))
        optimizer.param_groups[0]["lr"] = rate
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert alone.column("loss") == pytest.approx(losses, abs=1e-9)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(alone.weights[name], value, rtol=0, atol=1e-9)


def test_warm_up_and_cosine_follow_the_step_counter(alone: Trained) -> None:
    scheduler_steps = 12 - 2
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=scheduler_steps)
    expected = [1e-2 / 3, 1e-2 * 2 / 3]
    for _ in range(scheduler_steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert alone.column("lr") == pytest.approx(expected, rel=1e-12)


CASES = {
    "read one by one": ["data.train._target_=parts.py:Numbers"],
    "weighted classes": [
        "loss={_target_: CrossEntropyLoss, weight: {_target_: torch.tensor, _args_: [[1.0, 2.0, 3.0]], "
        "dtype: {_ref_: torch.float64}}}"
    ],
    "elements, some ignored": ["data.train={_target_: parts.py:Words}", "model={_target_: parts.py:WordNet}"],
    "a step function": ["train.step=parts.py:step"],
    "a step function that counts": [
        "data.train={_target_: parts.py:Words}",
        "model={_target_: parts.py:WordNet}",
        "train.step=parts.py:word_step",
        "train.count=parts.py:word_count",
    ],
    "the model's own loss": ["model._target_=parts.py:OwnLoss", "loss=model", "batch={inputs: {inputs: 0, labels: 1}}"],
    "a loss with a parameter": ["loss={_target_: parts.py:Scaled}"],
    "losses with parameters": ["loss={a: {_target_: parts.py:Scaled}, b: {_target_: parts.py:Shifted, _weight_: 0.3}}"],
    "mappings, two losses": [
        "data.train._target_=parts.py:Named",
        "model._target_=parts.py:TwoInputs",
        "batch={inputs: {left: left, right: right}, targets: [label], outputs: [logits]}",
        "loss={a: {_target_: CrossEntropyLoss, _weight_: 0.7}, b: {_target_: MultiMarginLoss, _weight_: 0.3}}",
    ],
    "clipping": ["train.clip_grad_norm=0.1"],
    "groups": ["optimizer._groups_={'*.bias': {weight_decay: 0, lr: 0.1}}"],
    "drawn by weight": ["data.weights=parts.py:weights_of"],
    "a stream that shuffles itself": ["data.train={_target_: parts.py:Shuffled}", "data.shuffle=false"],
    "drop last": ["data.drop_last=true"],
    "over gloo": ["device.ddp.shared_memory=false"],
    "a static graph": ["device.ddp.static_graph=true"],
    "unused parameters": ["model._target_=parts.py:Spared", "device.ddp.find_unused_parameters=true"],
    "sgd with momentum": ["optimizer={_target_: SGD, lr: 0.1, momentum: 0.9}"],
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_recipe_can_say_is_the_same_on_three_ranks(tmp_path: Path, case: str) -> None:
    remove = ("loss",) if any(override.startswith("loss={a") for override in CASES[case]) else ()
    one = train(tmp_path / "one", *CASES[case], remove=remove)
    three = train(tmp_path / "three", *CASES[case], "data.micro_batch_size=3", size=3, remove=remove)
    assert three.distance(one) < 1e-9
    scalars = ("progress", "middle", "label") if case == "a step function" else ()
    for key in ("loss", *scalars):
        assert three.column(key) == pytest.approx(one.column(key), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("step_called_lr", "train.step: a line of metrics.jsonl means something else by 'lr'; rename it"),
        ("step_without_loss", "train.step: gave 'los'; return a mapping with the loss, {'loss': …}"),
        ("step_of_many", "train.step: 'each' is a Tensor; only single numbers can be logged"),
        (
            "step_of_moods",
            "gave progress, middle, label, now to log, and rank 0 first progress, middle, label; give the",
        ),
    ],
)
def test_scalars_that_cannot_be_logged(tmp_path: Path, step: str, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        train(tmp_path / "run", f"train.step=parts.py:{step}")


def test_reading_one_by_one_or_whole_batches_is_the_same(tmp_path: Path, alone: Trained) -> None:
    assert train(tmp_path / "run", *UNEVEN, "data.train._target_=parts.py:Numbers").distance(alone) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_the_same_for_every_world_and_number_of_workers(tmp_path: Path, workers: int) -> None:
    noisy = ["data.train._target_=parts.py:Noisy", "train.epochs=2"]
    one = train(tmp_path / "one", *noisy, "data.workers=0")
    two = train(tmp_path / "two", *noisy, f"data.workers={workers}", size=2)
    assert two.distance(one) < 1e-9


def test_float32_losses_of_the_first_steps_agree(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "digits_mlp.yaml"
    short = ["train.epochs=1", "track.every=1 steps", "model.dropout=0.0"]
    one = train(tmp_path / "one", *short, recipe=recipe)
    two = train(tmp_path / "two", *short, recipe=recipe, size=2)
    assert two.column("loss")[:20] == pytest.approx(one.column("loss")[:20], abs=1e-5)
