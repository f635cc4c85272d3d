"""Random graphs of three kinds with equally many nodes and edges, and a network that tells the kinds apart."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

KINDS = ("edges anywhere", "a ring, partly rewired", "four communities")


class Graphs(TensorDataset):
    """Adjacency matrices [nodes, nodes] and kinds.

    Args:
        samples: How many graphs.
        nodes: Of each; there are twice as many edges.
        seed: Another seed is another set of graphs.
    """

    def __init__(self, samples: int, nodes: int = 24, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        kinds = torch.randint(len(KINDS), (samples,), generator=generator)
        one, other = torch.triu_indices(nodes, nodes, offset=1)
        apart = torch.minimum(other - one, nodes - (other - one))  # along the ring
        on_ring = torch.where(apart <= 2, 1.0, 0.04)
        together = torch.where(one % 4 == other % 4, 1.0, 0.07)
        weights = torch.stack([torch.ones(len(one)), on_ring, together])[kinds]
        drawn = weights.multinomial(2 * nodes, generator=generator)
        graphs = torch.zeros(samples, nodes, nodes)
        graphs[torch.arange(samples)[:, None], one[drawn], other[drawn]] = 1.0
        graphs += graphs.transpose(1, 2).clone()
        order = torch.rand(samples, nodes, generator=generator).argsort(1)  # a node's number tells nothing
        graphs = graphs.gather(1, order[:, :, None].expand_as(graphs)).gather(2, order[:, None, :].expand_as(graphs))
        super().__init__(graphs, kinds)


class GIN(nn.Module):
    """A graph isomorphism network (Xu and others, 2019) over dense matrices.

    Sums over neighbours alone cannot see a triangle. What they begin with is therefore how likely a random walk is back
    after 2, 3, … steps (Dwivedi and others, 2022); `walk: 0` begins with the number of neighbours alone.
    """

    def __init__(self, width: int = 64, layers: int = 3, walk: int = 8) -> None:
        super().__init__()
        self.walk = walk
        self.enter = nn.Linear(1 + walk, width)
        self.layers = nn.ModuleList(perceptron(width) for _ in range(layers))
        self.head = nn.Linear(2 * width, len(KINDS))

    def forward(self, graphs: Tensor) -> Tensor:
        """Maps matrices [N, nodes, nodes] to logits [N, kinds]."""
        neighbours = graphs.sum(-1, keepdim=True)
        step = graphs / neighbours.clamp(min=1)
        walked, back = step, [neighbours / 4]
        for _ in range(self.walk):
            walked = walked @ step
            back.append(4 * walked.diagonal(dim1=1, dim2=2).unsqueeze(-1))
        x = self.enter(torch.cat(back, dim=-1))
        for layer in self.layers:
            x = x + layer(x + graphs @ x)
        logits: Tensor = self.head(torch.cat([x.mean(1), x.amax(1)], dim=-1))
        return logits


def perceptron(width: int) -> nn.Sequential:
    """What is done to each node after its neighbours were added."""
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
