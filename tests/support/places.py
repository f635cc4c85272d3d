"""Where the tests find things, wherever a test itself stands."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
RECIPES = SUPPORT / "recipes"  # small ones of the tests' own
TINY = RECIPES / "tiny.yaml"
FAILING = str(RECIPES / "failing.yaml")
REAL = RECIPES / "real"  # as people write them
SHIPPED = [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "recipes").glob("*/recipe.yaml"))]
FIT_HERE = [path for path in SHIPPED if path.stem != "text_gpt_large"]  # 1.5 B parameters: test_recipes makes it small
