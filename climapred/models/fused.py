"""A learned adjacency on a GPU: its product with fields, the gradients and the sums of its rows, one kernel each (Triton).

What climapred.models.streamed says in blocks of tensors is said here in tiles that never leave a processor of the GPU: scores,
weights and their gradients are made where they are used, and only fields and vectors of nodes are read and written. Each
value of the result is summed by one program, in a fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from climapred.models.streamed import StreamedAdjacency

# A tile: ROWS nodes of the result, COLUMNS nodes that are summed over at once, up to _WIDTH columns of the result, DEPTH
# channels of what is multiplied for scores and for their gradients. They fit the shared memory of any card since 2020 (99 KiB).
_TILE = {"ROWS": 64, "COLUMNS": 64, "DEPTH": 32}
_GRADIENT_TILE = {"ROWS": 64, "COLUMNS": 32, "DEPTH": 32}
_WIDTH = 128
_LAUNCH = {"num_warps": 8, "num_stages": 2}


def log_sums(targets: Tensor, sources: Tensor, relu: bool) -> Tensor:
    """Return L_i = log sum_j exp(s_ij), ``(N,)``, see ``streamed.log_sums``."""
    targets, sources = targets.contiguous(), sources.contiguous()
    nodes, depth = targets.shape
    sums = targets.new_empty(nodes)
    grid = (triton.cdiv(nodes, _TILE["ROWS"]),)
    with torch.cuda.device_of(sums):  # Triton's own choice is the current one
        _log_sums[grid](sums, targets, sources, nodes, depth, RELU=relu, PRECISION=_precision(), **_TILE, **_LAUNCH)
    return sums


def product(links: StreamedAdjacency, values: Tensor, *, transposed: bool = False) -> Tensor:
    """Return ``A X``, or ``A^T X``, for X ``(N, M)``, in the dtype of X."""
    values = values.contiguous()
    heard = torch.empty_like(values)
    ours, theirs = _sides(links, transposed)
    fields, options = (*_common(links), values.shape[1]), _options(links, transposed)
    with torch.cuda.device_of(heard):
        _product[_grid(values, _TILE)](
            heard, ours, theirs, values, *fields, WIDTH=_width(values), **options, **_TILE, **_LAUNCH
        )
    return heard


def vector_gradient(
    links: StreamedAdjacency, values: Tensor, d_heard: Tensor, through_sums: Tensor, *, transposed: bool = False
) -> Tensor:
    """Return dE, or dF where ``transposed``, of Y = A X, see ``streamed._Product``.

    Args:
        values, d_heard: X and dLoss/dY, ``(N, M)``.
        through_sums: sum_m G_im Y_im, ``(N,)``.
    """
    values, d_heard = values.contiguous(), d_heard.contiguous()
    ours, theirs = _sides(links, transposed)
    own_values, their_values = (values, d_heard) if transposed else (d_heard, values)
    gradient = torch.empty_like(ours)
    fields = (own_values, their_values, through_sums.contiguous(), *_common(links), values.shape[1])
    options = _options(links, transposed)
    with torch.cuda.device_of(gradient):
        _vector_gradient[_grid(ours, _GRADIENT_TILE)](
            gradient, ours, theirs, *fields, WIDTH=_width(ours), **options, **_GRADIENT_TILE, **_LAUNCH
        )
    return gradient


def _width(result: Tensor) -> int:
    """Return how many columns of the result a tile has."""
    return int(min(_WIDTH, max(16, triton.next_power_of_2(result.shape[1]))))


def _grid(result: Tensor, tile: dict[str, int]) -> tuple[int, int]:
    """Return how many tiles make the result, along both axes."""
    return triton.cdiv(result.shape[0], tile["ROWS"]), triton.cdiv(result.shape[1], _width(result))


def _sides(links: StreamedAdjacency, transposed: bool) -> tuple[Tensor, Tensor]:
    """Return the vectors of the nodes of the result, and of those that are summed over."""
    sides = links.targets.contiguous(), links.sources.contiguous()
    return sides[::-1] if transposed else sides


def _common(links: StreamedAdjacency) -> tuple[Any, ...]:
    places = links.log_sums if links.positions is None else links.positions.contiguous()  # not looked at without NEAR
    return links.log_sums, places, links.chord, *links.targets.shape


def _options(links: StreamedAdjacency, transposed: bool) -> dict[str, Any]:
    parts = {"RELU": links.relu, "FLOOR": links.floor, "NEAR": links.positions is not None}
    return {"LISTEN": not transposed, **parts, "PRECISION": _precision()}


def _precision() -> str:
    """Return how float32 is multiplied, as torch is told to (``torch.set_float32_matmul_precision``)."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit
