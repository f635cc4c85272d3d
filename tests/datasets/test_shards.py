"""Data sets in shards: every sample once, wherever it is read; a hostile shard is not followed, run or unpickled."""

from __future__ import annotations

import itertools
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from projects import make
from written_shards import PARTS, RECIPE, SIZES, WRITERS, add, array, number_of, picture, tar, written

import launcher
from launcher.data.loaders import Reading, TrainLoader
from launcher.data.permutation import ShardedPermutation
from launcher.data.sampler import StepSampler
from launcher.datasets import shard_files
from launcher.datasets.shards import Shards
from launcher.errors import LauncherError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("kind", WRITERS)
def test_samples_have_numbers_whatever_the_shards_are(kind: str, tmp_path: Path) -> None:
    pattern = written(tmp_path / "data", kind)
    for path in (pattern, pattern.replace("{00..04}", "*"), [pattern]):
        data = Shards(path)
        assert len(data) == sum(SIZES)
        assert [number_of(data[index]) for index in (18, 0, 4, 5, 11, 12, 13)] == [18, 0, 4, 5, 11, 12, 13]
    with pytest.raises(IndexError):
        data[len(data)]
    again = pickle.loads(pickle.dumps(data))
    assert number_of(again[7]) == 7


def test_a_tar_s_members_are_decoded_by_their_names(tmp_path: Path) -> None:
    file = tmp_path / "one.tar"
    with tarfile.open(file, "w") as archive:
        add(archive, "a/x.JPG", picture(200))
        add(archive, "a/x.txt", "grün".encode())
        add(archive, "a/x.seg.npy", array(np.arange(3)))
        add(archive, "b/x.id", b" 17 ")
    first, second = Shards(str(file))[0], Shards(str(file))[1]
    assert (first["__key__"], first["jpg"].size, first["txt"]) == ("a/x", (4, 4), "grün")
    assert first["seg.npy"].tolist() == [0, 1, 2]
    assert second == {"__key__": "b/x", "id": 17}
    parts = Shards(str(file), parts=["png;jpg", "txt"], transform=lambda pair: (pair[0].getpixel((0, 0))[0], pair[1]))
    assert parts[0] == (200, "grün")
    with pytest.raises(ValueError, match=r"b/x has no 'png;jpg'; it has: __key__, id"):
        parts[1]


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


