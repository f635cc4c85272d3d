"""From a recipe file, its bases and the command line to one document, with every mistake found on the way."""

from __future__ import annotations

import os
import pathlib
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import yaml

from launcher.errors import RecipeError
from launcher.recipe import shipped
from launcher.recipe.caller import KEYWORDS, Keyword
from launcher.recipe.expressions import FromEnvironment
from launcher.recipe.held_back import SHARE, with_train_s_arguments
from launcher.recipe.inputs import real_path, system_folder
from launcher.recipe.masking import shape_in
from launcher.recipe.places import Key, Origin, Path, Problems, dotted
from launcher.recipe.project import SITE_PLACES, SITE_VARIABLE, is_own_recipe, named_paths
from launcher.recipe.references import resolve
from launcher.recipe.secrets import ADVICE, holds_secret, without_secrets
from launcher.recipe.several import holds_several
from launcher.recipe.tree import MAX_BYTES, Document, Node
from launcher.recipe.yaml import TextError, decode, parse, place
from launcher.text import brief, printable, suggestion

_HORIZONS = ("epochs", "steps", "time")  # of `train`, which says exactly one of them
_MAX_BASES = 20
IN_PYTHON = "recipe"  # what one that is not a file is called


def read_document(
    path: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = (), remove: Sequence[str] = ()
) -> tuple[Document | None, Problems]:
    """Reads a recipe: the file, the bases it builds on, what the command line changes, and its references.

    Args:
        path: The recipe file, or what would stand in it, as if it lay in the working directory.
        overrides: `a.b=value`, applied in order; list items by index, as in `a.b.0=value` or `a.b[0]=value`.
        remove: Names of values to leave out; done before the overrides are applied.

    Returns:
        The recipe, without what could not be read of it, or None where one of its files cannot be read to its end; and
        every mistake found.

    Raises:
        RecipeError: There are more mistakes than anybody would read.
    """
    problems = Problems()
    sources, root = _merged(path, overrides, remove, problems)
    if root is None:
        return None, problems
    root = with_train_s_arguments(_without_space(root), problems)
    root, env = resolve(root, problems, os.environ)
    return _document(root, sources, env), problems


def sweep_section(
    path: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = (), remove: Sequence[str] = ()
) -> list[tuple[str, Node]]:
    """What a recipe says under `sweep.space`, key by key, as it stands there: its references are of each trial.

    Args:
        path: As in `read_document`.
        overrides: Of these only `base=…`.
        remove: As in `read_document`.

    Returns:
        Nothing where there is none, or where the recipe cannot be read: reading it says why.
    """
    try:
        _, root = _merged(path, [text for text in overrides if text.startswith("base=")], remove, Problems())
    except RecipeError:
        return []
    space = _space_in(root) if root is not None else None
    return [(str(key), node) for key, node in space.items()] if space is not None else []


def _merged(
    path: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str],
    remove: Sequence[str],
    problems: Problems,
) -> tuple[_Sources, Node | None]:
    """The recipe over its bases, with what the command line changes; None where it cannot be read to its end."""
    sources = _Sources(problems)
    root = sources.read(path if isinstance(path, Mapping) else os.fspath(path))
    removals = [_read_removal(name, problems) for name in remove]
    changes = [_read_override(text, sources.folder, problems) for text in overrides]
    for change in (*removals, *changes):
        if change is None or root is None:
            continue
        root = sources.with_base(root, change) if change.is_base else _changed(root, change, problems)
    return sources, root


def _space_in(root: Node) -> Node | None:
    """The mapping under `sweep.space`."""
    sweep = root.find("sweep")
    space = sweep[1].find("space") if sweep else None
    return space[1] if space and isinstance(space[1].value, dict) else None


def _without_space(root: Node) -> Node:
    """The recipe without what a sweep tries, which is read in a sweep only."""
    if _space_in(root) is None:
        return root
    sweep = root.find("sweep")
    assert sweep is not None
    rest = sweep[1].with_items([(key, child) for key, child in sweep[1].items() if key != "space"])
    return root.with_items([(key, rest if key == "sweep" else child) for key, child in root.items()])


