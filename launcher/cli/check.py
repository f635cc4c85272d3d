"""`launcher check`."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launcher.cli.arguments import add_recipe, positive, read_recipe, say_own_code, tasks_of
from launcher.errors import EXIT_DONE, LauncherError, Problem, RecipeError, UsageError
from launcher.text import brief, printable
from launcher.world.loading import loading

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands
    from launcher.recipe.build import Builder
    from launcher.recipe.schema import Recipe
    from launcher.world.world import World


def add(commands: Commands) -> None:
    """Says the command's flags."""
    check = commands.add_parser(
        "check",
        help="find what is wrong with a recipe, before any GPU is used",
        description="Read a recipe, import what it names, and rehearse a step on two samples on the CPU: forward, "
        "loss, backward, optimizer, evaluation and a checkpoint, with --gpu on a GPU. Prints the plan for the "
        "processes asked for, which are arithmetic here. Writes nothing into the working directory.",
    )
    add_recipe(check, required=False)
    check.add_argument("--processes", type=positive, metavar="N", help="the world size that the plan is for")
    check.add_argument("--nodes", type=positive, default=None, metavar="M", help="over how many machines")
    check.add_argument(
        "--gpu",
        nargs="?",
        const=True,
        default=False,
        metavar="SIZE",
        help="rehearse on this machine's GPU: for models whose kernels do not run on a CPU; with --memory, what each "
        "GPU has, as in 80GB",
    )
    check.add_argument("--cpu", action="store_true", help="rehearse on the CPU, as it does without --gpu")
    check.add_argument(
        "--memory",
        action="store_true",
        help="in place of the rehearsal: what a step holds on each process, traced without memory and without a GPU, "
        "and what would make it fit --gpu SIZE",
    )
    stop = check.add_mutually_exclusive_group()
    stop.add_argument("--fast", action="store_true", help="stop after reading: nothing is imported, in half a second")
    stop.add_argument("--components", action="store_true", help="stop after importing what the recipe names")
    check.add_argument(
        "--array-file", metavar="FILE", help="with --fast or --components: as each line of FILE changes it, see submit"
    )
    check.add_argument("--allowed", action="store_true", help="list what a recipe may name, and end")
    check.set_defaults(command=_check)


