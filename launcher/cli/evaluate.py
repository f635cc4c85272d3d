"""`launcher evaluate` and `launcher predict`: what was saved, at work."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.arguments import RUN_NAMES
from launcher.cli.saved import add_saved_processes, found, in_processes
from launcher.errors import EXIT_DONE, UsageError
from launcher.text import counted

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands
    from launcher.world.world import World

_PIPED = "standard-input.jsonl"  # as `launcher.datasets.unlabelled` calls it, which imports torch


def add(commands: Commands) -> None:
    """Says the commands' flags."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure what was saved",
        description="Measure saved weights on the recipe's sets, as training did.",
    )
    _add_saved(evaluate)
    evaluate.add_argument(
        "--split", metavar="SET", help="validation, test, a set's name, or train (default: all but train)"
    )
    evaluate.add_argument("--ranks", choices=("first", "all"), help="who evaluates, with several processes")
    evaluate.add_argument("--json", action="store_true", help="one JSON object for each set, as in metrics.jsonl")
    evaluate.add_argument(
        "--predictions", metavar="FILE", help="write each sample's prediction there: .parquet, .csv or .jsonl"
    )
    evaluate.set_defaults(command=_evaluate)
    predict = commands.add_parser(
        "predict",
        help="outputs for new inputs",
        description="Write a saved model's output for new inputs, in order: a folder of pictures, a table without its "
        "target, the lines of a text, JSON lines, a file or folder that the recipe's own data set reads. Without PATH: "
        "for the recipe's test set, with its arguments changed, as in data.test.split=all, or another of its sets.",
    )
    _add_saved(
        predict, "[PATH] [KEY=VALUE …]", "what to read, - for JSON lines on standard input; changes to the recipe"
    )
    predict.add_argument(
        "--data",
        dest="split",
        metavar="SET",
        help="the set, or whose way of reading is meant: validation, test, a name",
    )
    predict.add_argument(
        "--to",
        metavar="FILE",
        help=".csv, .jsonl or .parquet, replaced if it exists; - for standard output (default: outputs.jsonl in the "
        "working directory; - for -)",
    )
    predict.set_defaults(command=_predict)


def _add_saved(
    command: argparse.ArgumentParser, words: str = "KEY=VALUE", about_words: str = "changes to the recipe"
) -> None:
    command.add_argument(
        "path", metavar="RUN|CHECKPOINT|WEIGHTS", help=f"a checkpoint, a .pth file, or a run: {RUN_NAMES}"
    )
    command.add_argument("overrides", nargs="*", default=[], metavar=words, help=about_words)
    command.add_argument("--recipe", metavar="FILE", help="in place of the run's; for a file outside of a run")
    command.add_argument("--remove", action="append", default=[], metavar="KEY", help="take a key out of the recipe")
    command.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE", help="a further package that the recipe may name"
    )
    add_saved_processes(command)


def _evaluate(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    return in_processes(options, arguments, partial(_evaluate_here, options))


def _evaluate_here(options: argparse.Namespace, world: World) -> int:
    predictions = Path(options.predictions).absolute() if options.predictions else None
    ranks = options.ranks or ("all" if world.size > 1 else None)
    saved = found(options, world, [f"evaluate.ranks={ranks}"] if ranks else [], quiet=options.json)
    from launcher.evaluation.offline import evaluate_saved

    lines = evaluate_saved(saved, world, options.split, predictions, cpu=options.cpu)
    if not world.is_first:
        return EXIT_DONE
    if options.json:
        from launcher.runs.metrics import encode

        for line in lines:
            print(encode(line))
        return EXIT_DONE
    from launcher.runs.tracking.console import tables

    print(f"{saved.label} of {saved.recipe.name}\n")
    print(tables(lines))
    if predictions is not None:
        print(f"predictions in {predictions}")
    return EXIT_DONE


def _predict(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    named = _taken_path(options)
    work = partial(_predict_here, options, named)
    return in_processes(options, arguments, work, _read_standard_input if named == "-" else lambda folder: None)


def _predict_here(options: argparse.Namespace, named: str | None, world: World) -> int:
    from launcher.world.temporary import temporary_folder

    directory, is_piped = Path.cwd(), named == "-"
    to = options.to or ("-" if is_piped else "outputs.jsonl")
    target = Path(to) if to == "-" else Path(to).absolute()  # before this becomes a command of the run's directory
    with temporary_folder() as folder:
        data = _piped(world, folder) if is_piped else None if named is None else Path(named).absolute()
        saved = found(options, world, quiet=to == "-")
        from launcher.evaluation.predict import predict

        count, unreadable = predict(
            saved, options.split, target, world, data=data, directory=directory, cpu=options.cpu
        )
    if not world.is_first:
        return EXIT_DONE
    for picture in unreadable:
        print(f"skipped: {picture}", file=sys.stderr)
    skipped = f"; skipped: {counted(len(unreadable), 'picture')}" if unreadable else ""
    name = "standard output" if to == "-" else target
    print(f"{name}: {counted(count, 'output')} of {saved.label}{skipped}", file=sys.stderr if to == "-" else sys.stdout)
    return EXIT_DONE


def _taken_path(options: argparse.Namespace) -> str | None:
    """The path among the words behind the run, taken out of the changes.

    Raises:
        UsageError: There are several.
    """
    words: list[str] = options.overrides
    paths = [word for word in words if word == "-" or "=" not in word or Path(word).exists()]
    if len(paths) > 1:
        raise UsageError(f"{paths[0]}, {paths[1]}: one path at a time; put files into one folder")
    options.overrides = [word for word in words if word not in paths]
    return paths[0] if paths else None


def _read_standard_input(folder: Path) -> None:
    """Puts what is read there into a folder."""
    with (folder / _PIPED).open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)


def _piped(world: World, folder: Path) -> Path:
    """Standard input as a file: read here by the only process, else by the one that started all.

    Raises:
        UsageError: Somebody else has started several, or they are on several machines.
    """
    if world.size == 1:
        _read_standard_input(folder)
        return folder / _PIPED
    if world.supervisor is None or world.run_dir is None or world.nodes > 1:
        raise UsageError("-: standard input is one process's, on one machine; put the lines into a file and name it")
    return Path(world.run_dir) / _PIPED