class _FileError(Exception):
    """A file that cannot be read, in words."""


class _ChangeError(Exception):
    """A change that does not fit the recipe, in words."""


@dataclass(frozen=True)
class _File:
    """One recipe file on the way from the recipe to its last base.

    Attributes:
        path: Where it is.
        source: What to call it.
        named_at: Where it is named: the place of a `base:`, or the command line.
        named_by: The files that led to it, the recipe first.
        text: What stands in it, where it is not a file at all.
    """

    path: pathlib.Path
    source: str
    named_at: Origin
    named_by: tuple[_File, ...] = ()
    text: str | None = None

    def check_place(self) -> None:
        """Raises `_FileError` if a recipe may not build on this file; nothing is told of it, not even whether it is."""
        if not self.named_by:
            return
        real = pathlib.Path(real_path(self.path))
        allowed = is_own_recipe(real, self.named_by[0].path) or any(map(real.is_relative_to, _named_bases()))
        if not allowed:
            raise _FileError(
                "is outside of the recipe's project; copy it there, or name its folder: [tool.launcher] bases = "
                "['…'] in the working directory's pyproject.toml, or bases: […] in the site file"
            )

    def check_text(self, text: str) -> None:
        """Raises `_FileError` if what was read is something else than a recipe, none of which is to be printed then."""
        is_yaml = self.path.suffix in (".yaml", ".yml") or self.text is not None
        if self.named_by and not is_yaml:
            raise _FileError("does not end in .yaml or .yml, as recipes do")
        if (self.named_by or not is_yaml) and not _reads_as_recipe(text):
            raise _FileError(f"does not read as a recipe, which has sections such as {', '.join(_SECTIONS[:4])}")

    def base(self, node: Node) -> _File:
        source = os.path.normpath(os.path.join(os.path.dirname(self.source), str(node.value)))
        return _File(self.path.parent / str(node.value), source, node.origin, (*self.named_by, self))

    def check_chain(self) -> None:
        """Raises `_FileError` if this file is its own base."""
        real = [real_path(file.path) for file in (*self.named_by, self)]
        names = [file.source for file in (*self.named_by, self)]
        if real[-1] in real[:-1]:
            raise _FileError(f"is its own base: {' → '.join(names[real.index(real[-1]) :])}")
        if len(real) > _MAX_BASES:
            raise _FileError(f"more than {_MAX_BASES} recipes build on each other")


