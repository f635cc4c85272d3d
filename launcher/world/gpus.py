"""The GPUs of a machine, as its driver and the environment tell of them: no torch, no program, no context on any."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia")
_DEVICES = Path("/dev")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_NONE = ("", "-1", "none", "void", "NoDevFiles")  # what hides all of them
_P2P_SINCE = (550, 40, 7)  # the driver with which several RTX 40 may speak to each other


def of_machine(driver: Path = _DRIVER, devices: Path = _DEVICES) -> list[str]:
    """The models of its NVIDIA GPUs, as the driver names them, whoever may use them.

    A sandboxed container has no `/proc/driver`: there they are counted by their device files, and have no names.
    """
    models = []
    with suppress(OSError):
        for folder in sorted((driver / "gpus").iterdir()):
            text = ""
            with suppress(OSError):
                text = (folder / "information").read_text(encoding="utf-8", errors="replace")
            model = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
            models.append(model[1].strip() if model else "a GPU")
    return models or ["a GPU" for _ in devices.glob("nvidia[0-9]*")]


def hidden_by(environ: Mapping[str, str] | None = None) -> tuple[str, str]:
    """The variable that hides all GPUs from this process, and its value; two empty texts where none does."""
    environ = os.environ if environ is None else environ
    return next(((name, environ[name]) for name in _VISIBLE if environ.get(name, "0").strip() in _NONE), ("", ""))


def visible(environ: Mapping[str, str] | None = None) -> list[str] | None:
    """The GPUs that this process may use, by number, UUID or MIG name; None where nothing limits them.

    As the driver reads the variable: what stands behind a `-1` does not count.
    """
    environ = os.environ if environ is None else environ
    if (said := environ.get(variable(environ))) is None:
        return None
    names = [name.strip() for name in said.split(",")]
    end = next((place for place, name in enumerate(names) if name in _NONE), len(names))
    return names[:end]


def variable(environ: Mapping[str, str] | None = None) -> str:
    """The variable that says which GPUs a process may use: the one that limits this process, else CUDA's."""
    environ = os.environ if environ is None else environ
    limiting = (name for name in _VISIBLE if name in environ and name != "NVIDIA_VISIBLE_DEVICES")
    return next(limiting, _VISIBLE[0])


def is_slice(name: str) -> bool:
    """Whether a name means a part of a GPU (MIG)."""
    return name.startswith("MIG-")


def taken_by(local_rank: int, names: Sequence[str]) -> str:
    """The GPU that a process takes of those it may use: that of its number, or the only one."""
    return names[local_rank % len(names)] if names else ""


def without_p2p(driver: Path = _DRIVER) -> bool:
    """Whether the machine has several RTX 40 and a driver under which they cannot speak to each other directly."""
    models = of_machine(driver)
    if len(models) < 2 or not any("RTX 40" in model for model in models):
        return False
    text = ""
    with suppress(OSError):
        text = (driver / "version").read_text(encoding="utf-8", errors="replace")
    version = re.search(r"\s(\d+)\.(\d+)(?:\.(\d+))?\s", text)
    return version is not None and tuple(int(number or 0) for number in version.groups()) < _P2P_SINCE
