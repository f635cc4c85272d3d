"""Data sets as ordinary components: small ones that need no download, and ones for files of your own."""

from launcher.datasets.arrays import NumpyArrays
from launcher.datasets.digits import Digits
from launcher.datasets.hub import HubDataset
from launcher.datasets.images import ImageFolder
from launcher.datasets.preprocess import Preprocess
from launcher.datasets.shards import Shards
from launcher.datasets.table import Table
from launcher.datasets.tabular import Diabetes
from launcher.datasets.text import TextFile
from launcher.datasets.tokenize import Tokenize

__all__ = [
    "Diabetes",
    "Digits",
    "HubDataset",
    "ImageFolder",
    "NumpyArrays",
    "Preprocess",
    "Shards",
    "Table",
    "TextFile",
    "Tokenize",
]
