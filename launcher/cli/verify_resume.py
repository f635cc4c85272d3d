"""`launcher verify-resume`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.cli.arguments import add_recipe, positive, read_recipe, say_own_code
from launcher.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    verify = commands.add_parser(
        "verify-resume",
        help="prove that a stopped run of a recipe ends with the same weights",
        description="Train a few steps straight, and again with kill -9 and a restart; compare the weights bit by bit.",
    )
    add_recipe(verify)
    verify.add_argument("--steps", type=positive, default=20, metavar="N", help="how long to train (default: 20)")
    verify.add_argument(
        "--kill-at",
        type=positive,
        action="append",
        metavar="STEP",
        help="kill after this step; may be repeated (default: after a half and after three quarters)",
    )
    verify.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    verify.add_argument("--processes", type=positive, metavar="N", help="how many processes")
    verify.set_defaults(command=_verify)


def _verify(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.checks.verify_resume import Verification

    # a rehearsal has no business in anybody's trackers
    options.overrides = [override for override in options.overrides if not override.startswith(("track.", "track="))]
    recipe = read_recipe(options)
    say_own_code(recipe)
    options.remove += [f"track.{name}" for name in recipe.track.trackers]
    flags = [f"--remove={key}" for key in options.remove] + [f"--allow={package}" for package in options.allow]
    flags += ["--cpu"] * options.cpu + ([f"--processes={options.processes}"] if options.processes else [])
    kills = options.kill_at or sorted({max(2, options.steps // 2), max(2, options.steps * 3 // 4)})
    verification = Verification(options.recipe, tuple(options.overrides), tuple(flags), options.steps, tuple(kills))
    return EXIT_DONE if verification.run(print) else EXIT_FAILED
