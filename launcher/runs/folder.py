"""A run's folder: what is written there besides numbers and weights."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from launcher.errors import UsageError

WEIGHTS_FILE = "model_weights.pth"
_PACKAGES = ("torch", "accelerate", "numpy", "torchmetrics", "pydantic", "pyyaml", "wandb", "tensorboard")


def choose(name: str, run_dir: str | None, root: Path = Path("runs")) -> Path:
    """A new folder `runs/<name>/<when>` that nobody has, or the one asked for; nothing is created."""
    if run_dir is not None:
        return Path(run_dir)
    when = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder, number = root / name / when, 1
    while folder.exists():
        number += 1
        folder = root / name / f"{when}-{number}"
    return folder


def create(folder: Path, recipe_text: str, resolved: str, environment: Mapping[str, Any]) -> None:
    """Makes the folder and writes what the run is.

    Raises:
        UsageError: It cannot be written, or holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / "status.json").exists():
            raise UsageError(f"--run-dir: {folder} holds other things; name a new folder, or a run's")
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe_text)
        (folder / "resolved.yaml").write_text(resolved)
        write_json(folder / "environment.json", environment)
    except OSError as error:
        raise UsageError(f"--run-dir: {folder} cannot be written: {error.strerror or error}") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a small JSON file, whole or not at all."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    hidden.write_text(json.dumps(value, indent=2, default=str) + "\n")
    hidden.replace(path)


def environment(command: Sequence[str]) -> dict[str, Any]:
    """What the run runs on: versions, host, git; never the environment's variables, which may hold secrets."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": list(command),
        "directory": str(Path.cwd()),
        "host": platform.node(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": versions,
        "git": _git(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git() -> dict[str, str] | None:
    commit = _output("git", "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit.strip(), "diff": _output("git", "diff", "HEAD") or ""}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
