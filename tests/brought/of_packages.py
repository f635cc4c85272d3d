"""Packages that people install: what they bring, as it is documented there."""

from __future__ import annotations

from functools import partial
from typing import Any

import lion_pytorch
import madgrad
import nets
import packaged
import schedulefree
import sets
from torch import Tensor, nn

from tests.brought.case import case, written

# ---------------------------------------------------------------------- adapters

case("loralib", model=packaged.loralib_linear)
case("loralib, the base trained too", model=partial(packaged.loralib_linear, only=False))
case("loralib, an embedding", model=packaged.loralib_embedding, data=sets.Tokens)
for kind in ("lora", "dora", "ia3", "saved"):
    case(f"peft: {kind}", model=partial(packaged.peft_model, kind=kind), heavy=True)

for name, settings in (
    ("a low-rank adapter", {"init_lora_weights": "gaussian"}),
    ("weights decomposed", {"use_dora": True}),
    ("a layer trained beside", {"modules_to_save": ["2"]}),
):
    adapter = ", ".join(["_target_: peft.LoraConfig, r: 2, target_modules: ['0']", written(settings)[1:-1]])
    case(
        f"peft, in the recipe: {name}",
        f"model={{_target_: 'packaged.py:plain', _adapt_: {{{adapter}}}}}",
        model=partial(packaged.adapted, **settings),
        adapted=True,
        steps=20,
        heavy=True,
    )

# ---------------------------------------------------------------------- optimizers

OPTIMIZERS: dict[str, Any] = {
    "MADGRAD": partial(madgrad.MADGRAD, lr=0.05),
    "MADGRAD, decayed": partial(madgrad.MADGRAD, lr=0.05, momentum=0.5, weight_decay=0.01),
    "MirrorMADGRAD": partial(madgrad.MirrorMADGRAD, lr=0.05),
    "SGDScheduleFree": partial(schedulefree.SGDScheduleFree, lr=0.1, warmup_steps=2),
    "AdamWScheduleFree": partial(schedulefree.AdamWScheduleFree, lr=0.05),
    "RAdamScheduleFree": partial(schedulefree.RAdamScheduleFree, lr=0.05),
    "Lion": partial(lion_pytorch.Lion, lr=0.01),
}
for name, optimizer in OPTIMIZERS.items():
    case(
        f"packaged optimizer: {name}",
        model=nets.Deep,
        optimizer=optimizer,
        allow=("madgrad", "schedulefree", "lion_pytorch"),
    )

# ---------------------------------------------------------------------- graphs

graphs = {"collate": packaged.batched, "heavy": True}


def of_graphs(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    """The model takes the batch itself."""
    value: Tensor = loss(model(batch), batch.y)
    return value


for kind in ("GCNConv", "GATConv", "SAGEConv"):
    case(
        f"torch-geometric: {kind}",
        "batch={inputs: whole, targets: [y]}",
        data=packaged.Molecules,
        model=partial(packaged.graph_net, kind=kind),
        forward=of_graphs,
        **graphs,
    )
case(
    "torch-geometric: classes of nodes",
    "batch={inputs: whole, targets: [y]}",
    model=partial(packaged.graph_net, nodes=True),
    data=partial(packaged.Molecules, nodes=True),
    loss=nn.CrossEntropyLoss,
    forward=of_graphs,
    **graphs,
)

# ---------------------------------------------------------------------- embeddings

classes: dict[str, Any] = {"model": nets.three, "data": sets.Cls}
case("pytorch-metric-learning: ArcFace", loss=packaged.margin_of_metric_learning, **classes)
case("pytorch-metric-learning: proxies", loss=packaged.proxies, **classes)
for loss in (packaged.contrast, packaged.temperature, packaged.triplets):
    case(f"pytorch-metric-learning: {loss.__name__}", loss=loss, worlds=(1,), pieces=False, refused=2, **classes)

# ---------------------------------------------------------------------- transformers, from a config

OWN = ("loss=model", "batch={inputs: {input_ids: input_ids, labels: labels}, targets: []}")
language: dict[str, Any] = {"loss": None, "forward": lambda model, batch, _: model(**batch).loss, "heavy": True}
language |= {"exact": 1e-5, "steps": 20}  # they compute their losses in 32 bits
case("transformers: GPT-2", *OWN, model=packaged.gpt2, data=sets.Tok, **language)
case("transformers: Llama", *OWN, model=packaged.llama, data=sets.Tok, **language)
case("transformers: BERT that classifies", *OWN, model=packaged.bert, data=packaged.Texts, **language)

masked_texts = "{input_ids: input_ids, attention_mask: attention_mask, labels: labels}"
read = {**language, "collate": packaged.padded}
READ = ("loss=model", f"batch={{inputs: {masked_texts}, targets: []}}")
case("transformers: padded causal", *READ, model=packaged.speaker, data=packaged.Sentences, **read)
for kind, head in (("tagged", "TokenClassification"), ("masked", "MaskedLM")):
    case(
        f"transformers: BERT, {kind}",
        *READ,
        model=partial(packaged.reader, kind=head),
        data=partial(packaged.Sentences, kind=kind),
        **read,
    )
case(
    "transformers: padded texts",
    *READ,
    model=partial(packaged.reader, kind="SequenceClassification"),
    data=partial(packaged.Sentences, kind="one"),
    **{**read, "collate": packaged.padded_texts},
)
case(
    "transformers: T5",
    *READ,
    model=packaged.translator,
    data=partial(packaged.Sentences, kind="pairs"),
    **{**read, "collate": packaged.padded_pairs},
)
case(
    "transformers: ViT",
    "loss=model",
    "batch={inputs: {pixel_values: pixel_values, labels: labels}, targets: []}",
    model=packaged.seer,
    data=packaged.Pictures,
    **language,
)
case(
    "transformers, packed",  # as the same texts are one by one, padded
    "loss=model",
    "batch={inputs: {input_ids: input_ids, position_ids: position_ids, labels: labels}, targets: []}",
    "data.collate={_ref_: packaged.py:packed}",
    model=packaged.speaker,
    data=packaged.Sentences,
    **{**read, "exact": 1e-6},
)
