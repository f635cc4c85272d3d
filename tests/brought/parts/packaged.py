"""What people install and use: adapters, optimizers, graph layers, losses on embeddings, language models."""

from __future__ import annotations

import functools
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


_SMALL: Any = {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
_THREE: Any = {"num_labels": 3}
_STILL: Any = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@made
def speaker() -> nn.Module:
    """A causal model that numbers positions itself, or takes them: without a cache, packed texts are told apart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_SMALL, intermediate_size=8, max_position_embeddings=64, use_cache=False))


@made
def reader(kind: str) -> nn.Module:
    """BERT with a head of a kind."""
    import transformers

    config = transformers.BertConfig(**_SMALL, **_STILL, **_THREE, intermediate_size=8)
    return getattr(transformers, f"BertFor{kind}")(config)  # type: ignore[no-any-return]


@made
def translator() -> nn.Module:
    """T5: an encoder, and a decoder that is given its own labels."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes: Any = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=12, dropout_rate=0.0, **sizes))


@made
def seer() -> nn.Module:
    """ViT of four patches."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {name: size for name, size in _SMALL.items() if name != "vocab_size"}
    config = ViTConfig(**sizes, **_STILL, **_THREE, intermediate_size=8, image_size=8, patch_size=4)
    return ViTForImageClassification(config)


@functools.cache
def tokenizer() -> Any:
    """Of eleven words, and one to pad with."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast

    words = WordLevel({"[PAD]": 0, **{f"w{number}": number for number in range(1, 12)}}, unk_token="w1")
    return make(tokenizer_object=Tokenizer(words), pad_token="[PAD]")


def padded(rows: list[Any]) -> Any:
    """Rows of unequal length, and of the labels -100 where nothing is."""
    from transformers import DataCollatorForTokenClassification

    return dict(DataCollatorForTokenClassification(tokenizer())(rows))


def padded_texts(rows: list[Any]) -> Any:
    """Rows of unequal length with one label each."""
    from transformers import DataCollatorWithPadding

    return dict(DataCollatorWithPadding(tokenizer())(rows))


def padded_pairs(rows: list[Any]) -> Any:
    """Texts and their translations."""
    from transformers import DataCollatorForSeq2Seq

    return dict(DataCollatorForSeq2Seq(tokenizer())(rows))


def packed(rows: list[Any]) -> Any:
    """All texts behind each other in one row, each with positions from 0."""
    from transformers import DataCollatorWithFlattening

    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
    collate: Any = DataCollatorWithFlattening
    return dict(collate()(rows))


class Sentences(Dataset[Any]):
    """Texts of 2 to 7 tokens.

    Args:
        kind: `causal`, where the labels are the tokens; `tagged`, three classes of tokens; `masked`, where every third
            token is hidden; `pairs`, with another text; `one`, with one label each.
    """

    def __init__(self, kind: str = "causal"):
        self.kind = kind

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = (whole(10, 2 + index % 6, seed=index) + 2).tolist()
        row = {"input_ids": tokens, "attention_mask": [1] * len(tokens)}
        if self.kind == "masked":
            hidden = [place % 3 == index % 3 or len(tokens) < 3 for place in range(len(tokens))]
            shown = [1 if is_hidden else token for token, is_hidden in zip(tokens, hidden, strict=True)]
            labels: Any = [token if is_hidden else -100 for token, is_hidden in zip(tokens, hidden, strict=True)]
            return {**row, "input_ids": shown, "labels": labels}
        labels = {
            "causal": tokens,
            "tagged": [token % 3 for token in tokens],
            "pairs": tokens[::-1][: 1 + index % 4],
            "one": index % 3,
        }[self.kind]
        return {**row, "labels": labels}


class Pictures(Dataset[Any]):
    """Small pictures of three kinds."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": normal(3, 8, 8, seed=index), "labels": torch.tensor(index % 3)}


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
