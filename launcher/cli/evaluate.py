"""`launcher evaluate` and `launcher predict`: what was saved, at work."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.arguments import RUN_NAMES, positive, say_own_code, work_in
from launcher.errors import EXIT_DONE, UsageError
from launcher.world.loading import loading

if TYPE_CHECKING:
    from launcher.checkpoints.saved_run import Saved
    from launcher.cli.arguments import Commands
    from launcher.world.world import World


def add(commands: Commands) -> None:
    """Says the commands' flags."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure what was saved",
        description="Measure saved weights on the recipe's sets, as training did.",
    )
    _add_saved(evaluate)
    evaluate.add_argument("--split", metavar="SET", help="validation, test, or a set's name (default: all there are)")
    evaluate.add_argument("--ranks", choices=("first", "all"), help="who evaluates, with several processes")
    evaluate.add_argument("--processes", type=positive, metavar="N", help="how many processes (default: 1)")
    evaluate.add_argument("--json", action="store_true", help="one JSON object for each set, as in metrics.jsonl")
    evaluate.add_argument("--predictions", metavar="FILE", help="write each sample's prediction there, as Parquet")
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
        "--to", metavar="FILE", help=".csv, .jsonl or .parquet; - for standard output (default: outputs.jsonl; - for -)"
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
    command.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")


def _found(options: argparse.Namespace, overrides: Sequence[str] = (), quiet: bool = False) -> Saved:
    from dataclasses import replace

    from launcher.world.world import is_spokesman

    with loading():
        from launcher.checkpoints.saved_run import find_saved
    from launcher.runs.naming import saved_place

    saved = find_saved(saved_place(options.path), options.recipe, [*options.overrides, *overrides], options.remove)
    work_in(saved.directory)
    if is_spokesman():
        say_own_code(saved.recipe, output="json" if quiet or getattr(options, "json", False) else "auto")
    return replace(saved, allow=(*saved.allow, *options.allow))


def _evaluate(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from launcher.launch.postmortem import watched
    from launcher.launch.supervisor import Supervisor, choose_processes
    from launcher.world.temporary import temporary_folder
    from launcher.world.world import World

    world, again = World.from_environ(), shlex.join(["launcher", *arguments])
    if not world.is_launched and (options.processes or 1) > 1:
        processes = choose_processes(options.processes, options.cpu or world.wants_cpu)
        with temporary_folder() as folder:  # for what the ranks say of themselves
            return Supervisor(processes, options.cpu, "auto", folder, again).run("launcher", *arguments)
    with watched(world, again):
        return _evaluate_here(options, world)
    raise AssertionError


def _evaluate_here(options: argparse.Namespace, world: World) -> int:
    predictions = Path(options.predictions).absolute() if options.predictions else None
    ranks = options.ranks or ("all" if world.size > 1 else None)
    saved = _found(options, [f"evaluate.ranks={ranks}"] if ranks else [])
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


def _predict(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.world.temporary import temporary_folder

    named, directory = _taken_path(options), Path.cwd()
    is_piped = named == "-"
    to = options.to or ("-" if is_piped else "outputs.jsonl")
    target = Path(to) if to == "-" else Path(to).absolute()  # before this becomes a command of the run's directory
    with temporary_folder() as folder:
        data = _standard_input(folder) if is_piped else None if named is None else Path(named).absolute()
        saved = _found(options, quiet=to == "-")
        from launcher.evaluation.offline import predict

        count, unreadable = predict(saved, options.split, target, data=data, directory=directory, cpu=options.cpu)
    skipped = f"; {unreadable:,} pictures cannot be read and are skipped" if unreadable else ""
    name = "standard output" if to == "-" else target
    print(f"{name}: {count:,} outputs of {saved.label}{skipped}", file=sys.stderr if to == "-" else sys.stdout)
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


def _standard_input(folder: Path) -> Path:
    """What is read there, as a file."""
    path = folder / "standard-input.jsonl"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path
