"""Whether all ranks were given the same data: a set that is split by rank already must not be split once more.

Each rank reads a few samples of each set, of a stream its first ones, and all compare them: once over the side group,
before anything is trained. There it shows that a set is split, by whatever it is (`split_dataset_by_node`, webdataset's
node splitting, arithmetic over RANK). Where ranks differ the samples are read once more: a set that reads otherwise
each time, on one rank, has randomness that no seed reaches, and is not split.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from launcher.data.epochs import Announcer, held_by
from launcher.data.fingerprint import content_parts, samples_of
from launcher.data.load import Data
from launcher.data.loaders import EvaluationLoader, TrainLoader
from launcher.data.looking import copy_of
from launcher.data.own_parts import OwnPartSampler
from launcher.data.seeds import randomness_restored, seed_generators
from launcher.data.streams import length_of
from launcher.data.subsets import is_stream, name_of
from launcher.device.coordination import Coordinator
from launcher.recipe import schema
from launcher.recipe.build import Builder

_FIRST = 3  # samples of a stream that are looked at
_NUMBERS = 16  # of a tensor of floats that are compared
_ROUNDING = 1e-3  # machines of different kinds decode and resize a picture a little differently
_INSTEAD = (
    "hand every process the whole set (without split_dataset_by_node, node splitting, or arithmetic over RANK): the "
    "launcher shares its samples out"
)
Loaders = Mapping[str, TrainLoader | EvaluationLoader]  # by their keys


@dataclass(frozen=True)
class Sketch:
    """What one rank's set is, in a few numbers.

    Attributes:
        name: Its class and length.
        size: Samples, of a training set those of this rank.
        exact: A hash of what must be equal: words, whole numbers, types and shapes.
        numbers: Some of its floats, which must be nearly equal.
    """

    name: str
    size: int
    exact: str
    numbers: Sequence[float]

    def is_like(self, other: Sketch) -> bool:
        """Whether both are of one set."""
        return self.is_equal(other) and self.is_near(other)

    def is_equal(self, other: Sketch) -> bool:
        """Whether all is equal that must be."""
        return (self.name, self.exact) == (other.name, other.exact)

    def is_near(self, other: Sketch) -> bool:
        """Whether the floats are nearly equal."""
        if len(self.numbers) != len(other.numbers):
            return False
        mine, its = np.array(self.numbers, dtype=np.float64), np.array(other.numbers, dtype=np.float64)
        return bool(np.allclose(mine, its, rtol=_ROUNDING, atol=_ROUNDING * _scale(mine), equal_nan=True))


def _scale(numbers: np.ndarray) -> float:
    finite = np.abs(numbers[np.isfinite(numbers)])
    return float(finite.mean()) if finite.size else 0.0


def compare_over_ranks(builder: Builder, section: schema.Data, data: Data, coordinator: Coordinator) -> None:
    """Compares all sets of a run over its ranks; parts that each rank has of its own are counted together.

    Raises:
        RecipeError: A set is split by rank and the recipe does not say so, or the other way round.
    """
    if coordinator.world_size == 1:
        return
    loaders: dict[str, TrainLoader | EvaluationLoader] = {"data.train": data.train}
    loaders |= {loader.name: loader for loader in (*data.validation.values(), *data.test.values())}
    sketches = agree_on(builder, section, loaders, coordinator)
    data.read_parts([sketch.size for sketch in sketches["data.train"]])


def agree_on(
    builder: Builder, section: schema.Data, loaders: Loaders, coordinator: Coordinator
) -> dict[str, list[Sketch]]:
    """What each rank has of each set.

    Raises:
        RecipeError: As above.
    """
    rank_sketches = _gathered(loaders, coordinator)
    split = {key: ranks for key, sketches in rank_sketches.items() if (ranks := _unlike(sketches))}
    wanted = "data.train" in rank_sketches and section.split_by_rank
    if wanted and (ranks := _alike(rank_sketches["data.train"])):
        message = (
            f"ranks {ranks[0]} and {ranks[1]} read the same samples of data.train: it is not split; remove the key"
        )
        raise builder.wrong("data.split_by_rank", message)
    split = {key: ranks for key, ranks in split.items() if not (wanted and key == "data.train")}
    if split:  # on all ranks alike
        again = _gathered({key: loaders[key] for key in split}, coordinator)
        for key, (reference, other) in split.items():
            if _differ_each_time(rank_sketches[key], again[key], reference, other):
                raise builder.wrong(key, _refusal(key, reference, other, rank_sketches[key]))
    return rank_sketches


def _differ_each_time(first: Sequence[Sketch], second: Sequence[Sketch], reference: int, other: int) -> bool:
    """Whether two ranks differ in what each of them reads the same twice: labels may be, where noise is not."""
    for is_like in (Sketch.is_equal, Sketch.is_near):
        are_steady = all(is_like(first[rank], second[rank]) for rank in (reference, other))
        if are_steady and not is_like(first[reference], first[other]):
            return True
    return False


def _refusal(key: str, reference: int, other: int, sketches: Sequence[Sketch]) -> str:
    names = dict.fromkeys(sketches[rank].name for rank in (reference, other))
    what = f"ranks {reference} and {other} were given different samples ({' and '.join(names)})"
    also = ", or set data.split_by_rank: true, and each reads its own" if key == "data.train" else ""
    return f"{what}: it is split by rank already, or made at random on each; {_INSTEAD}{also}"


def _unlike(sketches: Sequence[Sketch]) -> tuple[int, int] | None:
    return next(((0, rank) for rank, sketch in enumerate(sketches) if not sketch.is_like(sketches[0])), None)


def _alike(sketches: Sequence[Sketch]) -> tuple[int, int] | None:
    pairs = itertools.combinations(range(len(sketches)), 2)
    return next(((rank, other) for rank, other in pairs if sketches[rank].is_like(sketches[other])), None)


def _gathered(loaders: Loaders, coordinator: Coordinator) -> dict[str, list[Sketch]]:
    def own() -> bytes:
        return json.dumps({key: asdict(sketch(loader)) for key, loader in loaders.items()}).encode()

    everyone = [json.loads(message) for message in coordinator.everywhere(own)]
    return {key: [Sketch(**report[key]) for report in everyone] for key in loaders}


def sketch(loader: TrainLoader | EvaluationLoader) -> Sketch:
    """This rank's set; nothing of it is used up, and no generator is disturbed."""
    dataset, own = loader.dataset, length_of(loader.dataset)
    size = loader.sampler.dataset_size if isinstance(loader, TrainLoader) else own or 0
    if isinstance(loader, TrainLoader) and isinstance(loader.sampler, OwnPartSampler):
        size = loader.sampler.own_size
    name = name_of(dataset) if own is None else f"{name_of(dataset)}, {own:,} samples"
    digest, numbers = hashlib.sha256(), []
    with randomness_restored(needed=True):
        for sample in _samples(loader):
            for part in itertools.islice(content_parts(sample), 10_000):
                if isinstance(part, bytes):
                    digest.update(part)
                else:
                    numbers += _some_of(part)
    return Sketch(name, size, digest.hexdigest()[:16], numbers)


def _some_of(values: torch.Tensor) -> list[float]:
    """A few numbers of a tensor of floats, and their mean."""
    if not values.numel():
        return []
    flat = values.double().flatten()
    return [float(flat.mean()), *flat[:: -(-flat.numel() // _NUMBERS)].tolist()]


def _samples(loader: TrainLoader | EvaluationLoader) -> Iterator[Any]:
    dataset = loader.dataset
    if not is_stream(dataset):
        yield from samples_of(loader)
    elif _begins_anew(dataset) and (stream := copy_of(dataset)) is not None:
        Announcer(stream).tell(0)
        seed_generators(loader.reading.seed)
        yield from itertools.islice(iter(stream), _FIRST)


def _begins_anew(stream: Any) -> bool:
    """Whether a stream can be read from its beginning twice: not what is, or holds, something that is read up."""
    seen, waiting = {id(stream)}, [stream]
    while waiting and len(seen) < 1000:
        thing = waiting.pop()
        if hasattr(type(thing), "__next__"):
            return False
        new = [part for part in held_by(thing) if id(part) not in seen]
        seen |= set(map(id, new))
        waiting += new
    return True
