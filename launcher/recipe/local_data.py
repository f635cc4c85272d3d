"""A data set of this machine's files, opened and read without asking any server: its files may name addresses too.

A folder's README can say that its data is elsewhere, and a row that its picture is. Both reach fsspec, which is let
open what is here, and archives of that, for as long as such a set is opened or one of its rows decoded.
"""

from __future__ import annotations

import functools
import glob
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import Any

from launcher.internals import (
    PROGRAMS,
    count_no_downloads,
    judge_addresses_of_media,
    judge_calls_beside_transformers,
    judge_file_systems,
    judge_versions_of_data,
    run_no_code_of_repositories,
    run_no_program_for_pictures,
)
from launcher.recipe.directory import absolute
from launcher.recipe.inputs import fault_inside, unreadable
from launcher.recipe.policy import is_installed
from launcher.recipe.raised import chain_of
from launcher.recipe.remote_paths import at_any_depth, is_address, is_of_hub
from launcher.text import brief
from launcher.version import PACKAGE

_HERE = frozenset({"file", "local", "zip", "tar", "gzip", "bz2", "lz4", "xz", "zstd"})  # files, and what unpacks them
_MOST_PLACES = 10_000  # that a README's lists within lists are looked through for
_PLACES_OF_SAVED = ("splits", "_data_files", "_indices_data_files")
_NOT_ASKED = ("LocalEntryNotFoundError", "OfflineModeIsEnabled")  # the hub's own errors
_is_local: ContextVar[bool] = ContextVar("is_local", default=False)


@contextmanager
def only_this_machine() -> Iterator[None]:
    """Within, this thread has fsspec open files of this machine only."""
    _watch()
    before = _is_local.set(True)
    try:
        yield
    finally:
        _is_local.reset(before)


@functools.cache
def _watch() -> None:
    judge_file_systems(_judge)


def _judge(kind: type) -> None:
    protocol = getattr(kind, "protocol", "")
    names = (protocol,) if isinstance(protocol, str) else tuple(protocol)
    if _is_local.get() and not _HERE.intersection(names):
        raise PermissionError(
            f"a data set of this machine's files names a place elsewhere ({names[0]}://), which is not asked; write "
            "its address in the recipe, or fetch it first"
        )


def keep_to_data(package: str, *, may_load_models: bool) -> None:
    """Before something of a package is called: what data says starts no program, fetches nothing and is no code.

    Args:
        package: Of what is called.
        may_load_models: Whether it may come to transformers.
    """
    if package in ("datasets", "launcher", "timm", "torchvision", "transformers"):  # which open pictures
        run_no_program_for_pictures()
    if may_load_models:
        run_no_code_of_repositories()
        judge_addresses_of_media(_judge_address)
        judge_calls_beside_transformers(_judge_call)


@contextmanager
def without_hub() -> Iterator[None]:
    """Within, the Hugging Face hub is not asked, in the words of its library: what is loaded lies on this machine.

    Raises:
        PermissionError: Files of this machine name something of the hub's.
    """
    constants: Any = sys.modules.get("huggingface_hub.constants")
    before = getattr(constants, "HF_HUB_OFFLINE", None)
    if before is None or before:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception as error:
        if any(type(cause).__name__ in _NOT_ASKED for cause in chain_of(error)):
            raise PermissionError(
                "a file of this machine names something of huggingface.co, which is not asked; name that in the recipe"
            ) from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = before


def _judge_address(address: str) -> None:
    if not _is_asked_by_own_code():
        raise PermissionError(
            f"the data names a place elsewhere ({brief(address)}), which is not asked; fetch it first, or open it in "
            "code of your own"
        )


def _judge_call(place: str, arguments: Sequence[Any]) -> None:
    """A program is started by own code only; and what opens a file, whatever its name means, opens one that is here."""
    if place in PROGRAMS and not _is_asked_by_own_code():
        raise PermissionError(
            f"{place.partition('.')[0].partition(':')[0]} runs programs or libraries that settings of a model's folder "
            "name, which is not done; call it in code of your own"
        )
    for text in (text for argument in arguments for text in _texts(argument)):
        if not os.path.isfile(text):
            _judge_address(text)


def _is_asked_by_own_code() -> bool:
    """Whether code of the user's stands between what asks and what of this program has called it."""
    frame = inspect.currentframe()
    here = os.path.realpath(__file__)
    while frame is not None:
        file = os.path.realpath(frame.f_code.co_filename)
        if file.startswith(f"{PACKAGE}{os.sep}") and file != here and not file.endswith("internals.py"):
            return False
        if os.path.isfile(file) and not is_installed(Path(file)):
            return True
        frame = frame.f_back
    return False


def keep_to_its_folder() -> None:
    """Has `datasets` tell nobody what is opened, and refuse a README that chooses where its cache is written."""
    count_no_downloads()
    judge_versions_of_data(_judge_version)


def _judge_version(version: str) -> None:
    if re.fullmatch(r"[\w.+-]*", version) is None or ".." in version:
        raise ValueError(f"its README names the version '{brief(version)}', which is none; write three numbers: 1.0.0")


