"""`launcher sweep`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.arguments import TopParser, add_recipe, positive, say_own_code, work_in
from launcher.errors import EXIT_DONE, EXIT_PREEMPTED, UsageError
from launcher.sweep.states import FORMATS, METHODS

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands
    from launcher.recipe.schema import Recipe
    from launcher.sweep.begin import Asked
    from launcher.sweep.record import Record
    from launcher.sweep.slots import Slot
    from launcher.sweep.space import Space
    from launcher.sweep.starter import Starter


def add(commands: Commands) -> None:
    """Says the command's flags."""
    sweep = commands.add_parser(
        "sweep",
        help="train a recipe with many values, and find the best",
        description="Train a recipe with many values of some keys: alternatives with commas (model.width=8,32), ranges "
        "(optimizer.lr=1e-4..1e-2:log), repeats (seed=0..4). With a sweep's folder in place of RECIPE it is resumed.",
    )
    add_recipe(sweep)
    sweep.add_argument("--trials", type=positive, metavar="N", help="how many runs, those of all seeds counted")
    sweep.add_argument("--metric", metavar="M", help="what is compared, as in validation/accuracy:max")
    sweep.add_argument("--method", choices=METHODS, help="how values are chosen (sweep.method)")
    sweep.add_argument(
        "--parallel", type=_parallel, metavar="auto|N", help="trials at a time (default: as the GPUs suffice for)"
    )
    sweep.add_argument("--processes-per-run", type=positive, metavar="P", help="processes of each trial (default: 1)")
    sweep.add_argument("--run-dir", metavar="DIR", help="the sweep's folder (default: runs/NAME-sweep/DATE)")
    sweep.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    sweep.add_argument(
        "--lag",
        type=_whole,
        metavar="L",
        help="proposals wait for the results of all trials but the L before them (default: two a slot); 0: for none, "
        "and the sweep depends on timing",
    )
    sweep.add_argument("--budget", metavar="TIME", help="training that all trials together may take, as in '12 hours'")
    sweep.add_argument("--keep", choices=("best", "all"), help="whose weights stay: the best trial's (default), or all")
    sweep.add_argument("--seed", type=_whole, metavar="S", help="the proposals follow from it (default: 0)")
    sweep.add_argument("--join", action="store_true", help="take part in a sweep that others work on too")
    result = sweep.add_mutually_exclusive_group()
    result.add_argument(
        "--best", action="store_true", help="of a sweep's folder: print the best point as a recipe, and end"
    )
    result.add_argument(
        "--table", choices=FORMATS, metavar="FORM", help="of a sweep's folder: print all trials as csv, parquet or json"
    )
    sweep.add_argument(
        "--whole",
        action="store_true",
        help="with --best: all that the recipe says, not its base and what differs",
    )
    sweep.add_argument("--quiet", action="store_true", help="a line a result in place of the table")
    sweep.set_defaults(command=_sweep, listens=True)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


