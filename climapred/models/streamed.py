"""A learned adjacency that is never stored: its product with fields, and the gradients, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCKS = {"cpu": 512}  # rows and columns at a time: 1 MiB in float32, which a core keeps near it
LARGE_BLOCK = 4096  # elsewhere: few launches, and a block of 64 MiB
FUSED = {"cuda"}  # where kernels of climapred.models.fused do the work instead, if Triton is there

Nodes = slice | Tensor  # a choice of nodes


class StreamedAdjacency(NamedTuple):
    """A = softmax_rows(ReLU(E F^T)) of N nodes, as what it is made of: O(N) numbers instead of N x N.

        A_ij = exp(s_ij - L_i),    s = ReLU(E F^T),    L_i = log sum_j exp(s_ij)    (or s = E F^T)

    Attributes:
        targets, sources: E and F, ``(N, D)``; E twice where the logits are symmetric.
        log_sums: L, ``(N,)``; see ``log_sums``.
        relu: whether s has the ReLU.
        floor: whether A keeps what every pair gets; else exp(-L_i), the weight of an unrelated pair, is taken off.
        positions: the nodes on the unit sphere, ``(N, 3)``; None where distance does not count.
        chord: the longest between linked nodes on that sphere; those farther apart have the weight 0.
    """

    targets: Tensor
    sources: Tensor
    log_sums: Tensor
    relu: bool = True
    floor: bool = True
    positions: Tensor | None = None
    chord: float = 2.0

    @torch.compiler.disable  # it would unroll the loop over the blocks
    def __matmul__(self, nodes: Tensor) -> Tensor:
        """Return ``A X`` for X ``(N, M)``: what each node hears.

        Under autocast X and the products with it have its dtype; scores, weights and sums keep that of E.
        """
        device = nodes.device.type
        if torch.is_autocast_enabled(device):
            nodes = nodes.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            heard: Tensor = _Product.apply(nodes, *self)
        return heard

    def block(self, rows: Nodes, columns: Nodes = slice(None)) -> Tensor:
        """Return the weights A[rows, columns], without gradients; ``block(slice(3, 5))`` are two whole rows."""
        with torch.no_grad():
            scores = _scores(self.targets, self.sources, rows, columns, self.relu)
            return self.kept(torch.exp(scores - self.log_sums[rows, None]), self.near(rows, columns), rows)

    def near(self, rows: Nodes, columns: Nodes) -> Tensor | None:
        """Return whether the nodes are near enough for a link; None if all are."""
        return None if self.positions is None else within(self.positions[rows], self.positions[columns], self.chord)

    def kept(self, shares: Tensor, near: Tensor | None, rows: Nodes) -> Tensor:
        """Return what ``floor`` and ``near`` leave of ``shares`` of the softmax."""
        kept = shares if self.floor else shares - torch.exp(-self.log_sums[rows, None])
        return kept if near is None else kept * near


@torch.compiler.disable
@torch.no_grad()
def log_sums(targets: Tensor, sources: Tensor, *, relu: bool = True) -> Tensor:
    """Return L_i = log sum_j exp(s_ij), ``(N,)``, of E and F ``(N, D)``: a running softmax over blocks.

    It carries no gradient: a product with the adjacency knows how L depends on E and F.
    """
    if kernels := _kernels(targets):
        fused: Tensor = kernels.log_sums(targets, sources, relu)
        return fused
    sums = targets.new_full((len(targets),), -torch.inf)
    for rows, columns in _blocks(targets):
        part = torch.logsumexp(_scores(targets, sources, rows, columns, relu), dim=1)
        sums[rows] = torch.logaddexp(sums[rows], part)
    return sums


def within(targets: Tensor, sources: Tensor, chord: float) -> Tensor:
    """Return whether points of the unit sphere ``(N, 3)``, ``(M, 3)`` are at most ``chord`` apart, ``(N, M)``."""
    return torch.cdist(targets, sources, compute_mode="donot_use_mm_for_euclid_dist") <= chord


class _Product(torch.autograd.Function):
    """Y = A X and its gradients; on the way back, the blocks of A are made again.

    With G = dLoss/dY, P = exp(s - L), W = what floor and distance leave of P, M = 1 for pairs near enough, else 0:

        dX = W^T G      ds_ij = P_ij (M_ij sum_m G_im X_jm - sum_m G_im Y_im)      dE = ds F      dF = ds^T E

    and ds_ij = 0 where ReLU cuts s_ij off.
    """

    @staticmethod
    def forward(ctx: Any, nodes: Tensor, *adjacency: Any) -> Tensor:
        links = StreamedAdjacency(*adjacency)
        kernels = _kernels(links.targets)
        heard: Tensor = kernels.product(links, nodes) if kernels else _product(links, nodes)
        ctx.save_for_backward(nodes, heard, links.targets, links.sources, links.log_sums, links.positions)
        ctx.relu, ctx.floor, ctx.chord = links.relu, links.floor, links.chord
        return heard

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_heard: Tensor) -> tuple[Tensor | None, ...]:
        nodes, heard, targets, sources, sums, positions = ctx.saved_tensors
        links = StreamedAdjacency(targets, sources, sums, ctx.relu, ctx.floor, positions, ctx.chord)
        through_sums = (d_heard.to(sums.dtype) * heard).sum(dim=1)
        if kernels := _kernels(targets):
            fields = nodes, d_heard, through_sums
            d_nodes = kernels.product(links, d_heard, transposed=True)
            d_targets, d_sources = (kernels.vector_gradient(links, *fields, transposed=side) for side in (False, True))
        else:
            d_nodes, d_targets, d_sources = _gradients(links, nodes, d_heard, through_sums)
        return d_nodes, d_targets, d_sources, None, None, None, None, None


def _kernels(vectors: Tensor) -> ModuleType | None:
    """Return climapred.models.fused where it can work on these vectors."""
    return _fused(vectors.device) if vectors.device.type in FUSED and vectors.dtype == torch.float32 else None


@cache
def _fused(device: torch.device) -> ModuleType | None:
    """Return it where Triton is there, and the card one whose tensor cores know TensorFloat-32 (NVIDIA's, since 2020)."""
    if device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0)):
        return None
    return import_module("climapred.models.fused") if find_spec("triton") else None


