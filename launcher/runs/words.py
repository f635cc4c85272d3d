"""Numbers, times and sizes as people read them; the terminal, the tables and the report use the same."""

from __future__ import annotations