def _check(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if options.allowed:
        return _allowed()
    _settle_gpu(options)
    if options.recipe is None:
        raise UsageError("launcher check: name a recipe, as in launcher check recipe.yaml; see launcher check --help")
    if options.array_file is not None:
        return _check_each(options, arguments)
    with _failing("reading"):
        recipe = read_recipe(options)
        world = _world(options, recipe)
    _say("reading", f"{len(recipe.document.origins):,} values{_bases(recipe)}, none wrong")
    say_own_code(recipe)
    if options.fast:
        return EXIT_DONE
    with _no_bytecode():
        return _import_and_rehearse(options, arguments, recipe, world)


def _settle_gpu(options: argparse.Namespace) -> None:
    """What is behind --gpu is a size only where the recipe is named beside it; else it is the recipe."""
    if options.cpu and options.gpu and not options.memory:
        raise UsageError("--cpu --gpu: the rehearsal is on one of them; omit one")
    if not isinstance(options.gpu, str):
        if options.memory and options.gpu:
            raise UsageError("--memory --gpu: say how much memory a GPU has, as in --gpu 80GB")
        return
    has_recipe = options.recipe is not None and "=" not in options.recipe
    is_size = has_recipe or options.gpu[:1].isdigit()
    if is_size and not options.memory:
        raise UsageError(f"--gpu {options.gpu}: a size goes with --memory; --gpu alone rehearses on this machine's GPU")
    if not is_size:
        behind = [options.recipe] if options.recipe is not None else []
        options.recipe, options.overrides, options.gpu = options.gpu, [*behind, *options.overrides], not options.memory


def _check_each(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Checks what each task of an array would be, in one process: what they name is imported once."""
    if not (options.fast or options.components):
        raise UsageError("--array-file: goes with --fast or --components; a rehearsal is of one run")
    for changes in tasks_of(options.array_file, options.overrides):
        task_options = {**vars(options), "overrides": [*options.overrides, *changes], "array_file": None}
        _check(argparse.Namespace(**task_options), arguments)
    return EXIT_DONE


def _import_and_rehearse(options: argparse.Namespace, arguments: Sequence[str], recipe: Recipe, world: World) -> int:
    with _failing("components"):
        builder = _check_components(recipe, options.allow)
    if options.components:
        return EXIT_DONE
    if _is_login_node():
        _say_the_rest(recipe, arguments)
        return EXIT_DONE
    if options.memory:
        return _check_memory(options, recipe, builder, world)
    from launcher.checks.certainty import conclusion
    from launcher.checks.rehearsal import rehearse

    servers = list(builder.reached())
    for place, server in servers:
        _say("network", f"{place}: asks {server}")
    with _failing("rehearsal"), _saying_who_was_asked([server for _, server in servers]):
        checked = rehearse(recipe, builder, world, _say, on_gpu=options.gpu)
    print()
    for label, text in checked.plan:
        _say(label, text)
    for doubt in checked.doubts:
        _say("question", doubt)
    print()
    for finding in checked.findings:
        _say(finding.basis, finding.text)
    print(f"\n{conclusion(options.recipe, checked.findings)}")
    return EXIT_DONE


@contextmanager
def _saying_who_was_asked(announced: Sequence[str]) -> Iterator[None]:
    """Names the servers that were asked within and that nobody has announced."""
    from launcher.checks.asked import noted_hosts, unannounced

    with noted_hosts() as hosts:
        try:
            yield
        finally:
            for host in unannounced(hosts, announced):
                _say("network", f"asked {brief(host)} as well, which the recipe does not tell")


def _check_memory(options: argparse.Namespace, recipe: Recipe, builder: Builder, world: World) -> int:
    from launcher.checks.fits import Gpu, check_memory

    gpu = Gpu.parse(options.gpu) if options.gpu else None
    if options.gpu and gpu is None:
        raise UsageError(f"--gpu {options.gpu}: is no size of memory; write it with its unit, as in 80GB or 24GiB")
    with _failing("memory"):
        check_memory(recipe, builder, world, _say, gpu)
    return EXIT_DONE


def _check_components(recipe: Recipe, allow: Sequence[str]) -> Builder:
    """The second stage: imports what the recipe names, and of this program nothing that needs torch."""
    from launcher.recipe.build import Builder
    from launcher.runs.tracking.tracking import check_trackers

    builder = Builder(recipe, allow)
    with loading():
        count = builder.check()
    check_trackers(recipe.track.trackers, builder.allow)
    _say("components", f"{count}, each found, of the right kind, and its arguments fit")
    return builder


def _say(label: str, text: str) -> None:
    print(f"{label:<12} {printable(text)}", flush=True)  # names in it are anybody's


@contextmanager
def _failing(stage: str) -> Iterator[None]:
    """Names the stage in which mistakes are found; they follow on the error output."""
    try:
        yield
    except LauncherError as error:
        count = len(error.problems) if isinstance(error, RecipeError) else 1
        _say(stage, f"{count} mistake{'s' * (count > 1)}:")
        raise


def _bases(recipe: Recipe) -> str:
    count = len(recipe.document.files) - 1
    return f" with {count} base{'s' * (count > 1)}" if count else ""


def _world(options: argparse.Namespace, recipe: Recipe) -> World:
    """The world that the plan is for: said, the recipe's, or as many GPUs as the recipe asks SLURM for."""
    from launcher.recipe.consistency import too_many
    from launcher.world.slurm import gpu_count
    from launcher.world.world import World

    nodes = options.nodes or recipe.launch.nodes
    stated, per_node, batch = recipe.launch.processes, recipe.slurm.gpus_per_node, recipe.data.global_batch_size
    size = options.processes or (stated if isinstance(stated, int) else nodes * gpu_count(per_node or 1))
    if size < nodes:
        raise UsageError(f"--nodes {nodes}: {size} processes are too few; --processes counts those of all nodes")
    if batch is not None and size > batch:
        where = str(recipe.document.origin(("data", "global_batch_size")))
        raise RecipeError([Problem(where, "data.global_batch_size", too_many(size, batch))])
    started_by = "launcher" if size > 1 else "one process"
    return World(size=size, local_size=-(-size // nodes), nodes=nodes, started_by=started_by)


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Importing the user's files must not leave a `__pycache__` in the working directory."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _is_login_node() -> bool:
    """Whether this machine hands work to a cluster instead of doing it."""
    from launcher.world.slurm import answers
    from launcher.world.world import World

    return World.from_environ().job is None and answers()


def _say_the_rest(recipe: Recipe, arguments: Sequence[str]) -> None:
    slurm_options = {"partition": recipe.slurm.partition, "account": recipe.slurm.account}
    job = [f"--{name}={value}" for name, value in slurm_options.items() if value is not None]
    command = ["srun", "--ntasks=1", "--time=00:10:00", *job, "launcher", "check", *_command(arguments)]
    print("\nThis is a login node of a cluster: the rest opens data and runs the model. In a job of its own:")
    print(f"  {shlex.join(command)}")


def _command(arguments: Sequence[str]) -> list[str]:
    """What was typed behind `launcher check`."""
    return [argument for argument in arguments if argument != "check"]


def _allowed() -> int:
    from launcher.recipe.policy import listed
    from launcher.recipe.project import allowed_packages
    from launcher.recipe.schema import sbatch_options
    from launcher.world.site import SITE_OPTIONS

    for line in listed(allowed_packages()):
        print(line)
    print("sbatch's options in `slurm:`, by full name:")
    print(textwrap.fill(", ".join(sbatch_options()), 112, initial_indent="  ", subsequent_indent="  "))
    print("and in the site file:")
    print(textwrap.fill(", ".join(sorted(SITE_OPTIONS)), 112, initial_indent="  ", subsequent_indent="  "))
    return EXIT_DONE
