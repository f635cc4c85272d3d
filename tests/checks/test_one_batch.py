"""One batch is memorized, or something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds import TINY

from launcher.cli.main import main
from launcher.errors import EXIT_DONE, EXIT_FAILED

VERDICTS = {"0.05": (EXIT_DONE, "learned: "), "0": (EXIT_FAILED, "not learned: ")}


@pytest.mark.parametrize("rate", VERDICTS)
def test_one_batch_is_learned_by_heart_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rate: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, verdict = VERDICTS[rate]
    arguments = [f"optimizer.lr={rate}", "launch.threads=1", "--remove", "scheduler", "--cpu", "--one-batch"]
    assert main(["train", str(TINY), *arguments]) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(verdict)
    assert list(tmp_path.iterdir()) == []


def test_one_batch_may_take_more_steps_than_a_schedule_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    schedule = "scheduler={_target_: OneCycleLR, max_lr: 0.1, total_steps: '${scheduler.steps}'}"
    assert main(["train", str(TINY), "launch.threads=1", schedule, "--cpu", "--one-batch"]) == EXIT_DONE
    assert "learned" in capsys.readouterr().out
