"""The searching attacker: reads the sources of what a recipe may name, and lists what is worth a second look.

`names/judged.txt` is that list as somebody judged it: every class and function that the policy lets in, with the
parameters that name files, addresses or code (and their defaults), and the calls in it that run code, read or write
files, or ask a server. `test_judging.py` compares it with what is installed. After an upgrade, or a change of policy:

    python tests/support/judging.py            # show what nobody has judged
    python tests/support/judging.py --write    # take it into the list, to be reviewed as a diff

`--source DIR` reads packages unpacked in a folder too: nothing is imported, so a wheel for another machine will do.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launcher.recipe.builders import BUILDERS
from launcher.recipe.policy import CLASSES, FUNCTIONS, METHODS, Classes

JUDGED = Path(__file__).parent / "names" / "judged.txt"
PACKAGES = ("torch", "torchmetrics", "torchvision", "datasets", "peft", "timm", "transformers")
_PARAMETER = re.compile(
    r"path|file|dir$|_dir|folder|root|download|command|cmd|url|cache|trust|exec|script|import|load|hook|weights|pretrained"
    r"|repo|hub|template|code|revision|endpoint|token$|_fn$|func|lambd|program|shell|process|module_name|class_name|backend"
)
_CALLS = {
    *(
        "exec",
        "eval",
        "compile",
        "open",
        "__import__",
        "import_module",
        "system",
        "popen",
        "Popen",
        "run",
        "check_call",
    ),
    *(
        "check_output",
        "call",
        "execv",
        "execve",
        "spawn",
        "fork",
        "CDLL",
        "load_library",
        "load_inline",
        "cpp_extension",
    ),
    *("urlopen", "urlretrieve", "download_url", "download_and_extract_archive", "extract_archive", "download_file"),
    *(
        "download_file_from_google_drive",
        "load_state_dict_from_url",
        "hf_hub_download",
        "snapshot_download",
        "cached_file",
    ),
    *("from_pretrained", "save_pretrained", "symbolic_trace", "GraphModule", "script", "Template", "from_string"),
    *("makedirs", "mkdir", "rmtree", "unlink", "remove", "rename", "replace_file", "write_text", "write_bytes"),
    *("get_class_from_dynamic_module", "get_kernel", "to_pickle", "read_pickle", "namedtuple", "make_dataclass"),
}
_OF_MODULES = {("pickle", "load"), ("pickle", "loads"), ("torch", "load"), ("torch", "save"), ("np", "load")}
_OF_MODULES |= {("numpy", "load"), ("joblib", "load"), ("yaml", "load"), ("dill", "load"), ("dill", "loads")}
_NO_FILES = {("self", "call"), ("re", "compile"), ("dict", "remove")}
_ALL_OF_IT = ("torch", "torchmetrics", "torchvision")  # of these even the harmless are named


class Source:
    """The modules of one package, parsed when they are asked for.

    Args:
        package: Its name.
        folder: Where its `__init__.py` is.
    """

    def __init__(self, package: str, folder: Path):
        self.package, self.folder = package, folder
        self._trees: dict[str, ast.Module] = {}

    def modules(self, below: str) -> Iterator[str]:
        """The names of all modules at or below one."""
        start = self.folder.joinpath(*below.split(".")[1:])
        if start.with_suffix(".py").is_file():
            yield below
        for file in sorted(start.rglob("*.py")):
            inner = file.relative_to(self.folder).with_suffix("").parts
            yield ".".join((self.package, *(part for part in inner if part != "__init__")))

    def tree(self, module: str) -> ast.Module:
        """A module's source; empty where there is none."""
        if module not in self._trees:
            place = self.folder.joinpath(*module.split(".")[1:])
            files = [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
            self._trees[module] = ast.parse(files[0].read_bytes()) if files else ast.parse("")
        return self._trees[module]


def find_source(package: str, folders: Sequence[Path] = ()) -> Source | None:
    """An unpacked or installed package; None where there is none."""
    for folder in folders:
        if (folder / package / "__init__.py").is_file():
            return Source(package, folder / package)
    found = importlib.util.find_spec(package)
    return Source(package, Path(found.origin).parent) if found is not None and found.origin else None


def suspicions(source: Source) -> Iterator[str]:
    """A line for each thing of a package that a recipe may name: the name, its parameters, and its calls."""
    for classes in CLASSES:
        if classes.module.partition(".")[0] == source.package:
            yield from _of_classes(source, classes)
    functions = {**BUILDERS}
    for name in FUNCTIONS:
        module, _, function = name.rpartition(".")
        functions[module] = f"{functions.get(module, '')} {function}"
    for module, names in functions.items():
        if module.partition(".")[0] == source.package:
            yield from _of_functions(source, module, names.split())


def _of_classes(source: Source, classes: Classes) -> Iterator[str]:
    modules = [name for name in dict.fromkeys(source.modules(classes.module)) if not _is_left_out(name, classes)]
    kin = _kin(source, modules, {base.rpartition(".")[2] for base in classes.bases})
    methods = {name for (module, name) in METHODS if classes.module == module or module.startswith(classes.module)}
    for module in modules:
        for one in source.tree(module).body:
            if isinstance(one, ast.ClassDef) and (one.name in kin or not classes.bases):
                for _ in (0,) if not one.name.startswith("_") or classes.bases else ():
                    yield from _line(source, module, one, methods)


def _is_left_out(module: str, classes: Classes) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in classes.but_not)