class _Sources:
    """Reads a recipe and the bases it names, and keeps what was read."""

    def __init__(self, problems: Problems):
        self.problems = problems
        self.files: list[pathlib.Path] = []
        self.texts: list[str] = []
        self.folder = pathlib.Path()

    def read(self, recipe: str | Mapping[str, Any]) -> Node | None:
        """The recipe over its bases, or None if some of it cannot be read."""
        source = recipe if isinstance(recipe, str) else IN_PYTHON
        origin = Origin(printable(source))
        try:
            path = pathlib.Path(os.path.abspath(source))
        except OSError:
            self.problems.add(origin, (), "the working directory no longer exists; change to another")
            return None
        self.folder = path.parent
        if not isinstance(recipe, str) and (strange := next(_strange(recipe), None)):
            self.problems.add(origin, *strange)
            return None
        text = None if isinstance(recipe, str) else _written(recipe)
        self.first = _File(path, origin.source, origin, text=text)
        return self.load(self.first)

    def load(self, file: _File) -> Node | None:
        """One file over its bases."""
        root = self.sections(file)
        entry = root.find("base") if root else None
        if root is None or entry is None:
            return root
        _, base = entry
        root = root.with_items([(key, child) for key, child in root.items() if key != "base"])
        if base.value is None:
            return root
        named = [child for _, child in base.items()] if isinstance(base.value, list) else [base]
        if faulty := next((node for node in named if not _is_path(node.value)), base if not named else None):
            message = "must be the path of another recipe, as in 'base: common.yaml', or a list; without references"
            self.problems.add(faulty.origin, ("base",), message)
            return None
        return self.over([self.load(file.base(node)) for node in named], root)

    def over(self, bases: Sequence[Node | None], root: Node) -> Node | None:
        """A recipe over its bases, of which later ones lie over earlier ones; None where one cannot be read."""
        below: Node | None = None
        for base in bases:
            if base is None:
                return None
            below = self.merged(below, base) if below else base
            if below is None:
                return None
        return self.merged(below, root) if below else root

    def with_base(self, root: Node, change: _Change) -> Node | None:
        """The recipe with another one put over it, as if both were the bases of an empty one."""
        assert change.node is not None
        path = str(change.node.value)
        file = _File(pathlib.Path(os.path.abspath(path)), path, change.origin, (self.first,))
        over = self.load(file)
        return self.merged(root, over) if over else None

    def merged(self, old: Node, new: Node) -> Node | None:
        root = merge(old, new)
        if excess := root.excess():
            self.problems.add(root.origin, (), f"with its bases this is {excess}")
            return None
        return root

    def sections(self, file: _File) -> Node | None:
        """What one file says, if that is a mapping."""
        try:
            file.check_place()
            data = _contents(file)
            file.check_chain()
            text = decode(data, file.source)
            if sum(map(len, [*self.texts, text])) > MAX_BYTES:
                raise _FileError(f"is larger than {MAX_BYTES // 1024} KiB with what builds on it")
            file.check_text(text)
        except TextError as error:
            self.problems.add(error.origin, (), str(error))
            return None
        except _FileError as error:
            at, name = (("base",), f"'{file.source}' ") if file.named_by else ((), "")
            self.problems.add(file.named_at, at, f"{name}{error}")
            return None
        self.files.append(file.path)
        self.texts.append(text)
        if secret := shape_in(text):  # comments too; nothing else is reported, so that nothing is echoed
            message = f"this looks like {secret[1]}; {ADVICE}"
            self.problems.add(place(text, secret[0], file.source), (), message)
            return None
        root = parse(text, file.source, file.path.parent, self.problems)
        if root is None or isinstance(root.value, dict):
            return root and without_secrets(root, (), self.problems)
        kind = {list: "a list", type(None): "empty"}.get(type(root.value), "a single value")
        self.problems.add(root.origin, (), f"is {kind}; a recipe is a mapping of sections, such as 'model: …'")
        return None


_SECTIONS = (
    *("data", "model", "optimizer", "train", "name", "seed", "base", "define", "batch", "device", "loss", "scheduler"),
    *("evaluate", "save", "track", "launch", "slurm"),
)
_SECTION = re.compile(r"""(?:^|^\{)["']?([A-Za-z_][\w.-]*)["']?[ ]*:(?=\s|$)""", re.MULTILINE)


def _is_path(value: Any) -> bool:
    """Whether a value may be the path of a recipe."""
    return isinstance(value, str) and bool(value) and value.isprintable() and "${" not in value


def _reads_as_recipe(text: str) -> bool:
    """Whether a text has the sections of a recipe, as far as its lines show; an empty one has nothing to hide."""
    if not any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        return True
    keys = _SECTION.findall(text)
    known = [key for key in keys if key in _SECTIONS]
    return bool(known) and 2 * len(known) > len(keys)


def _named_bases() -> list[pathlib.Path]:
    """Where recipes may lie that others build on: what [tool.launcher] and the site file name."""
    named = os.environ.get(SITE_VARIABLE)
    candidates = [pathlib.Path(named)] if named else [pathlib.Path(os.path.expanduser(place)) for place in SITE_PLACES]
    path = next((place for place in candidates if place.is_file()), None)
    return [*named_paths("bases"), *(_bases_of_site(path) if path else ())]


