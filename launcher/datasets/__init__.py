"""Small data sets that need no download, for the recipes and for trying things out."""

from launcher.datasets.digits import Digits
from launcher.datasets.tabular import Diabetes
from launcher.datasets.text import TextFile

__all__ = ["Diabetes", "Digits", "TextFile"]
