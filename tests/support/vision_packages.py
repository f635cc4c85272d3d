"""torchvision and timm for tests, where they are installed, and beside a torch that torchvision's builds do not fit.

The package index has torchvision built for CUDA alone. Beside a torch for CPUs its operators do not load, and it does
not import; installed, it would break what looks whether it is there. So `scripts/environment` puts it into a folder of
its own. What is opened here is its own Python, and timm's; of its operators, the one that detectors evaluate with is
written below. `tests/brought/test_pictures.py` runs the same with a torch and a torchvision that fit.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from places import ROOT, SUPPORT
from torch import Tensor

FOLDER = Path(sys.prefix) / "vision"
_operators: list[Any] = []  # as long as they live


def missing() -> str | None:
    """Why there is no torchvision; None where there is."""
    if FOLDER.is_dir() or importlib.util.find_spec("torchvision"):
        return None
    return f"needs torchvision and timm, which scripts/test installs into {FOLDER.name} of .venv"


def open_vision() -> None:
    """Makes both importable in this process, which should be one of the test's own."""
    if importlib.util.find_spec("torchvision") is None:
        sys.path.insert(0, str(FOLDER))
        with suppress(OSError):
            torch.ops.load_library(str(FOLDER / "torchvision" / "_C.so"))
            return
        _stand_in()


def launcher(folder: Path, *arguments: str) -> str:
    """`launcher ARGUMENTS` in a process of its own that has both packages; gives what it printed."""
    return python(folder, "from launcher.cli.main import main; sys.exit(main(sys.argv[1:]))", *arguments)


def python(folder: Path, code: str, *arguments: str) -> str:
    """Code in such a process."""
    path = os.pathsep.join([str(SUPPORT), str(ROOT)])
    command = [sys.executable, "-c", f"import sys, vision_packages; vision_packages.open_vision(); {code}", *arguments]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _stand_in() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):  # importing it describes both
        library.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", nms, "CPU")
    _operators.append(library)
    from torchvision.ops import boxes

    boxes._assert_has_ops = lambda: None  # which asks for the library


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that no better one covers.

    Args:
        boxes: Corners, of shape [N, 4].
        scores: Of shape [N].
        iou_threshold: How much of both may be common.

    Returns:
        Their numbers, the best first.
    """
    from torchvision.ops import box_iou

    order, kept = scores.argsort(descending=True, stable=True), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[box_iou(boxes[best, None], boxes[order])[0] <= iou_threshold]
    return torch.stack(kept) if kept else order
