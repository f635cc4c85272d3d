"""Data sets for files of a user's own: what they read, and what they say of files that are not as they should be."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from samples import FLOWERS, paint
from torch import Tensor
from torch.utils.data import default_collate

from launcher.datasets import HubDataset, ImageFolder, NumpyArrays, Table, TextFile
from launcher.datasets import text as text_module
from launcher.datasets.files import atomic_write, staged
from launcher.errors import LauncherError
from launcher.world.failure import of_exception


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is kept in the home of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def check_whole_batches(dataset: Any) -> None:
    indices = torch.tensor([2, 0, len(dataset) - 1])
    whole_batch = dataset.get_batch(indices)
    collated = default_collate([dataset[int(index)] for index in indices])
    if isinstance(collated, dict):
        assert list(whole_batch) == list(collated)
        whole_batch, collated = list(whole_batch.values()), list(collated.values())
    for one, other in zip(whole_batch, collated, strict=True):
        if isinstance(one, Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        else:
            assert one == other


# --- pictures ---


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    paint(root / "cat" / "b.png")
    paint(root / "cat" / "a.jpg", (0, 0, 255))
    paint(root / "cat" / "young" / "c.png", (0, 255, 0))
    paint(root / "dog" / "a.PNG", (255, 255, 255))
    (root / "dog" / "notes.txt").write_text("no picture")
    return root


def test_pictures_by_class_and_name(pets: Path) -> None:
    folder = ImageFolder(pets)
    assert folder.classes == ("cat", "dog")
    assert [str(folder.path(i).relative_to(pets)) for i in range(4)] == [
        *("cat/a.jpg", "cat/b.png", "cat/young/c.png", "dog/a.PNG"),
    ]
    assert folder.targets.tolist() == [0, 0, 0, 1]
    picture, target = folder[1]
    assert (picture.shape, picture.dtype, target) == ((3, 8, 12), torch.float32, 0)
    assert picture[:, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_pictures_cut_grey_and_transformed(pets: Path) -> None:
    assert ImageFolder(pets, size=6, mode="L")[3][0].shape == (1, 6, 6)
    assert ImageFolder(pets, transform=lambda image: image.size)[0] == ((12, 8), 0)


def test_a_picture_that_cannot_be_read_names_its_file(pets: Path) -> None:
    (pets / "cat" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and then rubbish")
    folder = ImageFolder(pets)
    with pytest.raises(LauncherError, match=r"cat/b\.png: this picture cannot be read: .*; .* corrupt=skip") as caught:
        folder[1]
    assert str(caught.value).count("b.png") == 1
    assert "images.py" not in of_exception(caught.value).line  # the picture is to blame, and no line of ours


def test_pictures_that_cannot_be_read_are_left_out_counted_and_said(pets: Path) -> None:
    (pets / "cat" / "b.png").write_bytes(b"rubbish")
    whole_picture = (pets / "cat" / "a.jpg").read_bytes()
    (pets / "cat" / "d.jpg").write_bytes(whole_picture[: len(whole_picture) * 2 // 3])
    folder = ImageFolder(pets, corrupt="skip")
    assert folder.unreadable == ("cat/b.png", "cat/d.jpg")
    assert len([folder[i] for i in range(len(folder))]) == 3
    (note,) = folder.plan_notes
    assert note.endswith("2 of 5 pictures cannot be read and are skipped: cat/b.png, cat/d.jpg")
    (pets / "cat" / "b.png").write_bytes(whole_picture)  # fixed in place: its folder does not change
    assert len(ImageFolder(pets, corrupt="skip")) == 4
    with pytest.raises(ValueError, match=r"none of its 1 pictures can be read \(cat/x.png\)"):
        ImageFolder(rubbish(pets.parent / "rubbish"), corrupt="skip")


def rubbish(root: Path) -> Path:
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "x.png").write_bytes(b"rubbish")
    return root


def test_a_folder_is_listed_once_and_again_when_it_changed(
    pets: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(ImageFolder(pets)) == 4
    (index,) = home.rglob("*.npz")
    scanned: list[str] = []

    def noted(path: Any) -> Any:
        scanned.append(str(path))
        return list_folder(path)

    list_folder = os.scandir
    monkeypatch.setattr(os, "scandir", noted)
    assert ImageFolder(pets).targets.tolist() == [0, 0, 0, 1]
    assert scanned == []
    paint(pets / "cat" / "young" / "d.png")
    assert len(ImageFolder(pets)) == 5
    assert scanned
    index.write_bytes(b"damaged")
    assert len(ImageFolder(pets)) == 5
    (pets / "cat" / "young" / "d.png").unlink()
    assert len(ImageFolder(pets)) == 4
    assert [path.name for path in home.rglob("*") if path.is_file()] == [index.name]


def test_a_folder_and_a_home_that_cannot_be_written_to_are_enough(pets: Path, home: Path) -> None:
    home.write_text("a file where the home should be")
    before = sorted(pets.rglob("*"))
    assert len(ImageFolder(pets)) == 4
    assert sorted(pets.rglob("*")) == before


def test_a_validation_set_takes_the_classes_of_the_training_set(pets: Path, tmp_path: Path) -> None:
    paint(tmp_path / "validation" / "dog" / "x.png")
    assert ImageFolder(tmp_path / "validation", classes=("cat", "dog")).targets.tolist() == [1]
    with pytest.raises(ValueError, match=r"pets/dog: 'dog' is none of the 1 classes \(cat\); correct classes"):
        ImageFolder(pets, classes=["cat"])


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder at .*missing \(looked from .*one folder for each class"):
        ImageFolder(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no folders in it; pictures lie in one for each class"):
        ImageFolder(tmp_path / "empty")
    paint(tmp_path / "empty" / "cat" / "a.png")
    (tmp_path / "empty" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"empty/dog: no pictures in it \(\.bmp, "):
        ImageFolder(tmp_path / "empty")


# --- arrays ---


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[Path, Path]:
    numbers, classes = tmp_path / "numbers.npy", tmp_path / "classes.npy"
    np.save(numbers, np.arange(60, dtype=np.float32).reshape(10, 2, 3))
    np.save(classes, np.arange(10) % 3)
    return numbers, classes


def test_arrays_are_mapped_and_read_whole_batches(arrays: tuple[Path, Path]) -> None:
    dataset = NumpyArrays([str(path) for path in arrays], classes=3)
    assert all(isinstance(array, np.memmap) for array in dataset.arrays.values())
    part, target = dataset[4]
    assert (part.shape, part.dtype, target.item()) == ((2, 3), torch.float32, 1)
    check_whole_batches(dataset)
    dataset[0][0].fill_(7)  # a copy: the file is not touched
    assert dataset[0][0][0, 0] == 0
    with pytest.raises(IndexError):
        dataset[10]


@pytest.mark.parametrize(("save", "is_mapped"), [(np.savez, True), (np.savez_compressed, False)])
def test_archives_are_mapped_where_they_are_not_compressed(
    tmp_path: Path, save: Callable[..., None], is_mapped: bool
) -> None:
    rows = {"x": np.random.default_rng(0).random((7, 4)), "y": np.arange(7, dtype=">i4"), "unused": np.zeros(3)}
    save(tmp_path / "a.npz", **rows, empty=np.zeros((0, 2)), fortran=np.asfortranarray(rows["x"]))
    dataset = NumpyArrays(tmp_path / "a.npz", keys=["fortran", "x", "y"])
    assert all(isinstance(array, np.memmap) is is_mapped for array in dataset.arrays.values())
    fortran, x, y = dataset.get_batch(torch.tensor([6, 2]))  # type: ignore[misc]  # there is no transform
    assert torch.equal(x, torch.from_numpy(rows["x"][[6, 2]]))
    assert torch.equal(fortran, x)
    assert y.tolist() == [6, 2]
    check_whole_batches(dataset)


def test_a_transform_is_for_single_samples(arrays: tuple[Path, Path]) -> None:
    dataset = NumpyArrays(list(arrays), transform=lambda part: part.sum())
    assert dataset.get_batch is None
    assert dataset[0][0] == 15


@pytest.mark.parametrize("kind", ["int32", "uint8", "uint16", "bool"])
def test_classes_are_what_losses_want_whatever_the_file_holds(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 3), "float32"))
    np.save(tmp_path / "y.npy", np.array([0, 1, 1, 0]).astype(kind))
    files = [tmp_path / "x.npy", tmp_path / "y.npy"]
    assert NumpyArrays(files)[0][1].dtype != torch.int64
    dataset = NumpyArrays(files, classes=2)
    assert dataset.get_batch is not None
    assert torch.equal(dataset.get_batch(torch.arange(4))[1], torch.tensor([0, 1, 1, 0]))
    assert dataset[1][1].dtype == dataset.get_batch(torch.arange(4))[1].dtype == torch.int64


def _object_array(path: Path) -> None:
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, r"no file at .*x\.npy \(looked from .*give the path of a \.npy or \.npz file"),
        (Path.mkdir, r"x\.npy is a folder; give the path of"),
        (lambda path: path.write_text("hello"), r"x\.npy is not a \.npy or \.npz file; write it with np\.save or"),
        (lambda path: path.write_bytes(b"\x93NUMPY\1\0"), r"x\.npy cannot be read as NumPy's: .*; write it again"),
        (_object_array, r"x\.npy holds Python objects, not numbers; save an array of numbers"),
        (lambda path: np.save(path, np.float32(3)), r"do not have one row a sample each: .*x\.npy has shape \[\]"),
        (lambda path: np.save(path, np.array(["a"])), r"x\.npy holds <U1, which torch has no tensors of"),
    ],
)
def test_files_that_are_no_arrays(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path / "x.npy")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        NumpyArrays(tmp_path / "x.npy")


def test_arrays_that_do_not_fit(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros(9))
    with pytest.raises(ValueError, match=r"numbers.npy has shape \[10, 2, 3\]; .*short.npy has shape \[9\]"):
        NumpyArrays([arrays[0], tmp_path / "short.npy"])
    with pytest.raises(ValueError, match=r"classes.npy: row 2 is class 2, out of range: allowed are 0 to 1 \(3 such"):
        NumpyArrays(list(arrays), classes=2)
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"a\.npz has no array 'y'; it has: x"):
        NumpyArrays(tmp_path / "a.npz", keys=["y"])
    with pytest.raises(ValueError, match=r"keys: are for one \.npz file"):
        NumpyArrays(list(arrays), keys=["x"])
    with pytest.raises(ValueError, match=r"give one \.npz, or \.npy files only"):
        NumpyArrays([arrays[0], tmp_path / "a.npz"])


# --- tables ---


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    path = tmp_path / "flowers.csv"
    path.write_text(FLOWERS)
    return path


def test_a_table_of_words_as_classes(flowers: Path) -> None:
    table = Table(flowers, target="kind")
    assert table.features == ["sepal", "petal", "bees"]
    assert table.classes == ("setosa", "versicolor", "virginica")
    features, target = table[1]
    assert (features.dtype, features.tolist(), target.item()) == (torch.float32, pytest.approx([7.0, 4.7, 0.0]), 2)
    assert table.targets.tolist() == [0, 2, 1, 0]
    check_whole_batches(table)
    chosen = Table(flowers, target="kind", features=["petal"], classes=["virginica", "versicolor", "setosa"])
    assert chosen.targets.tolist() == [2, 0, 1, 2]


def test_a_table_of_quantities(flowers: Path) -> None:
    table = Table(flowers, target="petal", features=["bees"], dtype=torch.float64)
    assert (table.classes, table[1][1].tolist(), table[1][1].dtype) == (None, [4.7], torch.float64)
    assert Table(flowers, target="bees", features=["petal"]).targets.dtype == torch.int64
    bees = Table(flowers, target="bees", features=["petal"], regression=True)
    assert (bees.targets.dtype, bees.targets.shape) == (torch.float32, (4, 1))
    (features,) = Table(flowers, target=None, features=["petal"]).get_batch(torch.tensor([1, 0]))
    assert torch.equal(features, Table(flowers, target="bees", features=["petal"]).tensors[0][[1, 0]])
    both = Table(flowers, target=["petal", "bees"], features=["sepal"])
    assert both.targets.shape == (4, 2)


def test_a_table_is_scaled_as_another(flowers: Path) -> None:
    table = Table(flowers, target="kind", scale=True)
    features = table.tensors[0]
    torch.testing.assert_close(features.mean(0), torch.zeros(3))
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(3))
    other = Table(flowers, target="kind", scale=table.scaling)  # type: ignore[arg-type]  # there is one
    assert torch.equal(other.tensors[0], features)


def test_parquet_and_tabs_are_tables_too(flowers: Path, tmp_path: Path) -> None:
    import pyarrow.csv

    pq.write_table(pyarrow.csv.read_csv(flowers), tmp_path / "flowers.parquet")
    (tmp_path / "flowers.tsv").write_text(FLOWERS.replace(",", "\t"))
    for name in ("flowers.parquet", "flowers.tsv"):
        for one, other in zip(
            Table(tmp_path / name, target="kind").tensors, Table(flowers, target="kind").tensors, strict=True
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        ({}, FLOWERS + "1,2\n", r"flowers\.csv: line 6 has 2 values and the line of names 4: '1,2'; fix it"),
        ({}, FLOWERS + "1,2\n3\n", r"line 6 has 2 values .* \(2 such rows\)"),
        ({}, FLOWERS + "5.0,,1,setosa\n", r"column 'petal' has nothing for a number in row 5; fill or drop it"),
        ({}, FLOWERS + "5.0,-inf,1,setosa\n", r"column 'petal' has -inf for a number in row 5; fill or drop it"),
        ({}, FLOWERS + "5.0,1.0,1,\n", r"column 'kind' has no class in row 5; fill or drop it"),
        (
            {},
            FLOWERS + "tall,1.0,1,setosa\n",
            r"column 'sepal' has 'tall' for a number in row 5; correct it, or choose features: \[petal, bees\]; cat",
        ),
        ({}, FLOWERS + '"5,0",1.0,1,setosa\n', r"column 'sepal' has '5,0' for a number in row 5; correct it"),
        ({}, FLOWERS + "2026-01-01,1.0,1,setosa\n", r"column 'sepal' has '2026-01-01' for a number in row 5;"),
        ({"target": "colour"}, FLOWERS, r"has no column 'colour'; it has: sepal, petal, bees, kind; for rows without"),
        ({"target": "Kind"}, FLOWERS, r"has no column 'Kind'; did you mean 'kind'\? It has: sepal, petal, bees, kind;"),
        ({}, FLOWERS.replace("kind", " kind"), r"has no column 'kind'; did you mean ' kind'\?"),
        ({}, FLOWERS.replace(",", ";"), r"has no column 'kind'; its values are separated by ';': save it with commas$"),
        ({}, FLOWERS.replace(",", "\t"), r"has no column 'kind'; its values are separated by tabs: call it \.tsv$"),
        ({}, FLOWERS.replace("petal", "sepal"), r"has several columns 'sepal'; rename all but one"),
        ({}, FLOWERS.splitlines()[0] + "\n", r"flowers\.csv has no rows, only the names: sepal, petal, bees, kind"),
        ({"features": ["size"]}, FLOWERS, r"has no column 'size'"),
        ({"classes": ["setosa"]}, FLOWERS, r"column 'kind' is 'virginica' in row 2, none of: setosa"),
        ({"classes": 2}, FLOWERS, r"column 'kind' has 3 classes, and classes is 2"),
        (
            {"target": "bees", "features": ["petal"], "classes": 3},
            FLOWERS,
            r"column 'bees' is class 3 in row 4, out of range: allowed are 0 to 2; .* regression: true",
        ),
        ({}, "", r"flowers\.csv is empty; a table is a line of names, then rows"),
        ({}, " \n\n", r"flowers\.csv is empty; a table is a line of names, then rows"),
        ({}, "kind\na\n", r"has only the column 'kind'; at least one feature is needed"),
    ],
)
def test_tables_that_are_not_as_they_should_be(
    flowers: Path, arguments: dict[str, Any], text: str, message: str
) -> None:
    flowers.write_text(text)
    with pytest.raises(ValueError, match=message):
        Table(flowers, **{"target": "kind", **arguments})


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file at .*x\.csv .*give the path of a \.csv, \.tsv, \.parquet or"):
        Table(tmp_path / "x.csv", target="y")
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(ValueError, match=r"x\.xlsx: a table is one of \.csv, \.tsv, \.parquet"):
        Table(tmp_path / "x.xlsx", target="y")
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read: "):
        Table(tmp_path / "x.parquet", target="y")


# --- the hub's library, with files of this machine ---


@pytest.fixture
def rows(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")  # read once, when it was imported
    path = tmp_path / "rows.jsonl"
    lines = [{"number": i, "half": i / 2, "word": f"w{i}", "pair": [i, -i], "long": [0] * (i % 3)} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_local_rows_as_tensors(rows: Path) -> None:
    dataset = HubDataset(str(rows), columns=["number", "half", "word", "pair"])
    row = dataset[3]
    assert (row["number"].item(), row["half"].item(), row["word"]) == (3, 1.5, "w3")
    assert (row["half"].dtype, row["pair"].tolist()) == (torch.float32, [3, -3])
    check_whole_batches(dataset)
    assert [value.tolist() for value in HubDataset(str(rows))._rows_at(torch.tensor([1, 2]))["long"]] == [[0], [0, 0]]


def test_rows_are_transformed_one_by_one(rows: Path) -> None:
    def longer(row: Mapping[str, Any]) -> Any:
        return row["word"] * 2, row["number"]

    dataset = HubDataset(str(rows), split="train[:50%]", transform=longer)
    assert (len(dataset), dataset[2], dataset.get_batch) == (3, ("w2w2", 2), None)


def test_saved_data_sets_with_and_without_splits(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"x": [1, 2, 3]})
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert [len(HubDataset(str(tmp_path / name), split="test")) for name in ("one", "two")] == [3, 1]
    with pytest.raises(ValueError, match="two has no split 'validation'; it has: train, test"):
        HubDataset(str(tmp_path / "two"), split="validation")


def test_rows_that_cannot_be_loaded(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder at rows\.csv .* not OWNER/NAME of the hub"):
        HubDataset("rows.csv")
    with pytest.raises(ValueError, match=r"has no column 'colour'; it has: number, half"):
        HubDataset(str(rows), columns=["colour"])
    with pytest.raises(ValueError, match=r"\(split test\) cannot be loaded: ValueError: Unknown split .*; check name"):
        HubDataset(str(rows), split="test")
    (tmp_path / "x.py").touch()
    with pytest.raises(ValueError, match=r"x\.py: files of this kind are not read; allowed are \.csv"):
        HubDataset(str(tmp_path / "x.py"))


# --- large texts ---


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(text_module, "LARGE_BYTES", 1000)
    monkeypatch.setattr(text_module, "_BLOCK_BYTES", 100)  # cuts characters of several bytes
    path = tmp_path / "large.txt"
    path.write_text("".join(chr(0x4E00 + i * 7 % 300) for i in range(999)) + "\r\nend", encoding="utf-8", newline="")
    return path


def test_a_large_text_is_tokenised_once_and_mapped(large: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = TextFile(large, context=8)
    kept = sorted(path.name for path in home.rglob("*") if path.is_file())
    assert kept == ["tokens.npy", "vocabulary.json"]
    before = [path.stat().st_mtime_ns for path in home.rglob("*.npy")]
    again = TextFile(large, context=8)
    assert [path.stat().st_mtime_ns for path in home.rglob("*.npy")] == before
    monkeypatch.setattr(text_module, "LARGE_BYTES", 10**6)
    in_memory = TextFile(large, context=8)
    indices = torch.arange(len(in_memory))
    for dataset in (mapped, again):
        assert dataset.characters == in_memory.characters
        assert all(map(torch.equal, dataset.get_batch(indices), in_memory.get_batch(indices)))
    assert "\r" in in_memory.characters


def test_a_large_text_that_changed_is_tokenised_again(large: Path, tmp_path: Path, home: Path) -> None:
    assert "!" not in TextFile(large, context=8, scratch=tmp_path / "disk").characters
    large.write_text(large.read_text(encoding="utf-8") + "!" * 100, encoding="utf-8")
    assert "!" in TextFile(large, context=8, scratch=tmp_path / "disk").characters
    assert len(list((tmp_path / "disk").rglob("tokens.npy"))) == 2
    assert not home.exists()


def test_bytes_that_are_no_text_are_placed_in_the_file(large: Path) -> None:
    good = large.read_bytes()[:300]
    large.write_bytes(good + b"\xff" + good * 5)
    with pytest.raises(ValueError, match=r"large\.txt is not UTF-8 text: invalid start byte at byte 300"):
        TextFile(large, context=8)


# --- files ---


def test_what_is_made_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_write(tmp_path / "made") as part:
            part.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):
        with atomic_write(tmp_path / "file") as part:
            part.write_text(content)
        assert (tmp_path / "file").read_text() == content
    with atomic_write(tmp_path / "made") as part:
        part.mkdir()
    with atomic_write(tmp_path / "made") as part:
        part.mkdir()
        (part / "later").touch()
    assert list((tmp_path / "made").iterdir()) == []  # the first stays
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made"]


def test_scratch_copies_are_made_once_and_again_when_the_file_changed(tmp_path: Path, pets: Path) -> None:
    disk, file = tmp_path / "disk", tmp_path / "a.txt"
    file.write_text("one")
    copy = staged(file, disk)
    assert (copy.read_text(), copy.name, copy.is_relative_to(disk)) == ("one", "a.txt", True)
    inode = copy.stat().st_ino
    assert staged(file, disk).stat().st_ino == inode
    file.write_text("two!")
    assert staged(file, disk).read_text() == "two!"
    assert staged(file, None) == file
    assert ImageFolder(pets, scratch=disk).root.is_relative_to(disk)
    assert len(ImageFolder(pets, scratch=disk)) == 4


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("PIL.Image", lambda path: ImageFolder(path)),
        ("pyarrow", lambda path: Table(path / "x.csv", target="y")),
        ("datasets", lambda path: HubDataset("x/y")),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, make: Callable[[Path], Any]
) -> None:
    (tmp_path / "x.csv").write_text(FLOWERS)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=module.replace("PIL.Image", "Pillow") + r', which is not installed; pip install "'
    ):
        make(tmp_path)


def test_one_of_torchvision_s_kind_is_a_data_set_like_any_other(pets: Path) -> None:
    """Whatever has a length and gives samples by number: no base class, PIL pictures through transforms."""

    class VisionLike:
        def __init__(self, root: str, transform: Callable[[Any], Any], target_transform: Callable[[int], Any]):
            self.files = sorted(Path(root).rglob("*.png"))
            self.transform, self.target_transform = transform, target_transform

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            return self.transform(Image.open(self.files[index])), self.target_transform(index)

    from launcher.data.loaders import EvaluationLoader, Reading

    dataset = VisionLike(str(pets), lambda image: torch.from_numpy(np.array(image)), lambda index: index + 1)
    (batch,) = EvaluationLoader(dataset, 4, Reading()).batches()
    assert (batch.data[0].shape, batch.data[1].tolist()) == ((2, 8, 12, 3), [1, 2])
