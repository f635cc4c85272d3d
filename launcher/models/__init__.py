"""Small models in plain PyTorch, for the recipes and for trying things out."""

from launcher.models.convnet import ConvNet
from launcher.models.gpt import GPT
from launcher.models.mlp import MLP

__all__ = ["GPT", "MLP", "ConvNet"]
