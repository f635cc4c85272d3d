"""What the documentation shows: its code by language, and its commands, with the mark of what is not run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from places import ROOT

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "slurm" / "README.md", *DOCS]
REASONS = (  # why something on a page is not run
    "needs a cluster",
    "needs a GPU",
    "needs the network",
    "needs another package",
    "needs standard input",
    "installs",
    "runs for minutes",
    "is for who changes the program",
    "is another program's",
)
_FENCE = re.compile(r"^(?:<!-- not run: ([^>]*) -->\n)?```([\w+-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`(launcher [^`]+)`", re.DOTALL)
_PROGRAMS = ("launcher", "pip", "python", "sbatch", "accelerate", "torchrun", "sphinx-build")


@dataclass(frozen=True)
class Code:
    """One block of code.

    Attributes:
        page: Where it stands.
        line: The line of its fence, from 1.
        language: As the fence says; empty for commands, output and trees of files.
        text: The code.
        not_run: Why it is not run; empty where it is.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str | None = None) -> Iterator[Code]:
    """The code of a page, in its order; of one language if that is said."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        if language is None or match[2] == language:
            yield Code(page, text.count("\n", 0, match.start(2)) + 1, match[2], match[3], match[1] or "")


def commands(block: Code) -> list[list[str]]:
    """The words of each command of a block; none where it shows something else."""
    lines = [_uncommented(line) for line in block.text.replace("\\\n", " ").splitlines()]
    texts = [part.strip() for line in lines for part in line.split(";") if part.strip()]
    return [text.split() for text in texts] if texts and _is_command(texts[0]) else []


def spans(page: Path) -> list[str]:
    """The commands of this program within the sentences and tables of a page, without what is left open (`…`)."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(span.replace("\\|", "|").split()) for span in _SPAN.findall(text)]


def _is_command(text: str) -> bool:
    first = text.split()[0]
    return first in _PROGRAMS or first.startswith(("scripts/", ".venv/", ".ci/")) or "=" in first


def _uncommented(line: str) -> str:
    return re.sub(r"(^|\s+)# .*", "", line)
