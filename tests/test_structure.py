"""The house: rooms by concern, imports that go down and never round; what must answer at once loads no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import launcher

PACKAGE = Path(launcher.__file__).parent
PHASES = ("data", "device", "model", "objective", "training", "evaluation", "checkpoints")

# From the top: a room imports from those below it, at whatever level of a file, for type checkers too.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("api",),
    ("sweep",),
    ("checks",),
    ("launch",),
    ("run",),
    ("scripting",),
    ("training",),
    ("evaluation",),
    ("checkpoints",),
    ("objective",),
    ("model",),
    ("data",),
    ("device",),
    ("datasets", "models"),
    ("runs",),
    ("world",),
    ("recipe",),
    ("internals",),
    ("text",),
    ("errors",),
    ("version",),
)
# in these nothing imports torch when it is imported
TORCH_FREE = (
    "__init__",
    "__main__",
    "cli",
    "sweep",
    "launch",
    "runs",
    "world",
    "recipe",
    "internals",
    "text",
    "errors",
    "version",
)
HEAVY = {"torch", "accelerate", "torchmetrics", "numpy"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py") if "templates" not in path.parts}


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Modules of ours and others' that some code imports; of `from a import b`, the module `a.b` where b is one."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in inner}
    return found


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name, path in FILES.items():
        yield name, ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports() -> Mapping[str, set[str]]:
    """Of each file those of ours: read by who runs these tests, not by each process that collects them."""
    return {name: imported(ast.walk(tree)) & FILES.keys() - {name} for name, tree in trees()}


@pytest.mark.parametrize("name", FILES)
def test_imports_only_go_down(name: str) -> None:
    floor = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    own = room_of(name)
    for other in imports()[name]:
        if room_of(other) != own:
            assert floor[room_of(other)] > floor[own], f"{name} imports {other}, which stands above it or beside it"


def test_imports_never_go_round() -> None:
    done: set[str] = set()

    def walk(name: str, road: tuple[str, ...]) -> None:
        assert name not in road, "a circle: " + " → ".join([*road[road.index(name) :], name])
        if name not in done:
            for other in imports()[name]:
                walk(other, (*road, name))
            done.add(name)

    for name in FILES:
        walk(name, ())


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) in TORCH_FREE])
def test_what_answers_at_once_imports_nothing_heavy(name: str) -> None:
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    heavy = {other.partition(".")[0] for other in imported(iter(tree.body))} & HEAVY
    assert not heavy, f"{name} imports {heavy} when it is imported"


def test_nobody_takes_what_another_file_keeps_to_itself() -> None:
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("launcher"):
                private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name[1] != "_"]
                assert not private, f"{name} imports {private} of {node.module}: give it a name without '_'"


def test_nobody_reads_the_local_variables_of_others() -> None:
    found = [name for name, path in FILES.items() if re.search(r"\bf_locals\b", path.read_text(encoding="utf-8"))]
    assert not found, "what another function knows is handed over: to a context, to a hook"


def test_the_repository_holds_on_top_what_it_says_and_nothing_stray() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60)
    if listed.returncode:
        pytest.skip("not a checkout: no list of what is committed")
    files = ".gitignore CHANGELOG.md CONTRIBUTING.md LICENSE README.md constraints.txt pyproject.toml"
    folders = ".ci docs launcher recipes scripts slurm tests"
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} == {*files.split(), *folders.split()}


def test_the_front_door_has_few_names_and_a_room_for_each_phase() -> None:
    names = {path.name for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert set(PHASES) <= names
    assert len(names) <= 25, sorted(names)
    assert {path.name for path in PACKAGE.glob("*.py")} <= {f"{room}.py" for floor in FLOORS for room in floor}


@pytest.mark.parametrize("path", list(PACKAGE.rglob("__init__.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_package_hands_names_on_and_holds_no_code(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        is_list = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        is_lazy = isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")
        is_import = isinstance(node, ast.Import | ast.ImportFrom | ast.If)
        assert is_list or is_lazy or is_import or isinstance(node, ast.Expr), f"{path}:{node.lineno} is code"


def test_the_seven_phases_stand_in_order_on_one_screen() -> None:
    text = (PACKAGE / "run.py").read_text()
    phases = ("data", "device", "model", "objective", "training", "evaluation", "saving")
    places = [text.index(f"# {number} {phase}") for number, phase in enumerate(phases, 1)]
    assert places == sorted(places)
    assert len(text.splitlines()) < 80


def test_a_step_is_read_in_order_and_the_loop_at_a_glance() -> None:
    text = (PACKAGE / "training" / "step.py").read_text()
    step = text[text.index("def train_step(") :]
    parts = ("Mode", "The batch to the device", "Zero the gradients", "Forward", "Backward", "Clip", "Schedule")
    places = [step.index(f"# {part}") for part in parts]
    assert places == sorted(places)
    loop = next(
        node
        for node in ast.parse((PACKAGE / "training" / "loop.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "train"
    )
    body = loop.body[1:]  # without what is said about it
    assert (body[-1].end_lineno or 0) - body[0].lineno + 1 <= 50


# ---------------------------------------------------------------------- how code is written


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) in PHASES[:4]])
def test_a_builder_takes_its_own_section(name: str) -> None:
    """The whole recipe is known where a run is put together and where runs are compared; not below."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    whole = {
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
        and (getattr(node, "id", "") == "Recipe" or getattr(node, "attr", "") == "Recipe")
    }
    assert not whole, f"{name} names the whole Recipe in lines {sorted(whole)}"


def test_builders_below_the_run_never_ask_for_the_whole_recipe() -> None:
    for name, tree in trees():
        if room_of(name) in ("evaluation", "checkpoints"):
            for function in functions(tree):
                if function.name.startswith("build_"):
                    taken = [ast.unparse(one.annotation) for one in function.args.args if one.annotation is not None]
                    assert "Recipe" not in " ".join(taken), f"{name}.{function.name}"


PARTS = ("session", "evaluation", "saving", "coordinator", "device", "state", "tracking", "objective", "term", "model")


def test_parts_of_a_run_are_whole_when_they_are_made() -> None:
    """Nobody sets an attribute of theirs afterwards: what they need is handed to the constructor."""
    for name, tree in trees():
        for node in ast.walk(tree):
            for target in node.targets if isinstance(node, ast.Assign) else ():
                outside = isinstance(target, ast.Attribute) and ast.unparse(target.value).split(".")[-1] in PARTS
                assert not outside, f"{name}: {ast.unparse(target)} = …"


def test_only_a_command_changes_the_working_directory() -> None:
    found = [name for name, path in FILES.items() if re.search(r"\bf?chdir\(", path.read_text(encoding="utf-8"))]
    assert found == ["launcher.cli.arguments"], "a directory is passed on: a caller's relative paths would be others"


# ---------------------------------------------------------------------- what answers at once


def test_the_command_line_loads_no_torch() -> None:
    heavy = sorted({*HEAVY, "pydantic", "yaml", "rich"})
    script = (
        "import sys, launcher.cli.main; launcher.cli.main.parser(); "
        f"sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_reading_a_recipe_loads_no_torch() -> None:
    recipe = PACKAGE.parent / "recipes" / "text_gpt.yaml"
    script = (
        "import sys; from launcher.recipe.load import load_recipe; from launcher.recipe.show import render;"
        f"render(load_recipe({str(recipe)!r})); sys.exit('torch was loaded' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
