"""6 and 7: after the loop: the test, the predictions, the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints import retention
from launcher.checkpoints.format import Checkpoint, save_weights, weights_saved
from launcher.checkpoints.plain import restored
from launcher.checkpoints.safe_files import save_safetensors
from launcher.checkpoints.streamed import save_streamed
from launcher.checkpoints.weights import find_weights, stored_weights
from launcher.errors import LauncherError
from launcher.evaluation.modes import has_modes
from launcher.evaluation.predictions import NO_MATRIX, missing_for, write_predictions
from launcher.model.ema import Average
from launcher.model.sharding import Mesh, ShardedPart, Shards, sharded_parts
from launcher.runs import folder as runs
from launcher.runs.report.predictions import PREDICTIONS_FILE
from launcher.runs.tracking.tracking import Line
from launcher.text import words_of
from launcher.training.contents import evaluated_weights
from launcher.training.rank_states import Part
from launcher.training.session import Session
from launcher.training.state import TrainState
from launcher.world.cleanup import afterwards


def evaluate_at_end(state: TrainState, session: Session, outcome: str, step: int) -> tuple[str, list[Line]]:
    """Evaluates `data.test` once, with the best weights where there is a best, else the last.

    Returns:
        The run's outcome (`stopped` where it was stopped here), and the last validation lines and the test lines.
    """
    evaluation, test = session.evaluation, state.data.test
    if outcome != "finished" or not test:
        _write_predictions(state, session, outcome)
        return outcome, list(evaluation.lines)
    session.saving.wait()
    best = evaluation.best.step
    with _weights_of(state, session, best if best != step else None) as shown:
        is_last = shown is None
        shown = step if shown is None else shown
        session.tracking.message(f"test: with the {'best' if shown == best else 'last'} weights, of step {shown:,}")
        lines = evaluation.measured(test, "test", shown, state.length.epoch(shown), of_training=is_last)
    if lines is None:
        return "stopped", []
    _write_predictions(state, session, outcome)
    return outcome, [*evaluation.lines, *lines]


def _write_predictions(state: TrainState, session: Session, outcome: str) -> None:
    if session.shown is None or outcome != "finished":
        if outcome == "finished" and (missing := missing_for(state.objective, state.data)):
            session.tracking.message(missing)
        return
    predictions = session.shown.predictions
    columns = predictions.columns(state.device.coordinator)
    if columns is None and predictions.left_out:
        session.tracking.message(f"{NO_MATRIX}: {predictions.left_out}")
    if not state.device.world.is_first or columns is None:
        return
    try:
        write_predictions(session.folder / PREDICTIONS_FILE, columns, session.shown.loader)
    except Exception as error:  # a disk, somebody's data set: nobody asked for it, and the weights are yet to come
        session.tracking.warn(f"{PREDICTIONS_FILE}: {error!r}; the report shows no mistakes")


@contextmanager
def _weights_of(state: TrainState, session: Session, step: int | None) -> Iterator[int | None]:
    """The weights of a checkpoint in the bare model, for a while; gives its step, None for the last ones.

    Rank 0 reads them, and tells them to the other ranks where these evaluate too.
    """
    if state.shards is not None:
        with _sharded_weights_of(state, session, step, state.shards) as shown:
            yield shown
        return
    coordinator, model, average = state.device.coordinator, state.model, state.average
    checkpoint = _best_checkpoint(session, step) if coordinator.rank == 0 else None
    if not coordinator.from_first(lambda: checkpoint is not None):
        yield None
        return
    parts: dict[str, Part] = {**state.objective.stateful, **({"average": average} if average else {})}

    def now() -> Any:
        return model.state_dict(), {name: part.state_dict() for name, part in parts.items()}

    def put(weights: Mapping[str, Any], states: Mapping[str, Any]) -> None:
        model.load_state_dict(weights)
        _take_up(parts, states)

    kept = checkpoints.copied(now())
    if checkpoint is not None:
        put(checkpoint.evaluated(), checkpoint.training())
    if session.evaluation.is_shared:
        for tensor in checkpoints.tensors_in(now()):
            coordinator.share(tensor)
    with afterwards(lambda: put(*kept)):
        yield step


def _take_up(parts: Mapping[str, Part], states: Mapping[str, Any]) -> None:
    """What a checkpoint kept of each; one from before the run had an average has none."""
    for name, part in parts.items():
        if name in states or name == "average":
            part.load_state_dict(restored(states.get(name)))


@contextmanager
def _sharded_weights_of(state: TrainState, session: Session, step: int | None, shards: Shards) -> Iterator[int | None]:
    """The same where the model is sharded: every process reads its rows."""
    checkpoint = _shared_checkpoint(state, session, step)
    if checkpoint is None:
        yield None
        return
    stateful = state.objective.stateful
    parts: dict[str, Any] = {**stateful, **sharded_parts(stateful, shards)}
    parts |= {"average": state.average} if state.average else {}
    model = ShardedPart(state.model.bare, shards, state.model.base)
    kept = checkpoints.copied([model.state_dict(), {name: part.state_dict() for name, part in parts.items()}])

    def put(weights: Any, states: Any) -> None:
        model.load_state_dict(weights)
        _take_up(parts, states)

    put(checkpoint.lazily(checkpoints.WEIGHTS), checkpoint.lazily(checkpoints.TRAINING))
    with afterwards(lambda: put(*kept)):
        yield step


def _best_checkpoint(session: Session, step: int | None) -> Checkpoint | None:
    """The checkpoint of a step; None, said, where it is damaged: the last weights are still there."""
    if step is None:
        return None
    try:
        return checkpoints.verify(session.saving.folder / checkpoints.name_of(step))
    except checkpoints.DamagedError as error:
        session.tracking.warn(f"the best checkpoint cannot be used ({error}); the last weights are")
        return None


def _save_final(session: Session, weights: Mapping[str, Any], average: str = "", mesh: Mesh | None = None) -> None:
    """Writes final weights as the recipe wants them; those that a shorter run has left in another form go first.

    Where all processes have a part, all of them call it.

    Args:
        session: The run's.
        weights: A state_dict, of rows where processes share it.
        average: Which of the averages it is; empty for the weights themselves.
        mesh: Which processes have rows.
    """
    folder, form = session.folder, session.saving.section.format
    stem = runs.stem_of(form, average)
    if session.saving.is_first:
        with weights_saved(folder / stem):
            for path in runs.weights_files(folder, average):
                if form != "pth" or path.suffix != ".pth":
                    path.unlink()
    if form == "safetensors":
        save_safetensors(folder, stem, weights, mesh)
    elif mesh is None:
        save_weights(folder / f"{stem}.pth", weights)
    else:
        save_streamed(folder / f"{stem}.pth", weights, mesh)


def _save_pretrained(session: Session, weights: Mapping[str, Any]) -> None:
    """The folder that `from_pretrained` loads: the weights are saved already, so a fault of it ends no run."""
    if session.pretrained is None:
        return
    try:
        session.tracking.message(session.pretrained.write(weights))
    except Exception as error:  # of somebody's model, a full disk, or another output
        words = " ".join(words_of(error).split())[:300]
        told = words if isinstance(error, LauncherError) else f"{type(error).__name__}: {words}"
        name = (runs.weights_of(session.folder) or session.folder).name
        session.tracking.warn(f"pretrained/: not saved: {told}; {name} is")


def _mean_of_last(session: Session, count: int) -> dict[str, Any]:
    """The mean of the weights of the last checkpoints."""
    folders = retention.listed(session.saving.folder)[:count]
    form = session.saving.section.format
    session.tracking.message(
        f"{runs.stem_of(form, 'mean')}.{form}: the mean of {', '.join(path.name for path in folders)}"
    )
    return mean_of(checkpoints.verify(folder).evaluated() for folder in folders)


def mean_of(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of weights, in 64 bits a number; what is no fraction is that of the first."""
    rest = iter(states)
    newest, count = next(rest), 1
    sums = {name: _doubled(value) for name, value in newest.items() if _is_fraction(value)}
    for weights in rest:
        count += 1
        for name, total in sums.items():
            total += _doubled(weights[name])
    return {**newest, **{name: (total / count).to(newest[name].dtype) for name, total in sums.items()}}