def _parallel(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def _sweep(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from launcher.world.signals import release

    release()  # nothing has begun that would have to be saved
    if options.whole and not options.best:
        raise UsageError("--whole: says how --best writes a recipe, and nothing else")
    folder = _folder_of(options)
    if options.best or options.table:
        if folder is None:
            raise UsageError(
                f"{options.recipe}: is not a sweep's folder; --best and --table are of a sweep that there is"
            )
        return _result(folder, options)
    from launcher.sweep.starter import Starter

    with closing(Starter(options.processes_per_run in (None, 1))) as starter:
        return _begin(options, starter) if folder is None else _go_on(folder.absolute(), options, starter)


def _begin(options: argparse.Namespace, starter: Starter) -> int:
    """Makes a sweep, or resumes the one that lies where it would."""
    from launcher.world.loading import loading

    with loading():
        from launcher.sweep.begin import opened, sought
        from launcher.sweep.plan import questions

        new = sought(asked_for(options))
    say_own_code(new.recipe)
    for question in questions(new.space, new.recipe):
        print(f"{'question':<12} {question}", flush=True)
    record = opened(new)
    if not record.trials:
        print(f"{'disk':<12} {new.room.line(record.folder)}")
    return _work(record, new.space, new.recipe, new.slots, options, starter)


def _folder_of(options: argparse.Namespace) -> Path | None:
    """The folder of the sweep that is named in a recipe's place; None of a recipe."""
    from launcher.runs.naming import is_sweep, sweep_called

    path = Path(options.recipe).expanduser()
    if is_sweep(path):
        return path
    return (
        None
        if path.is_file() or path.suffix in (".yaml", ".yml") or options.overrides
        else sweep_called(options.recipe)
    )


def _result(place: Path, options: argparse.Namespace) -> int:
    """Prints what came of a sweep."""
    import sys

    from launcher.sweep.best import best_recipe, table, where_to_save
    from launcher.sweep.record import Record
    from launcher.sweep.space import space_of

    record = Record(place)
    space = space_of(record.settings)
    if options.best:
        folder = _folder_of_output()
        text = best_recipe(record, space, folder, whole=options.whole)
        if note := where_to_save(text, record.settings, folder):
            print(f"{'note':<12} {note}", file=sys.stderr)
        content = text.encode()
    else:
        content = table(record, space, options.table)
    sys.stdout.buffer.write(content)
    return EXIT_DONE


def _folder_of_output() -> Path | None:
    """The folder of the file that standard output goes to; None where it goes to none, or nobody can tell."""
    import os
    import stat

    try:
        is_file = stat.S_ISREG(os.fstat(1).st_mode)
        return Path(os.readlink("/proc/self/fd/1")).parent if is_file else None
    except OSError:
        return None


def asked_for(options: argparse.Namespace) -> Asked:
    """What the flags say."""
    from launcher.sweep.begin import Asked

    return Asked(
        recipe=options.recipe,
        words=tuple(options.overrides),
        remove=tuple(options.remove),
        allow=tuple(options.allow),
        run_dir=options.run_dir,
        trials=options.trials,
        metric=options.metric,
        parallel=options.parallel,
        processes=options.processes_per_run,
        method=options.method,
        lag=options.lag,
        budget=options.budget,
        keep=options.keep,
        seed=options.seed,
        cpu=options.cpu,
        join=options.join,
    )


@dataclass(frozen=True)
class Machines:
    """Where an array of participants will run.

    Attributes:
        nodes: How many machines, a participant each.
        gpus: Of each.
        cpus: Of each GPU, or of each machine where there are none.
    """

    nodes: int
    gpus: int
    cpus: int

    def slots(self, parallel: int | None, processes: int) -> int:
        """Trials at a time on one machine."""
        return parallel or max(1, self.gpus // processes)

    def threads(self, parallel: int | None, processes: int) -> int:
        """CPU threads of a trial's process."""
        return max(1, max(1, self.gpus) * self.cpus // (self.slots(parallel, processes) * processes))


def begun(words: Sequence[str], machines: Machines, root: Path, *, dry: bool = False) -> tuple[Path, int | None]:
    """The folder of a sweep that other processes will work on: made, or found; and how many trials each is to run.

    Args:
        words: What `launcher sweep` would be given.
        machines: Where they will run.
        root: Where runs lie.
        dry: Whether to check all, and write nothing.
    """
    from launcher.sweep.begin import opened, sought
    from launcher.sweep.slots import Slot

    top = TopParser(prog="launcher submit …")
    add(top.commands())
    options = top.parse_args(["sweep", *words])
    if (folder := _folder_of(options)) is not None:
        return folder.absolute(), options.parallel
    asked, processes = asked_for(options), options.processes_per_run or 1
    number = machines.nodes * machines.slots(options.parallel, processes)
    new = sought(asked, [Slot(place) for place in range(number)], machines.threads(options.parallel, processes))
    if dry:
        return Path(options.run_dir or "SWEEP").absolute(), options.parallel
    return opened(new, root).folder, options.parallel


_OF_THE_START = ("method", "metric", "processes_per_run", "run_dir", "lag", "keep", "seed", "overrides", "remove")


def _go_on(folder: Path, options: argparse.Namespace, starter: Starter) -> int:
    """Resumes the sweep of a folder, where it was started.

    Raises:
        UsageError: Something is said that was settled at its start.
    """
    from launcher.sweep.begin import check_settled, grow
    from launcher.sweep.plan import check_same_recipe, sources_of
    from launcher.sweep.record import Record
    from launcher.sweep.slots import slots_here
    from launcher.sweep.space import space_of

    if stated := [name for name in _OF_THE_START if getattr(options, name) not in (None, [])]:
        flag = f"--{stated[0].replace('_', '-')}" if stated[0] != "overrides" else options.overrides[0]
        raise UsageError(f"{options.recipe}: {flag}: this sweep was begun already and continues as it was; omit it")
    record, asked = Record(folder), asked_for(options)
    check_settled(record, asked)
    settings = record.settings
    work_in(settings.directory)
    space = space_of(settings)
    recipe = sources_of(settings).read(space.fixed)
    check_same_recipe(settings, recipe)
    grow(record, asked, recipe, space)
    slots = slots_here(options.parallel, settings.processes, settings.cpu)
    return _work(record, space, recipe, slots, options, starter)


def _work(
    record: Record,
    space: Space,
    recipe: Recipe,
    slots: Sequence[Slot],
    options: argparse.Namespace,
    starter: Starter,
) -> int:
    """Works the sweep off, and says how it ended."""
    from launcher.sweep.screen import Screen
    from launcher.sweep.slots import described
    from launcher.sweep.view import counted_up
    from launcher.sweep.work import work_off

    folder = _shown(record.folder)
    where = described(slots, record.settings.processes)
    print(f"{'sweep':<12} {counted_up(record)}; {where}; {folder}")
    print(f"{'metric':<12} {record.settings.metric}")
    with Screen(record, space, options.quiet) as screen:
        outcome = work_off(record, space, recipe, slots, starter, join=options.join, say=screen.say, show=screen.show)
        screen.show(record)
    for line in _about_best(record, folder):
        print(line)
    if outcome == "stopped":
        print(f"stopped, all saved; `launcher sweep {folder}` resumes it")
        return EXIT_PREEMPTED
    if outcome == "spent":
        print(f"the budget is spent; `launcher sweep {folder} --budget TIME`, with more than before, continues it")
    return EXIT_DONE


def _about_best(record: Record, folder: str) -> list[str]:
    """The head of the ranking, and where the rest is; nothing where there is no result yet."""
    from launcher.sweep.ranking import leader, ranked, verdict
    from launcher.sweep.view import heads

    entries = ranked(record)
    if leader(entries) is None:
        return []
    commands = [
        f"{'ranking':<12} launcher runs {folder}",
        f"{'page':<12} launcher report {folder}",
        f"{'best recipe':<12} launcher sweep {folder} --best",
    ]
    return [line for line in (*heads(record, entries)[1:], verdict(entries), *commands) if line]


def _shown(folder: Path) -> str:
    from launcher.recipe.directory import shortest

    return shortest(folder)