def opened(load: Any, arguments: Mapping[str, Any]) -> Any:
    """What `load_dataset` gives, kept to this machine where its arguments name nothing elsewhere.

    Args:
        load: That function.
        arguments: By name.

    Raises:
        ValueError: One of them leads into /proc or the like, or is a folder with such a link.
        PermissionError: Files of this machine name a place elsewhere.
    """
    keep_to_its_folder()
    path = str(arguments.get("path"))
    files = [text for name in ("data_dir", "data_files") for text in _texts(arguments.get(name))]
    below = [os.path.join(path, text) for text in files if os.path.isdir(path) and "://" not in text]
    for text in (path, *files, *below):
        check_place(text)
    if is_of_hub(path) or any(map(is_address, (path, *files))):
        return load(**arguments)
    with only_this_machine():
        return kept_here(load(**arguments))


def _texts(value: Any) -> Iterator[str]:
    return (text for _, text in at_any_depth("", value) if isinstance(text, str))


def check_place(text: str) -> None:
    """Looks at what a path or pattern of this machine leads to.

    Raises:
        ValueError: It is in /proc or the like, a pipe, or a folder that has one or contains itself.
    """
    if "://" in text:
        return
    path = absolute(text)
    pattern = os.fspath(path).replace("[^", "[!")  # as fsspec reads it too
    matches = glob.iglob(pattern, recursive=True) if glob.has_magic(pattern) and not path.exists() else [pattern]
    for match in matches:
        if fault := unreadable(match):
            raise ValueError(f"{text} {fault}")
    if path.is_dir() and (fault := fault_inside(path) or _fault_of_card(path) or _fault_of_saved(path)):
        raise ValueError(fault)


def _fault_of_card(folder: Path) -> str | None:
    """What a folder's README says of where its data lies, where that is none."""
    import yaml

    card = folder / "README.md"
    try:
        text = card.read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, RecursionError, yaml.YAMLError):
        return None  # which the library says better
    configs = head.get("configs") if isinstance(head, dict) else None
    named = [(one.get("data_files"), one.get("data_dir")) for one in configs or () if isinstance(one, dict)]
    root = Path(os.path.normpath(folder))
    for place in islice(_texts(named), _MOST_PLACES):
        if "://" not in place:
            if not Path(os.path.normpath(root / place)).is_relative_to(root) and not unreadable(root / place):
                return f"{card}: {place} leads out of the folder"
            for match in glob.iglob(os.fspath(folder / place), recursive=True):
                if fault := unreadable(match):
                    return f"{card}: {place} {fault}"
    return None


def _fault_of_saved(folder: Path) -> str | None:
    """Which file a data set that `save_to_disk` wrote names outside of its folder; None where there is none."""
    for file in [folder / "dataset_dict.json", *folder.glob("state.json"), *folder.glob("*/state.json")]:
        try:
            named = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # which the library says better
        root = Path(os.path.normpath(file.parent))
        inner = [named.get(key) for key in _PLACES_OF_SAVED] if isinstance(named, dict) else []
        for place in islice(_texts(inner), _MOST_PLACES):
            if not Path(os.path.normpath(root / place)).is_relative_to(root):
                return f"{file}: {place} leads out of the folder"
    return None


# ---------------------------------------------------------------------- rows


def kept_here(dataset: Any) -> Any:
    """The same data set, whose pictures and sounds are decoded from files of this machine only."""
    for part in dataset.values() if isinstance(dataset, Mapping) else (dataset,):
        _keep(getattr(getattr(part, "info", None), "features", None))
    return dataset


def _keep(feature: Any) -> None:
    if isinstance(feature, Mapping):
        for inner in feature.values():
            _keep(inner)
    elif isinstance(feature, list | tuple):
        for inner in feature:
            _keep(inner)
    elif hasattr(feature, "feature"):
        _keep(feature.feature)
    elif hasattr(feature, "decode_example") and not hasattr(feature, "is_kept_here"):
        kind: Any = type(feature)
        feature.__class__ = _decoding_here(kind)


def check_row(value: Any) -> None:
    """Looks at what a row says of where its picture, sound or film is.

    Raises:
        FileNotFoundError: It is neither a file nor a place that fsspec is asked for; what decodes films knows more.
    """
    place, content = (value.get("path"), value.get("bytes")) if isinstance(value, Mapping) else (value, None)
    is_elsewhere = isinstance(place, str) and content is None and not os.path.isfile(place)
    if is_elsewhere and re.match(r"[\w+.-]+://", str(place)) is None:
        raise FileNotFoundError(f"the data names {brief(str(place))}, which is not a file on this machine")


@functools.cache
def _decoding_here(kind: Any) -> Any:
    def decode_example(self: Any, *arguments: Any, **settings: Any) -> Any:
        for value in arguments[:1]:
            check_row(value)
        with only_this_machine():
            return kind.decode_example(self, *arguments, **settings)

    def reduced(self: Any) -> Any:
        return _restored, (kind, dict(self.__dict__))

    def equals(self: Any, other: object) -> bool:
        return isinstance(other, kind) and vars(self) == vars(other)

    parts = {"decode_example": decode_example, "__reduce__": reduced, "__eq__": equals, "__hash__": kind.__hash__}
    return type(kind.__name__, (kind,), {**parts, "__module__": kind.__module__, "is_kept_here": True})


def _restored(kind: type, fields: Mapping[str, Any]) -> Any:
    """In another process."""
    feature: Any = object.__new__(_decoding_here(kind))
    feature.__dict__.update(fields)
    return feature
