"""A GPT-2-like language model, in the plainest form that trains well."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GPT(nn.Module):
    """A decoder-only transformer: pre-norm blocks, rotary positions, the token embedding tied to the head.

    Args:
        vocab_size: How many different tokens there are.
        context: The longest sequence, in tokens.
        layers: Transformer blocks.
        heads: Attention heads in a block.
        width: Numbers that represent one token; divisible by `heads`.
        dropout: The probability of dropping an activation.
        bias: Whether linear layers and norms add one.

    Raises:
        ValueError: If `heads` does not divide `width`, or divides it into an odd width.
    """

    def __init__(
        self,
        vocab_size: int,
        context: int = 64,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads {heads}")
        self.context = context
        self.tokens = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, context, dropout, bias) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=bias)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        self._init_weights(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores the token that follows each token.

        Args:
            tokens: int64 of shape [N, T], T at most `context`.

        Returns:
            Logits of shape [N, vocab_size, T], with the class dimension second, where torch's losses and
            torchmetrics expect it.

        Raises:
            ValueError: If the sequences are longer than `context`.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"sequences of {length} tokens, but the model was built for context {self.context}")
        x = self.blocks(self.dropout(self.tokens(tokens)))
        logits: Tensor = self.head(self.norm(x))
        return logits.transpose(1, 2)

    def _init_weights(self, layers: int) -> None:
        """GPT-2's: the sum over 2 × layers residual additions keeps its variance."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                residual = name.endswith("project.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, width: int, heads: int, context: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = CausalSelfAttention(width, heads, context, dropout, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.feed_forward = FeedForward(width, dropout, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, T, width] to the same shape."""
        x = x + self.attention(self.norm1(x))
        added: Tensor = x + self.feed_forward(self.norm2(x))
        return added


class CausalSelfAttention(nn.Module):
    """Every token looks at itself and at those before it, and sees how far away they are."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, heads: int, context: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width, bias=bias)
        self.project = nn.Linear(width, width, bias=bias)
        cos, sin = rotations(context, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, T, width] to the same shape."""
        split = self.query_key_value(x).unflatten(2, (3, self.heads, -1))  # [N, T, 3, heads, width / heads]
        cos, sin = (turn[: x.shape[1]].to(split.dtype) for turn in (self.cos, self.sin))  # else they lift it to theirs
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [N, heads, T, width / heads]
        dropout = self.dropout if self.training else 0.0
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return F.dropout(self.project(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


def rotations(context: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, [context, size / 2] each (RoPE, Su et al. 2021).

    Raises:
        ValueError: If `size`, the width of a head, is odd.
    """
    if size % 2:
        raise ValueError(f"the width of a head is {size}; it must be even: choose width divisible by 2 × heads")
    angles = torch.arange(context)[:, None] * 10_000.0 ** (-torch.arange(0, size, 2) / size)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of features of [..., T, size] by its position's angle, so that products tell distances."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class FeedForward(nn.Module):
    """The same two-layer perceptron for every token."""

    def __init__(self, width: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width, bias=bias)
        self.project = nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, T, width] to the same shape."""
        dropped: Tensor = self.dropout(self.project(F.gelu(self.expand(x))))
        return dropped
