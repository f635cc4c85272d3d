"""`launcher explain`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands
    from launcher.recipe.keys import KeyText


def add(commands: Commands) -> None:
    """Says the command's flags."""
    explain = commands.add_parser(
        "explain",
        help="explain a key of a recipe, with its default and an example",
        description="Tell what a key of a recipe means, what may be written, its default, and an example; of a "
        "section, each of its keys; of a data set or model that is included (Table, ConvNet), or a class of torch's or "
        "torchmetrics' (AdamW), its arguments; of a key beside a _target_ (_per_), what it is for.",
    )
    explain.add_argument("key", nargs="?", metavar="KEY", help="as in train.clip_grad_norm, or evaluate (default: all)")
    explain.add_argument("--all", action="store_true", help="the whole language in one page of Markdown")
    explain.set_defaults(command=_explain, summaries=commands.summaries)


def _explain(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.recipe.keys import all_keys

    if options.all:
        from launcher.recipe.language import whole_language

        print(whole_language({name: text for name, text in options.summaries.items() if name != "job"}), end="")
        return EXIT_DONE
    keys = all_keys()
    if options.key is None:
        print("\n".join(_listed([entry for entry in keys.values() if "." not in entry.key])))
        return EXIT_DONE
    name = options.key.rpartition(".")[2]
    if name.startswith("_"):
        from launcher.recipe.component_schema import option_told

        if told := option_told(name):
            print("\n".join(told))
            return EXIT_DONE
    classes: Iterable[str] = ()
    if name[:1].isupper():  # as classes are named, and no key is
        from launcher.recipe.language import shipped_component, shipped_names

        if (text := shipped_component(options.key)) is not None:
            print(text)
            return EXIT_DONE
        from launcher.recipe.component_schema import component_told

        if told := component_told(name):
            print("\n".join(told))
            return EXIT_DONE
        classes = [word for name, module in shipped_names().items() for word in (name, f"{module}.{name}")]
    print("\n".join(_told(_named(options.key, keys, classes), keys)))
    return EXIT_DONE


def _named(key: str, keys: Mapping[str, KeyText], classes: Iterable[str]) -> KeyText:
    from launcher.recipe.elsewhere import belongs_at, elsewhere_called
    from launcher.text import suggestion

    if key in keys:
        return keys[key]
    above = key.rpartition(".")[0]
    if above in keys and keys[above].kind.startswith("a component"):
        return keys[above]  # whose arguments are its own
    path = tuple(key.split("."))
    meant = elsewhere_called(path) or belongs_at(path, {})
    if meant in keys:
        return keys[meant]
    near = f"; did you mean '{meant}'?" if meant else suggestion(key, [*classes, *keys])
    raise UsageError(f"{key}: a recipe has no such key{near or '; `launcher explain` lists the sections'}")


def _told(entry: KeyText, keys: Mapping[str, KeyText]) -> Iterator[str]:
    inner = [other for other in keys.values() if other.key.rpartition(".")[0] == entry.key]
    yield entry.key
    yield f"  {entry.text}"
    if inner:
        yield ""
        yield from _listed(inner)
        return
    default = f"default: {entry.default}" if not entry.is_required else "required"
    yield f"  {'allowed':<9}{entry.kind}; {default}"
    yield f"  {'example':<9}{entry.as_yaml}"


def _listed(entries: Sequence[KeyText]) -> Iterator[str]:
    width = max(len(entry.key) for entry in entries)
    for entry in entries:
        yield f"  {entry.key:<{width}}  {entry.text}"