def _kin(source: Source, modules: Sequence[str], bases: set[str]) -> set[str]:
    """The names of classes that descend from bases, as their sources spell it."""
    parents: dict[str, set[str]] = {}
    for module in modules:
        for one in ast.walk(source.tree(module)):
            if isinstance(one, ast.ClassDef):
                parents.setdefault(one.name, set()).update(ast.unparse(base).rpartition(".")[2] for base in one.bases)
    kin = set(bases)
    while found := {name for name, above in parents.items() if name not in kin and above & kin}:
        kin |= found
    return kin


def _of_functions(source: Source, module: str, names: Sequence[str]) -> Iterator[str]:
    for one in source.tree(module).body:
        if isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name in names:
            yield from _line(source, module, one, set())


def _line(source: Source, module: str, one: ast.ClassDef | ast.FunctionDef, methods: set[str]) -> Iterator[str]:
    made = [one] if isinstance(one, ast.FunctionDef) else [
        inner for inner in one.body
        if isinstance(inner, ast.FunctionDef) and inner.name in {"__init__", "__new__", *methods}
    ]  # fmt: skip
    fields = _fields(one) if isinstance(one, ast.ClassDef) and source.package == "peft" else ()
    parameters = dict.fromkeys((*fields, *(text for function in made for text in _parameters(function))))
    calls = sorted(_calls(source.tree(module), one))
    if parameters or calls or source.package in _ALL_OF_IT:
        parts = (f"takes {', '.join(parameters)}" if parameters else "", f"calls {', '.join(calls)}" if calls else "")
        yield "; ".join(part for part in (f"{module}.{one.name}", *parts) if part)


def _parameters(function: ast.FunctionDef) -> Iterator[str]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [*zip(positional, [*defaults, *arguments.defaults], strict=True)]
    for argument, default in (*pairs, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)):
        if _PARAMETER.search(argument.arg):
            yield argument.arg if default is None else f"{argument.arg}={ast.unparse(default)[:40]}"


def _fields(one: ast.ClassDef) -> Iterator[str]:
    """Those of a dataclass: what its `__init__` takes, whatever their names."""
    for inner in one.body:
        if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
            yield inner.target.id


def _calls(tree: ast.Module, one: ast.ClassDef | ast.FunctionDef) -> set[str]:
    """What runs code, touches files or asks servers in it, and in the functions of its module that it calls."""
    helpers = {inner.name: inner for inner in tree.body if isinstance(inner, ast.FunctionDef)}
    found: set[str] = set()
    waiting: list[ast.AST] = [one]
    seen: set[str] = {one.name}
    while waiting:
        for call in ast.walk(waiting.pop()):
            if not isinstance(call, ast.Call):
                continue
            owner, name = _called(call)
            if ((name in _CALLS and (owner, name) not in _NO_FILES) or (owner, name) in _OF_MODULES) and owner != "re":
                found.add(f"{owner}.{name}" if owner and (owner, name) in _OF_MODULES else name)
            if not owner and name in helpers and name not in seen:
                seen.add(name)
                waiting.append(helpers[name])
    return found


def _called(call: ast.Call) -> tuple[str, str]:
    """Of `torch.load(…)`: `torch` and `load`."""
    if isinstance(call.func, ast.Name):
        return "", call.func.id
    if isinstance(call.func, ast.Attribute):
        return ast.unparse(call.func.value)[:40], call.func.attr
    return "", ""


def judged() -> Mapping[str, set[str]]:
    """The lines of the list, by package."""
    lines = [line for line in JUDGED.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {package: {line for line in lines if line.startswith(f"{package}.")} for package in PACKAGES}


def main() -> None:
    """Shows what nobody has judged, or writes the list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the list instead of showing what is new")
    parser.add_argument(
        "--source", action="append", default=[], type=Path, metavar="DIR", help="packages unpacked here"
    )
    options = parser.parse_args()
    known = judged() if JUDGED.exists() else {package: set() for package in PACKAGES}
    sections = []
    for package in PACKAGES:
        source = find_source(package, options.source)
        lines = sorted(known[package]) if source is None else sorted(set(suspicions(source)))
        sections.append("\n".join([f"# {package}", *lines]))
        for line in [] if options.write else [one for one in lines if one not in known[package]]:
            print(line)
    if options.write:
        how = "`python tests/support/judging.py --write` makes this list again"
        head = f"# What a recipe may name, as it was judged; {how}.\n"
        JUDGED.write_text(head + "\n\n".join(sections) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
