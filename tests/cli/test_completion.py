"""TAB in real shells: what bash, fish and zsh offer, as far as they are installed."""

from __future__ import annotations

import argparse
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from argcomplete.finders import CompletionFinder
from places import ROOT

from launcher.cli.completion import _changes, know
from launcher.cli.main import main, parser

ASK = {
    "bash": """eval "$(launcher completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
_python_argcomplete launcher
printf '%s\\n' "${COMPREPLY[@]}" """,
    "fish": "launcher completion fish | source; complete -C $argv[1]",
}
LINES = {
    "a command": ("launcher ver", {"verify-resume"}),
    "a flag": ("launcher train digits_mlp --resu", {"--resume"}),
    "a shipped recipe": ("launcher train dig", {"digits_cnn", "digits_mlp"}),
    "a recipe here": ("launcher check mine", {"mine.yaml"}),
    "a key of the schema": ("launcher train digits_mlp train.clip_grad_n", {"train.clip_grad_norm="}),
    "an argument that the recipe has": ("launcher train mine.yaml optimizer.mom", {"optimizer.momentum="}),
    "what a recipe with an error says no more": ("launcher train broken.yaml evaluate.firs", {"evaluate.first="}),
    "a key's values": ("launcher train digits_mlp device.precision=", {"no", "bf16", "fp16"}),
    "true or false": ("launcher train digits_mlp data.shuffle=", {"true", "false"}),
    "a run by its recipe": ("launcher resume dig", {"digits"}),
    "the latest run": ("launcher report lat", {"latest"}),
    "a run by its folder": ("launcher evaluate runs/digits/2026-01-0", {"runs/digits/2026-01-01"}),
    "a key of the run": ("launcher evaluate latest optimizer.we", {"optimizer.weight_decay="}),
    "an explained key": ("launcher explain evaluate.early", {"evaluate.early_stop", "evaluate.early_stop.patience"}),
    "a key to remove": ("launcher show mine.yaml --remove optimizer.mom", {"optimizer.momentum"}),
    "a recipe to copy": ("launcher copy tex", {"text_gpt"}),
    "a picture for predictions": ("launcher predict latest pho", {"photos/"}),
}  # fmt: skip

IN_SHELLS = ("a flag", "an argument that the recipe has", "a key's values", "a run by its recipe")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, two runs, and the command on the way to it."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "bin").mkdir()
    (folder / "bin/launcher").write_text(f'#!/bin/sh\nexec {sys.executable} -m launcher "$@"\n')
    (folder / "bin/launcher").chmod(0o755)
    (folder / "mine.yaml").write_text("optimizer: {_target_: SGD, lr: 0.1, momentum: 0.9}\nmodel: {width: 3}\n")
    (folder / "broken.yaml").write_text("optimizer: {\n")
    (folder / "photos").mkdir()
    for day in (1, 2):
        run = folder / f"runs/digits/2026-01-0{day}"
        run.mkdir(parents=True)
        (run / "resolved.yaml").write_text("name: digits\noptimizer: {_target_: AdamW, weight_decay: 0.1}\n")
        (run / "status.json").write_text(json.dumps({"state": "finished", "name": "digits", "step": 3}))
    return folder


def environment(place: Path) -> dict[str, str]:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(place), "TERM": "xterm"}


def offered(place: Path, shell: str, line: str) -> set[str]:
    command = [shell, "-c", ASK[shell], *(["bash"] if shell == "bash" else []), line]
    ended = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, check=False)
    words = {offer.partition("\t")[0].strip() for offer in ended.stdout.splitlines()} - {""}
    return {word.rpartition("=")[2] if line.endswith("=") else word for word in words}


@pytest.mark.parametrize("case", LINES)
def test_each_place_offers_its_words(place: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    line, words = LINES[case]
    *before, prefix = line.split(" ")
    monkeypatch.chdir(place)
    top = parser()
    finder = CompletionFinder(top, always_complete_options="long", exclude=know(top))
    complete = set(finder._get_completions(before, prefix, "", None))
    assert words <= {word.rpartition("=")[2] if line.endswith("=") else word.strip() for word in complete}


@pytest.mark.parametrize("case", IN_SHELLS)
def test_bash_offers(place: Path, case: str) -> None:
    line, words = LINES[case]
    assert words <= offered(place, "bash", line), case


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize("case", IN_SHELLS)
def test_fish_offers(place: Path, case: str) -> None:
    line, words = LINES[case]
    assert words <= offered(place, "fish", line)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_a_line(place: Path) -> None:
    (place / ".zshrc").write_text(
        "PROMPT='ready> '\nautoload -U compinit && compinit -u\neval \"$(launcher completion zsh)\"\n"
    )
    child, screen = pty.fork()
    if not child:
        os.chdir(place)
        os.execvpe("zsh", ["zsh", "-i"], environment(place))
    try:
        assert seen(screen, b"ready> ")
        os.write(screen, b"launcher train digits_mlp train.clip_grad_n\t")
        assert seen(screen, b"train.clip_grad_norm=")
    finally:
        os.write(screen, b"\x03\nexit\n")
        os.close(screen)
        os.waitpid(child, 0)


def seen(screen: int, text: bytes, seconds: float = 60.0) -> bool:
    """Whether a text appears on a terminal."""
    shown, end = b"", time.monotonic() + seconds
    while text not in shown and time.monotonic() < end:
        if select.select([screen], [], [], 1.0)[0]:
            shown += os.read(screen, 4096)
    return text in shown


def test_what_a_shell_asks_needs_no_torch(place: Path) -> None:
    code = "import sys; from launcher.cli import completion, main; main.parser(); "
    code += "completion._changes('', __import__('argparse').Namespace(recipe='digits_mlp')); completion._runs('')"
    code += "; print('torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(place), capture_output=True, text=True, check=True
    )
    assert ended.stdout == "False\n"


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "tcsh"])
    assert "choose from bash, zsh, fish" in capsys.readouterr().err.replace("'", "")


BOMB = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{{', '.join(f'k{number}: *{old} ' for number in range(10))}}}\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "text", [BOMB, "a: &a {b: *a }\n", "- 1\n", "word", "", "{a: " * 5000, "\0", "a: !!python/x y\n"]
)
def test_an_odd_recipe_ends_no_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    words = _changes("", argparse.Namespace(recipe=str(tmp_path / "r.yaml")))
    assert "train.steps=" in words
    assert len(words) < 5000
