"""The weights of a run in another form, checked against the run's own on a real batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from launcher.checkpoints.compare import Batch, agreed, check_called, distance
from launcher.checkpoints.forms import PROGRAMS, SUFFIXES, WHOLE_STATES, Fresh, sizes
from launcher.checkpoints.pretrained import save_folder
from launcher.checkpoints.programs import check_program
from launcher.checkpoints.real_batch import real_batch
from launcher.checkpoints.rebuilt import rebuilt, with_base
from launcher.checkpoints.sameness import same
from launcher.checkpoints.saved_run import Saved, builder_of, fill
from launcher.checkpoints.sharded_export import export_sharded
from launcher.data.seeds import seed_everything
from launcher.errors import LauncherError, UsageError
from launcher.model.adapt import Built, built
from launcher.model.kinds import class_of
from launcher.text import brief, hint, size
from launcher.world.files import atomic_write
from launcher.world.world import World

FOLDER = "transformers"  # the form that is a folder
FORMS = (FOLDER, *(suffix[1:] for suffix in SUFFIXES))


def export(
    saved: Saved,
    target: Path,
    form: str | None = None,
    *,
    merge: bool = False,
    part: str = "",
    world: World | None = None,
    cpu: bool = False,
) -> str:
    """Writes the weights of a run or checkpoint in another form.

    What was written is loaded again, and its outputs on a batch of two samples are compared with those of the model
    that it came from.

    Args:
        saved: The weights and their recipe.
        target: The file to write, whose suffix sets the format, or a folder.
        form: What to write into the folder `target`; `transformers` is one that `from_pretrained` loads.
        merge: Whether an adapter becomes a part of the weights that it stands beside.
        part: The name of a part of the model that is written alone, as a program; empty for the model.
        world: The processes, which share a model that was trained sharded; None is this one.
        cpu: Whether several stay on the CPU; one does.

    Returns:
        What was written and how it was checked, in a line.

    Raises:
        UsageError: There is no such form, or the file exists.
        LauncherError: The model cannot be exported, or what was written gives other outputs.
    """
    target, world = _place(target.absolute(), form), world or World()
    if part and (target.suffix not in PROGRAMS or merge):
        raise UsageError(f"--part {part}: is for {' and '.join(PROGRAMS)}, without --merge")
    if world.size > 1:
        _check_shared(saved, target, form, merge, world)
    builder = builder_of(saved)
    builder.check()
    if world.size > 1:
        target.parent.mkdir(exist_ok=True)
        return _told(saved, target, form, merge, export_sharded(saved, target, builder, world, cpu))
    fresh = partial(rebuilt, builder, saved.recipe)
    seed_everything(saved.recipe.seed)  # which an adapter's base may be drawn with
    model = with_base(built(builder, saved.recipe.model), builder, saved.recipe)
    fill(model, saved)
    model.module.eval()
    if part:
        _check_part(model.module, part)
    try:
        batch = real_batch(saved, builder, partial(_for_steps, fresh, saved), part=part)
        model = Built(model.module.get_submodule(part)) if part else model
        check_called(model.module, batch)
    except LauncherError as error:
        if needs_whole(target, form, merge):
            raise
        return _told(saved, target, form, merge, _weights_alone(target, model, fresh, saved, error))
    written = model
    if merge:
        written = _merged(fresh, saved)
        distance(model.module, written.module, batch)
    target.parent.mkdir(exist_ok=True)
    if form == FOLDER:
        with nullcontext() if merge else _as_saved(model, saved):
            comparison = save_folder(target, written, fresh, batch, builder.objects)
    else:
        comparison = _file(target, written, fresh, saved, batch, merge)
    return _told(saved, target, form, merge, comparison, part)


def _check_part(model: nn.Module, part: str) -> None:
    """Refuses a part that there is not.

    Raises:
        UsageError: It is none of the model's.
    """
    names = [name for name, _ in model.named_modules() if name]
    if part not in names:
        listed = f"it has: {', '.join(name for name, _ in model.named_children())}"
        raise UsageError(f"--part: {class_of(model).__name__} has no '{brief(part)}'{hint(part, names, listed)}")


def _weights_alone(target: Path, model: Built, fresh: Fresh, saved: Saved, why: LauncherError) -> str:
    """A file of weights, where there is no batch to compare outputs on: its tensors are compared."""
    target.parent.mkdir(exist_ok=True)
    with atomic_write(target, parents=False) as part:
        with _as_saved(model, saved):
            again: Any = SUFFIXES[target.suffix](model, fresh, Batch((), {}), part)
        if not same(Built(again, model.base).state_dict(), model.state_dict()):
            raise LauncherError("what was written holds other tensors; nothing was kept")
    return f"its tensors are bit-equal, and no outputs were compared: {why}"


def _for_steps(fresh: Fresh, saved: Saved) -> nn.Module:
    """A model of its own for a step function, which may change it."""
    model = fresh()
    fill(model, saved)
    return model.module.eval()


def _told(saved: Saved, target: Path, form: str | None, merge: bool, comparison: str, part: str = "") -> str:
    """What was written, in a line."""
    num_bytes = sum(path.stat().st_size for path in (target.rglob("*") if target.is_dir() else [target]))
    kind = (form or target.suffix[1:]) + ", its adapter merged" * merge + (f", its {part} alone" if part else "")
    return f"{target}: {saved.label} as {kind}, {size(num_bytes)}; {comparison}"


def needs_whole(target: Path, form: str | None, merge: bool) -> bool:
    """Whether what is written is made of the whole model, and not of one tensor after the other."""
    return merge or form == FOLDER or (f".{form}" if form else target.suffix) not in WHOLE_STATES


def _check_shared(saved: Saved, target: Path, form: str | None, merge: bool, world: World) -> None:
    """Refuses several processes where they have nothing to share.

    Raises:
        UsageError: They have not.
    """
    remedy = f"start one process, not {world.size} (omit --processes)"
    if needs_whole(target, form, merge):
        what = "--merge" if merge else form or target.suffix[1:]
        raise UsageError(f"{what} needs the whole model, which one process then holds; {remedy}")
    if saved.recipe.device.sharding == "none":
        raise UsageError(f"{saved.label}: the run's device.sharding is none, there is nothing to share; {remedy}")


def _place(target: Path, form: str | None) -> Path:
    """The file or folder that is written.

    Raises:
        UsageError: There is no such form, it is there, or there is no place for it.
    """
    if form is None and target.suffix not in SUFFIXES:
        raise UsageError(
            f"--to {target.name}: the suffix sets the format; one of: {', '.join(SUFFIXES)}; or a folder with --as "
            f"{' | '.join(FORMS)}"
        )
    if form not in (None, *FORMS):
        raise UsageError(f"--as {form}: there is no such form; one of: {', '.join(FORMS)}")
    inner = form is not None and form != FOLDER
    if inner and target.suffix == f".{form}":
        inner = False
    if not target.parent.is_dir():
        raise UsageError(f"--to {target}: there is no folder {target.parent}; make it first")
    place = target / f"model.{form}" if inner else target
    if place.exists() or (inner and target.is_file()):
        raise UsageError(f"--to {place if place.exists() else target}: exists already; name another file, or remove it")
    return place


def _merged(fresh: Fresh, saved: Saved) -> Built:
    """The model with its adapter in its weights.

    Raises:
        UsageError: It has none that can be merged.
    """
    another = fresh()
    merges: Any = getattr(another.module, "merge_and_unload", None)
    if another.base is None or merges is None:
        is_adapted = another.base is not None
        why = "adapter is none that peft can put into weights" if is_adapted else "model has no adapter of peft's"
        raise UsageError(f"--merge: the run's {why} (model._adapt_); omit --merge")
    fill(another, saved)
    return Built(merges().eval())


def _file(target: Path, model: Built, fresh: Fresh, saved: Saved, batch: Batch, merge: bool) -> str:
    """One file; what is loaded again is compared."""

    def another() -> Built:
        merges: Any = fresh()
        return Built(merges.module.merge_and_unload()) if merge else merges

    is_program = target.suffix in PROGRAMS
    if is_program:
        check_program(target.suffix[1:], model.module, batch)
        batch = _for_strangers(model.module, batch)
    with atomic_write(target, parents=False) as part:
        with nullcontext() if is_program or merge else _as_saved(model, saved):
            again = SUFFIXES[target.suffix](model, another, batch, part)
        found = distance(model.module, again, batch)
        more = sizes(model.module, again, batch) if is_program else ""
    return f"{agreed(found)}{more}"


def _for_strangers(model: nn.Module, batch: Batch) -> Batch:
    """Without labels, which those who run a program do not have, where the model can be called so."""
    shorter = batch.without_answers()
    try:
        check_called(model, shorter)
    except LauncherError:
        return batch
    return shorter


@contextmanager
def _as_saved(model: Built, saved: Saved) -> Iterator[None]:
    """Holds weights in the types of the file for a while: bfloat16 ones go there and back without a change."""
    weights = saved.weights()
    named = [
        (weights[name], value)
        for name, value in model.module.state_dict(keep_vars=True).items()
        if hasattr(weights.get(name), "dtype")
    ]
    before = [value.dtype for _, value in named]
    for kept, value in named:
        value.data = value.data.to(kept.dtype)
    yield
    for (_, value), dtype in zip(named, before, strict=True):
        value.data = value.data.to(dtype)
