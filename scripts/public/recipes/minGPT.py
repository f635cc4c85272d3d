"""What `adder.py` has under its `if __name__`."""

from mingpt.model import GPT
from projects.adder.adder import AdditionDataset, get_config


def problems():
    return AdditionDataset(get_config().data, split="train")


def model():
    config, data = get_config().model, problems()
    config.vocab_size, config.block_size = data.get_vocab_size(), data.get_block_size()
    return GPT(config)


def optimizer(model):
    return model.configure_optimizers(get_config().trainer)
