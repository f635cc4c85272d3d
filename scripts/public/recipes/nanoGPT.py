"""What `train.py` has between its settings and its loop."""

import numpy as np
import torch
from model import GPT, GPTConfig


class Tokens:
    def __init__(self, file, size):
        self.data, self.size = np.memmap(file, dtype=np.uint16, mode="r"), size

    def __len__(self):
        return len(self.data) - self.size

    def __getitem__(self, i):
        x = torch.from_numpy(self.data[i : i + self.size + 1].astype(np.int64))
        return x[:-1], x[1:]


def model():
    return GPT(GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=64, bias=False, vocab_size=65, dropout=0.0))


def optimizer(model):
    return model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