HOSTILE: dict[str, tuple[Callable[[tarfile.TarFile], None], str]] = {
    "above": (lambda archive: add(archive, "../../x.txt", b"x"), "no plain file below the archive"),
    "inside and above": (lambda archive: add(archive, "a/../../x.txt", b"x"), "no plain file below the archive"),
    "absolute": (lambda archive: add(archive, "/etc/x.txt", b"x"), "no plain file below the archive"),
    "a link": (lambda archive: add(archive, "x.txt", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    "a hard link": (lambda archive: add(archive, "x.txt", b"", type=tarfile.LNKTYPE, linkname="y"), "is a link"),
    "a device": (lambda archive: add(archive, "x.txt", b"", type=tarfile.CHRTYPE), "no plain file"),
    "a pipe": (lambda archive: add(archive, "x.txt", b"", type=tarfile.FIFOTYPE), "no plain file"),
    "a folder above": (lambda archive: add(archive, "../x", b"", type=tarfile.DIRTYPE), "no plain file"),
    "a pickle": (lambda archive: add(archive, "x.pkl", pickle.dumps(Harmful())), "x.pkl is not read; allowed are"),
    "weights": (lambda archive: add(archive, "x.pth", pickle.dumps(Harmful())), "x.pth is not read"),
    "no name": (lambda archive: add(archive, "x", b"x"), "is not read"),
    "objects": (
        lambda archive: add(archive, "x.npy", array(np.array([Harmful()], dtype=object))),
        "x.npy cannot be read: ValueError",
    ),
    "no picture": (lambda archive: add(archive, "x.jpg", b"GIF"), "x.jpg cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_stranger_s_shard_ends_the_run_and_nothing_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, words = HOSTILE[name]
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        add(archive, "fine.txt", b"fine")
        write(archive)
    with pytest.raises(ValueError, match=words) as caught:
        [data[index] for data in [Shards("shard.tar")] for index in range(len(data))]
    assert "shard.tar" in str(caught.value)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing.tar", "no file at"),
        ("*.tar", "no shard is named so"),
        ("x.tar.gz", "unpack it"),
        ("x.csv", "allowed are .tar, .jsonl and .parquet"),
        ("reference://x.tar", "protocol that is not allowed"),
        ("zip://x::https://y/z.tar", "chains file systems"),
        ("broken.tar", "cannot be read as a tar"),
        ("broken.parquet", "cannot be read as Parquet"),
        ("x-{0..99999999999}.tar", "stands for more than 100,000 files"),
        ("https://127.0.0.1:9/x-{0..99999999999}.tar", "stands for more than 100,000 files"),
        ("x-" + "{0..9}" * 40 + ".tar", "stands for more than 100,000 files"),
    ],
)
def test_paths_that_are_no_shards_are_refused(
    path: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("broken.parquet", "x.csv", "x.tar.gz"):
        Path(name).write_bytes(b"no shard of any kind" * 100)
    if path == "broken.tar":
        Path(path).write_bytes(b"no shard of any kind" * 100)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        Shards(path)


def test_an_index_is_made_once_and_again_for_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = written(tmp_path / "data", "tar")
    Shards.prepare(pattern)
    with monkeypatch.context() as without:
        without.setattr(shard_files, "_of_tar", None)  # whoever goes through a shard now fails
        assert number_of(Shards(pattern)[9]) == 9
    tar(tmp_path / "data" / "part-01.tar", range(90, 92))
    assert len(Shards(pattern)) == sum(SIZES) + 2
    (shard,) = list((tmp_path / "home").rglob("shard-*.npz"))[:1]
    shard.write_bytes(b"half")
    assert len(Shards(pattern)) == sum(SIZES) + 2


def test_shards_from_elsewhere_are_kept_while_there_is_room(tmp_path: Path) -> None:
    pattern = "file://" + written(tmp_path / "data", "tar")
    size = max(file.stat().st_size for file in (tmp_path / "data").iterdir())
    cache = tmp_path / "cache"
    data = Shards(pattern, cache=str(cache), cache_gb=2.5 * size / 1e9, mixed=1)
    mine = cache / "launcher-data" / "shards" / "mine.tar"
    mine.write_bytes(b"somebody's")
    for _ in range(2):
        assert [number_of(data[index]) for index in range(len(data))] == list(range(sum(SIZES)))
        kept = [file for file in mine.parent.glob("*.tar") if file != mine]
        assert 0 < sum(file.stat().st_size for file in kept) <= 2.5 * size
    assert mine.read_bytes() == b"somebody's"


# --- in a run ---


@pytest.mark.parametrize("together", [1, 2, 4, 9, 10**20])
def test_an_order_of_shards_has_every_sample_once_and_few_shards_at_a_time(together: int) -> None:
    sizes = [30, 0, 11, 25, 1, 40, 13, 8]
    orders = [ShardedPermutation(sizes, together, 3, epoch) for epoch in range(3)]
    ends = np.cumsum(sizes)
    for order in orders:
        indices = order.slice(0, order.size)
        assert sorted(indices.tolist()) == list(range(sum(sizes)))
        shards = np.searchsorted(ends, indices, side="right")
        spans = [np.flatnonzero(shards == shard) for shard in range(len(sizes)) if sizes[shard]]
        open_at = [sum(span[0] <= place <= span[-1] for span in spans) for place in range(len(indices))]
        assert max(open_at) <= together
        assert order.at(np.array([50, 3, 127])).tolist() == indices[[50, 3, 127]].tolist()
    assert len({tuple(order.slice(0, order.size).tolist()) for order in orders}) == 3


@pytest.mark.parametrize(("world", "workers", "start"), [(1, 0, 3), (2, 0, 0), (3, 1, 2)])
def test_every_world_reads_the_same_from_any_step_on(world: int, workers: int, start: int, tmp_path: Path) -> None:
    data = Shards(written(tmp_path / "data", "jsonl"), transform=number_of, mixed=2)

    def read(rank: int, size: int, workers: int, first: int) -> list[list[int]]:
        sampler = StepSampler(data, global_batch_size=4, rank=rank, world_size=size, seed=3)
        steps = TrainLoader(data, sampler, Reading(workers=workers)).steps(first, 9)
        return [[n for batch in step if batch.samples for n in batch.data.tolist()] for step in steps]

    alone = read(0, 1, 0, 0)
    assert sorted(itertools.chain(*alone[:5])) == list(range(sum(SIZES)))
    ranks = [read(rank, world, workers, start) for rank in range(world)]
    assert [list(itertools.chain(*step)) for step in zip(*ranks, strict=True)] == alone[start:]


def test_a_recipe_trains_on_them_and_names_a_bad_member(tmp_path: Path) -> None:
    pattern = written(tmp_path / "data", "tar")
    recipe = make(tmp_path / "project", RECIPE.replace("PATH", f"'{pattern}'"), parts=PARTS)
    run = launcher.train(recipe, cpu=True, run_dir=tmp_path / "run", output="quiet")
    assert run.step == 6
    assert not torch.isnan(run.model.weight).any()
    with tarfile.open(tmp_path / "data" / "part-03.tar", "w") as archive:
        add(archive, "x.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(LauncherError, match=r"part-03.tar: its member 'x.png' is a link") as caught:
        launcher.train(recipe, cpu=True, run_dir=tmp_path / "other", output="quiet")
    assert caught.value.exit_code == 2
