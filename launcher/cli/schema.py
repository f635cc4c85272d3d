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
    schema.add_argument("--lines", action="store_true", help="of the lines that `launcher train --json` prints instead")
    schema.set_defaults(command=_schema)


def _schema(options: argparse.Namespace, _: Sequence[str]) -> int:
    import json

    if options.lines:
        from launcher.runs.tracking.json_lines import lines_schema

        schema = lines_schema()
    else:
        from launcher.recipe.json_schema import editor_schema
        from launcher.runs.tracking.trackers import SETTINGS

        schema = editor_schema(SETTINGS)
    print(json.dumps(schema, indent=1, ensure_ascii=False))
    return EXIT_DONE
