"""A learned adjacency of few links: the strongest of each node, and what all others get alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from climapred.models.streamed import Nodes, StreamedAdjacency


class SparseAdjacency(NamedTuple):
    """The k strongest links of each of N nodes; all other pairs count as unrelated.

        A X = sum over links j of i of (W_ij - r_i) X_j  +  r_i sum_j X_j
        W_ij = exp(s_ij) / Z_i,    r_i = exp(0) / Z_i,    Z_i = sum over links exp(s_ij) + (N - k)

    With ``relu`` = False unrelated pairs have no score, as that of ReLU is 0: r = 0, and Z sums over the links alone.

    Attributes:
        weights: W - r, or W without ``floor`` and ReLU, ``(N, k)``.
        rest: r, ``(N, 1)``, or None where unrelated pairs have the weight 0.
        sources: whom each node listens to, ``(N, k)``.
    """

    weights: Tensor
    rest: Tensor | None
    sources: Tensor

    def __matmul__(self, nodes: Tensor) -> Tensor:
        """Return ``A X`` for X ``(N, M)``; under autocast in its dtype."""
        device = nodes.device.type
        if torch.is_autocast_enabled(device):
            nodes = nodes.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            heard: Tensor = _Sums.apply(self.weights.to(nodes.dtype), nodes, self.sources)
            return heard if self.rest is None else heard + self.rest.to(nodes.dtype) * nodes.sum(dim=0)

    def block(self, rows: Nodes, columns: Nodes = slice(None)) -> Tensor:
        """Return the weights A[rows, columns], without gradients."""
        with torch.no_grad():
            weights, sources = self.weights[rows], self.sources[rows]
            whole = weights.new_zeros(len(weights), len(self.weights)).scatter_(1, sources, weights)
            return (whole if self.rest is None else whole + self.rest[rows])[:, columns]


def sparse_adjacency(targets: Tensor, sources: Tensor, links: Tensor, *, relu: bool, floor: bool) -> SparseAdjacency:
    """Return the adjacency of E and F ``(N, D)`` with the links ``(N, k)`` that ``strongest`` chose."""
    scores: Tensor = _Products.apply(targets, sources, links)
    if not relu:
        return SparseAdjacency(torch.softmax(scores, dim=1), None, links)
    scores = torch.relu(scores)
    others = torch.log(scores.new_full((len(links), 1), len(targets) - links.shape[1]))
    log_sums = torch.logsumexp(torch.cat([scores, others], dim=1), dim=1, keepdim=True)
    rest = torch.exp(-log_sums)
    return SparseAdjacency(torch.exp(scores - log_sums) - rest, rest if floor else None, links)


@torch.compiler.disable
@torch.no_grad()
def strongest(adjacency: StreamedAdjacency, links: int) -> Tensor:
    """Return the sources of the ``links`` largest weights of each node, ``(N, links)``, in the order of the nodes."""
    nodes, rows = len(adjacency.targets), 512
    chosen = [
        adjacency.block(slice(start, start + rows)).topk(links, dim=1).indices.sort(dim=1).values
        for start in range(0, nodes, rows)
    ]
    return torch.cat(chosen)


class _Sums(torch.autograd.Function):
    """Y_i = sum_k w_ik X_l(i,k) for links l ``(N, K)``, one link of every node at a time: nothing of N x K x M is made."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, nodes: Tensor, links: Tensor) -> Tensor:
        ctx.save_for_backward(weights, nodes, links)
        return _sums(weights, nodes, links)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_sums: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, nodes, links = ctx.saved_tensors
        return _products(d_sums, nodes, links), _scattered(weights, d_sums, links), None


class _Products(torch.autograd.Function):
    """s_ik = X_i . Y_l(i,k), likewise."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, theirs: Tensor, links: Tensor) -> Tensor:
        ctx.save_for_backward(ours, theirs, links)
        return _products(ours, theirs, links)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_products: Tensor) -> tuple[Tensor, Tensor, None]:
        ours, theirs, links = ctx.saved_tensors
        return _sums(d_products, theirs, links), _scattered(d_products, ours, links), None


def _sums(weights: Tensor, nodes: Tensor, links: Tensor) -> Tensor:
    total = torch.zeros_like(nodes)
    for weight, sources in zip(weights.unbind(1), links.unbind(1), strict=True):
        total.addcmul_(weight[:, None], nodes[sources])
    return total


def _products(ours: Tensor, theirs: Tensor, links: Tensor) -> Tensor:
    return torch.stack([(ours * theirs[sources]).sum(dim=1) for sources in links.unbind(1)], dim=1)


def _scattered(weights: Tensor, nodes: Tensor, links: Tensor) -> Tensor:
    total = torch.zeros_like(nodes)
    for weight, sources in zip(weights.unbind(1), links.unbind(1), strict=True):
        total.index_add_(0, sources, weight[:, None] * nodes)
    return total
