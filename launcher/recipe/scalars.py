"""What a plain word of YAML means: number, boolean, null or text."""

from __future__ import annotations

import re

Scalar = str | int | float | bool | None
_MAX_DIGITS = 300
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def plain_scalar(text: str) -> Scalar:
    """What a word without quotes means in YAML 1.2's core schema.

    Raises:
        ValueError: It is a number out of all bounds, as the message says.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    integer = _INTEGER.fullmatch(text)
    if not (integer or _FLOAT.fullmatch(text)):
        return text
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits; put it in quotes if it is a word")
    if integer:
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    if abs(number := float(text)) == float("inf"):
        raise ValueError(f"{text} is larger than any float; write .inf for infinity")
    return number
