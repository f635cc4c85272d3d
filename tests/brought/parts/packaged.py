"""What people install and use: adapters, optimizers, graph layers, losses on embeddings, language models."""

from __future__ import annotations

from typing import Any

import torch
from nets import Lin, made
from sets import SIZE, makes, normal, whole
from torch import Tensor, nn
from torch.utils.data import Dataset

# ---------------------------------------------------------------------- adapters


@made
def loralib_linear(only: bool = True) -> nn.Module:
    """Folds itself in by eval()."""
    import loralib

    model = nn.Sequential(loralib.Linear(4, 4, r=2), nn.Tanh(), loralib.Linear(4, 1, r=2))
    adapted: Any = model[0]
    nn.init.normal_(adapted.lora_B)
    if only:
        loralib.mark_only_lora_as_trainable(model, bias="all")
    return model


@made
def loralib_embedding() -> nn.Module:
    """Token numbers, through an adapted embedding."""
    import loralib

    return Mean(loralib.Embedding(5, 4, r=2))


class Mean(nn.Module):
    """Of the rows that a layer gives."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.last = layer, nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.layer(x).mean(1))
        return out


@made
def plain() -> nn.Module:
    """What adapters are put around."""
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).double()


@makes
def adapted(**settings: Any) -> nn.Module:
    """A net with an adapter, as its author writes it."""
    import peft

    return peft.get_peft_model(plain(), peft.LoraConfig(r=2, target_modules=["0"], **settings))


@made
def peft_model(kind: str = "lora") -> nn.Module:
    """A net with adapters around its first layer."""
    import peft

    configs: dict[str, Any] = {
        "lora": lambda: peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False),
        "dora": lambda: peft.LoraConfig(r=2, target_modules=["0"], use_dora=True),
        "ia3": lambda: peft.IA3Config(target_modules=["0"], feedforward_modules=[]),
        "saved": lambda: peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"]),
    }
    return peft.get_peft_model(plain(), configs[kind]())  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- graphs


class Molecules(Dataset[Any]):
    """Rings of nodes, of unequal size."""

    def __init__(self, nodes: bool = False):
        from torch_geometric.data import Data

        self.graphs = []
        for number in range(SIZE):
            size = 3 + number % 4
            ring = torch.arange(size)
            edges = torch.stack([ring, (ring + 1) % size])
            x = normal(size, 4, seed=number)
            y = whole(3, size, seed=number) if nodes else x.sum(1).max().view(1, 1)
            self.graphs.append(Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], 1), y=y))

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return self.graphs[index]


def batched(graphs: list[Any]) -> Any:
    """One disconnected graph of all."""
    from torch_geometric.data import Batch

    return Batch.from_data_list(graphs)


@made
def graph_net(kind: str = "GCNConv", nodes: bool = False) -> nn.Module:
    return Graphs(kind, nodes)


class Graphs(nn.Module):
    """Two rounds of messages; then a number for each graph, or classes of nodes."""

    def __init__(self, kind: str, nodes: bool):
        super().__init__()
        import torch_geometric.nn as geometric

        self.convolution = getattr(geometric, kind)(4, 4)
        self.pool, self.nodes = geometric.global_mean_pool, nodes
        self.last = nn.Linear(4, 3 if nodes else 1)

    def forward(self, batch: Any) -> Tensor:
        rows = torch.tanh(self.convolution(batch.x, batch.edge_index))
        out: Tensor = self.last(rows if self.nodes else self.pool(rows, batch.batch))
        return out


# ---------------------------------------------------------------------- language models


@made
def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: Any = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 5, "n_positions": 8}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


@made
def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: Any = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=5, max_position_embeddings=8, **sizes))


@made
def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes: Any = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    off: Any = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3}
    config = BertConfig(vocab_size=5, max_position_embeddings=8, **sizes, **off)
    return BertForSequenceClassification(config)


class Texts(Dataset[Any]):
    """Token numbers and one class of each row."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": whole(5, 6, seed=index), "labels": torch.tensor(index % 3)}


# ---------------------------------------------------------------------- embeddings


@makes
def margin_of_metric_learning() -> Any:
    from pytorch_metric_learning.losses import ArcFaceLoss

    torch.manual_seed(1)
    return ArcFaceLoss(num_classes=3, embedding_size=3, scale=4).double()


@makes
def proxies() -> Any:
    from pytorch_metric_learning.losses import NormalizedSoftmaxLoss

    torch.manual_seed(1)
    return NormalizedSoftmaxLoss(num_classes=3, embedding_size=3, temperature=0.5).double()


@makes
def contrast() -> Any:
    from pytorch_metric_learning.losses import ContrastiveLoss

    return ContrastiveLoss()


@makes
def temperature() -> Any:
    from pytorch_metric_learning.losses import NTXentLoss

    return NTXentLoss()


@makes
def triplets() -> Any:
    from pytorch_metric_learning.losses import TripletMarginLoss

    return TripletMarginLoss()


@makes
def lin() -> Any:
    return Lin()
