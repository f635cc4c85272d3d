"""Words of a sweep's flags, for those that import nothing else of it."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["grid", "random", "tpe", "cmaes", "halving"]
Keep = Literal["best", "all"]
METHODS: tuple[Method, ...] = get_args(Method)
FORMATS = ("csv", "parquet", "json")  # of `launcher sweep DIR --table`
