"""A learned adjacency between all grid points."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedAdjacency(nn.Module):
    """Row-normalised weights between all nodes, from one learned vector per node.

        A = softmax_rows(ReLU(E E^T)),   E: (N, embedding)

    LS-NTP's long-range adaptive graph constructor (Xu et al. 2022; the form goes back to AGCRN, Bai et al. 2020, eq. 5).
    Row i holds how much node i listens to each node j; rows sum to 1. ReLU turns every negative similarity into exp(0) = 1,
    so that no weight of a row falls below a common floor: about 1/N at first, less as links grow.
    """

    def __init__(self, nodes: int, embedding: int) -> None:
        super().__init__()
        if nodes < 2 or embedding < 1:
            raise ValueError(f"an adjacency needs at least 2 nodes and 1 embedding channel, got {nodes=}, {embedding=}")
        self.embedding = nn.Parameter(torch.empty(nodes, embedding))
        nn.init.xavier_normal_(self.embedding)

    def forward(self) -> Tensor:
        """Return A, shape (N, N)."""
        with torch.autocast(self.embedding.device.type, enabled=False):  # bfloat16 would be off by per cents
            return torch.softmax(torch.relu(self.embedding @ self.embedding.T), dim=-1)

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(model)``."""
        return f"nodes={self.embedding.shape[0]}, embedding={self.embedding.shape[1]}"


def mix(x: Tensor, adjacency: Tensor) -> Tensor:
    """Return ``(I + A) X``: each point of ``x`` ``(B, C, H, W)`` plus what it listens to, with ``adjacency`` (HW, HW)."""
    nodes = x.flatten(2)
    return (nodes + nodes @ adjacency.T).view_as(x)
