"""Proves on a user's own recipe that a killed run resumes bit for bit; says what differs first if it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints import retention
from launcher.checkpoints.sameness import same
from launcher.checkpoints.weights import find_weights, read_weights
from launcher.errors import LauncherError, UsageError
from launcher.internals import has_storage
from launcher.runs.tracking.tracking import read_metrics
from launcher.world.temporary import temporary_folder
from launcher.world.world import FAULTS_VARIABLE


@dataclass(frozen=True)
class Verification:
    """A recipe to be trained twice: straight, and killed on the way.

    Attributes:
        recipe: The file.
        overrides: Changes to it.
        flags: Further flags of `launcher train`.
        steps: How long to train.
        kills: Steps after which everything is killed.
    """

    recipe: str
    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    steps: int
    kills: tuple[int, ...]

    def run(self, say: Callable[[str], None]) -> bool:
        """Trains and compares; whether the weights are bit-equal.

        Raises:
            UsageError: A kill would come after the end, or before anything is saved.
            LauncherError: A training failed for another reason.
        """
        if self.steps < 3:
            raise UsageError(
                f"--steps {self.steps}: use 3 or more: one is saved, one is lost, and one comes after that"
            )
        for step in self.kills:
            if step >= self.steps:
                raise UsageError(f"--kill-at {step}: the training has {self.steps} steps; kill before its end")
            if step < 2:
                raise UsageError(
                    f"--kill-at {step}: nothing is saved before the first step has ended, and a run that starts over "
                    "proves nothing; kill after step 2 or later"
                )
        with temporary_folder() as folder:
            straight, killed = folder / "straight", folder / "killed"
            say(f"training {self.steps} steps straight")
            self._train(straight)
            for step in self.kills:
                say(f"training again, killed (kill -9) after step {step}")
                self._train(killed, f"kill@step:{step}")
                say(f"what is left of it is the checkpoint of step {self._saved(killed)}")
            say("resuming to the end")
            self._train(killed)
            differences = list(_differences(straight, killed))
        for line in differences:
            say(line)
        if not differences:
            say(
                f"bit-equal: the weights after {self.steps} steps do not depend on having been killed, with "
                "these processes on this machine"
            )
        return not differences

    def _saved(self, folder: Path) -> int:
        """The step that the next start resumes from."""
        folders = retention.listed(folder / "checkpoints")
        if not folders:
            raise LauncherError("the killed training has left no checkpoint; kill it later, with --kill-at")
        return checkpoints.verify(folders[0]).step

    def _train(self, folder: Path, faults: str = "") -> None:
        """One start of the run; with faults it must die."""
        changes = [
            f"train.steps={self.steps}",
            "track.every=1 steps",
            "save={every: 1 steps, keep: 2, background: false}",
        ]
        command = [sys.executable, "-m", "launcher", "train", self.recipe, *self.overrides, *changes]
        command += [*self.flags, "--quiet", f"--run-dir={folder}"]
        environment = {**os.environ, FAULTS_VARIABLE: faults}
        done = subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        died = done.returncode != 0
        if bool(faults) == died:
            return
        if died:
            raise LauncherError(f"training failed with exit code {done.returncode}:\n{done.stderr or done.stdout}")
        raise LauncherError(f"the run ended before it could be killed ({faults}); is it shorter than it seems?")


def _differences(straight: Path, killed: Path) -> Iterator[str]:
    """What differs, the first thing first."""
    reference, other = (
        {line["step"]: line for line in read_metrics(path / "metrics.jsonl")} for path in (straight, killed)
    )
    first = next((step for step in reference if reference[step].get("loss") != other.get(step, {}).get("loss")), None)
    weights = [read_weights(find_weights(path)) for path in (straight, killed)]
    names = [name for name, value in weights[0].items() if not _same(value, weights[1].get(name))]
    if first is not None:
        yield (
            f"the loss of step {first} differs first: {reference[first].get('loss')} straight, "
            f"{other.get(first, {}).get('loss')} after the kill"
        )
    if names:
        tensors = [
            name for name in names if all(isinstance(state_dict.get(name), torch.Tensor) for state_dict in weights)
        ]
        far = max(
            (float((weights[0][name].double() - weights[1][name].double()).abs().max()) for name in tensors), default=0
        )
        more = f", … ({len(names)} tensors)" if len(names) > 4 else ""
        yield f"weights differ by up to {far:.3g}: {', '.join(names[:4])}{more}"
    if first is not None or names:
        yield (
            "look for randomness that no seed reaches (a generator of the data set's own, os.urandom, time) and for "
            "state that no checkpoint holds (a counter that is not a buffer); on a GPU set device.deterministic"
        )


def _same(value: Any, other: Any) -> bool:
    """Bit by bit: a NaN equals itself."""
    if not all(isinstance(tensor, torch.Tensor) and has_storage(tensor) for tensor in (value, other)):
        return same(value, other)  # what a module gives by get_extra_state, or a sparse one
    if value.dtype != other.dtype or value.shape != other.shape:
        return False
    flat = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (value, other))
    return bool(torch.equal(*flat)) if value.numel() else True
