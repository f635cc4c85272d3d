"""What a value is that holds several: a space, as `launcher sweep` reads it, where a single value is wanted."""

from __future__ import annotations

import re
from typing import Any

from launcher.recipe.duration import Duration

_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_RANGE = rf"{_NUMBER}\.\.{_NUMBER}(?::(?:log|x?{_NUMBER}))?"
_HINT = "; that is a space of values: use launcher sweep"
_WORD = re.compile(r"[\w.-]+")


def space_hint(value: Any) -> str:
    """What to do with a text that is no single value: `1e-4..1e-2:log`, `8,32`, `bf16,fp16`, `1 epoch,2 epochs`.

    Returns:
        Words to be put behind what is wrong; empty where it reads like something else.
    """
    if not isinstance(value, str):
        return ""
    parts = [part.strip() for part in re.split(r"[,|]", value)]
    if len(parts) == 1:
        return _HINT if re.fullmatch(_RANGE, value.strip()) else ""
    return _HINT if all(_is_value(part) for part in parts) else ""


def _is_value(text: str) -> bool:
    is_plain = re.fullmatch(rf"{_RANGE}|{_NUMBER}", text) or _WORD.fullmatch(text)
    return bool(is_plain) or Duration.parse(text) is not None


def holds_several(text: str) -> bool:
    """Whether an override holds several lists or mappings side by side, which are no YAML: `[64],[256, 256]`."""
    depth, is_between = 0, False
    for char in text.strip():
        depth += (char in "[{") - (char in "]}")
        if depth == 0 and char in ",|":
            is_between = True
    return depth == 0 and is_between and text.strip()[:1] in ("[", "{")
