"""What is a secret by its shape, and texts without: loads nothing, as the process that copies output uses it too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Each begins where no letter of its own stands before it, and is bounded where it could be tried again and again: a
# line of a megabyte is looked through in one go.
_SHAPES = {
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{20,}",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a token of GitLab": r"\bglpat-[A-Za-z0-9_-]{16,}",
    "a key of OpenAI or Anthropic": r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{20,}",
    "a key of Weights & Biases": r"\bwandb_v1_[A-Za-z0-9_]{20,}",
    "a key of AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google": r"(?<![A-Za-z0-9_-])(?:AIza[0-9A-Za-z_-]{30,}|ya29\.[0-9A-Za-z_-]{20,})",
    "a token of Slack": r"(?<![0-9A-Za-z-])xox[abeoprs]-[0-9A-Za-z-]{10,}",
    "a key of Stripe": r"\b[rs]k_live_[0-9A-Za-z]{16,}",
    "a key of Azure": r"\bAccountKey=[A-Za-z0-9+/]{40,}",
    "a token of a package index": r"\b(?:pypi-[A-Za-z0-9_-]{30,}|npm_[A-Za-z0-9]{30,})",
    "a private key": r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY",
    "a JSON web token": r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
    "a bearer's token": r"(?i:\bbearer )(?=[A-Za-z._~+/=-]{0,200}[0-9])[A-Za-z0-9._~+/=-]{16,}",
    "a signed address": (
        r"(?<=[?&])(?:X-(?:Amz|Goog)-(?:Signature|Security-Token)|Signature|sig|(?:access_|auth_)?token)=[^\s&'\"<>]{16,}"
    ),
    "an address with a password": (
        r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s/:@'\"]{0,200}:[^\s/@'\"$]{1,200}@"
    ),
}
_SHAPE = re.compile("|".join(f"(?P<shape{number}>{shape})" for number, shape in enumerate(_SHAPES.values())))
_MARKS = re.compile(  # a quick look for what all of them hold: most lines have nothing of it
    "hf_|gh[pousr]_|github_pat_|glpat-|sk-|wandb_v1_|AKIA|ASIA|AIza|ya29|xox|k_live_|AccountKey=|pypi-|npm_|PRIVATE KEY"
    "|eyJ|://|[Bb]earer |BEARER |Signature=|Token=|sig=|token="
)
_WHOLE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)")


def shape_in(text: str) -> tuple[int, str] | None:
    """Where in a text something of a secret's shape begins, and what it is; None where nothing is."""
    match = _SHAPE.search(text)
    if match is None:
        return None
    names = list(_SHAPES)
    return match.start(), names[int(str(match.lastgroup).removeprefix("shape"))]


def masked(text: str) -> str:
    """A text with what has a secret's shape in it made unreadable; in a time that grows with its length alone."""
    if _MARKS.search(text) is None:
        return text
    return _SHAPE.sub(_mask, _WHOLE_KEY.sub("-----BEGIN PRIVATE KEY----- ***", text))


def _mask(match: re.Match[str]) -> str:
    secret = match[0]
    if "://" in secret:
        return f"{secret.partition('://')[0]}://***@"
    if secret.startswith("-----"):
        return secret
    name = re.match(r"[A-Za-z_-]+=|(?i:bearer )", secret)
    return f"{name[0] if name else secret[:3]}***"


def masked_in(value: Any) -> Any:
    """The same list, mapping or text, with all texts in it `masked`."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: masked_in(inner) for key, inner in value.items()}
    return [masked_in(inner) for inner in value] if isinstance(value, list | tuple) else value
