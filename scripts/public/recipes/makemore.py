"""What `makemore.py` has under its `if __name__`."""

import torch
from makemore import ModelConfig, Transformer, create_datasets


def names(file):
    torch.manual_seed(3407)
    return create_datasets(file)[0]


def model(vocab_size, block_size):
    return Transformer(
        ModelConfig(vocab_size=vocab_size, block_size=block_size, n_layer=2, n_head=2, n_embd=32, n_embd2=32)
    )
