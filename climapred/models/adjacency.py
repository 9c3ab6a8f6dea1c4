"""A learned adjacency between all grid points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from climapred.models.streamed import StreamedAdjacency, log_sums, within

DENSE_NODES = 4096  # a matrix of so many nodes takes 64 MiB, and every product keeps half of it again under autocast
FORMS = ("auto", "dense", "streamed")
_EARTH_RADIUS_KM = 6371.229


class LearnedAdjacency(nn.Module):
    """Row-normalised weights between all nodes, from one learned vector per node.

        A = softmax_rows(ReLU(E E^T)),   E: (N, embedding)

    LS-NTP's long-range adaptive graph constructor (Xu et al. 2022; the form goes back to AGCRN, Bai et al. 2020, eq. 5).
    Row i holds how much node i listens to each node j; rows sum to 1. ReLU turns every negative similarity into exp(0) = 1,
    so that no weight of a row falls below a common floor: about 1/N at first, less as links grow.

    Args:
        nodes: points, N.
        embedding: length of a node's vector.
        directed: E F^T with a second vector F for each node as a source, so that i may listen to j, but not j to i.
        floor: False takes the floor off each row, exp(0) / sum_j exp(ReLU(.)_ij), so that unrelated nodes have the weight 0
            and a row sums to what its links deserve.
        max_km: links between nodes farther apart, on the great circle, have the weight 0; the others keep theirs (Xu et al.
            2022, Q1). Needs ``place``.
        form: "dense" builds the matrix; "streamed" works in blocks and never stores it; "auto" chooses by ``nodes``.
    """

    positions: Tensor | None

    def __init__(
        self,
        nodes: int,
        embedding: int,
        *,
        directed: bool = False,
        floor: bool = True,
        max_km: float = math.inf,
        form: str = "dense",
    ) -> None:
        super().__init__()
        if nodes < 2 or embedding < 1:
            raise ValueError(f"an adjacency needs at least 2 nodes and 1 embedding channel, got {nodes=}, {embedding=}")
        if not max_km >= 0:
            raise ValueError(f"max_km must be at least 0, got {max_km}")
        if form not in FORMS:
            raise ValueError(f"adjacency must be one of {', '.join(FORMS)}, got {form!r}")
        self.floor, self.max_km = floor, max_km
        self.streamed = form == "streamed" or (form == "auto" and nodes > DENSE_NODES)
        self.embedding = nn.Parameter(torch.empty(nodes, embedding))
        nn.init.xavier_normal_(self.embedding)
        self.sources = nn.Parameter(nn.init.xavier_normal_(torch.empty(nodes, embedding))) if directed else None
        self.register_buffer("positions", None, persistent=False)

    def place(self, latitude: Sequence[float] | Tensor, longitude: Sequence[float] | Tensor) -> None:
        """Tell where the nodes are, for ``max_km``: the points of the grid of these axes, in degrees, in C order."""
        phi, along = (torch.as_tensor(axis, dtype=torch.float64).deg2rad() for axis in (latitude, longitude))
        if len(phi) * len(along) != len(self.embedding):
            raise ValueError(f"{len(self.embedding)} nodes are not the points of {len(phi)} x {len(along)}")
        phi, along = (axis.flatten() for axis in torch.meshgrid(phi, along, indexing="ij"))
        points = torch.stack([phi.cos() * along.cos(), phi.cos() * along.sin(), phi.sin()], dim=1)
        self.positions = points.to(self.embedding)

    def forward(self) -> Tensor | StreamedAdjacency:
        """Return A: a matrix ``(N, N)``, or what can be asked for its products and blocks."""
        if self.max_km < math.inf and self.positions is None:
            raise ValueError(
                f"max_km={self.max_km} needs the places of the nodes: call place(latitude, longitude) first"
            )
        positions = self.positions if self.max_km < math.inf else None
        chord = 2 * math.sin(min(self.max_km / _EARTH_RADIUS_KM, math.pi) / 2)
        targets, sources = self.embedding, self.embedding if self.sources is None else self.sources
        with torch.autocast(targets.device.type, enabled=False):  # bfloat16 would be off by per cents
            if self.streamed:
                return StreamedAdjacency(targets, sources, log_sums(targets, sources), self.floor, positions, chord)
            scores = torch.relu(targets @ sources.T)
            weights = torch.softmax(scores, dim=-1)
            if not self.floor:
                weights = weights - torch.exp(-torch.logsumexp(scores, dim=-1, keepdim=True))
            return weights if positions is None else weights * within(positions, positions, chord)

    def extra_repr(self) -> str:
        """Return the sizes and what is not the paper's, for ``print(model)``."""
        nodes, embedding = self.embedding.shape
        options = {"directed": self.sources is not None, "streamed": self.streamed, "floor": self.floor}
        changed = [f"{name}={value}" for name, value in options.items() if value != (name == "floor")]
        changed += [f"max_km={self.max_km:g}"] if self.max_km < math.inf else []
        return ", ".join([f"nodes={nodes}", f"embedding={embedding}", *changed])


def heard(x: Tensor, adjacency: Tensor | StreamedAdjacency) -> Tensor:
    """Return ``A X``: what each point of ``x`` ``(B, C, H, W)`` listens to; batch and channels are columns of one product."""
    nodes = x.flatten(2)
    return (nodes @ adjacency.T if isinstance(adjacency, Tensor) else adjacency(nodes)).view_as(x)


def mix(x: Tensor, adjacency: Tensor | StreamedAdjacency) -> Tensor:
    """Return ``(I + A) X``: each point of ``x`` ``(B, C, H, W)`` plus what it listens to."""
    return x + heard(x, adjacency)
