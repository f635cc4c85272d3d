"""The built-in data sets, and the user's own one of recipes/custom_model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from launcher.datasets import Diabetes, Digits, TextFile, bundled

PARTS = ("train", "validation", "test")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(ord("a") + i % 26) for i in range(1000)), encoding="utf-8")
    return path


@pytest.mark.parametrize("make", [Digits, Diabetes, TextFile])
def test_whole_batch_equals_the_collated_samples(make: Any) -> None:
    dataset = make(split="validation")
    indices = torch.tensor([3, 0, len(dataset) - 1, 3])
    batch = dataset.get_batch(indices)
    collated = default_collate([dataset[int(i)] for i in indices])
    assert len(batch) == len(collated) == 2
    for whole, single in zip(batch, collated, strict=True):
        assert whole.dtype == single.dtype
        assert whole.stride() == single.stride()
        assert torch.equal(whole, single)


@pytest.mark.parametrize("make", [Digits, Diabetes, TextFile])
def test_reading_past_the_end_is_an_index_error(make: Any) -> None:
    dataset = make(split="validation")
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    with pytest.raises(IndexError):
        dataset.get_batch(torch.tensor([len(dataset)]))


@pytest.mark.parametrize("make", [Digits, Diabetes, TextFile])
def test_an_unknown_split_names_the_allowed_ones(make: Any) -> None:
    with pytest.raises(ValueError, match="unknown split 'valid'; allowed: train, validation"):
        make(split="valid")


def test_digits_parts_are_all_images_once_each_class_in_proportion() -> None:
    from sklearn.datasets import load_digits

    parts = [Digits(part) for part in PARTS]  # type: ignore[arg-type]  # a literal, in a loop
    images = torch.cat([part.tensors[0].flatten(1) for part in parts])
    original = torch.from_numpy(load_digits().data).float() / 16
    assert sorted(images.tolist()) == sorted(original.tolist())
    shares = [torch.bincount(part.tensors[1], minlength=10) for part in parts]
    for share, sevenths in zip(shares, (5, 1, 1), strict=True):
        assert ((share - sum(shares) * sevenths / 7).abs() < 1.5).all()


def test_digits_shapes_types_and_range() -> None:
    image, target = Digits("test")[0]
    assert (image.shape, image.dtype) == ((1, 8, 8), torch.float32)
    assert (target.shape, target.dtype) == ((), torch.int64)
    images, _ = Digits("train", dtype=torch.float64).tensors
    assert images.dtype == torch.float64
    assert (images.min().item(), images.max().item()) == (0, 1)


def test_digits_do_not_depend_on_the_seed() -> None:
    torch.manual_seed(1)
    first = Digits("test").tensors
    torch.manual_seed(2)
    assert all(map(torch.equal, first, Digits("test").tensors))


def test_diabetes_is_standardised_with_the_train_part() -> None:
    parts = [Diabetes(part, dtype=torch.float64) for part in PARTS]  # type: ignore[arg-type]  # as above
    assert sum(map(len, parts)) == 442
    for values, shape in zip(parts[0].tensors, (10, 1), strict=True):
        assert values.shape[1:] == (shape,)
        torch.testing.assert_close(values.mean(0), torch.zeros(shape, dtype=torch.float64))
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(shape, dtype=torch.float64))
    assert all((values.mean(0).abs() > 1e-6).all() for values in parts[1].tensors)  # not with their own


def test_text_targets_are_inputs_moved_by_one(text_file: Path) -> None:
    train = TextFile(text_file, context=8)
    inputs, targets = train[30]
    assert (inputs.dtype, inputs.shape, targets.shape) == (torch.int64, (8,), (8,))
    assert train.decode(inputs) == "efghijkl"
    assert train.decode(targets) == "fghijklm"


def test_text_train_has_every_offset_and_validation_every_character_once(text_file: Path) -> None:
    train = TextFile(text_file, context=8)
    assert len(train) == 900 - 8
    validation = TextFile(text_file, "validation", context=8)
    predicted = validation.get_batch(torch.arange(len(validation)))[1].flatten()
    assert validation.decode(predicted) == text_file.read_text(encoding="utf-8")[901 : 901 + 96]  # 99 // 8 * 8


def test_text_parts_do_not_overlap(text_file: Path) -> None:
    text = text_file.read_text(encoding="utf-8")
    train, validation = TextFile(text_file, context=1), TextFile(text_file, "validation", context=1)
    assert train.decode(train[len(train) - 1][1]) == text[899]
    assert validation.decode(validation[0][0]) == text[900]


def test_text_stride_and_fraction(text_file: Path) -> None:
    train = TextFile(text_file, context=8, stride=3, validation_fraction=0.5)
    assert len(train) == (500 - 9) // 3 + 1
    assert train.decode(train[2][0]) == "ghijklmn"


@pytest.mark.parametrize("letters", [2, 256, 257])
def test_text_vocabulary_of_any_size(tmp_path: Path, letters: int) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(letters)) * 20
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    train = TextFile(tmp_path / "text.txt", context=3)
    assert train.vocab_size == letters
    assert train.decode(train.encode(text)) == text
    inputs, _ = train.get_batch(torch.arange(len(train)))
    assert (int(inputs.min()), int(inputs.max())) == (0, letters - 1)


def test_text_by_default_is_the_standard_library() -> None:
    train, validation = TextFile(), TextFile(split="validation")
    assert train.characters == validation.characters
    assert len(train) > 1_000_000
    assert "import" in train.decode(train.get_batch(torch.arange(0, 10_000, 64))[0].flatten())


def test_text_refuses_unknown_characters(text_file: Path) -> None:
    with pytest.raises(ValueError, match=r"not in the vocabulary: \['!', 'A'\]"):
        TextFile(text_file, context=8).encode("aA!")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 900}, r"train part of .*text.txt has 900 characters and a window needs 901"),
        ({"context": 100, "split": "validation"}, "validation part .* 100 characters .* needs 101"),
        ({"context": 0}, "context is 0"),
        ({"stride": 0}, "stride 0; allowed: 1 or more"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; allowed: between 0 and 1"),
    ],
)
def test_text_arguments_out_of_range(text_file: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextFile(text_file, **arguments)


def test_text_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file at .*missing.txt \(looked from "):
        TextFile(tmp_path / "missing.txt")
    with pytest.raises(FileNotFoundError):
        TextFile(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 ")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text: invalid continuation byte at byte 3"):
        TextFile(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="has 0 characters"):
        TextFile(tmp_path / "empty.txt")


def test_the_tables_of_scikit_learn_are_read_without_it() -> None:
    make = "launcher.datasets.Digits(); launcher.datasets.Diabetes()"
    code = f"import sys, launcher.datasets; {make}; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("make", [Digits, Diabetes])
def test_they_are_what_it_loads_itself(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = make("test").tensors
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)  # as where it keeps them elsewhere
    assert all(map(torch.equal, read, make("test").tensors))
