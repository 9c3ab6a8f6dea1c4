"""AGCRN: a GRU on a learned graph of all points, with weights of their own (Bai et al. 2020, arXiv:2007.02842)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from climapred.models.adjacency import LearnedAdjacency
from climapred.models.convlstm import check_hidden
from climapred.models.recurrent import EncoderForecaster, Layers, State, in_form


class NodeWeights(NamedTuple):
    """A matrix for each of N nodes: ``weight`` ``(N, inputs, outputs)``, ``bias`` ``(N, outputs)``."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``(B, N, outputs)`` from ``(B, N, inputs)``."""
        return torch.einsum("bni,nio->bno", x, self.weight) + self.bias


class WeightPool(nn.Module):
    """Node-adaptive parameters (NAPL; Bai et al. 2020, eq. 4): each node mixes its weights out of a pool, by its embedding.

        Theta_n = sum_d E_nd W_d,    b_n = sum_d E_nd b_d

    Args:
        inputs, outputs: sizes of a node's matrix.
        nodes, embedding: sizes of E.
    """

    def __init__(self, inputs: int, outputs: int, nodes: int, embedding: int) -> None:
        super().__init__()
        # E has the variance 2 / (N + D) (Glorot): then Theta has 2 / (inputs + outputs), as a linear layer of its size.
        deviation = ((nodes + embedding) / (embedding * (inputs + outputs))) ** 0.5
        self.weight = nn.Parameter(torch.randn(embedding, inputs, outputs) * deviation)
        self.bias = nn.Parameter(torch.zeros(embedding, outputs))

    def forward(self, embedding: Tensor) -> NodeWeights:
        """Return the parameters of all nodes from their embeddings ``(N, D)``."""
        return NodeWeights(torch.einsum("nd,dio->nio", embedding, self.weight), embedding @ self.bias)


class Graph(NamedTuple):
    """What the cells share in one forward pass: the adjacency ``(N, N)``, row = target, and the weights of every pool."""

    adjacency: Tensor
    weights: list[NodeWeights]


class AdaptiveGraph(nn.Module):
    """One embedding E per node, and what depends on it and on parameters alone, so that it is made once per forward pass.

    ``adjacency()``: softmax_rows(ReLU(E E^T)), the data-adaptive graph (DAGG; Bai et al. 2020, eq. 5), ``(N, N)``.

    Args:
        nodes: points of the grid, N.
        embedding: length of E, D.
    """

    def __init__(self, nodes: int, embedding: int) -> None:
        super().__init__()
        self.adjacency = LearnedAdjacency(nodes, embedding)
        self.pools = nn.ModuleList()

    def add_pool(self, inputs: int, outputs: int) -> int:
        """Add a pool of weights and return its place among ``Graph.weights``."""
        self.pools.append(WeightPool(inputs, outputs, *self.adjacency.embedding.shape))
        return len(self.pools) - 1

    def forward(self) -> Graph:
        """Return what the cells share."""
        return Graph(self.adjacency(), [pool(self.adjacency.embedding) for pool in self.pools])


class AGCRNCell(nn.Module):
    """One layer of AGCRN (Bai et al. 2020, eq. 7), whose products are graph convolutions with node-adaptive parameters.

        G(x) = [x; A x] Theta + b
        z = sigmoid(G_z([x; h]))     r = sigmoid(G_r([x; h]))     n = tanh(G_n([x; r h]))     h' = z h + (1 - z) n

    As in the authors' code, I and A have weights of their own (Chebyshev polynomials of order 0 and 1), where eq. 6 has one
    weight for I + A; z and r are one product, and A x is formed once.

    Args:
        inputs, hidden: channels.
        graph: where the weights are; every call is handed what it returns.
    """

    def __init__(self, inputs: int, hidden: int, graph: AdaptiveGraph) -> None:
        super().__init__()
        check_hidden(hidden)
        self.inputs, self.hidden = inputs, hidden
        self.gates = graph.add_pool(2 * (inputs + hidden), 2 * hidden)
        self.candidate = graph.add_pool(2 * (inputs + hidden), hidden)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for (h,)."""
        return (like.new_zeros(batch, self.hidden, height, width),)

    def forward(self, x: Tensor | None, state: State, shared: Graph) -> tuple[Tensor, State]:
        """Return ``h'`` and the state ``(h',)``; it is the memory, and stays in float32 under autocast."""
        hidden = state[0].flatten(2).mT
        seen = [] if x is None else _spread(x.flatten(2).mT, shared.adjacency)
        gates = shared.weights[self.gates](torch.cat(seen + _spread(hidden, shared.adjacency), dim=-1))
        z, r = torch.sigmoid(gates).to(hidden.dtype).chunk(2, dim=-1)
        kept = _spread(r * hidden, shared.adjacency)
        n = torch.tanh(shared.weights[self.candidate](torch.cat(seen + kept, dim=-1)))
        following = torch.lerp(n.to(hidden.dtype), hidden, z).mT.unflatten(2, state[0].shape[-2:])
        return following, (following,)


def _spread(nodes: Tensor, adjacency: Tensor) -> list[Tensor]:
    """Return ``X`` and ``A X`` of ``nodes`` ``(B, N, C)``."""
    return [nodes, adjacency.to(nodes.dtype) @ nodes]


def agcrn(
    *,
    height: int,
    width: int,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    embedding: int = 10,
    feedback: bool = False,
    one_pass: bool = False,
) -> EncoderForecaster:
    """Return AGCRN for a grid of ``height`` x ``width`` points, each a node: ``layers`` cells with ``hidden`` channels.

    ``embedding``: numbers that describe a node. The readout looks at one node at a time. The paper reads all leads at once
    off the last state; here a forecast is unrolled, so that it has any length. ``feedback`` and ``one_pass``: see
    ``convlstm``.
    """
    graph = AdaptiveGraph(height * width, embedding)

    def cells(inputs: int) -> Layers:
        return Layers(AGCRNCell(hidden if layer else inputs, hidden, graph) for layer in range(layers))

    form: Any = {"channels": channels, "forcings": forcings, "feedback": feedback, "one_pass": one_pass}
    return in_form(cells, readout=1, shared=graph, **form)
