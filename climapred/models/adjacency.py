"""A learned adjacency between all grid points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from climapred.models.low_rank import LowRankAdjacency
from climapred.models.sparse import SparseAdjacency, sparse_adjacency, strongest
from climapred.models.streamed import StreamedAdjacency, log_sums, within

Adjacency = Tensor | StreamedAdjacency | SparseAdjacency | LowRankAdjacency

DENSE_NODES = 4096  # a matrix of so many nodes takes 64 MiB, and every product keeps half of it again under autocast
FORMS = ("auto", "dense", "streamed", "sparse", "low_rank")
_EARTH_RADIUS_KM = 6371.229


class LearnedAdjacency(nn.Module):
    """Row-normalised weights between all nodes, from one learned vector per node.

        A = softmax_rows(ReLU(E E^T)),   E: (N, embedding)

    LS-NTP's long-range adaptive graph constructor (Xu et al. 2022; the form goes back to AGCRN, Bai et al. 2020, eq. 5).
    Row i holds how much node i listens to each node j; rows sum to 1. ReLU turns every negative similarity into exp(0) = 1,
    so that no weight of a row falls below a common floor: about 1/N at first, less as links grow. Without the ReLU a pair may
    have no weight at all.

    Vectors start at random. So do links, and after a year of weather most of them are still those of the start. A directed
    adjacency without ReLU therefore starts from none: the vectors that listen are zero, rows are even, and the sources are the
    longest waves of the grid, so that each channel of a listening vector is how much of one wave a node wants to hear. What
    is learned is then learned from the data, almost alike from any seed (benchmarks/results/ablation.md). A sparse one needs
    scores to choose by, and keeps the random start (of the variance 1 for its scores).

    Args:
        shape: rows and columns of the grid, whose points are the N nodes in C order; or N alone.
        embedding: length of a node's vector.
        smooth: what is learned are the vectors of knots, one on every ``smooth``-th row and column or a little closer, and
            those of the nodes between are bilinear: neighbours listen alike, with so many fewer numbers to learn. 1: each
            node has its own.
        directed: E F^T with a second vector F for each node as a source, so that i may listen to j, but not j to i.
        relu: False leaves out the ReLU.
        floor: with ReLU, False takes the floor off each row, exp(0) / sum_j exp(ReLU(.)_ij), so that unrelated nodes have the
            weight 0 and a row sums to what its links deserve.
        max_km: links between nodes farther apart, on the great circle, have the weight 0; the others keep theirs (Xu et al.
            2022, Q1). Needs ``place``.
        form: "dense" builds the matrix; "streamed" works in blocks and never stores it; "auto" chooses by ``nodes``. "sparse"
            is no longer exact: each node keeps its ``links`` strongest sources, and all others are unrelated to it; see
            ``SparseAdjacency``. They are chosen anew after every ``refresh`` forward passes in training, from all pairs.
            "low_rank" is E F^T / N^1/2, without the softmax, see ``LowRankAdjacency``; directed, without ReLU. The scale
            makes what orthogonal waves sum up of white noise as large on every grid.
    """

    positions: Tensor | None
    kept: Tensor
    passes: Tensor

    def __init__(
        self,
        shape: int | tuple[int, int],
        embedding: int,
        *,
        smooth: int = 1,
        directed: bool = False,
        relu: bool = True,
        floor: bool = True,
        max_km: float = math.inf,
        form: str = "dense",
        links: int = 32,
        refresh: int = 50,
    ) -> None:
        super().__init__()
        self.shape = (1, shape) if isinstance(shape, int) else shape
        self.nodes = nodes = math.prod(self.shape)
        if nodes < 2 or embedding < 1:
            raise ValueError(f"an adjacency needs at least 2 nodes and 1 embedding channel, got {nodes=}, {embedding=}")
        if smooth < 1:
            raise ValueError(f"smooth must be at least 1 (a vector for each node), got {smooth}")
        if not max_km >= 0:
            raise ValueError(f"max_km must be at least 0, got {max_km}")
        if form not in FORMS:
            raise ValueError(f"adjacency must be one of {', '.join(FORMS)}, got {form!r}")
        if not (relu or floor):
            raise ValueError("floor=False takes off what ReLU leaves under every pair: it needs relu=True")
        if form == "low_rank" and (relu or not directed or max_km < math.inf):
            raise ValueError("a low_rank adjacency needs directed=True and relu=False, and has no max_km")
        self.relu, self.floor, self.max_km = relu, floor, max_km
        self.form = form if form != "auto" else "streamed" if nodes > DENSE_NODES else "dense"
        self.smooth, self.knots = smooth, tuple(1 + -(-(count - 1) // smooth) for count in self.shape)
        self.embedding = self._vectors(embedding)
        self.sources = self._vectors(embedding) if directed else None
        self.from_waves = directed and not relu and form != "sparse"
        if self.from_waves:
            nn.init.zeros_(self.embedding)
        self.periodic = False
        self.register_buffer("positions", None, persistent=False)
        if form == "sparse":
            self._sparse(nodes, links, refresh)

    def _vectors(self, embedding: int) -> nn.Parameter:
        vectors = torch.empty(math.prod(self.knots), embedding)
        return nn.Parameter(
            nn.init.xavier_normal_(vectors) if self.relu else nn.init.normal_(vectors, std=embedding**-0.25)
        )

    @property
    def periodic(self) -> bool:
        """Whether the knots go round the globe. To be set before training, for the waves of the sources begin anew then."""
        return self._periodic

    @periodic.setter
    def periodic(self, closed: bool) -> None:
        self._periodic = closed
        if self.from_waves and self.sources is not None:
            (rows, columns), size = self.knots, self.sources.shape[1]
            waves = size**-0.25 * _waves(rows, columns, closed, size)  # as large as the random vectors
            with torch.no_grad():
                self.sources[:, : waves.shape[1]] = waves

    def _sparse(self, nodes: int, links: int, refresh: int) -> None:
        if not (1 <= links < nodes and refresh >= 1):
            raise ValueError(f"links must be 1 to {nodes - 1} and refresh at least 1, got {links=}, {refresh=}")
        if self.max_km < math.inf and self.relu and self.floor:
            raise ValueError(
                "a sparse adjacency with max_km needs floor=False or relu=False: its floor is under all pairs"
            )
        self.links, self.refresh = links, refresh
        self.register_buffer("kept", torch.zeros(nodes, links, dtype=torch.int64))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))  # in training; 0: nothing is chosen yet

    def place(self, latitude: Sequence[float] | Tensor, longitude: Sequence[float] | Tensor) -> None:
        """Tell where the nodes are, for ``max_km``: the points of the grid of these axes, in degrees, in C order."""
        phi, along = (torch.as_tensor(axis, dtype=torch.float64).deg2rad() for axis in (latitude, longitude))
        if len(phi) * len(along) != self.nodes:
            raise ValueError(f"{self.nodes} nodes are not the points of {len(phi)} x {len(along)}")
        phi, along = (axis.flatten() for axis in torch.meshgrid(phi, along, indexing="ij"))
        points = torch.stack([phi.cos() * along.cos(), phi.cos() * along.sin(), phi.sin()], dim=1)
        self.positions = points.to(self.embedding)

    def forward(self) -> Adjacency:
        """Return A: a matrix ``(N, N)``, or what can be asked for its products and blocks."""
        if self.max_km < math.inf and self.positions is None:
            raise ValueError(
                f"max_km={self.max_km} needs the places of the nodes: call place(latitude, longitude) first"
            )
        device = self.embedding.device.type
        with torch.autocast(device, enabled=False):  # scores of bfloat16 would be off by per cents
            targets = self._of_nodes(self.embedding)
            sources = targets if self.sources is None else self._of_nodes(self.sources)
            if self.form == "low_rank":
                return LowRankAdjacency(targets, sources * self.nodes**-0.5)
            if self.form == "streamed":
                return self._streamed(targets, sources)
            if self.form == "sparse":
                return self._of_few(targets, sources)
            weights = self._dense(targets, sources)
        # Rounded once for all products of the pass, which take it so under autocast.
        return weights.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weights

    def _of_nodes(self, vectors: Tensor) -> Tensor:
        """Return the vectors ``(N, embedding)`` of all nodes from those of the knots."""
        if self.smooth == 1:
            return vectors
        rows, columns = (
            _hats(points, knots, closed, vectors)
            for points, knots, closed in zip(self.shape, self.knots, (False, self.periodic), strict=True)
        )
        return torch.einsum("ym,mnd,xn->yxd", rows, vectors.view(*self.knots, -1), columns).flatten(0, 1)

    def _dense(self, targets: Tensor, sources: Tensor) -> Tensor:
        scores = targets @ sources.T
        scores = torch.relu(scores) if self.relu else scores
        weights = torch.softmax(scores, dim=-1)
        if not self.floor:
            weights = weights - torch.exp(-torch.logsumexp(scores, dim=-1, keepdim=True))
        positions, chord = self._limit()
        return weights if positions is None else weights * within(positions, positions, chord)

    def _limit(self) -> tuple[Tensor | None, float]:
        positions = self.positions if self.max_km < math.inf else None
        return positions, 2 * math.sin(min(self.max_km / _EARTH_RADIUS_KM, math.pi) / 2)

    def _streamed(self, targets: Tensor, sources: Tensor) -> StreamedAdjacency:
        sums = log_sums(targets, sources, relu=self.relu)
        return StreamedAdjacency(targets, sources, sums, self.relu, self.floor, *self._limit())

    @torch.compiler.disable
    def _of_few(self, targets: Tensor, sources: Tensor) -> SparseAdjacency:
        if self.passes == 0 or (self.training and self.passes % self.refresh == 0):
            self.kept.copy_(strongest(self._streamed(targets, sources), self.links))
        self.passes += self.training
        adjacency = sparse_adjacency(targets, sources, self.kept, relu=self.relu, floor=self.floor)
        positions, chord = self._limit()
        if positions is None:
            return adjacency
        near = (positions[:, None] - positions[self.kept]).norm(dim=-1) <= chord
        return adjacency._replace(weights=adjacency.weights * near)

    def extra_repr(self) -> str:
        """Return the sizes and what is not the paper's, for ``print(model)``."""
        embedding = self.embedding.shape[1]
        options = {"directed": self.sources is not None, "relu": self.relu, "floor": self.floor}
        changed = [f"{name}={value}" for name, value in options.items() if value != (name != "directed")]
        changed += [f"smooth={self.smooth}"] if self.smooth > 1 else []
        changed += [f"form={self.form}"] if self.form != "dense" else []
        changed += [f"max_km={self.max_km:g}"] if self.max_km < math.inf else []
        return ", ".join([f"nodes={self.nodes}", f"embedding={embedding}", *changed])


