"""The house: imports go down, and what must answer at once loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import launcher

PACKAGE = Path(launcher.__file__).parent

# DESIGN's order, from the top; what stands on one line may not import one another's siblings above
LAYERS = (
    ("__main__", "__init__"),
    ("cli",),
    ("commands",),
    ("api", "export", "verification", "submission", "script", "doctor", "overfit", "scoring"),
    ("bandwidth", "saved"),
    ("scripting",),
    ("run", "check"),
    ("session",),
    ("opening",),
    ("postmortem",),
    ("plan", "doubts", "profiling", "predictions"),
    ("training",),
    ("evaluation",),
    ("loss_settle",),
    ("objective", "model", "checkpoints", "judge", "measures", "averages", "watch"),
    ("loss_probe",),
    ("loss_pieces",),
    ("loss_reading",),
    ("device",),
    ("exchange",),
    ("data", "batch", "coordination", "direct", "outputs", "uncompiled"),
    ("datasets", "models", "templates"),
    ("tracking",),
    ("runs",),
    ("launch",),
    ("recipe",),
    ("faults",),
    ("errors", "version"),
)
# inside these nothing imports torch when it is imported
TORCH_FREE = (
    "tracking",
    "runs",
    "launch",
    "recipe",
    "errors",
    "version",
    "commands",
    "cli",
    "submission",
    "__init__",
    "__main__",
)
HEAVY = {"torch", "accelerate", "torchmetrics", "numpy"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path, everywhere: bool) -> set[str]:
    """Modules that a file imports: when it is imported, or at all; what is for type checkers does not count."""
    tree = ast.parse(path.read_text())
    skipped = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "launcher":
                found |= {f"launcher.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    level = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path, everywhere=own not in ("cli", "commands", "__init__", "launch")):
        if name.startswith("launcher.") and part_of(name) != own:
            assert level[part_of(name)] >= level[own], f"{path.name} imports {name}, which stands above it"
    if own in TORCH_FREE:
        heavy = {name.partition(".")[0] for name in imports(path, everywhere=False)} & HEAVY
        assert not heavy, f"{path.name} imports {heavy} when it is imported"


def test_the_seven_phases_stand_in_order_on_one_screen() -> None:
    text = (PACKAGE / "run.py").read_text()
    phases = ("data", "device", "model", "objective", "training", "evaluation", "saving")
    places = [text.index(f"# {number} {phase}") for number, phase in enumerate(phases, 1)]
    assert places == sorted(places)
    assert len(text.splitlines()) < 80


def test_the_command_line_loads_no_torch() -> None:
    heavy = sorted({*HEAVY, "pydantic", "yaml", "rich"})
    script = (
        "import sys, launcher.cli; launcher.cli.parser(); "
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
