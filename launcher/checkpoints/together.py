"""7: saving. A checkpoint that all processes of a sharded run write, each its rows, and rank 0 the rest.

They speak through the process group's store and not by collectives, so that they may write beside training: rank 0 says
where, each says what it has written, and rank 0 writes the manifest when all have, renames, and says what came of it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.checkpoints.format import Checkpoint, SaveError, Snapshot, check_space, name_of, save, verify
from launcher.checkpoints.rows import prove_rows, without_rows, write_rows
from launcher.checkpoints.saving import Saving
from launcher.model.rows import Rows

_POLL_SECONDS = 0.02


class Voices:
    """What the processes that write together say to each other.

    Args:
        store: torch's, that all of them reach.
        rank: This process.
        size: How many there are.
        seconds: How long the others may take.
    """

    def __init__(self, store: Any, rank: int, size: int, seconds: float):
        self._store, self.rank, self.size, self._seconds = store, rank, size, seconds
        self.is_left = threading.Event()

    def say(self, key: str, message: Mapping[str, Any]) -> None:
        """To all."""
        self._store.set(f"launcher/saving/{key}", json.dumps(message))

    def hear(self, key: str, who: int) -> dict[str, Any]:
        """What somebody says, waited for.

        Raises:
            SaveError: Nobody said it in time, or this process is about to end.
        """
        name, deadline = f"launcher/saving/{key}", time.monotonic() + self._seconds
        while not self._store.check([name]):
            if self.is_left.is_set() or time.monotonic() > deadline:
                why = "this process ended first" if self.is_left.is_set() else f"not in {self._seconds:g} s"
                raise SaveError(f"rank {who} has not written its part of the checkpoint: {why}")
            time.sleep(_POLL_SECONDS)
        message: dict[str, Any] = json.loads(self._store.get(name))
        return message


class SavingTogether(Saving):
    """When a save is due, every process writes its rows.

    Args:
        voices: What the processes say to each other.
        writes: Whether this process writes its rows of a tensor, by its number: nodes may have copies.
        **options: Of `Saving`.
    """

    def __init__(self, voices: Voices, writes: Callable[[int], bool], **options: Any):
        super().__init__(**options)
        self._voices, self._writes = voices, writes
        self._is_writer = True

    def check(self) -> None:
        """Reports what became of the write under way; rank 0 does.

        Raises:
            SaveError: It failed, and the recipe says stop.
        """
        if not self.is_first:
            self._news.clear()
        super().check()

    def close(self) -> None:
        """Waits for nobody any more."""
        self._voices.is_left.set()
        super().close()

    def _put(self, snapshot: Snapshot, attempt: int) -> Checkpoint:
        part = _Part(self._voices, f"{snapshot.step}.{attempt}", snapshot, self._writes)
        if not self.is_first:
            return part.join(self.folder)
        try:
            checkpoint = verify(save(self.folder, part.snapshot, part))  # rows are read back by who has written them
        except BaseException as error:
            part.conclude(str(error) or repr(error))
            raise
        part.conclude("")
        return checkpoint


class _Part:
    """What a process writes of one checkpoint.

    Args:
        voices: What the processes say to each other.
        key: Of this checkpoint, and of the attempt to write it.
        snapshot: What it is made of.
        writes: Which rows this process writes.
    """

    def __init__(self, voices: Voices, key: str, snapshot: Snapshot, writes: Callable[[int], bool]):
        self._voices, self._key, self._step = voices, key, snapshot.step
        found: dict[str, Rows] = {}
        weights, training = (
            without_rows(state, found, name)
            for name, state in (("weights", snapshot.weights), ("training", snapshot.training))
        )
        self.snapshot = replace(snapshot, weights=weights, training=training)
        self._has_said_where = False
        self._rows = {name: rows for number, (name, rows) in enumerate(found.items()) if writes(number)}

    def write(self, folder: Path) -> Mapping[str, Any]:
        """On rank 0: says where, writes its own rows, and hears what the others have written."""
        self._say_where(folder.name)
        entries = [self._written(folder)]
        for rank in range(1, self._voices.size):
            entry = self._voices.hear(f"{self._key}.{rank}", rank)
            if "error" in entry:
                raise SaveError(f"rank {rank}: {entry['error']}")
            entries.append(entry)
        return {"rows": entries}

    def conclude(self, fault: str) -> None:
        """On rank 0: says what came of it; nobody has anything to write where it is there, or there is no room."""
        self._voices.say(f"{self._key}.end", {"fault": fault})
        if not self._has_said_where:
            self._say_where("")

    def _say_where(self, folder: str) -> None:
        self._has_said_where = True
        self._voices.say(f"{self._key}.where", {"folder": folder})

    def join(self, place: Path) -> Checkpoint:
        """On the others: writes its rows where rank 0 says, and hears what came of it.

        Raises:
            SaveError: It came to nothing.
        """
        name = self._voices.hear(f"{self._key}.where", 0)["folder"]
        if name:
            try:
                entry = self._written(place / name)
            except Exception as error:
                self._voices.say(f"{self._key}.{self._voices.rank}", {"error": str(error)})
            else:
                self._voices.say(f"{self._key}.{self._voices.rank}", entry)
        if fault := self._voices.hear(f"{self._key}.end", 0)["fault"]:
            raise SaveError(fault)
        return Checkpoint(place / name_of(self._step), {})

    def _written(self, folder: Path) -> dict[str, Any]:
        """Writes this process's rows, and reads them back."""
        check_space(folder, self._voices.size * sum(rows.tensor.nbytes for rows in self._rows.values()))
        entry = write_rows(folder, self._voices.rank, self._rows, self._step)
        prove_rows(folder, entry)
        return entry
