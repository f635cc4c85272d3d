"""What is printed to be installed: our own distribution or clone, packages that we know, and nobody else's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import projects
import pytest
from places import ROOT

from launcher.version import DISTRIBUTION, PACKAGE, install

REPOSITORY = ROOT


def pretended(folder: Path, name: str) -> None:
    """A distribution as pip leaves it."""
    about = folder / f"{name}-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")


def test_an_extra_is_asked_of_what_is_installed_else_of_the_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [place for place in sys.path if not list(Path(place or ".").glob(f"{DISTRIBUTION}-*.dist-info"))]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *own])
    pretended(tmp_path, "launcher")  # a stranger's
    *words, source = shlex.split(install("images"))
    assert words == ["pip", "install"]
    assert source == f"{PACKAGE.parent}[images]"
    pretended(tmp_path, DISTRIBUTION)
    assert shlex.split(install("images")) == ["pip", "install", f"{DISTRIBUTION}[images]"]


def test_the_distribution_has_a_name_of_its_own_and_every_extra_that_is_asked_for() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf'^name = "{DISTRIBUTION}"', project, re.MULTILINE)
    extras = set(re.findall(r"^(\w+) = \[", project.partition("[project.optional-dependencies]")[2], re.MULTILINE))
    sources = {path: path.read_text(encoding="utf-8") for path in (REPOSITORY / "launcher").rglob("*.py")}
    call = re.compile(r"""(?:needed\("[^"]+", "|install\(['"])(\w+)""")
    asked = {extra for text in sources.values() for extra in call.findall(text)}
    assert {"images", "tables", "hub", "report"} <= asked <= extras
    pages = [*sources, REPOSITORY / "README.md", REPOSITORY / "pyproject.toml"]
    assert [path for path in pages if re.search(r"(?<!torch)launcher\[\w", path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("utils", "if it is your own file, put it beside the recipe"),
        ("launcher.nothing", "if it is your own file, put it beside the recipe"),
        ("cv2.nothing", "install it: pip install opencv-python"),
        ("monai", "install it: pip install monai"),
    ],
)
def test_of_a_missing_module_only_a_known_package_is_named(tmp_path: Path, module: str, remedy: str) -> None:
    recipe = projects.make(tmp_path, parts=f"import {module}\n{projects.PARTS}")
    command = [sys.executable, "-m", "launcher", "check", "--components", str(recipe)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = ended.stderr
    assert ended.returncode == 2
    assert remedy in said
    assert ("pip install" in said) == ("pip install" in remedy)


HIDDEN = """
import importlib.util, sys
sys.modules.pop("fcntl", None)
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "fcntl" else real(name, *rest)
"""


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("from launcher.__main__ import start; start()", 2), ("import launcher; launcher.train", 1)],
)
def test_without_what_unix_has_it_is_refused_in_a_line(code: str, exit_code: int) -> None:
    command = [sys.executable, "-c", f"{HIDDEN.strip()}\n{code}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == exit_code
    last = ended.stderr.splitlines()[-1].removeprefix("ImportError: ")
    assert last == "launcher: this Python has no 'fcntl', as on Windows; run it on Linux, or in WSL 2"
    assert exit_code == 1 or ended.stderr.count("\n") == 1


def test_the_oldest_python_is_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    stated = re.search(r'^requires-python = ">=3\.(\d+)"', project, re.MULTILINE)
    assert stated is not None
    minor = stated[1]
    assert f'target-version = "py3{minor}"' in project
    for page in ("README.md", "docs/start.md", "scripts/environment"):
        assert {minor} == set(re.findall(r"(?:Python|at least) 3\.(\d+)", (ROOT / page).read_text(encoding="utf-8"))), (
            page
        )