def _bases_of_site(path: pathlib.Path) -> list[pathlib.Path]:
    """What a site file lists under `bases`; what is wrong in it is told where it is read as a whole."""
    try:
        root = parse(decode(path.read_bytes(), str(path)), str(path), path.parent, Problems())
    except (OSError, TextError, RecipeError):
        return []
    entry = root.find("bases") if root else None
    listed = [child.value for _, child in entry[1].items()] if entry else []
    return [pathlib.Path(os.path.expanduser(base)).resolve() for base in listed if isinstance(base, str)]


def _written(values: Mapping[str, Any]) -> str:
    """A recipe's values as a file would have them."""
    return yaml.safe_dump(_as_yaml(values), sort_keys=False, allow_unicode=True)


def _strange(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """The places of a mapping from Python that hold what no file can, and what to do about each."""
    if isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _strange(item, (*path, key))
    elif value is not None and type(value) not in (str, bool, int, float) and not isinstance(value, os.PathLike):
        shown = brief(" ".join(repr(value).split()))
        yield path, f"holds an object, {shown}, as no recipe can; {_remedy(value, path)}"


def _remedy(value: Any, path: Path) -> str:
    key = dotted(path)
    if path[-1] in ("_target_", "_ref_") and hasattr(value, "__qualname__"):
        return f"write its name: '{value.__module__}.{value.__qualname__}', or of your own file 'my_file.py:Name'"
    if section := next((name for name in KEYWORDS if f"{key}.".startswith(f"{name}.")), None):
        inside = " the whole of it" if section != key else " it"
        return f"pass{inside} by keyword: {KEYWORDS[section]}=…"
    return "make it in a function of your own file, and name that: {_target_: my_file.py:function}"


def _as_yaml(value: Any) -> Any:
    """Tuples and paths as YAML has them."""
    if isinstance(value, Mapping):
        return {key: _as_yaml(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_yaml(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _contents(file: _File) -> bytes:
    if file.text is not None:
        return file.text.encode()
    try:
        if system := system_folder(file.path):
            raise _FileError(f"is in {system}, where no files are kept")
        mode = file.path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise _FileError(f"is a folder{_listed(_recipes(file.path), '; name a recipe in it: ')}")
        if not stat.S_ISREG(mode):
            raise _FileError("is not a regular file")
        with file.path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise _FileError(f"does not exist{_alternatives(file)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _FileError(f"cannot be read: {reason.lower()}") from None
    if len(data) > MAX_BYTES:
        raise _FileError(f"is larger than {MAX_BYTES // 1024} KiB; a recipe is a short text")
    return data


def _recipes(folder: pathlib.Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, 1000)]
    except OSError:
        return []
    return sorted(printable(name) for name in names if name.endswith((".yaml", ".yml")))


def _listed(names: Sequence[str], words: str) -> str:
    return words + ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else ""


def _alternatives(file: _File) -> str:
    folder = os.path.dirname(file.source)
    if not file.path.parent.is_dir():
        return f"; there is no folder '{folder}'"
    names = _recipes(file.path.parent)
    prefix = f"{folder}/" if folder else ""
    if (name := file.source.removesuffix(".yaml")) in shipped.names() and f"{name}.yaml" not in names:
        return f" here; it comes with the launcher, `launcher copy {name}` puts it here"
    return suggestion(file.path.name, names, prefix) or _listed(names, "; the recipes there are ")


def merge(old: Node | None, new: Node, at: Path = ()) -> Node:
    """A value put over an older one.

    Mappings merge, and everything else is replaced; so is the whole of a mapping over which `_target_`, `_ref_` or
    `_share_` is stated, as the arguments of one class are not those of another.
    """
    if old is None or not (isinstance(old.value, dict) and isinstance(new.value, dict)):
        return new
    if any(key in new.value for key in ("_target_", "_ref_", SHARE)) or _are_several(old, new, at):
        return new
    children = _displaced(old.value, new.value, at)
    for key, child in new.value.items():
        children[key] = merge(children.get(key), child, (*at, key))
    return replace(new, value=children)


_SEVERAL = (("optimizer",), ("scheduler",), ("loss",), ("data", "validation"), ("data", "test"))


def _are_several(old: Node, new: Node, at: Path) -> bool:
    """Whether several components by name are put over one, whose arguments they would become."""
    named = [child for _, child in new.items()]
    is_one = any(key in ("_target_", "_ref_") for key, _ in old.items())
    components = [child for child in named if any(key in ("_target_", "_ref_") for key, _ in child.items())]
    functions = [child for child in named if at == ("loss",) and isinstance(child.value, str) and "." in child.value]
    return at in _SEVERAL and is_one and len(named) > 1 and len(components) + len(functions) == len(named)


def _displaced(old: Mapping[Key, Node], stated: Mapping[Key, Node], at: Path) -> dict[Key, Node]:
    """A mapping, without the length of the training where another length is put over it."""
    lengths = [key for key, node in stated.items() if key in _HORIZONS and node.value is not None]
    return {key: node for key, node in old.items() if not (at == ("train",) and lengths and key in _HORIZONS)}


@dataclass(frozen=True)
class _Change:
    """What the command line asks for: a value to put at a place, or, without one, to remove what is there."""

    origin: Origin
    segments: Sequence[str]
    node: Node | None = None

    @property
    def is_base(self) -> bool:
        """Whether it puts another recipe over this one: `--base`."""
        return list(self.segments) == ["base"]

    def path(self) -> Path:
        return tuple(int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in self.segments)


def _segments(name: str) -> Sequence[str]:
    """Splits `a.b[0]`, or `a.b.0`, into its parts; return none if it is not a name."""
    parts = re.sub(r"\[(\d+)\]", r".\1", name).split(".")
    return parts if all(part.isprintable() and re.fullmatch(r"[^\s\[\]]+", part) for part in parts) else ()


def _read_override(text: str, folder: pathlib.Path, problems: Problems) -> _Change | None:
    name, equals, value = text.partition("=")
    change = _Change(_override_origin(name, text), _segments(name))
    if fault := _name_fault(name, equals, change.segments):
        problems.add(change.origin, (), fault)
        return None
    if fault := _value_fault(name, value):
        problems.add(change.origin, change.path(), fault)
        return None
    if change.is_base:
        if not _is_path(value):
            problems.add(
                change.origin, ("base",), "must be the path of another recipe, as in --base experiment/big.yaml"
            )
            return None
        return replace(change, node=Node(value, change.origin, folder))
    node = parse(value, change.origin.source, folder, problems, at=change.path())
    return replace(change, node=without_secrets(node, change.path(), problems)) if node else None


def _override_origin(name: str, text: str) -> Origin:
    """What to call an override: its own text, but for a secret's."""
    if isinstance(text, Keyword):
        return Origin(brief(text.written))
    shown = text if not holds_secret(text) else f"{name}=…" if shape_in(name) is None else "…"
    return Origin(f"override '{brief(shown)}'")


def _name_fault(name: str, equals: str, segments: Sequence[str]) -> str | None:
    if secret := shape_in(name):
        return f"holds what looks like {secret[1]}; {ADVICE}"
    if name.startswith("~"):
        return f"to remove a value, write --remove {brief(name[1:])}"
    if name.startswith("+"):
        return f"a key is added like any other, without '+': {brief(name.lstrip('+'))}=…"
    if not equals or not segments:
        return "an override is written a.b=value, and an item of a list a.b.0=value"
    if segments[0] == "base" and len(segments) > 1:
        return "the recipe's own bases stay; --base FILE puts another recipe over it"
    return None


_SHELL = "if it held ${…}, the shell took that for its own: put the whole override in single quotes"


def _value_fault(name: str, value: str) -> str | None:
    """What is wrong with a value that is not what the user typed, or not what YAML takes it for."""
    if not value.strip():
        return f"no value follows '='; write {name}=null for none; {_SHELL}"
    if holds_several(value):
        return "several values are a space: use launcher sweep, or write one"
    if re.match(r"\s*(\*|[-+/]\s)", value):
        return f"a value cannot begin with '{value.strip()[0]}'; {_SHELL}"
    return None


def _read_removal(name: str, problems: Problems) -> _Change | None:
    if secret := shape_in(name):
        problems.add(Origin("--remove …"), (), f"holds what looks like {secret[1]}; {ADVICE}")
        return None
    change = _Change(Origin(f"--remove {brief(name)}"), _segments(name))
    if change.segments and change.segments[0] != "base":
        return change
    problems.add(change.origin, (), "name a value of the recipe, as in --remove scheduler._warmup_")
    return None


def _changed(root: Node, change: _Change, problems: Problems) -> Node:
    """The recipe with a change made, or as it was if the change does not fit."""
    try:
        new = _put(root, change.segments, change.node) if change.node else _drop(root, change.segments)
        if excess := new.excess():
            raise _ChangeError(f"with it, the recipe has {excess}")
    except _ChangeError as error:
        problems.add(change.origin, change.path(), str(error))
        return root
    return new


def _put(node: Node, segments: Sequence[str], new: Node, at: Path = ()) -> Node:
    """A value with another one put over what is at a place in it."""
    if not segments:
        return merge(node, replace(new, key=node.key), at)
    if node.value is None:
        return replace(_nested(segments, new), key=node.key)
    key, old = _step(node, segments[0], at)
    if old is None:
        child = replace(_nested(segments[1:], new), key=new.origin)
    else:
        child = _put(old, segments[1:], new, (*at, key))
    children = dict(node.items())
    if len(segments) == 1:
        children = _displaced(children, {key: child}, at)
    return node.with_items({**children, key: child}.items())


def _nested(segments: Sequence[str], node: Node) -> Node:
    for segment in reversed(segments):
        node = Node({segment: replace(node, key=node.origin)}, node.origin, node.folder)
    return node


def _drop(node: Node, segments: Sequence[str], at: Path = ()) -> Node:
    """A value without what is at a place in it."""
    key, old = _step(node, segments[0], at)
    if old is None:
        raise _ChangeError(f"there is no '{key}' to remove{suggestion(segments[0], dict(node.items()))}")
    if len(segments) > 1:
        return node.with_items({**dict(node.items()), key: _drop(old, segments[1:], (*at, key))}.items())
    return node.with_items([(other, child) for other, child in node.items() if other != key])


def _step(node: Node, segment: str, at: Path) -> tuple[Key, Node | None]:
    """The key or index that a segment means, and what is there; None where a mapping has no such key."""
    if entry := node.find(segment):
        return entry
    if isinstance(node.value, list):
        raise _ChangeError(f"'{dotted(at)}' has {len(node.value)} items, counted from 0; there is no '{segment}'")
    if isinstance(node.value, str) and "${" in node.value:
        raise _ChangeError(f"'{dotted(at)}' is the reference '{brief(node.value)}'; change what it refers to")
    if not isinstance(node.value, dict):
        raise _ChangeError(f"'{dotted(at)}' is a single value; it has no '{segment}'")
    return segment, None


def _document(root: Node, sources: _Sources, env: dict[str, str]) -> Document:
    """Spreads the nodes over plain values and the tables of their places."""
    document = Document({}, {}, {}, sources.folder, {}, tuple(sources.files), sources.texts[0], env)
    document.values = _plain(root, (), document)
    return document


def _plain(node: Node, path: Path, document: Document) -> Any:
    document.origins[path] = node.origin
    document.folders[path] = _home(node)
    if node.key:
        document.keys[path] = node.key
    values = {key: _plain(child, (*path, key), document) for key, child in node.items()}
    if isinstance(node.value, dict):
        return values
    if isinstance(node.value, list):
        return list(values.values())
    if isinstance(node.value, FromEnvironment):
        document.from_env.add(path)
    return str(node.value) if isinstance(node.value, str) else node.value


def _home(node: Node) -> pathlib.Path:
    """Where the files that a value names are looked for; of a component, beside its target."""
    targets = [child.folder for key, child in node.items() if key in ("_target_", "_ref_")]
    return targets[0] if targets else node.folder
