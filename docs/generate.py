"""The parts of the reference that the program itself knows: recipe keys from the schema, commands from the parsers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence

from launcher.cli.arguments import Parser
from launcher.cli.main import GROUPS, parser
from launcher.recipe.keys import KeyText, all_keys
from launcher.recipe.language import shipped_components


def recipe_keys() -> str:
    """Every key of a recipe, by section."""
    keys = list(all_keys().values())
    return "\n".join(line for entry in keys if "." not in entry.key for line in _section(entry, keys))


def _section(section: KeyText, keys: Sequence[KeyText]) -> Iterator[str]:
    yield from (f"## {section.key}", "", section.text, "")
    if section.kind != "section":
        yield from _facts(section)
    for entry in keys:
        if entry.key.startswith(f"{section.key}."):
            yield from (f"### {entry.key}", "", entry.text, "")
            if entry.kind != "section":
                yield from _facts(entry)


def _facts(entry: KeyText) -> Iterator[str]:
    """What is allowed, the default, and an example that can be pasted into a recipe."""
    yield f"Allowed: {entry.kind}. " + ("Required." if entry.is_required else f"Default: `{entry.default}`.")
    yield from ("", "```yaml", entry.as_yaml, "```", "")


def commands() -> str:
    """Every command with its arguments, in the groups of `launcher --help`."""
    parsers = parser().parsers
    lines: list[str] = []
    for title, names in GROUPS.items():
        lines += [f"## {title[0].upper()}{title[1:]}", ""]
        lines += [line for name in names for line in _command(name, parsers[name])]
    return "\n".join(lines)


def _command(name: str, command: Parser) -> Iterator[str]:
    command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    yield from (f"### launcher {name}", "", command.description or "", "", "```text", command.format_usage().strip())
    yield from ("```", "")
    shown = [
        action
        for action in command.arguments()
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
    ]
    if shown:
        yield from ("| argument | what it does |", "|---|---|")
        yield from (f"| {_spelling(action)} | {_cell(action)} |" for action in shown)
        yield ""


def _spelling(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar or (action.dest or '').upper()}"
    if action.choices is not None and not action.metavar:
        value = f" {'|'.join(map(str, action.choices))}"
    names = [f"{flag}{value}" for flag in action.option_strings] or [value.strip()]
    return ", ".join(f"`{name}`".replace("|", r"\|") for name in names)


def _cell(action: argparse.Action) -> str:
    return ((action.help or "") % {**vars(action), "prog": "launcher"}).replace("|", r"\|")


def shipped() -> str:
    """Data sets, models and recipes that come with the package."""
    lines: list[str] = []
    for title, entries in shipped_components().items():
        lines += [f"## {title}", "", *(f"- {entry}" for entry in entries), ""]
    return "\n".join(lines)


MARKS: Mapping[str, Callable[[], str]] = {
    "<!-- generated: recipe keys -->": recipe_keys,
    "<!-- generated: commands -->": commands,
    "<!-- generated: shipped -->": shipped,
}
