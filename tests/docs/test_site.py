"""The site is built as strictly as Sphinx can: every link, anchor and name in it leads somewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from launcher.cli.main import GROUPS
from launcher.recipe.keys import all_keys

REFERENCE = {"recipe-keys": all_keys(), "commands": [name for names in GROUPS.values() for name in names]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-d", str(folder / "trees")]
    built = subprocess.run([*words, str(ROOT / "docs"), str(folder / "html")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "html"


def test_every_page_is_built(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not (site / page).exists()} == set()


@pytest.mark.parametrize("page", REFERENCE)
def test_the_reference_is_generated(site: Path, page: str) -> None:
    html = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
    assert "generated:" not in html
    assert [name for name in REFERENCE[page] if name not in html] == []


def test_docstrings_are_in_the_reference(site: Path) -> None:
    html = (site / "reference" / "python.html").read_text(encoding="utf-8")
    names = ("train", "load", "check", "runs", "api.Result", "datasets.ImageFolder")
    assert [name for name in names if f'id="launcher.{name}"' not in html] == []
