"""Rows of tensors in files: what is read is proven, little more is read than asked for, and no index is trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.rows import DamagedError, stored_in, without_rows, write_rows
from launcher.model.rows import Read, Rows, rows_of

SHAPES = {"wide": (1000, 256), "tall": (5001, 16), "few": (3, 7), "one": (1,), "none": (0, 4)}


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}


def written(folder: Path, state: Mapping[str, torch.Tensor], ranks: int) -> dict[str, Any]:
    """What so many ranks write of a state; gives the manifest's part."""
    entries = []
    folder.mkdir(exist_ok=True)
    for rank in range(ranks):
        found: dict[str, Rows] = {}
        shares = {name: rows_of(len(tensor), rank, ranks) for name, tensor in state.items()}
        tree = {
            name: Rows(tensor[slice(*shares[name])], tuple(tensor.shape), shares[name][0])
            for name, tensor in state.items()
        }
        without_rows(tree, found, "weights")
        entries.append(write_rows(folder, rank, found, 1))
    return {"rows": entries}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize(("writers", "readers"), [(1, 4), (4, 1), (2, 3), (4, 4)])
def test_any_number_reads_what_any_number_wrote(tmp_path: Path, dtype: torch.dtype, writers: int, readers: int) -> None:
    state = tensors(dtype)
    manifest = written(tmp_path / "rows", state, writers)
    stored = stored_in(tmp_path / "rows", manifest, Read())
    for name, tensor in state.items():
        shares = [stored[f"weights/{name}"].rows(*rows_of(len(tensor), rank, readers)) for rank in range(readers)]
        assert torch.equal(torch.cat(shares), tensor)
        assert torch.equal(stored[f"weights/{name}"].whole(), tensor)


@pytest.mark.parametrize(("writers", "readers"), [(4, 4), (4, 2), (2, 4), (1, 4), (4, 3), (3, 4)])
def test_a_rank_reads_its_share_and_little_more(tmp_path: Path, writers: int, readers: int) -> None:
    state = {str(number): torch.zeros(4096, 512) for number in range(5)}  # 40 MB
    manifest = written(tmp_path / "rows", state, writers)
    share = sum(tensor.nbytes for tensor in state.values()) / readers
    for rank in range(readers):
        read = Read()
        stored = stored_in(tmp_path / "rows", manifest, read)
        for name, tensor in state.items():
            stored[f"weights/{name}"].rows(*rows_of(len(tensor), rank, readers))
        assert read.num_bytes <= 1.05 * share


def test_a_bit_that_turned_is_found_by_who_reads_it(tmp_path: Path) -> None:
    state = tensors()
    manifest = written(tmp_path / "rows", state, 2)
    data = tmp_path / "rows" / "rows-00001.bin"
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(content)
    stored = stored_in(tmp_path / "rows", manifest, Read())["weights/wide"]
    assert torch.equal(stored.rows(0, 500), state["wide"][:500])
    with pytest.raises(DamagedError, match="'weights/wide' is not what was written"):
        stored.rows(500, 510)


def hostile(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Callable[[Path], dict[str, Any]]:
    """A way to change an index, and the manifest so that it is sealed again."""

    def changed(folder: Path) -> dict[str, Any]:
        manifest = written(folder, tensors(), 2)
        entry = manifest["rows"][1]
        index = json.loads((folder / "rows-00001.json").read_bytes())
        change(index["weights/wide"], entry)
        content = json.dumps(index).encode()
        (folder / "rows-00001.json").write_bytes(content)
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        return manifest

    return changed


HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "a name outside": lambda tensor, entry: entry.update(name="../../etc/rows-00001.json"),
    "another file": lambda tensor, entry: entry.update(name="manifest.json"),
    "behind the end": lambda tensor, entry: tensor.update(offset=10**12),
    "before the beginning": lambda tensor, entry: tensor.update(offset=-8),
    "a shape of terabytes": lambda tensor, entry: tensor.update(shape=[1000, 10**12]),
    "a shape of other rows": lambda tensor, entry: tensor.update(shape=[10**9, 256]),
    "no shape": lambda tensor, entry: tensor.update(shape=[]),
    "a number that is none": lambda tensor, entry: tensor.update(first=True),
    "a text for a number": lambda tensor, entry: tensor.update(rows="500"),
    "rows twice": lambda tensor, entry: tensor.update(first=0),
    "rows left out": lambda tensor, entry: tensor.update(first=501),
    "an object": lambda tensor, entry: tensor.update(dtype="object"),
    "another type": lambda tensor, entry: tensor.update(dtype="float16"),
    "fewer hashes": lambda tensor, entry: tensor.update(sha256=[]),
    "pieces of nothing": lambda tensor, entry: tensor.update(at_once=0),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_an_index_of_a_stranger_says_what_cannot_be(tmp_path: Path, attack: str) -> None:
    manifest = hostile(HOSTILE[attack])(tmp_path / "rows")
    with pytest.raises(DamagedError, match="rows"):
        stored_in(tmp_path / "rows", manifest, Read())


def test_a_mark_that_names_nothing_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "rows", tensors(), 1)
    snapshot = checkpoints.Snapshot({"x": {"_rows_": "weights/y"}}, {}, {"step": 1})
    (tmp_path / "run").mkdir()

    class Written:
        def write(self, folder: Path) -> Mapping[str, Any]:
            return written(folder, tensors(), 1)

    folder = checkpoints.save(tmp_path / "run" / "checkpoints", snapshot, Written())
    with pytest.raises(DamagedError, match="no rows of 'weights/y'"):
        checkpoints.verify(folder).weights()
