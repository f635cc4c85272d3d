"""`device.compile` by repeated block: one is compiled and serves all, and the cache is the user's own."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.stacks import Stack
from torch import nn
from worlds import in_world, result_of, train, train_here

from launcher.model.compiled import CACHE_VARIABLE, Compiled, compile_blocks, compiled_in, keep_compiled
from launcher.model.recompute import Recomputed

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs g++ for a CPU")


def test_blocks_are_compiled_where_they_repeat_and_no_cuda_graphs_are_asked_for() -> None:
    model = Stack()
    assert compile_blocks(model, True) == "3 × Block: compiled one by one, the rest is as it is"
    assert compiled_in(model)
    model.blocks[0].forward = Recomputed(model.blocks[0])
    assert compiled_in(nn.ModuleList([model.blocks[0]]))
    for other, wanted in ((nn.Linear(2, 2), True), (Stack(), "reduce-overhead"), (Stack(), "max-autotune")):
        assert compile_blocks(other, wanted) == ""
        assert not compiled_in(other)
    assert compile_blocks(Stack(), "max-autotune-no-cudagraphs")


def test_what_is_evaluated_or_copied_is_not_what_was_compiled() -> None:
    model = Stack(dropout=0.0)
    compile_blocks(model, True)
    inputs = torch.randn(2, 6, dtype=torch.float64)
    with torch.no_grad():
        model(inputs)
    model.eval()(inputs)
    forwards: list[Any] = [block.forward for block in model.blocks]
    assert all(isinstance(forward, Compiled) and forward.compiled is None for forward in forwards)
    forwards[0].compiled = lambda *_: None
    other: Any = copy.deepcopy(model).blocks[0]
    assert other.forward.compiled is None
    assert other.forward.inner.__self__ is other


def _train_at(home: str, folder: str, changes: tuple[str, ...]) -> None:
    """Trains as a user whose home is that."""
    os.environ["HOME"] = home
    os.environ.pop(CACHE_VARIABLE, None)
    train_here(folder, changes)


@needs_compiler
def test_a_run_compiled_by_block_is_the_same_to_rounding_and_keeps_it_in_the_users_cache(
    tmp_path: Path,
) -> None:
    settings = (
        "model={_target_: stacks.py:Stack, dropout: 0.0, blocks: 12}",  # more than the compiler does one by one
        "train={steps: 3}",
        "data.validation={_target_: parts.py:WholeNumbers, size: 23, seed: 2}",
    )
    usual = train(tmp_path / "usual", *settings)
    changes = (*settings, "device={compile: true, recompute: true}")
    in_world(1, _train_at, str(tmp_path / "home"), str(tmp_path / "compiled"), changes)
    compiled = result_of(tmp_path / "compiled")
    assert compiled.distance(usual) < 1e-9
    assert compiled.weights.keys() == usual.weights.keys()
    kept = [*(tmp_path / "home" / ".cache").glob("launcher-data/compiled-*")]
    assert len(kept) == 1
    assert kept[0].stat().st_mode & 0o077 == 0
    assert any(path.suffix in (".so", ".py") for path in kept[0].rglob("*"))
    assert not list((tmp_path / "compiled").rglob("*.so"))


def test_another_model_or_device_has_another_cache_and_the_users_own_word_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    places = set()
    for model, device in (("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")):
        monkeypatch.delenv(CACHE_VARIABLE, raising=False)
        places.add(keep_compiled(model, device))
    assert len(places) == 3
    monkeypatch.setenv(CACHE_VARIABLE, "/elsewhere")
    assert keep_compiled("a", "x") == "/elsewhere"


def test_a_home_that_cannot_be_written_leaves_torch_its_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".cache").write_text("a file")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    assert keep_compiled("a", "x") == ""
    assert CACHE_VARIABLE not in os.environ
