"""Whether reading samples again gives them again, and whether those that are evaluated on are drawn at random."""

from __future__ import annotations

from typing import Any

from launcher.data.load import Data
from launcher.data.loaders import TrainLoader
from launcher.data.many import difference
from launcher.data.seeds import randomness_restored
from launcher.data.subsets import innermost, is_stream


def differs_again(train: TrainLoader) -> str:
    """What differs when two samples are read again with the same seeds, in words; empty where nothing does."""
    numbers = _two(train)
    if not numbers or not train.reading.sample_seeds:
        return ""
    try:
        with randomness_restored(needed=True):
            before, after = train.batch_of(numbers), train.batch_of(numbers)
    except Exception:  # the first step says it with its place
        return ""
    place = difference(before, after)
    if place is None:
        return ""
    which = " and ".join(map(str, numbers))
    return (
        f"data.train: samples {which} are others when they are read again with the same seeds{place}: a generator of "
        "their own, a count of reads, or samples that reading changes; a resume, workers and processes give other "
        "numbers; draw from random, NumPy's or torch's global generator, which are seeded for each sample, or give the "
        "data set a method seed_sample(seed) that seeds its own"
    )


def kept_draws(train: TrainLoader) -> str:
    """That samples keep what they drew when they were first read, in words; empty where they do not."""
    if not train.keeps_draws:
        return ""
    return (
        "data.train: what samples drew at random when they were first read they keep, as in a cache: a resume, workers "
        "and processes draw it again, and give other numbers; cache what is there before anything is drawn"
    )


def drawn_validation(data: Data) -> str:
    """That a share of train is evaluated on samples drawn at random, in words; empty where it is not."""
    shares = [loader for loader in data.validation.values() if _is_part_of(loader.dataset, data.train.dataset)]
    numbers = _two(data.train)
    if not shares or not numbers:
        return ""
    try:
        with randomness_restored(needed=True):
            data.train.batch_of(numbers)
    except Exception:
        return ""
    if not data.train.draws:
        return ""
    return (
        "data.validation: its samples are drawn at random, as those of data.train are; give the share other arguments, "
        "as in {_share_: 20% of train, augment: false}"
    )


def _is_part_of(dataset: Any, train: Any) -> bool:
    return innermost(dataset) is innermost(train) and dataset is not train


def _two(train: TrainLoader) -> list[int]:
    """Two samples to try; none where there are not so many, or they have no numbers."""
    size = 0 if is_stream(train.dataset) else train.num_readable()
    return [] if size < 2 else [1, size // 2 + (size > 4)]  # others than those of a fingerprint: a cache has these
