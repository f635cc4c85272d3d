"""Where a start of a run begins: its folder, held against other writers, and the checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.checkpoints import retention
from launcher.checkpoints.format import Checkpoint
from launcher.data.fingerprint import fingerprint
from launcher.data.subsets import class_names
from launcher.device.kind import names_in_use
from launcher.errors import EXIT_DONE, LauncherError, UsageError
from launcher.model.build import Model
from launcher.recipe.caller import option
from launcher.recipe.schema import Recipe
from launcher.recipe.show import render
from launcher.runs import folder as runs
from launcher.runs.identity import check_same, identity_of
from launcher.runs.lock import locked
from launcher.runs.metrics import METRICS_FILE
from launcher.runs.options import Options
from launcher.runs.reading import Run
from launcher.training.given import given_identity
from launcher.training.state import TrainState
from launcher.world.world import usable_cpus


class Finished(LauncherError):  # noqa: N818  # not an error
    """There is nothing left to do.

    Args:
        message: Says so.
        folder: The run's.
        model: The run's, as it was before any training.
    """

    exit_code = EXIT_DONE

    def __init__(self, message: str, folder: Path, model: Model):
        super().__init__(message)
        self.folder, self.model = folder, model


@dataclass(frozen=True)
class ResumePoint:
    """Where a start of a run begins; chosen by rank 0, the same on all.

    Attributes:
        folder: The run's.
        data_print: What the training set is.
        checkpoint: The name of the one to resume from, None for the beginning.
        changed: Keys of the recipe that changed since, and may.
        threads: CPU threads of a process to resume with, None for those that are set.
        readers: Readers of a stream's shards to resume with, None for those that there are.
        notes: What to say in the plan.
        warnings: What nobody should miss.
        loss: What each loss is a mean over, as the checkpoint has it.
        moves_weights: Whether a forward was found to move weights.
        finished: Why there is nothing to do, if so.
    """

    folder: str
    data_print: str = ""
    checkpoint: str | None = None
    changed: tuple[str, ...] = ()
    threads: int | None = None
    readers: int | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    loss: Mapping[str, Any] = field(default_factory=dict)
    moves_weights: bool = False
    finished: str | None = None


class Opening:
    """What rank 0 does before anything is trained: find the folder, hold it, find the checkpoint, compare.

    Args:
        recipe: The recipe.
        state: What it trains, on what and where.
        options: What the command line says.
        stack: Releases the folder at the end of the run.
    """

    def __init__(
        self,
        recipe: Recipe,
        state: TrainState,
        options: Options,
        stack: ExitStack,
    ):
        self.recipe, self.device, self.data, self.length = recipe, state.device, state.data, state.length
        self.options, self.stack = options, stack
        self.world = state.device.world
        self.identity = {**identity_of(self.recipe), **given_identity(recipe, state)}
        self.checkpoint: Checkpoint | None = None
        self.folder: Path | None = None
        self.notes: list[str] = []
        self.warnings: list[str] = []

    @cached_property
    def data_print(self) -> str:
        """What the training set is."""
        signature, steady = fingerprint(self.data.train)
        if not steady:
            self.notes.append(
                "the training set gives other samples each time it is read, from randomness that no seed reaches: a "
                "stopped run cannot be resumed bit for bit"
            )
        return signature

    def open(self) -> ResumePoint:
        """Chooses and holds the run's folder, and what to resume from.

        Raises:
            LauncherError: It cannot be resumed.
        """
        return self._choose()

    def _choose(self) -> ResumePoint:
        folder = self.folder = self._held()
        changed = self._find(folder)
        if finished := self._finished(folder):
            return ResumePoint(str(folder), finished=finished)
        threads = self._threads()
        how = {**self.options.how, "identity": self.identity, "processes": self._processes(threads)}
        if names := class_names(self.data.train.dataset):
            how["classes"] = names  # which predict tells when the training set is gone
        environment = runs.environment(how, gpus=names_in_use())
        if runs.read_json(folder / runs.QUEUE_FILE).get("script"):  # it runs the code of its submission
            environment["git"] = runs.read_json(folder / runs.ENVIRONMENT_FILE).get("git")
        runs.describe(folder, self.recipe.document.text, render(self.recipe), environment)
        data_print = self.data_print  # which may add a note
        name = self.checkpoint.folder.name if self.checkpoint else None
        readers = self._readers()
        return ResumePoint(
            folder=str(folder),
            data_print=data_print,
            checkpoint=name,
            changed=tuple(changed),
            threads=threads,
            readers=readers,
            notes=tuple(self.notes),
            warnings=tuple(self.warnings),
            loss=self.checkpoint.manifest.get("loss", {}) if self.checkpoint else {},
            moves_weights=bool(self.checkpoint and self.checkpoint.manifest.get("moves_weights")),
        )

    def _held(self) -> Path:
        """The run's folder, of which this process is the only writer from now on."""
        if self.folder is not None:
            return self.folder
        resume = self.options.resume or self.world.restarts > 0
        choice = runs.Choice(self.recipe.name, self.options.run_dir or self.world.run_dir, resume, self.identity)
        folder = choice.folder()
        runs.create(folder, self.world.run_dir)
        taken_over = self.stack.enter_context(locked(folder, self.world.job))
        if taken_over:
            self.warnings.append(taken_over)
            runs.detach(folder / METRICS_FILE)
        return folder

    def open_again(self, faults: Sequence[str]) -> ResumePoint:
        """The same without a checkpoint whose rows have turned out to be damaged.

        Raises:
            LauncherError: There is none to resume from.
        """
        assert self.checkpoint is not None
        self.warnings.append(retention.set_aside(self.checkpoint.folder, faults[0]))
        return self._choose()

    def _find(self, folder: Path) -> list[str]:
        """Finds the checkpoint to resume from; gives the keys that changed since it was saved."""
        place = folder / "checkpoints"
        if self.options.start is None:
            self.checkpoint = retention.newest(place, self.warnings.append)
        else:
            newest = retention.newest(place, self.warnings.append)
            best = newest.manifest.get("best_step") if newest else None
            self.checkpoint = retention.at(place, self.options.start, best)
        if self.checkpoint is None:
            return []
        manifest = self.checkpoint.manifest
        if "recipe" not in manifest:
            raise UsageError(
                f"{option('run_dir')}: {folder} holds the checkpoints of a script, not of a recipe; name another"
            )
        was = {**manifest["recipe"], "data.train.content": manifest["data"]}
        now = {**self.identity, "data.train.content": self.data_print}
        if manifest["readers"] and manifest["world"] == self.world.size and self.recipe.data.workers != "auto":
            was["data.workers"], now["data.workers"] = (
                str(readers // self.world.size) for readers in (manifest["readers"], self.data.readers)
            )
        changed = check_same(str(folder), was, now, self.options.allow_changes)
        if self.options.start is not None:
            retention.supersede(place, self.checkpoint.step)
        return changed

    def _processes(self, threads: int | None) -> dict[str, Any]:
        """How many there are and what each has, for `environment.json`."""
        return {
            "number": self.world.size,
            "device": self.device.name,
            "threads": threads or self.device.threads,
            "workers": self.data.train.reading.workers,
            "usable_cpus": usable_cpus(),
        }

    def _threads(self) -> int | None:
        """Threads of a process that the checkpoint was made with: another number rounds otherwise."""
        if self.checkpoint is None or self.checkpoint.manifest["world"] != self.world.size:
            return None
        was, now = int(self.checkpoint.manifest["threads"]), self.device.threads
        if was == now:
            return None
        if self.recipe.launch.threads == "auto":
            self.notes.append(f"{was} thread{'s' * (was > 1)} a process, as this run began with")
            return was
        self.notes.append(f"launch.threads is {now}, and this run began with {was}: it does not continue bit for bit")
        return None

    def _readers(self) -> int | None:
        """Readers that a stream's shards were spread over: with others, a step meets other samples."""
        manifest = self.checkpoint.manifest if self.checkpoint is not None else {"readers": 0}
        was, now = manifest["readers"], self.data.readers
        if not was or (was, manifest["world"]) == (now, self.world.size):
            return None
        workers = was // manifest["world"]
        if manifest["world"] == self.world.size and self.recipe.data.workers == "auto":
            self.notes.append(f"data.workers: {workers} a process, as this run began with")
            return int(was)
        self.warnings.append(
            f"the stream's {was} shards, read with --processes {manifest['world']} and data.workers={workers}, are cut "
            "again for other readers: some samples of this pass are read again or skipped"
        )
        return None

    def _finished(self, folder: Path) -> str | None:
        """Why there is nothing to do, if so.

        Raises:
            UsageError: The run had saved, and nothing of that is left: to begin again would take its record away.
        """
        run, weights = Run(folder), runs.weights_of(folder)
        is_over = run.status.get("state") == "finished"
        if self.checkpoint is None:
            if not any(event.get("event") == "save" for event in run.events):
                if run.step:
                    self.warnings.append(
                        f"{folder}: {run.step:,} steps were made here, and none was saved: training begins again"
                    )
                return None
            if not is_over or weights is None:
                raise UsageError(
                    f"{folder}: its checkpoints were removed after step {run.step:,}: there is nothing to resume from; "
                    "train in a new folder"
                )
        elif self.options.start is not None or weights is None:
            return None
        step, total = self.checkpoint.step if self.checkpoint else run.step, self.length.total_steps
        longer = self.checkpoint and total is not None and step < total and self.options.allow_changes
        if not is_over or longer:
            return None
        return f"{folder}: this run is finished, after {step:,} steps; its weights are in {weights}"
