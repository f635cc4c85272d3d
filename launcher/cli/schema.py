"""`launcher schema`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.errors import EXIT_DONE

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    schema = commands.add_parser(
        "schema",
        help="print the schema of recipes for an editor",
        description="Print the JSON Schema of recipes. An editor with the YAML language server completes and explains "
        "keys with it: put `# yaml-language-server: $schema=recipe.schema.json` into a recipe's first line.",
    )
    schema.set_defaults(command=_schema)


def _schema(_: argparse.Namespace, __: Sequence[str]) -> int:
    import json

    from launcher.recipe.json_schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
    return EXIT_DONE