def _product(links: StreamedAdjacency, nodes: Tensor) -> Tensor:
    heard = torch.zeros_like(nodes, dtype=links.log_sums.dtype)
    for rows, columns in _blocks(links.targets):
        heard[rows] += links.block(rows, columns).to(nodes.dtype) @ nodes[columns]
    return heard.to(nodes.dtype)


def _gradients(
    links: StreamedAdjacency, nodes: Tensor, d_heard: Tensor, through_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    targets, sources, sums = links[:3]
    d_nodes, d_targets, d_sources = (torch.zeros_like(x, dtype=sums.dtype) for x in (nodes, targets, sources))
    for rows, columns in _blocks(targets):
        scores, near = _scores(targets, sources, rows, columns, links.relu), links.near(rows, columns)
        shares = torch.exp(scores - sums[rows, None])
        d_nodes[columns] += links.kept(shares, near, rows).to(nodes.dtype).T @ d_heard[rows]
        d_weights = (d_heard[rows] @ nodes[columns].T).to(sums.dtype)
        d_weights = d_weights if near is None else d_weights.mul_(near)
        d_scores = d_weights.sub_(through_sums[rows, None]).mul_(shares)
        d_scores = d_scores.mul_(scores > 0) if links.relu else d_scores
        d_targets[rows] += d_scores @ sources[columns]
        d_sources[columns] += d_scores.T @ targets[rows]
    return d_nodes.to(nodes.dtype), d_targets, d_sources


def _scores(targets: Tensor, sources: Tensor, rows: Nodes, columns: Nodes, relu: bool) -> Tensor:
    scores = targets[rows] @ sources[columns].T
    return torch.relu_(scores) if relu else scores


def _blocks(targets: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of every block between the nodes of E, one row of blocks after the other."""
    size = BLOCKS.get(targets.device.type, LARGE_BLOCK)
    pieces = [slice(start, start + size) for start in range(0, len(targets), size)]
    return ((rows, columns) for rows in pieces for columns in pieces)
