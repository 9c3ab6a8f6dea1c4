"""A learned adjacency that is the product of two thin matrices: weights of either sign, for any number of nodes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from climapred.models.streamed import Nodes


class LowRankAdjacency(NamedTuple):
    """A = E F^T of N nodes: nothing of N x N is made, and a product costs as much as E and F have numbers.

    F^T X are D sums over all nodes, of X weighed by the waves or whatever the sources have become; each node listens to them
    as it likes. Weights have a sign, and a row need not sum to anything: a linear regression on what is far away.

    Attributes:
        targets, sources: E and F, ``(N, D)``.
    """

    targets: Tensor
    sources: Tensor

    def __matmul__(self, nodes: Tensor) -> Tensor:
        """Return ``A X`` for X ``(N, M)``; under autocast in its dtype."""
        return self.targets @ (self.sources.T @ nodes)

    def block(self, rows: Nodes, columns: Nodes = slice(None)) -> Tensor:
        """Return the weights A[rows, columns], without gradients."""
        with torch.no_grad():
            return self.targets[rows] @ self.sources[columns].T
