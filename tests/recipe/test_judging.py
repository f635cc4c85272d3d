"""The searching attacker: what the installed sources hold below the policy's lists, against what somebody judged."""

from __future__ import annotations

from pathlib import Path

import pytest
from judging import JUDGED, PACKAGES, Source, find_source, judged, suspicions
from tiers import rounds

from launcher.recipe.builders import BUILDERS
from launcher.recipe.policy import CLASSES, FUNCTIONS

INSTALLED = [package for package in PACKAGES if find_source(package) is not None]
_LARGE = ("transformers",)  # most of a minute to read


@rounds(
    "package",
    plain=[package for package in INSTALLED if package not in _LARGE],
    long=[package for package in INSTALLED if package in _LARGE],
)
def test_all_that_may_be_named_was_judged(package: str) -> None:
    source = find_source(package)
    assert source is not None
    new = sorted(set(suspicions(source)) - judged()[package])
    assert not new, f"nobody has judged {len(new)} lines; see `python tests/support/judging.py`:\n" + "\n".join(
        new[:20]
    )


def test_the_packages_of_the_policy_are_those_that_are_searched() -> None:
    modules = [*(classes.module for classes in CLASSES), *BUILDERS, *FUNCTIONS]
    others = {"launcher", "builtins"}  # ours, and `tuple`, which is in C and takes nothing but the items
    assert {module.partition(".")[0] for module in modules} - others == set(PACKAGES)
    assert [name for name in FUNCTIONS if name.startswith("builtins.")] == ["builtins.tuple"]


def package(folder: Path, code: str) -> Source:
    """A `torchvision` whose one module of models holds this."""
    for inner in ("torchvision", "torchvision/models"):
        (folder / inner).mkdir()
        (folder / inner / "__init__.py").touch()
    (folder / "torchvision" / "models" / "resnet.py").write_text(code)
    return Source("torchvision", folder / "torchvision")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("class Runner(Module):\n    def __init__(self, command='ls'): ...", "Runner; takes command='ls'"),
        ("class Sly(Module):\n    def forward(self, x): return eval(x)", "Sly; calls eval"),
        ("class Later(Sly): ...\nclass Sly(Module): ...", "Later"),
        ("class Lazy(Module):\n    def __init__(self):\n        helper()\ndef helper(): exec('x')", "Lazy; calls exec"),
        ("class Reader(Module):\n    def f(self): pickle.load(open('x'))", "Reader; calls open, pickle.load"),
        (
            "class Saver(Module):\n    def __init__(self, *, out_dir): torch.save(1, out_dir)",
            "Saver; takes out_dir; calls",
        ),
        ("def resnet18(*, weights=None, cache_dir='x'): ...", "resnet18; takes weights=None, cache_dir='x'"),
    ],
)
def test_what_is_new_is_found(tmp_path: Path, code: str, line: str) -> None:
    found = set(suspicions(package(tmp_path, code))) - judged()["torchvision"]
    assert [one for one in found if one.startswith(f"torchvision.models.resnet.{line}")], found


def test_what_cannot_be_named_is_not_looked_at(tmp_path: Path) -> None:
    code = "class Helper:\n    def f(self): eval('x')\ndef unlisted(command): ..."
    assert not list(suspicions(package(tmp_path, code)))


def test_the_list_names_each_thing_once() -> None:
    lines = [line for line in JUDGED.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(set(lines))
    assert {line.partition(".")[0] for line in lines} == set(PACKAGES)
