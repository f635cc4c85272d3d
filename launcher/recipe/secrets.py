"""Passwords and tokens have no place in a recipe, which is copied into every run's folder; they are never echoed.

What others print or raise is copied too, into logs, events, `failure.json` and reports: there they are `masked`.

They are known by their key (`password`, `api_key`, `token` as the whole key; `pad_token` is none), or by their
shape, which services make recognisable on purpose.
"""

from __future__ import annotations

import re

from launcher.recipe.masking import shape_in
from launcher.recipe.places import Key, Path, Problems
from launcher.recipe.tree import Node

_NAMES = (
    r"pass(word|wd|phrase|code)|pwd|secrets?|token|bearer|authorization|credentials?"
    r"|(\w+_)?(api|access|secret|private|encryption|signing)_?key|(\w+_)?(password|client_secret)"
    r"|(\w+_)?(access|auth|api|refresh|session|bearer|hf|hub|github|gitlab|wandb)_?token"
)
_KEY = re.compile(_NAMES, re.IGNORECASE)
_KEY_IN_TEXT = re.compile(rf"(?<!\w)({_NAMES})[\"']?\s*[:=]", re.IGNORECASE)
ADVICE = "a recipe is copied into every run's folder; set it in the environment, where its library looks for it"


def is_secret_key(key: Key) -> bool:
    """Whether a key holds a secret by its name."""
    return isinstance(key, str) and _KEY.fullmatch(key.replace("-", "_")) is not None


def holds_secret(text: str) -> bool:
    """Whether a text that was typed must not be repeated in a message."""
    return shape_in(text) is not None or _KEY_IN_TEXT.search(text.replace("-", "_")) is not None


def without_secrets(node: Node, at: Path, problems: Problems) -> Node:
    """A value with its secrets blanked, each noted as a problem.

    Args:
        node: As it was read.
        at: Its path.
        problems: Receives a line for each, without its value.
    """
    if at and is_secret_key(at[-1]) and not node.states_component() and _says_something(node):
        problems.add(node.origin, at, f"looks like a secret by its name; {ADVICE}")
        return Node(None, node.origin, node.folder, node.key)
    if isinstance(node.value, str) and (secret := shape_in(node.value)):
        problems.add(node.origin, at, f"looks like {secret[1]}; {ADVICE}")
        return Node(None, node.origin, node.folder, node.key)
    return node.with_items([(key, without_secrets(child, (*at, key), problems)) for key, child in node.items()])


def _says_something(node: Node) -> bool:
    """Whether there are words or numbers in a value: neither null, true nor false, nor empty."""
    value = node.value
    has_content = isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
    return has_content or any(_says_something(child) for _, child in node.items())
