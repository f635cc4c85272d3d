"""`launcher completion`, and what a shell asks at each TAB: commands, flags, runs, recipes, keys and their values."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import EXIT_DONE, LauncherError

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands, TopParser

SHELLS = {
    "bash": 'eval "$(launcher completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(launcher completion zsh)"     # in ~/.zshrc, behind compinit',
    "fish": "launcher completion fish | source    # in ~/.config/fish/config.fish",
}
_WEIGHTS = (".pth", ".safetensors", ".safetensors.index.json")
_MOST_KEYS = 2000  # of a recipe, whatever its aliases make of it
_ASKED = "_ARGCOMPLETE"  # argcomplete's own


def add(commands: Commands) -> None:
    """Says the command's flags."""
    lines = "\n".join(f"  {line}" for line in SHELLS.values())
    completion = commands.add_parser(
        "completion",
        help="TAB completes commands, runs, recipes and keys",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Print what makes a shell complete the words of launcher. Write the line of your shell:\n{lines}",
    )
    completion.add_argument("shell", choices=tuple(SHELLS), help="which shell")
    completion.set_defaults(command=_completion)


def _completion(options: argparse.Namespace, _: Sequence[str]) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["launcher"], shell=options.shell))
    return EXIT_DONE


def is_asked() -> bool:
    """Whether a shell asks what may follow, and nothing is to be done."""
    return _ASKED in os.environ


def answer(parser: TopParser) -> None:
    """Tells the shell what is allowed at the cursor, and ends the process."""
    import argcomplete

    excluded = ["--help", *know(parser)]
    argcomplete.autocomplete(parser, always_complete_options="long", exclude=excluded)


def know(parser: TopParser) -> list[str]:
    """Gives each argument what knows its words.

    Returns:
        The commands that nobody types.
    """
    for name, command in parser.parsers.items():
        for action in command.arguments():
            if (completer := _completer(name, action)) is not None:
                action.completer = completer  # type: ignore[attr-defined]  # argcomplete's way
    shown = [name for group in parser.groups.values() for name in group]
    return [name for name in parser.parsers if name not in shown]


Completer = Callable[..., Iterable[str]]


def _completer(command: str, action: argparse.Action) -> Completer | None:
    """What knows the words of an argument; None leaves it to the shell, which knows files."""
    special: dict[tuple[str, str], Completer] = {("copy", "name"): _shipped, ("predict", "overrides"): _predicted}
    if (command, action.dest) in special:
        return special[command, action.dest]
    words: dict[str, Completer] = dict.fromkeys(("recipe", "base", "diff"), _recipes) | dict.fromkeys(
        ("run", "runs", "path"), _runs
    )
    words |= {"overrides": _changes, "remove": _keys, "allow_changes": _keys, "key": _known_keys, "words": _of_table}
    is_run = action.dest == "run_dir" and not action.option_strings
    return _runs if is_run else words.get(action.dest)


def _shipped(**_: Any) -> list[str]:
    from launcher.recipe.shipped import shipped

    return list(shipped())


def _recipes(prefix: str, **_: Any) -> list[str]:
    return [*_shipped(), *_files(prefix, (".yaml", ".yml"))]


def _runs(prefix: str, **_: Any) -> list[str]:
    from launcher.runs.naming import LATEST, runs

    with suppress(LauncherError, OSError):
        known = runs()
        names = [LATEST] if known else []
        folders = [os.path.normpath(run.folder) for run in known]
        return [*names, *dict.fromkeys(run.name for run in known), *folders, *_files(prefix, _WEIGHTS)]
    return _files(prefix, ())


def _of_table(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Of `launcher runs`: `best` and a metric, or some runs."""
    words: Sequence[str] = parsed_args.words or ()
    if words[:1] == ["best"]:
        return _metrics()
    return ["best", *_runs(prefix)]


def _metrics() -> list[str]:
    from launcher.runs.naming import runs

    scores = [run.best for run in runs()[:20]]
    return ["loss", *dict.fromkeys(score.metric for score in scores if score is not None)]


def _files(prefix: str, suffixes: tuple[str, ...]) -> list[str]:
    """Folders and files of these kinds that begin so."""
    folder, _, _ = prefix.rpartition("/")
    paths = []
    with suppress(OSError):
        for entry in os.scandir(folder or ("/" if prefix.startswith("/") else ".")):
            path = os.path.join(folder, entry.name) if folder or prefix.startswith("/") else entry.name
            path = f"/{path.lstrip('/')}" if prefix.startswith("/") else path
            if entry.is_dir() and not entry.name.startswith("."):
                paths.append(f"{path}/")
            elif entry.name.endswith(suffixes or ("",)):
                paths.append(path)
    return paths


def _known_keys(**_: Any) -> list[str]:
    from launcher.recipe.keys import all_keys

    return list(all_keys())


def _keys(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The keys of the schema, and those that the recipe on the line adds, as `model.width`."""
    return list(dict.fromkeys([*_own_keys(parsed_args), *_known_keys()]))


def _changes(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """`KEY=`, and behind that its values, where they can be told."""
    key, equals, _value = prefix.partition("=")
    if equals:
        return [f"{key}={value}" for value in _values(key, _own_keys(parsed_args))]
    from launcher.recipe.keys import all_keys

    keys = _keys(parsed_args)
    inner = {key.rpartition(".")[0] for key in keys} | {key for key, entry in all_keys().items() if not entry.example}
    return [f"{key}=" for key in keys if key not in inner]


def _predicted(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """What is read for predictions, and changes."""
    return [*_files(prefix, ()), *_changes(prefix, parsed_args)]


def _values(key: str, own: Mapping[str, Any]) -> list[str]:
    """What may be written for a key: the words of the schema, its example, and what the recipe says."""
    from launcher.recipe.keys import all_keys

    said = own.get(key)
    written = [] if said is None or isinstance(said, dict | list) else [_as_yaml(said)]
    entry = all_keys().get(key)
    if entry is None:
        return [*written, "true", "false"] if isinstance(said, bool) else written
    kinds = [kind for kind in entry.kind.split(" or ") if " " not in kind]
    values = ["true", "false"] if entry.kind.startswith("true") else kinds
    simple = [entry.example] if entry.example and not set(entry.example) & set(" {[") else []
    return list(dict.fromkeys([*values, *simple, *written]))


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _own_keys(options: argparse.Namespace) -> dict[str, Any]:
    """The keys and values of the recipe that the line names, dotted; none where it cannot be read."""
    import yaml

    with suppress(LauncherError, OSError, ValueError, RecursionError, yaml.YAMLError):
        read = yaml.safe_load(_recipe_file(options).read_text(encoding="utf-8"))
        keys = islice(_flat(read), _MOST_KEYS) if isinstance(read, dict) else ()  # one may hold itself, a million times
        return {key: value for key, value in keys if not key.endswith("_target_")}
    return {}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """What stands in mappings at any depth, by its dotted key; a list is one value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _recipe_file(options: argparse.Namespace) -> Path:
    from launcher.recipe.shipped import folder
    from launcher.sweep.naming import saved_place

    if (recipe := getattr(options, "recipe", None)) is not None:
        path = Path(recipe)
        known = (path, path.with_suffix(".yaml"), folder() / f"{recipe}.yaml", folder() / recipe / "recipe.yaml")
        return next((file for file in known if file.is_file()), path)
    run = saved_place(getattr(options, "path", None) or getattr(options, "run_dir", None) or "")
    return (run if run.is_dir() else run.parent) / "resolved.yaml"
