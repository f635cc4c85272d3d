"""Every file is written and read as UTF-8, whatever the locale of whoever runs this."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

REPOSITORY = ROOT
_OPENERS = {"open", "fdopen", "TextIOWrapper", "TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile"}
_TEXT = {"read_text", "write_text"}
_OTHERS = {"os", "opening"}  # whose `open` gives a descriptor, or what is not a file
_RUNNERS = {"run", "Popen", "check_output", "check_call", "call"}


def _sources() -> list[Path]:
    scripts = [path for path in (REPOSITORY / "scripts").rglob("*") if path.is_file() and _is_python(path)]
    modules = [path for name in ("launcher", "recipes") for path in (REPOSITORY / name).rglob("*.py")]
    assert len(modules) > 100
    assert len(scripts) > 5
    return [*modules, *scripts]


def _is_python(path: Path) -> bool:
    return path.suffix == ".py" or path.read_bytes()[:40].startswith(b"#!/usr/bin/env python")


def faults(source: str) -> Iterator[int]:
    """The lines of a source that open a text, or read a program's output as one, without saying how it is encoded."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _opens_text(node) and not any(one.arg == "encoding" for one in node.keywords):
            yield node.lineno


def _opens_text(call: ast.Call) -> bool:
    function = call.func
    name = getattr(function, "attr", getattr(function, "id", ""))
    is_method = isinstance(function, ast.Attribute)
    if name in _TEXT:
        return is_method  # `files.write_text` of our own is a function, and says it itself
    if name in _RUNNERS:
        return any(one.arg in ("text", "universal_newlines") for one in call.keywords)
    return name in _OPENERS and _is_text_mode(call, name, is_path=is_method and not _is_module(function))


def _is_module(function: ast.expr) -> bool:
    """Whether what stands before the dot is a module or an object with an `open` of another kind."""
    owner = function.value if isinstance(function, ast.Attribute) else None
    return isinstance(owner, ast.Name) and owner.id in ("os", "io", "gzip", "tempfile", "codecs")


def _is_text_mode(call: ast.Call, name: str, *, is_path: bool) -> bool:
    owner = getattr(getattr(call.func, "value", None), "id", None)
    if name == "open" and owner in _OTHERS:
        return False
    said = [one.value for one in call.keywords if one.arg == "mode"]
    place = 0 if name.endswith("TemporaryFile") or is_path else 1
    modes = said or call.args[place : place + 1]
    if name == "TextIOWrapper":
        return True
    if not modes:
        return not name.endswith("TemporaryFile") and (not is_path or (not call.args and not call.keywords))
    mode = modes[0]
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) <= set("rwaxt+")


@pytest.mark.parametrize(
    "source",
    [
        'open("x")',
        'open("x", "w")',
        'open("x", mode="a")',
        'Path("x").open("a")',
        'path.open(mode="w")',
        "path.read_text()",
        'path.read_text(errors="replace")',
        "path.write_text(text)",
        'os.fdopen(1, "w")',
        "io.TextIOWrapper(raw)",
        'tempfile.NamedTemporaryFile("w", suffix=".x")',
        'tempfile.TemporaryFile("w+")',
        "subprocess.run(command, text=True)",
        "Popen(command, universal_newlines=True)",
    ],
)
def test_the_search_finds_a_text_without_an_encoding(source: str) -> None:
    assert list(faults(source)) == [1]


@pytest.mark.parametrize(
    "source",
    [
        'open("x", "rb")',
        'Path("x").open("a+b")',
        'path.open("w", encoding="utf-8")',
        "os.open(path, os.O_RDONLY)",
        "tempfile.TemporaryFile(dir=here)",
        "opener.open(section.train, 'data.train')",
        "image.open(file)",
        "subprocess.run(command)",
        'subprocess.run(command, encoding="utf-8")',
    ],
)
def test_the_search_leaves_the_rest_alone(source: str) -> None:
    assert list(faults(source)) == []


def test_every_text_is_utf_8() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in _sources()
        for line in faults(path.read_text(encoding="utf-8"))
    ]
    assert found == []
