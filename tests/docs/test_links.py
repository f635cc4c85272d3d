"""README, CONTRIBUTING and docs: every link leads somewhere, and the README ends where the docs begin."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "slurm" / "README.md", *DOCS]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its code: there, brackets are no links and `#` begins no heading."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings; a heading that comes again is counted."""
    names: list[str] = []
    for heading in HEADING.findall(prose(page)):
        words = re.sub(r"[^\w\- ]", "", LINK.sub("]", heading)).lower().replace(" ", "-")
        names.append(words)
    return {f"{name}-{names[:i].count(name)}" if name in names[:i] else name for i, name in enumerate(names)}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The files and anchors that a page leads to, but for other sites."""
    for link in LINK.findall(re.sub(r"`[^`]*`", "", prose(page))):
        file, _, anchor = link.partition("#")
        if not re.match(r"[a-z]+:", file):
            yield (page.parent / file).resolve() if file else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in links(page):
        assert target.is_relative_to(ROOT), f"{target} is not in a clone"
        assert target.exists(), f"there is no {target}"
        assert not anchor or anchor in anchors(target), f"{target} has no heading #{anchor}"


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `run`'s folder\n\n```\n# no heading\n```\n## From Python: *why*\n## From Python: why\n")
    assert anchors(page) == {"a-runs-folder", "from-python-why", "from-python-why-1"}


def test_every_page_is_found_from_the_readme() -> None:
    reached, new = {README}, {README}
    while new:
        new = {target for page in new for target, _ in links(page) if target.suffix == ".md"} - reached
        reached |= new
    assert set(PAGES) <= reached


def test_the_readme_is_short_and_begins_with_the_command() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    command = next(line for line in lines[:12] if line.startswith("scripts/train "))
    for file in command.split():
        assert (ROOT / file).is_file()


def test_the_recipe_of_the_readme_is_the_one_that_it_trains(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    recipe = re.search(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert recipe
    path = tmp_path / "my.yaml"
    path.write_text(recipe[1], encoding="utf-8")
    assert f"launcher train {path.name} " in text
    assert load_recipe(str(path)).name == "digits"
    assert f"launcher report {load_recipe(str(path)).name} " in text
