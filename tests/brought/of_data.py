"""Data: how samples are read, what they are, who draws in them, who is told the epoch."""

from __future__ import annotations

from functools import partial
from typing import Any

import nets
import sets

from tests.brought.case import case


def by_name(x: str, y: str) -> Any:
    """Of a batch with parts by name."""
    return lambda model, batch, loss: loss(model(getattr(batch, x)), getattr(batch, y))


# ---------------------------------------------------------------------- how it is read

case("get_batch of another meaning", data=sets.Corpus)
case("get_batch that is what it seems", data=sets.Fast)
case("__getitem__ overridden alone", data=sets.Doubled)
case("a wrapper with __getattr__", data=sets.Delegating)
case("__getitems__", data=sets.Several, forward=lambda model, batch, loss: loss(model(batch[0] * 3), batch[1]))
case("sets: tensors side by side", data=sets.tensors)
case("sets: sets in a row", data=sets.concatenated)
case("sets: a subset", data=sets.subset)
case("a subset of a mixed set", data=sets.subset, shuffled=True)
case(
    "sets by name",
    "batch={inputs: [x.0], targets: [y.0]}",
    data=sets.stacked,
    forward=lambda model, batch, loss: loss(model(batch["x"][0]), batch["y"][0]),
)
case("a stream", data=sets.Streamed)
case("mixed", shuffled=True)
case("sets: the last batch left out", "data.drop_last=true", data=partial(sets.Reg, size=24))
case("sets: a set of another size", data=partial(sets.Reg, size=19))
case("sets: smaller than a batch", data=partial(sets.Reg, size=7))

# ---------------------------------------------------------------------- who is told the epoch

case("told the epoch", data=sets.Epochs)
case("told the epoch, and get_batch forgets it", data=sets.EpochsForgotten)
case("told the epoch inside", data=sets.Wrapping)
case("told the epoch, and mixed", data=sets.Epochs, shuffled=True)
case("told the epoch in a worker", "data.workers=1", data=sets.Epochs, worlds=(1,))
case("a collate that is told", "data.collate={_target_: sets.py:EpochCollate}", collate=sets.EpochCollate())

# ---------------------------------------------------------------------- what is handed over, what is split

case(
    "a DataLoader with its collate",
    "data.train={_target_: sets.py:loader}",
    "data.collate=null",
    validation=sets.loader,
    collate=sets.tripled,
)
case("a DataLoader of batches", data=sets.loader_of_four, worlds=(), refused=1)
case("a DataLoader that draws", data=sets.loader_that_draws, worlds=(), refused=1)

case(
    "split by rank already, as it is said",
    "data.split_by_rank=true",
    data=sets.split_by_rank,
    validation=sets.Reg,
    worlds=(2,),
)

# ---------------------------------------------------------------------- what samples are

shaped = {kind: partial(sets.Shaped, kind=kind) for kind in ("named", "nested", "record", "space", "numpy", "numbers")}
shaped |= {kind: partial(sets.Shaped, kind=kind) for kind in ("list", "sparse", "complex", "bool", "extra", "dropped")}
case("samples: named tuples, by position", data=shaped["named"])
case("samples: named tuples, by name", "batch={inputs: [image], targets: [label]}", data=shaped["named"])
case(
    "paths into mappings",
    "batch={inputs: {left: x.left, right: x.right}, targets: [y.0]}",
    model=nets.Halves,
    data=shaped["nested"],
    forward=lambda model, batch, loss: loss(model(**batch["x"]), batch["y"][0]),
)
by_fields: dict[str, Any] = {"forward": by_name("image", "label")}
fields = ("batch={inputs: [image], targets: [label]}",)
case("dataclasses", *fields, data=shaped["record"], collate=sets.stacked_records, **by_fields)
case("objects with attributes", *fields, data=shaped["space"], collate=sets.stacked_spaces, **by_fields)
case(
    "the batch itself",
    "batch={inputs: whole, targets: [label]}",
    model=nets.OfBatch,
    data=shaped["record"],
    collate=sets.stacked_records,
    forward=lambda model, batch, loss: loss(model(batch), batch.label),
)
case("samples: arrays of NumPy's", data=shaped["numpy"])
case("samples: numbers of Python's", data=shaped["numbers"], collate=sets.stacked_numbers)
case("samples: lists", data=shaped["list"])
case("samples: more in a sample than is used", data=shaped["extra"])
case("samples: an empty tensor in a sample", data=partial(sets.Shaped, kind="empty"))
sparse: dict[str, Any] = {"collate": sets.stacked_sparse, "model": nets.Sparse}
case("sparse inputs", data=shaped["sparse"], **sparse)
case("samples: complex inputs", data=shaped["complex"], model=nets.OfComplex)
case("samples: inputs of yes and no", data=shaped["bool"], model=nets.OfBool)
# with three processes one of them may be left with none, of which torch's collate makes nothing
case("samples that a collate drops", data=shaped["dropped"], collate=sets.without_missing, worlds=(1, 2))

# ---------------------------------------------------------------------- who draws

for generator in ("random", "numpy", "torch", "all"):
    case(f"samples that draw: {generator}", data=partial(sets.Augmented, by=generator))
case("samples that draw, mixed", data=sets.Augmented, shuffled=True)
case("samples that draw in a worker", "data.workers=1", data=sets.Augmented, worlds=(2,))
case("a generator made of torch's seed", data=sets.Generated)
case("a collate that draws", collate=sets.noisy_collate, worlds=(1,), pieces=False)
case(
    "a collate for training alone",
    "data.collate={train: {_ref_: sets.py:tripled}}",
    collate=sets.tripled,
    score=lambda model, batch, loss: loss(model(batch[0] / 3), batch[1]),
)
