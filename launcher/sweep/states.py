"""Words of a sweep's flags, for those that import nothing else of it."""

from __future__ import annotations

METHODS = ("grid", "random", "tpe", "cmaes", "halving")
FORMATS = ("csv", "parquet", "json")  # of `launcher sweep DIR --table`
