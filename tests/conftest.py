"""One thread a process: several processes at once would drown two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
