"""The notebook of the docs is executed as a reader would, and shows a bar and a curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What each cell of code gave."""
    folder: Path = tmp_path_factory.mktemp("notebook")
    book = nbformat.read(NOTEBOOK, as_version=4)
    kernel = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=120, kernel_name="python3", resources=kernel).execute()
    return [cell.outputs for cell in book.cells if cell.cell_type == "code"]


def texts(cell: list[Any]) -> str:
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell)


def test_training_shows_one_bar_and_a_curve_that_end_with_the_run(outputs: list[list[Any]]) -> None:
    shown = [output.data for output in outputs[1] if output.output_type == "display_data"]
    assert len(shown) == 1  # it changes, and is no new one each time
    assert shown[0]["text/plain"].startswith("finished: step 168 of 168, loss ")
    assert "width:100.0%" in shown[0]["text/html"]
    assert shown[0]["text/html"].count("<polyline") == 3  # of training, validation and test
    assert shown[0]["text/html"].count("validation loss") == 1
    assert "validation" in texts(outputs[1])  # each evaluation is a line below
    assert [output for output in outputs[1] if output.get("name") == "stderr"] == []


def test_the_cells_say_what_the_text_says(outputs: list[list[Any]]) -> None:
    assert "'finished'" in texts(outputs[2])
    assert float(texts(outputs[4]).strip("'").partition("%")[0]) > 90
    assert texts(outputs[5]) == "[]"
    assert "did you mean 'lr'?" in texts(outputs[6])
    assert "0.001: " in texts(outputs[7])
    assert texts(outputs[-1]) == "'report.html'"


def test_the_notebook_is_kept_without_outputs() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert [cell for cell in book.cells if cell.get("outputs") or cell.get("execution_count")] == []
