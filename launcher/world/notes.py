"""Word that ranks leave of their failures, and which of these was the first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from launcher.world import progress
from launcher.world.failure import Failure, Frame
from launcher.world.files import write_text


def first_of(failures: Iterable[Failure]) -> Failure | None:
    """The one that the others failed because of: the earliest that is nobody's aftermath; who said so comes first."""
    return min(failures, key=order, default=None)


def order(failure: Failure) -> tuple[bool, bool, float]:
    """The smaller, the nearer to the cause."""
    return failure.is_aftermath, failure.is_silent, failure.time


class Notes:
    """Where ranks leave word: a hidden folder of the run's, read by whoever waits for them.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path):
        self.folder = folder / ".ranks"

    def progress_of(self, node: int, local_rank: int) -> Path:
        """The file of `launcher.world.progress`."""
        return self.folder / f"node-{node}" / f"{local_rank}.progress"

    def stacks_of(self, rank: int) -> Path:
        """The file that faulthandler writes to when this rank crashes."""
        return self.folder / f"{rank}.stacks"

    def describe(self, steps_per_epoch: int, facts: Mapping[str, str]) -> None:
        """Rank 0 says what holds for all ranks, for those that are killed and cannot say it.

        Args:
            steps_per_epoch: Of the run.
            facts: As in `Failure`.
        """
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._about.write_text(
                json.dumps({"steps_per_epoch": steps_per_epoch, "facts": dict(facts)}), encoding="utf-8"
            )

    @property
    def _about(self) -> Path:
        return self.folder / "about"

    def completed(self, failure: Failure, step: int | None) -> Failure:
        """The failure with what its rank could not say itself: the step that it had reached, epoch, batch sizes.

        Args:
            failure: As it was found.
            step: The last one that its rank has completed, as far as others can see.
        """
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
            per_epoch, facts = int(about["steps_per_epoch"]), {**about["facts"], **failure.facts}
        except (OSError, ValueError, TypeError, KeyError):
            per_epoch, facts = 0, dict(failure.facts)
        if failure.step is None and step is not None and step >= 0:
            failure = replace(failure, step=step)
        if failure.epoch is None and failure.step is not None and per_epoch:
            failure = replace(failure, epoch=round(failure.step / per_epoch, 4))
        return replace(failure, facts=facts)

    def write(self, failure: Failure) -> bool:
        """Leaves word; False where the disk does not let it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / f"{failure.rank}.json", json.dumps(failure.noted))
        except OSError:
            return False
        return True

    def clear(self, rank: int) -> None:
        """Forgets what a rank said in an earlier start."""
        for path in (self.folder / f"{rank}.json", self.stacks_of(rank)):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def remove(self, node: int, ranks: Iterable[int]) -> None:
        """Takes away what the ranks of a machine have said; of others, who may be read still, only with the last one.

        Args:
            node: The machine.
            ranks: Those on it.
        """
        shutil.rmtree(self.folder / f"node-{node}", ignore_errors=True)
        for rank in ranks:
            self.clear(rank)
        if not any(self.folder.glob("node-*")):
            shutil.rmtree(self.folder, ignore_errors=True)

    def read(self) -> dict[int, Failure]:
        """All that was reported, by rank."""
        return {
            failure.rank: failure for path in sorted(self.folder.glob("*.json")) if (failure := read(path)) is not None
        }

    def stacks(self, rank: int) -> str:
        """What faulthandler wrote when a rank crashed."""
        try:
            return self.stacks_of(rank).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


SAVING, SAVED = "saving", "saved"  # files of rank 0's, whose times say when


@contextmanager
def saving_known(run: Path) -> Iterator[None]:
    """Lets every rank's watch know that rank 0 saves while training waits for it, and when it had done so last."""
    folder = Notes(run).folder
    with suppress(OSError):  # a run's folder that is gone is not made again
        folder.mkdir(exist_ok=True)
        (folder / SAVING).touch()
    try:
        yield
    finally:
        progress.beat()
        with suppress(OSError):
            (folder / SAVING).unlink(missing_ok=True)
        try:
            folder.rmdir()  # there are no others
        except OSError:
            with suppress(OSError):
                (folder / SAVED).touch()


def read(path: Path) -> Failure | None:
    """The failure that a file tells of; None where there is none, or it cannot be read."""
    try:
        return from_json(path.read_bytes())
    except OSError:
        return None


def from_json(text: bytes) -> Failure | None:
    """A failure as `asdict` gives it, whatever stands beside; None where it is none."""
    try:
        content = json.loads(text)
        known = {name: value for name, value in content.items() if name in Failure.__dataclass_fields__}
        lists = {
            "frames": tuple(Frame(**frame) for frame in content["frames"]),
            "behind": tuple(content.get("behind", ())),
        }
        return Failure(**{**known, **lists})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
