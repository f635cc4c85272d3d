"""One word for each thing: what docs/glossary.md gave up is in no message, docstring, comment or page."""

from __future__ import annotations

import re

import pytest
from places import ROOT

GIVEN_UP = {  # pattern: what is written instead
    r"(go|goes|going|gone) on with": "resume",
    r"(run|runs|start|training|it|job|job that) goes on (from|with|exactly|bit)": "resume, continue",
    r"training goes on": "training continues",
    r"leaves? (\S+|it|this) away": "omit",
    r"leave (it|this|them|one) out; ": "omit",
    r"here (may|can) stand": "allowed keys",
    r"may stand (here|there|in|beside|behind)": "is allowed",
    r"(was|were|is|are) taken for what": "confusion matrix",
    r"mend(s|ed)?": "fix",
    r"anew": "again",
    r"(learn|learned|learns) .*by heart": "memorize",
    r"(stands?|stood|standing) still": "pause, wait, make no progress",
    r"(the|a|no) wish to stop": "stop request",
    r"(does|did) not get on": "makes no progress",
    r"hand(s|ed)? (over|in)(?!\sparameters)": "pass",
    r"for want of": "as there is no",
    r"without a word": "without a message, silently",
    r"comes? along": "is included",
    r"though there may be": "even if there is",
    r"knows? no (CPU|GPU)": "does not run on",
    r"what becomes of": "what happens to",
    r"(is|are) left as (it is|they are)": "exists already",
    r"(?<!here\s)is no (data set|duration|loss|metric|tensor|list|number|file|recipe|model|module)": "is not a",
    r"(where|when|if|whether) it (was|is) said": "set",
    r"so often(,| after)": "at most N times",
    r"as nanoGPT's": "like",
}
ROOMS = ("launcher", "recipes", "slurm", "scripts", "docs")
KINDS = ("", ".py", ".md", ".yaml", ".jinja", ".js", ".css", ".sbatch")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*")) if path.suffix in KINDS]
GLOSSARY = ROOT / "docs" / "glossary.md"
TEXTS = [
    path for path in (*SOURCES, ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.is_file() and path != GLOSSARY
]
_GAP = (
    r"""(?:[ \t]+|[ "']*\n[ \t]*(?:[#*/]+|f?["'])?[ \t]*)"""  # also the end of a line, in prose, comments and strings
)
_WORD = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in GIVEN_UP).replace(" ", _GAP), re.IGNORECASE)


def given_up(text: str) -> list[str]:
    """The lines in which such words begin."""
    lines = text.splitlines()
    starts = sorted({text.count("\n", 0, match.start()) for match in _WORD.finditer(text)})
    return [f"{number + 1}: {lines[number].strip()}" for number in starts]


def test_words_that_were_given_up_are_found_over_line_ends() -> None:
    assert given_up("# leave this away\n") == ["1: # leave this away"]
    assert given_up("It was LEARNED quickly by heart.") == ["1: It was LEARNED quickly by heart."]
    assert given_up("a\n# you may leave this\n    # away\n") == ["2: # you may leave this"]
    assert given_up('say("leave "\n    f"that away")') == ['1: say("leave "']
    assert given_up("omit this") == []


@pytest.mark.parametrize("room", [*ROOMS, "README.md", "CONTRIBUTING.md"])
def test_words_that_were_given_up_are_not_written(room: str) -> None:
    texts = [path for path in TEXTS if path.relative_to(ROOT).parts[0] == room]
    assert texts
    found = [f"{path.relative_to(ROOT)}:{line}" for path in texts for line in given_up(path.read_text("utf-8"))]
    assert not found, "words that were given up; GIVEN_UP and docs/glossary.md have others:\n" + "\n".join(found)
