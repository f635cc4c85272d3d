"""Rows of tensors in safetensors files; no header and no index of a stranger is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from launcher.model.rows import Read
from launcher.model.tensor_files import stored_tensors, tensor_file


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    state = {str(kind).removeprefix("torch."): (torch.randn(9, 5) * 3).to(kind) for kind in kinds}
    return {**state, "number": torch.tensor(2.5), "none": torch.empty(0, 4), "cube": torch.randn(3, 2, 4)}


def test_rows_are_those_of_the_tensor_and_no_more_is_read(tmp_path: Path) -> None:
    state = tensors()
    save_file(state, tmp_path / "all.safetensors", {"format": "pt", "again": "cube", "strange": "nothing"})
    read = Read()
    stored = stored_tensors(tmp_path / "all.safetensors", read)
    assert stored.keys() == {*state, "again"}
    assert stored["again"] is stored["cube"]
    for name, value in state.items():
        assert torch.equal(stored[name].whole(), value)
        if value.ndim and len(value):
            before = read.num_bytes
            assert torch.equal(stored[name].rows(1, 3), value[1:3])
            assert read.num_bytes - before == value[1:3].nbytes


def test_of_an_index_all_files_are_read(tmp_path: Path) -> None:
    state = tensors()
    for number, name in enumerate(state):
        save_file({name: state[name]}, tmp_path / f"{number}.safetensors")
    places = {name: f"{number}.safetensors" for number, name in enumerate(state)}
    index = {"metadata": {"total_size": 1, "again": "cube"}, "weight_map": places}
    (tmp_path / "all.safetensors.index.json").write_text(json.dumps(index))
    stored = stored_tensors(tmp_path / "all.safetensors.index.json")
    assert stored.keys() == {*state, "again"}
    assert all(torch.equal(stored[name].whole(), value) for name, value in state.items())


def written(path: Path, header: Any, data: bytes = b"\0" * 16) -> None:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)


GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
HOSTILE: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{]", "Expecting"),
    "a list": ([1], "its header is no mapping"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, "its metadata are no texts"),
    "behind the end": ({"x": {**GOOD, "data_offsets": [8, 24]}}, "'x' is said to stand where it is not"),
    "before the beginning": ({"x": {**GOOD, "data_offsets": [-16, 0]}}, "has a shape or place that cannot be"),
    "a shape of terabytes": ({"x": {**GOOD, "shape": [2, 2**40]}}, "is said to stand where it is not"),
    "a shape that overflows": ({"x": {**GOOD, "shape": [2**61, 8]}}, "is said to stand where it is not"),
    "a shape of texts": ({"x": {**GOOD, "shape": ["2", 2]}}, "has a shape or place that cannot be"),
    "no shape": ({"x": {"dtype": "F32", "data_offsets": [0, 16]}}, "what it says of 'x' cannot be read"),
    "a type that is none": ({"x": {**GOOD, "dtype": "object"}}, "'x' is of the type object, which this program"),
    "three offsets": ({"x": {**GOOD, "data_offsets": [0, 8, 16]}}, "what it says of 'x' cannot be read"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_header_of_a_stranger_says_what_cannot_be(tmp_path: Path, attack: str) -> None:
    header, message = HOSTILE[attack]
    written(tmp_path / "x.safetensors", header)
    with pytest.raises(ValueError, match=message):
        tensor_file(tmp_path / "x.safetensors")


def test_what_is_cut_short_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"\0" * 4, (2**40).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no safetensors file, or is cut short"):
            tensor_file(path)
    written(path, {"x": GOOD})
    stored = stored_tensors(path)["x"]
    path.write_bytes(path.read_bytes()[:-4])
    assert stored.rows(0, 1).shape == (1, 2)
    with pytest.raises(OSError, match="cut short while it was read"):
        stored.rows(1, 2)


INDEXES: dict[str, Callable[[Path], Any]] = {
    "it names a file elsewhere: ../": lambda folder: {"weight_map": {"x": "../x.safetensors"}},
    "it names a file elsewhere: /": lambda folder: {"weight_map": {"x": f"{folder}/x.safetensors"}},
    "it names a file elsewhere: 3": lambda folder: {"weight_map": {"x": 3}},
    "it is no index of": lambda folder: {"weight_map": {}},
    "it is no index": lambda folder: [],
}


@pytest.mark.parametrize("message", INDEXES)
def test_an_index_names_files_beside_it_and_no_others(tmp_path: Path, message: str) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "x.safetensors.index.json").write_text(json.dumps(INDEXES[message](tmp_path)))
    with pytest.raises(ValueError, match=message):
        stored_tensors(inside / "x.safetensors.index.json")
