"""Paths that a library takes for more than a path: addresses, chains of file systems, archives that unpack themselves.

A file system of fsspec can be a program: `reference://` renders templates that stand in a file, `::` puts one into
another, and any installed package may bring more. Plain paths and one protocol of a short list are let through.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.recipe.directory import directory
from launcher.recipe.expressions import FromEnvironment
from launcher.text import brief

PROTOCOLS = ("file", "hf", "https", "s3", "gs")
FLOORS = {
    "datasets": (5, 2),
    "fsspec": (2026, 9),
}  # that withstood tests/recipe/test_attacks.py

_PROTOCOL = re.compile(r"\s*([A-Za-z0-9_+.-]+):/{1,2}")
_HOSTS = {"hf": "huggingface.co", "s3": "Amazon S3", "gs": "Google Cloud Storage"}


def foreign_path(text: str) -> str | None:
    """What is wrong with a path or address of data, in words that follow it; None where nothing is.

    Args:
        text: As in `data/train.csv`, `https://host/train.csv` or `hf://datasets/owner/name/train.csv`.
    """
    if "::" in text or text.count("://") > 1:
        return "chains file systems; write one path or address"
    if not text.isprintable():
        return "is not one printable line; write one path or address"
    protocol = _PROTOCOL.match(text)
    allowed = ", ".join(f"{name}://" for name in PROTOCOLS)
    if ("://" in text and protocol is None) or (protocol and protocol[1] not in PROTOCOLS):
        return f"is of a protocol that is not allowed; write a path, or one of: {allowed}"
    if protocol and "@" in text.split("://", 1)[-1].partition("/")[0]:
        return "holds a user's name; libraries take those from their own settings"
    return None


def outdated() -> str | None:
    """What to install where `datasets` or fsspec are older than those that are known to withstand; None where not."""
    from importlib import metadata  # slow, and seldom needed

    for package, floor in FLOORS.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[: len(floor)])
        if numbers < floor:
            wanted = ".".join(map(str, floor))
            return f"{package} {version} can run code from data; pip install '{package}>={wanted}'"
    return None


# modules that ask servers, and the arguments that choose what is asked of which
_ASKING = ("datasets", "launcher.datasets.hub", "launcher.datasets.shards", "torchmetrics", "transformers")
_CHOOSING = re.compile(
    r"(\w*_)?(names?|paths?|files?|dir|folder|urls?|revision|subfolder|variant|lang|split|repo|repo_id)"
)
_PLACES = re.compile(r"path|data_files|data_dir|\w*name_or_path")  # of these, what may be on this machine


def unknown_place(target: Any, arguments: Mapping[str, Any], unknown: object) -> Iterator[tuple[str, str]]:
    """The arguments by which something that is not known at reading could choose what a server is asked.

    What is built may hold the words of any file, and what libraries of this machine know; a server gets none of it.

    Args:
        target: A class, function or method of a listed package.
        arguments: By name, those that are written.
        unknown: What stands, at any depth, for a value that is not known yet.

    Yields:
        The argument, and what is wrong with it.
    """
    module = str(getattr(target, "__module__", ""))
    if not any(module == name or module.startswith(f"{name}.") for name in _ASKING):
        return
    for name, value in arguments.items():
        choosing = [(key, inner) for key, inner in at_any_depth(name, value) if _CHOOSING.fullmatch(key)]
        if any(item is unknown for _, inner in choosing for _, item in at_any_depth("", inner)):
            yield name, "chooses what a server is asked, so nothing that is built may be part of it; write it here"
        elif any(_sends_environment(key, inner, arguments) for key, inner in choosing):
            yield name, "would send an environment variable to a server; with ${env.…} write the path of a file here"
        elif module.startswith("transformers.") and name == "config" and isinstance(value, str):
            yield name, "must be a configuration, as in {_target_: transformers.AutoConfig.from_pretrained, …}"


def _sends_environment(key: str, value: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether variables of the environment are in it, and it is not, or need not be, a path of this machine."""
    texts = [text for _, text in at_any_depth(key, value) if isinstance(text, FromEnvironment)]
    if key == "data_dir" and "/" in (path := str(arguments.get("path", ""))) and not path.startswith("/"):
        return bool(texts)  # a folder of the hub's repository
    return any(not _PLACES.fullmatch(key) or not text.startswith("/") for text in texts)