def _averaged(session: Session, average: Average, training: Mapping[str, Any] | None) -> Any:
    """The averages in a checkpoint; the run's own without one, or where it is from before the run had this kind."""
    kept = average.state_dict() if training is None else training.get("average")
    if kept is None or kept.get("kind", average.kind) != average.kind:
        session.tracking.warn(f"the best checkpoint has no {average.kind} average: the one of the last step is saved")
        kept = average.state_dict()
    return kept["parameters"]


def _is_fraction(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or not (value.is_floating_point() or value.is_complex()):
        return False
    return value.layout is torch.strided or value.layout is torch.sparse_coo  # other sparse ones are not summed


def _doubled(value: torch.Tensor) -> torch.Tensor:
    """In 64 bits a number, in memory of its own."""
    return value.to(torch.complex128 if value.is_complex() else torch.float64, copy=True)


def save_at_end(state: TrainState, session: Session, outcome: str, step: int) -> None:
    """Finishes the last checkpoint, and writes `model_weights.pth` where the run is finished.

    Beside it stand the averaged weights of the same step, where the recipe has an average, and the mean of the last
    checkpoints, where it wants that. The other ranks wait for rank 0: one that left earlier would end it under an
    elastic agent or srun. Then every rank's module has the weights of that file.
    """
    if state.shards is not None:
        _save_sharded_at_end(state, session, outcome, step)
        return

    coordinator, model = state.device.coordinator, state.model

    def saved() -> bool:
        session.saving.finish()
        if description := session.saving.describe():
            session.tracking.message(description)
        made = None
        if outcome == "finished":
            wanted = session.evaluation.best.step if session.saving.section.final == "best" else None
            best = _best_checkpoint(session, wanted if wanted != step else None)
            made = best.step if best else step
            weights = best.evaluated() if best else (evaluated_weights(state) or state.model.state_dict())
            _save_final(session, weights)
            _save_pretrained(session, weights)
            if state.average is not None:
                average = _averaged(session, state.average, best.training() if best else None)
                _save_final(session, {**weights, **average}, state.average.kind)
            if (last := session.saving.section.average_last) is not None:
                _save_final(session, _mean_of_last(session, last), "mean")
        session.record.end(outcome, step, made)
        _stop_training(state)
        if is_best := made not in (None, step):
            model.load_state_dict(weights)
        return is_best

    is_best = coordinator.from_first(saved)
    if coordinator.rank > 0:
        _stop_training(state)
    if is_best:
        for tensor in checkpoints.tensors_in(model.state_dict()):
            coordinator.share(tensor)


def _stop_training(state: TrainState) -> None:
    """Whoever gets the module trains it no more: of an optimizer's two kinds of weights it has those to evaluate."""
    optimizer: Any = state.optimizer
    if has_modes(optimizer):
        optimizer.eval()


def _save_sharded_at_end(state: TrainState, session: Session, outcome: str, step: int) -> None:
    """The same where every process has a part: they give it to rank 0 tensor by tensor."""
    coordinator, shards, saving = state.device.coordinator, state.shards, session.saving
    assert shards is not None
    saving.wait()
    if (description := saving.describe()) and coordinator.rank == 0:
        session.tracking.message(description)
    made = best = None
    if outcome == "finished":
        wanted = session.evaluation.best.step if saving.section.final == "best" else None
        best = _shared_checkpoint(state, session, wanted if wanted != step else None)
        made = best.step if best else step
        weights = best.lazily(checkpoints.WEIGHTS) if best else shards.module_state(state.model.bare, state.model.base)
        _save_final(session, weights, mesh=shards.mesh)
        if state.average is not None:
            average = _averaged(session, state.average, best.lazily(checkpoints.TRAINING) if best else None)
            _save_final(session, {**weights, **average}, state.average.kind, shards.mesh)

    def ended() -> None:
        if outcome == "finished" and session.pretrained is not None:
            _save_pretrained(session, stored_weights(find_weights(session.folder)))
        if outcome == "finished" and (last := saving.section.average_last) is not None:
            _save_final(session, _mean_of_last(session, last), "mean")
        session.record.end(outcome, step, made)

    coordinator.from_first(ended)
    if made not in (None, step) and best is not None:
        ShardedPart(state.model.bare, shards).load_state_dict(best.lazily(checkpoints.WEIGHTS))


def _shared_checkpoint(state: TrainState, session: Session, step: int | None) -> Checkpoint | None:
    """The checkpoint of a step, on all processes."""
    coordinator = state.device.coordinator
    checkpoint = _best_checkpoint(session, step) if coordinator.rank == 0 else None
    if not coordinator.from_first(lambda: checkpoint is not None):
        return None
    folder = session.saving.folder / checkpoints.name_of(step or 0)
    return checkpoint or checkpoints.awaited(folder, is_hashed=False)
