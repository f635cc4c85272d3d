"""How long ranks wait for each other while they train: `device.timeout`, and without a limit for one in a debugger."""

from __future__ import annotations

from datetime import timedelta

FOREVER = timedelta(days=365)
_is_endless = False


def limit(seconds: float) -> float | None:
    """Of a wait for another rank: these seconds, or None where somebody debugs that rank."""
    return None if _is_endless else seconds


def wait_without_limit() -> None:
    """Has this process wait for the others as long as they take, from the next collective operation on."""
    from launcher import internals

    global _is_endless
    _is_endless = True
    for group in internals.process_groups():
        group.set_timeout(FOREVER)