def at_any_depth(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value and all inside it, each by its own key; what stands in a list has none."""
    yield name, value
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from at_any_depth(str(key), inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from at_any_depth("", inner)


def reached(target: Any, arguments: Mapping[str, Any]) -> str | None:
    """Which server building a component asks, in a few words; None where none.

    Args:
        target: A class or function of a listed package.
        arguments: By name, defaults included.
    """
    module, name = str(getattr(target, "__module__", "")), str(getattr(target, "__name__", ""))
    package = module.partition(".")[0]
    if module in ("launcher.datasets.hub", "launcher.datasets.shards") or (
        package == "datasets" and name == "load_dataset"
    ):
        return _of_data(arguments)
    if package == "torchvision" and module.startswith("torchvision.datasets") and arguments.get("download"):
        return "the data set's own server"
    if package == "torchvision" and (arguments.get("weights") or arguments.get("weights_backbone")):
        return "download.pytorch.org"
    if package == "timm" and arguments.get("pretrained"):
        return "huggingface.co"
    if package == "torchmetrics":
        return ", ".join(_of_metric(name, arguments)) or None
    if package == "transformers" and name == "from_pretrained":
        source = arguments.get("pretrained_model_name_or_path")
        loads_adapters = not re.search("Config|Extractor|Processor|Tokenizer", str(getattr(target, "__self__", "")))
        return _of_pretrained(source) or (_of_adapter(source) if loads_adapters else None)
    return None


_NETS = {  # metrics with a network whose weights they fetch
    **dict.fromkeys(("FrechetInceptionDistance", "KernelInceptionDistance", "InceptionScore"), "github.com"),
    **dict.fromkeys(("LearnedPerceptualImagePatchSimilarity", "PerceptualPathLength"), "download.pytorch.org"),
}


def _of_metric(name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """The servers of a metric, which has a model of its own where the recipe names none."""
    if "model_name_or_path" in arguments and arguments.get("model") is None:
        yield from filter(None, [_of_pretrained(arguments["model_name_or_path"])])
    if arguments.get("rescale_with_baseline") and arguments.get("baseline_path") is None:
        yield "raw.githubusercontent.com"
    yield from filter(None, [_NETS.get(name)])


def _of_pretrained(source: Any) -> str | None:
    """The hub, but for a file or folder of this machine."""
    is_here = isinstance(source, (str, os.PathLike)) and (directory() / source).exists()
    return None if is_here else "huggingface.co"


def _of_adapter(source: Any) -> str | None:
    """The hub, where a folder holds but an adapter, and says of which model."""
    try:
        about = json.loads((directory() / source / "adapter_config.json").read_text(encoding="utf-8"))
        base = about["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return f"huggingface.co ({brief(base)})" if isinstance(base, str) and _of_pretrained(base) else None


def is_address(text: str) -> bool:
    """Whether a path of data is that of a server."""
    protocol = _PROTOCOL.match(text)
    return protocol is not None and protocol[1] != "file"


def is_of_hub(path: str) -> bool:
    """Whether a data set's path is OWNER/NAME on the hub, and no file or folder of this machine."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not os.path.exists(os.path.expanduser(path))


def _of_data(arguments: Mapping[str, Any]) -> str | None:
    texts = list(_flat([arguments.get("path"), arguments.get("data_files"), arguments.get("data_dir")]))
    hosts = []
    for text in texts:
        protocol = _PROTOCOL.match(text)
        if protocol and protocol[1] != "file":
            hosts.append(_HOSTS.get(protocol[1], text.split("://", 1)[-1].partition("/")[0]))
    path = arguments.get("path")
    if isinstance(path, str) and is_of_hub(path):
        hosts.append(f"huggingface.co ({path})")
    return ", ".join(dict.fromkeys(hosts)) or None


def _flat(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for item in items for text in _flat(item)]
