"""What is imported at a start is not garbage, and whoever put the search for it off finds it off."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, sys
from launcher.world.loading import loading

assert "torch" not in sys.modules
try:
    with loading():
        assert not gc.isenabled()
        raise ImportError
except ImportError:
    assert gc.isenabled() and gc.get_freeze_count() > 1000
gc.unfreeze()
gc.disable()  # by somebody who has a reason
with loading():
    pass
assert not gc.isenabled() and gc.get_freeze_count() == 0
gc.enable()
sys.modules["torch"] = sys  # loaded already: what a program has made since then may be garbage
with loading():
    assert gc.isenabled()
assert gc.get_freeze_count() == 0
"""


def test_nothing_that_is_loaded_is_looked_through() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
