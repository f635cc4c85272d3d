"""docs/agents.md: generated, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from places import ROOT

import launcher
from launcher.cli.main import main
from launcher.recipe.keys import all_keys

PAGE = ROOT / "docs" / "agents.md"


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--all"]) == 0
    printed = capsys.readouterr().out
    assert printed == PAGE.read_text(encoding="utf-8"), "launcher explain --all > docs/agents.md"
    for entry in all_keys().values():
        assert entry.kind == "section" or f"`{entry.key}`" in printed or f"### {entry.key}\n" in printed


def test_its_recipes_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# my_task.py\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_task.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    recipes = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(recipes) == 2
    for recipe in recipes:
        path = tmp_path / f"{yaml.safe_load(recipe)['name']}.yaml"
        path.write_text(recipe)
        result = launcher.train(path, "launch.threads=1", cpu=True, output="quiet")
        assert result.state == "finished"
        assert result.best is not None
        assert result.best.value < 2.4
