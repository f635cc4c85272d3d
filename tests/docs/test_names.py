"""What README, CONTRIBUTING and docs name is there: files, modules, and the rooms of the map."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOMES = ("launcher", "tests", "scripts", "docs", "recipes", "slurm", ".ci")
EXAMPLES = {  # of what somebody might add
    "launcher/cli/steps.py",
    "launcher/datasets/noise.py",
    "tests/cli/test_steps.py",
    "tests/brought/",
}


def named_files(page: Path) -> Iterator[str]:
    """Paths in code spans: from the clone's root, or from the package's (`device/keepalive.py`)."""
    rooms = [path.name for path in (ROOT / "launcher").iterdir() if path.is_dir()]
    for span in re.findall(r"`([\w./-]+)`", page.read_text(encoding="utf-8")):
        first = span.partition("/")[0]
        if "/" in span and first in HOMES:
            yield span
        elif first in rooms and span.endswith((".py", "/")):
            yield f"launcher/{span}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    assert [name for name in named_files(page) if name not in EXAMPLES and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_imported_can_be(page: Path) -> None:
    for module, names in re.findall(r"^from (launcher[\w.]*) import (.+)$", page.read_text("utf-8"), re.MULTILINE):
        assert all(hasattr(importlib.import_module(module), name) for name in names.split(", "))


def test_the_map_has_every_room_and_no_other() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    plan = re.search(r"^```\nlauncher/\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert plan
    on_the_map = set(re.findall(r"(?:^  |  {3,})([a-z]+(?:/|\.py))", plan[1], re.MULTILINE))
    there = {f"{path.name}/" if path.is_dir() else path.name for path in (ROOT / "launcher").glob("[a-z]*")}
    inside = {"templates/"}  # of a room, at the beginning of its second line
    assert on_the_map - inside == there - {"py.typed"}
