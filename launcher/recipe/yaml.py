"""One YAML text, read strictly, and the place of every value and key in it.

PyYAML splits the text into events; what those mean is decided here, because YAML 1.1 reads `1e-3` as a word,
`no` as a boolean and `12:30:00` as 45000, and PyYAML drops the first of two equal keys and copies aliases
without end. Numbers and words are those of YAML 1.2; tags, merge keys and further documents are refused.
"""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml

from launcher.recipe.places import Key, Origin, Path, Problems
from launcher.recipe.scalars import Scalar, plain_scalar
from launcher.recipe.tree import MAX_DEPTH, MAX_VALUES, TOO_MANY, Node
from launcher.text import brief, printable

if TYPE_CHECKING:
    pass


class TextError(Exception):
    """A text that cannot be read any further."""

    def __init__(self, origin: Origin, message: str):
        super().__init__(message)
        self.origin = origin


def decode(data: bytes, source: str) -> str:
    """The text of a recipe file, without its byte order mark.

    Raises:
        TextError: It is not UTF-8.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TextError(Origin(source), "is UTF-16 text; save it as UTF-8")
    if b"\0" in data:
        raise TextError(Origin(source), "is not a text file; name a recipe, which is YAML")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} (0x{data[error.start]:02x}) is not UTF-8; save the file as UTF-8"
        raise TextError(Origin(source), message) from None


def place(text: str, index: int, source: str) -> Origin:
    """Where a character of a text stands."""
    mark = _mark(text, index)
    return Origin(source, mark.line + 1, mark.column + 1)


def parse(text: str, source: str, folder: pathlib.Path, problems: Problems, at: Path = ()) -> Node | None:
    """Reads one YAML text. An empty one is null.

    Args:
        text: The text; line breaks of any kind.
        source: What to call it in messages.
        folder: Where the Python files that it names are looked for.
        problems: Receives every mistake.
        at: The path that an override sets. On the command line, lines and columns would mean nothing.

    Returns:
        Its value, as far as it goes where there are mistakes; None if the text cannot be read to its end.
    """
    reader = _Reader(source, folder, problems, at)
    try:
        _check_characters(text, reader)
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            reader.take(event)
    except TextError as error:
        problems.add(error.origin, reader.path(), str(error))
        return None
    except yaml.MarkedYAMLError as error:
        mark, message = _explain(error, text)
        problems.add(reader.origin(mark), at, message)
        return None
    except ValueError:  # PyYAML gives chr() whatever follows "\U"
        problems.add(Origin(source), at, "an escape '\\U…' is beyond U+10FFFF, the last character there is")
        return None
    if at and text[reader.end :].strip():
        problems.add(Origin(source), at, "'#' begins a comment; put a value that holds it in quotes")
    return reader.root or Node(None, Origin(source), folder)


# Besides control characters, U+0085, U+2028 and U+2029: line breaks to PyYAML, and to no editor.
_STRANGE = re.compile("[^\t\n\r -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DIRECTIVE = re.compile("^%", re.MULTILINE)


def _check_characters(text: str, reader: _Reader) -> None:
    if strange := _STRANGE.search(text):
        message = f"the character U+{ord(strange[0]):04X} is not text; write it as an escape in double quotes"
        raise TextError(reader.origin(_mark(text, strange.start())), message)
    if directive := _DIRECTIVE.search(text):
        message = "a line cannot begin with '%'; put the value in quotes"
        raise TextError(reader.origin(_mark(text, directive.start())), message)


def _mark(text: str, index: int) -> yaml.Mark:
    breaks = list(re.finditer("\r\n|\r|\n", text[:index]))
    return yaml.Mark("", index, len(breaks), index - (breaks[-1].end() if breaks else 0), None, 0)


@dataclass(slots=True)
class _Level:
    """A list or mapping whose end has not been read yet."""

    origin: Origin
    anchor: str | None
    children: list[Node] | dict[Key, Node]
    key: Key | None = None  # of a mapping: the one that waits for its value
    key_origin: Origin | None = None


_REFUSED = ""  # stands in for a key that was complained of; no key is empty


class _Reader:
    """Builds nodes out of YAML events; without recursion, so that no text can exhaust the stack."""

    def __init__(self, source: str, folder: pathlib.Path, problems: Problems, at: Path):
        self.source, self.folder, self.problems, self.at = source, folder, problems, at
        self.root: Node | None = None
        self.levels: list[_Level] = []
        self.anchors: dict[str, Node] = {}
        self.count = 0
        self.documents = 0
        self.end = 0  # of what has been read, as an index into the text

    def origin(self, mark: Any) -> Origin:
        """The place of a mark (PyYAML has two classes of them, and None)."""
        if self.at or mark is None:
            return Origin(self.source)
        return Origin(self.source, mark.line + 1, mark.column + 1)

    def path(self) -> Path:
        """Where in the recipe the reader stands."""
        keys = (len(each.children) if isinstance(each.children, list) else each.key for each in self.levels)
        return (*self.at, *(key for key in keys if key is not None))

    def complain(self, origin: Origin, message: str) -> None:
        self.problems.add(origin, self.path(), message)

    def take(self, event: yaml.Event) -> None:
        """Reads on by one event.

        Raises:
            TextError: The text is more than one document, or out of all bounds.
        """
        if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent) and event.end_mark:
            self.end = event.end_mark.index
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise TextError(self.origin(event.start_mark), "a second document begins; remove the '---'")
        elif isinstance(event, yaml.CollectionStartEvent):
            self.descend(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            level = self.levels.pop()
            self.place(Node(level.children, level.origin, self.folder), level.anchor)
        elif isinstance(event, yaml.ScalarEvent):
            self.place(self.scalar(event), event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self.place(self.alias(event), None)

    def descend(self, event: yaml.CollectionStartEvent) -> None:
        origin = self.origin(event.start_mark)
        self.check_tag(event, origin)
        if len(self.levels) >= MAX_DEPTH:
            raise TextError(origin, f"more than {MAX_DEPTH} levels; is a bracket too many here?")
        mapping = isinstance(event, yaml.MappingStartEvent)
        self.levels.append(_Level(origin, event.anchor, {} if mapping else []))

    def check_tag(self, event: yaml.CollectionStartEvent | yaml.ScalarEvent, origin: Origin) -> None:
        if event.tag is not None:
            tag = printable(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self.complain(origin, f"tags such as '{tag}' are not allowed; omit it, or use quotes")

    def scalar(self, event: yaml.ScalarEvent) -> Node:
        origin = self.origin(event.start_mark)
        value: Scalar = event.value
        self.check_tag(event, origin)
        if event.style is None:
            self.check_colon(event, origin)
            try:
                value = plain_scalar(event.value)
            except ValueError as error:
                self.complain(origin, str(error))
        elif re.search("[\ud800-\udfff]", event.value):
            self.complain(origin, "half a surrogate pair is not a character; write '\\U0001F600', not two '\\u'")
        return Node(value, origin, self.folder)

    def check_colon(self, event: yaml.ScalarEvent, origin: Origin) -> None:
        """Complain of `{lr:1e-3}`, which is the key `lr:1e-3` without a value."""
        key = self.levels[-1].key if self.levels else None
        if isinstance(key, str) and ":" in key and not event.value:
            self.complain(origin, "has no value; put a space after the colon")

    def alias(self, event: yaml.AliasEvent) -> Node:
        origin, name = self.origin(event.start_mark), event.anchor or ""
        if any(level.anchor == name for level in self.levels):
            self.complain(origin, f"'*{name}' is inside of what it repeats")
        elif name not in self.anchors:
            self.complain(origin, f"no '&{name}' comes before '*{name}'; put a value that begins with '*' in quotes")
        else:
            return self.anchors[name]
        return Node(None, origin, self.folder)

    def place(self, node: Node, anchor: str | None) -> None:
        """Puts a finished value where it belongs: into the list or mapping that is being read."""
        self.count += 1
        if excess := TOO_MANY if self.count > MAX_VALUES else node.excess():
            raise TextError(node.origin, excess)
        if anchor:
            self.anchors[anchor] = node
        if not self.levels:
            self.root = node
            return
        level = self.levels[-1]
        if isinstance(level.children, list):
            level.children.append(node)
        elif level.key is None:
            level.key, level.key_origin = self.key(node, level.children), node.origin
        else:
            if level.key != _REFUSED:
                level.children[level.key] = replace(node, key=level.key_origin)
            level.key = None

    def key(self, node: Node, siblings: dict[Key, Node]) -> Key:
        """The key that a node is, or `_REFUSED` after a complaint."""
        key = node.value
        fault = _key_fault(key, len(self.at) + len(self.levels))
        if fault is None:
            assert isinstance(key, str | int)
            if key not in siblings:
                return key
            first = siblings[key].key
            place = f", first on line {first.line}" if first and first.line else ""
            fault = f"'{key}' is set twice{place}; keep one"
        self.complain(node.origin, fault)
        return _REFUSED


def _key_fault(key: object, level: int) -> str | None:
    """What is wrong with a key, at a level of the recipe counted from 1; None if nothing is."""
    if key is None:
        return "a key is missing before ':'"
    if isinstance(key, list | dict):
        return 'a list or mapping cannot be a key; a reference is put in quotes: "${a.b}"'
    if isinstance(key, int) and not isinstance(key, bool) and level > 2:
        return None  # a class index to its name, in the argument of a component
    if not isinstance(key, str):
        return f"a key is a word; put '{str(key).lower()}' in quotes"
    if key == "<<":
        return "the merge key '<<' is not in YAML 1.2; repeat the keys, or build on another recipe with base:"
    if not key or not key.isprintable():
        return f"the key {key!r} is empty or not printable"
    return f"the key '{key}' holds a reference; only values can" if "${" in key else None


# What PyYAML finds, and what to say of it; the first that fits.
_EXPLANATIONS = {
    r"character '\\t'": "there is a tab here; YAML is indented and spaced with spaces only",
    r"found character '([^'])'": "a value cannot begin with '{0}'; put it in quotes",
    r"values are not allowed": "a ':' too many; quote a value that holds ': ', or check the indentation",
    r"<block end>, but found '<block mapping start>'": "the indentation fits no line above",
    r"but found '(?:-|<block sequence start>)'": "the indentation of '-' fits no line above",
    r"<block end>, but found '([\]}])'": "a '{0}' too many",
    r"but found '([:,?])'": "a key or value is missing before '{0}'",
    r"<block end>": "this does not belong to what comes before it; put the whole value in quotes",
    r"',' or '[\]}]', but got '\?'": "inside brackets, a value that holds '?' is put in quotes",
    r"',' or '([\]}])', but got '(?!<stream end>)": "',' or '{0}' is missing before this",
    r"unexpected document separator": "a quote is open here; close it before the '---'",
    r"escape": "a backslash in double quotes begins an escape; use single quotes",
    r"entries are not allowed": "a list cannot begin here; give '- ' a line of its own, or write [a, b]",
    r"'<document start>'": "the recipe has ended before this; is a bracket closed too early?",
    r"node content, but found '([^<].*)'": "a key or value is missing before '{0}'",
    r"tag|URI|'!'|'>'": "tags are not allowed; put a word that begins with '!' in quotes",
    r"indicat|comment or a line break": "'|' and '>' begin a text on the next lines; put the value in quotes",
}
# The same, where the fault is best shown at the beginning of what PyYAML was reading.
_EXPLANATIONS_OF_BEGINNINGS = {
    r"could not find expected ':'": "this is neither 'key: value' nor part of the value before it",
    r"unexpected end of stream": "a quote opens here and is never closed",
    r"<stream end>": "a bracket opens here and is never closed",
    r"alphabetic or numeric": "a value cannot begin with '*' or '&'; put it in quotes",
}


_CRAMPED = re.compile(r" *[\w.-]+:[^\s:/\\]")  # `lr:1e-3`


def _explain(error: yaml.MarkedYAMLError, text: str) -> tuple[Any, str]:
    """In our words what PyYAML could not read, and the mark of its place."""
    problem, mark, begun = error.problem or "is not YAML", error.problem_mark, error.context_mark
    if mark and text[mark.index - 1 : mark.index + 1] == "${":
        reference = re.compile(r"\$\{[^}\n]*\}?").match(text, mark.index - 1)
        return mark, f'a reference in brackets is put in quotes: "{brief(reference[0]) if reference else ""}"'
    if mark and re.search("expected ':'|values are not allowed", problem):
        lines = text.splitlines()[: mark.line + 1]
        first = begun.line if begun else max(mark.line - 1, 0)
        cramped = [number for number in range(first, len(lines)) if _CRAMPED.match(lines[number])]
        if cramped:
            return mark, f"a space is missing after the ':' on line {cramped[0] + 1}"
    if words := _words(_EXPLANATIONS_OF_BEGINNINGS, problem):
        return begun or mark, words
    words = _words(_EXPLANATIONS, problem) or printable(problem)
    if begun and mark and begun.line < mark.line:
        words = f"{words}; what it belongs to began on line {begun.line + 1}"
    return mark or begun, words


def _words(explanations: dict[str, str], problem: str) -> str | None:
    matches = ((re.search(pattern, problem), words) for pattern, words in explanations.items())
    return next((words.format(*match.groups()) for match, words in matches if match), None)
