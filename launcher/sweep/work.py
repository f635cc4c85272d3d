"""Working a sweep off: a record, its space, and slots become results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.sweep.plan import check_same_recipe, locate, overrides_of
from launcher.sweep.pool import Pool
from launcher.sweep.proposals import propose
from launcher.sweep.record import Parameters, Record, Trial
from launcher.sweep.slots import Slot
from launcher.sweep.space import Space
from launcher.sweep.starter import Starter
from launcher.sweep.workers import taking_part
from launcher.world.signals import listening
from launcher.world.world import World

# what a trial of such a recipe imports besides, too heavy for those without: torchmetrics more than torch itself
_OF_METRICS = ("launcher.evaluation.metrics", "torchmetrics.classification")


@dataclass
class _Points:
    """The points of a space, as a sweep's method proposes them."""

    record: Record
    space: Space
    recipe: Recipe

    def __post_init__(self) -> None:
        self._files = self._stamps()

    def propose(self, trial: int) -> Parameters | None:
        """The point of a new trial; None is the baseline that lies beside the space."""
        if self.record.settings.point_of(trial) == 0:
            return locate(self.space, self.recipe)
        return propose(self.record, self.space, trial)

    def words(self, trial: Trial) -> Sequence[str]:
        """All changes that make a trial of the recipe, which must be what it was.

        Raises:
            UsageError: It was edited meanwhile.
        """
        if self._files != (stamps := self._stamps()):
            settings = self.record.settings
            check_same_recipe(settings, load_recipe(settings.recipe, self.space.fixed, settings.remove))
            self._files = stamps
        return overrides_of(self.record, self.space, trial)

    def _stamps(self) -> list[int | None]:
        """When each of the recipe's files was written."""
        paths = map(Path, self.recipe.document.files)
        return [path.stat().st_mtime_ns if path.exists() else None for path in paths]


def work_off(
    record: Record,
    space: Space,
    recipe: Recipe,
    slots: Sequence[Slot],
    starter: Starter,
    *,
    join: bool = False,
    say: Callable[[str], None] = print,
    show: Callable[[Record], None] = lambda record: None,
) -> str:
    """Works until all is done, or it is to stop.

    Args:
        record: The sweep's.
        space: Its space.
        recipe: The baseline's.
        slots: Where trials run.
        starter: What to start trials from.
        join: Whether to work beside others.
        say: Gets a line for what a person should know.
        show: Told when something has changed.

    Returns:
        `complete`, `stopped` or `spent`.

    Raises:
        LauncherError: Somebody else works on it, or ten trials in a row have failed.
    """
    with ExitStack() as stack:
        stack.enter_context(listening())
        me = stack.enter_context(taking_part(record, World.from_environ().job, join))
        starter.also_load(_OF_METRICS if recipe.evaluate.metrics else ())
        pool = Pool(
            record=record,
            points=_Points(record, space, recipe),
            slots=slots,
            me=me,
            starter=starter,
            say=say,
            show=show,
        )
        return pool.work()
