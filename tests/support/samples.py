"""Small files to read: pictures and a table."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

FLOWERS = "sepal,petal,bees,kind\n5.1,1.4,2,setosa\n7.0,4.7,0,virginica\n6.4,4.5,1,versicolor\n4.9,1.5,3,setosa\n"


def paint(path: Path, colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (12, 8)) -> None:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