def _hats(points: int, knots: int, closed: bool, like: Tensor) -> Tensor:
    """Return what each knot counts at each point ``(points, knots)``, rows of sum 1: hat functions on an even spacing.

    The first and the last point are knots, or, on a ``closed`` circle, the first knot is the one after the last too.
    """
    per_point = knots / points if closed else (knots - 1) / max(1, points - 1)
    places = per_point * torch.arange(points, device=like.device, dtype=like.dtype)
    centres = torch.arange(knots, device=like.device, dtype=like.dtype)
    hats = (1 - (places[:, None] - centres).abs()).clamp(min=0)
    if closed:
        hats[:, 0] += (1 - (knots - places)).clamp(min=0)
    return hats


def _waves(rows: int, columns: int, closed: bool, most: int) -> Tensor:
    """Return the longest waves of a grid ``(K, number)``, at ``most`` as many as it has points: orthogonal, mean square 1.

    Along each axis those of the discrete cosine transform; round a ``closed`` circle sines and cosines.
    """
    (down, shortness), (across, beside) = _waves_along(rows, False), _waves_along(columns, closed)
    longest = (shortness[:, None] ** 2 + beside**2).flatten().argsort(stable=True)[:most]
    return (down[:, None, longest // columns] * across[:, longest % columns]).flatten(0, 1)


def _waves_along(count: int, closed: bool) -> tuple[Tensor, Tensor]:
    """Return all waves of an axis ``(points, waves)`` and how short each is, in half wavelengths per point."""
    points = order = torch.arange(count, dtype=torch.float64)
    if closed:
        number = (order + 1) // 2
        phase = 2 * math.pi / count * points[:, None] * number
        waves, order = torch.where(order % 2 == 1, phase.cos(), phase.sin()), 2 * number
        waves[:, 0] = 1
    else:
        waves = (math.pi / count * (points[:, None] + 0.5) * order).cos()
    return (waves / waves.square().mean(dim=0).sqrt()).to(torch.get_default_dtype()), order / count


def heard(x: Tensor, adjacency: Adjacency) -> Tensor:
    """Return ``A X``: what each point of ``x`` ``(B, C, H, W)`` listens to; batch and channels are columns of one product."""
    nodes = x.permute(2, 3, 0, 1)
    return (adjacency @ nodes.flatten(0, 1).flatten(1)).view(nodes.shape).permute(2, 3, 0, 1)


def mix(x: Tensor, adjacency: Adjacency) -> Tensor:
    """Return ``(I + A) X``: each point of ``x`` ``(B, C, H, W)`` plus what it listens to."""
    return x + heard(x, adjacency)
