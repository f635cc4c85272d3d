"""Bad recipes, and what a user is told of each: `NAME.yaml`, its overrides in `NAME.args`, the message in `NAME.txt`.

Those in `schema` are found by reading, those in `components` when what they name is imported; both build on files
named `base_…`. `reading` holds what is not a recipe at all, see `test_reading.py`.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest
from places import SUPPORT

from launcher.errors import EXIT_USAGE, RecipeError
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe

BAD_RECIPES = SUPPORT / "bad_recipes"


def bad(folder: str) -> list[Path]:
    return sorted(path for path in (BAD_RECIPES / folder).glob("*.yaml") if not path.stem.startswith("base_"))


@pytest.fixture(autouse=True)
def in_its_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the test were started beside the recipe, and no own file had been imported yet."""
    folder: Path = request.node.callspec.params["path"].parent
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in [file.stem for file in folder.glob("*.py") if file.stem not in sys.stdlib_module_names]:
        monkeypatch.delitem(sys.modules, name, raising=False)


def overrides_of(path: Path) -> list[str]:
    arguments = path.with_suffix(".args")
    return arguments.read_text(encoding="utf-8").splitlines() if arguments.exists() else []


def complaint(path: Path) -> str:
    """What is said of a recipe by reading, or else by importing what it names."""
    with pytest.raises(RecipeError) as caught:
        Builder(load_recipe(path.name, overrides_of(path))).check()
    assert caught.value.exit_code == EXIT_USAGE
    assert all(str(problem).isprintable() for problem in caught.value.problems)
    return f"{caught.value}\n"


@pytest.mark.parametrize("path", bad("schema"), ids=lambda path: path.stem)
def test_reading_finds(path: Path) -> None:
    assert complaint(path) == path.with_suffix(".txt").read_text(encoding="utf-8")
    with pytest.raises(RecipeError):
        load_recipe(path.name, overrides_of(path))


@pytest.mark.parametrize("path", bad("components"), ids=lambda path: path.stem)
def test_importing_finds(path: Path) -> None:
    load_recipe(path.name, overrides_of(path))
    library = sysconfig.get_paths()["stdlib"]  # is elsewhere on every machine
    assert complaint(path).replace(library, "PYTHON") == path.with_suffix(".txt").read_text(encoding="utf-8")
    assert not Path("owned").exists()  # what the dangerous ones would have made


@pytest.mark.parametrize("path", [BAD_RECIPES / part / "base_good.yaml" for part in ("schema", "components")])
def test_the_recipe_that_they_build_on_is_good(path: Path) -> None:
    assert Builder(load_recipe(path.name)).check() == 5


@pytest.mark.parametrize("path", [BAD_RECIPES / "schema" / "x.yaml", BAD_RECIPES / "components" / "x.yaml"])
def test_every_expectation_has_its_recipe(path: Path) -> None:
    named = {file.stem for file in path.parent.iterdir() if file.suffix in (".txt", ".args")}
    assert named == {file.stem for file in bad(path.parent.name)}
