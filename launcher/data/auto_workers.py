"""`data.workers: auto`: how many processes should read, measured in the first steps of a run.

The training process reads at first. Where that takes a small part of a step, it stays so: a worker would cost more than
it saves. Else there are as many workers as it takes to read a step while one is computed, up to a fair share of the
CPUs. Who reads changes no sample and nothing that is drawn.
"""

from __future__ import annotations

import math
import time

_WARM = 2  # steps that do not count: caches are filled, kernels chosen
_STEPS, _SECONDS = 5, 1.0  # of those that do, at least
_SMALL = 0.2  # of a step: reading that takes less is left where it is
_SPARE = 1.2  # workers wait for one another now and then


class Measured:
    """How long reading takes, beside all else that a step does.

    Args:
        most: Workers to choose at most.
    """

    def __init__(self, most: int):
        self.most = most
        self._steps = 0
        self._reading = 0.0
        self._since = self._began = time.perf_counter()

    def __enter__(self) -> None:
        """A step is read from now on."""
        self._began = time.perf_counter()
        if self._steps == _WARM:
            self._since, self._reading = self._began, 0.0

    def __exit__(self, *_: object) -> None:
        self._steps += 1
        self._reading += time.perf_counter() - self._began

    @property
    def is_enough(self) -> bool:
        """Whether a number can be given."""
        return self._steps >= _WARM + _STEPS and time.perf_counter() - self._since >= _SECONDS

    def choice(self) -> tuple[int, str]:
        """How many workers, and why, in words."""
        total = time.perf_counter() - self._since
        share = min(1.0, self._reading / total)
        takes = f"data.workers: auto: reading took {share:.0%} of a step"
        if share < _SMALL:
            return 0, f"{takes}: the training process keeps reading by itself"
        wanted = math.ceil(_SPARE * self._reading / max(total - self._reading, 0.01 * total))
        workers = max(1, min(self.most, wanted))
        return workers, f"{takes}: {workers} worker process{'es read' if workers > 1 else ' reads'} from now on"