def _tile(matrix, rows, columns, height, width):
    """Return matrix[rows, columns], zeros beyond it."""
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    return tl.load(matrix + rows.to(tl.int64)[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _scores(
    ours, theirs, rows, columns, nodes, depth, RELU: tl.constexpr, PRECISION: tl.constexpr, DEPTH: tl.constexpr
):
    """Return s of a tile, from our rows to their columns."""
    scores = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, depth, DEPTH):
        channels = start + tl.arange(0, DEPTH)
        own, other = _tile(ours, rows, channels, nodes, depth), _tile(theirs, columns, channels, nodes, depth)
        scores = tl.dot(own, tl.trans(other), scores, input_precision=PRECISION)
    return tl.maximum(scores, 0.0) if RELU else scores


@triton.jit
def _near(places, chord, rows, columns, nodes):
    """Return whether the nodes of a tile are near enough for a link."""
    square = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for axis in tl.static_range(3):
        own = tl.load(places + rows * 3 + axis, mask=rows < nodes, other=0.0)
        other = tl.load(places + columns * 3 + axis, mask=columns < nodes, other=0.0)
        apart = own[:, None] - other[None, :]
        square += apart * apart
    return tl.sqrt(square) <= chord


@triton.jit
def _sums_of(log_sums, rows, columns, nodes, LISTEN: tl.constexpr):
    """Return L of the nodes that listen, as a column or a row of a tile."""
    if LISTEN:
        sums = tl.load(log_sums + rows, mask=rows < nodes, other=0.0)[:, None]
    else:
        sums = tl.load(log_sums + columns, mask=columns < nodes, other=0.0)[None, :]
    return sums


@triton.jit
def _log_sums(
    out,
    targets,
    sources,
    nodes,
    depth,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A running softmax: the largest score so far, and the sum of exp of the scores less that."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, nodes, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        scores = _scores(targets, sources, rows, columns, nodes, depth, RELU, PRECISION, DEPTH)
        scores = tl.where((columns < nodes)[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(scores - larger[:, None]), axis=1)
        largest = larger
    tl.store(out + rows, largest + tl.log(total), mask=rows < nodes)


@triton.jit
def _product(
    out,
    ours,
    theirs,
    values,
    log_sums,
    places,
    chord,
    nodes,
    depth,
    width,
    LISTEN: tl.constexpr,
    RELU: tl.constexpr,
    FLOOR: tl.constexpr,
    NEAR: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Y = W X, or W^T X where our nodes are those listened to (not LISTEN)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, nodes, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        scores = _scores(ours, theirs, rows, columns, nodes, depth, RELU, PRECISION, DEPTH)
        sums = _sums_of(log_sums, rows, columns, nodes, LISTEN)
        weights = tl.exp(scores - sums)
        if not FLOOR:
            weights -= tl.exp(-sums)
        if NEAR:
            weights = tl.where(_near(places, chord, rows, columns, nodes), weights, 0.0)
        sent = _tile(values, columns, part, nodes, width)
        total = tl.dot(weights.to(sent.dtype), sent, total, input_precision=PRECISION)
    inside = (rows < nodes)[:, None] & (part < width)[None, :]
    place = out + rows.to(tl.int64)[:, None] * width + part[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _vector_gradient(
    out,
    ours,
    theirs,
    own_values,
    their_values,
    through_sums,
    log_sums,
    places,
    chord,
    nodes,
    depth,
    width,
    LISTEN: tl.constexpr,
    RELU: tl.constexpr,
    FLOOR: tl.constexpr,
    NEAR: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Gradient dE = ds F, or dF = ds^T E where our nodes are those listened to; WIDTH channels of it."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, nodes, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        d_scores = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, width, DEPTH):
            fields = first + tl.arange(0, DEPTH)
            own, other = (
                _tile(own_values, rows, fields, nodes, width),
                _tile(their_values, columns, fields, nodes, width),
            )
            d_scores = tl.dot(own, tl.trans(other), d_scores, input_precision=PRECISION)
        if NEAR:
            d_scores = tl.where(_near(places, chord, rows, columns, nodes), d_scores, 0.0)
        scores = _scores(ours, theirs, rows, columns, nodes, depth, RELU, PRECISION, DEPTH)
        shares = tl.exp(scores - _sums_of(log_sums, rows, columns, nodes, LISTEN))
        d_scores = (d_scores - _sums_of(through_sums, rows, columns, nodes, LISTEN)) * shares
        if RELU:
            d_scores = tl.where(scores > 0.0, d_scores, 0.0)
        other_vectors = _tile(theirs, columns, part, nodes, depth)
        total = tl.dot(d_scores, other_vectors, total, input_precision=PRECISION)
    inside = (rows < nodes)[:, None] & (part < depth)[None, :]
    tl.store(out + rows.to(tl.int64)[:, None] * depth + part[None, :], total, mask=inside)
