"""LS-NTP: long- and short-range convolution in an LSTM (Xu et al. 2022, Neural Networks 155, 242-257)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from climapred.models.adjacency import LearnedAdjacency, heard, mix
from climapred.models.convlstm import ConvLSTMCell, SampleNorm, joined
from climapred.models.recurrent import EncoderForecaster, Layers, State, in_form
from climapred.models.spatial import Convolution

VARIANTS = ("climapred", "paper")


class NodeAttention(nn.Module):
    """Node-based spatial attention (NSA): a weight in (0, 1) for each channel of each node.

    y = x * sigmoid(W3 r(N(W2 r(N(W1 x))))) with 1x1 convolutions W, r = ReLU and N = ``SampleNorm``.

    Args:
        channels: of x.
        silent: how many of them, the first ones, are always zero and left out of x and y. Others may be missing at the end,
            which are zero now.
        again: between forward and backward pass it keeps x alone and computes the rest again. Over all channels of a cell that
            is a third of its memory for little time; over few it is neither.
    """

    def __init__(self, channels: int, silent: int = 0, *, again: bool = True) -> None:
        super().__init__()
        self.silent, self.again = silent, again
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(channels, channels, 1), SampleNorm(channels), nn.ReLU(inplace=True)]
        self.score = nn.Sequential(*layers, nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``(B, C, H, W)``, each node weighed; without the channels that it is without."""
        if not (self.again and torch.is_grad_enabled()):
            return self._weighed(x)
        weighed: Tensor = checkpoint(self._weighed, x, use_reentrant=False, preserve_rng_state=False)
        return weighed

    def _weighed(self, x: Tensor) -> Tensor:
        weights = dict(self.score.named_parameters())
        if x.shape[1] == len(weights["6.bias"]):
            return x * torch.sigmoid(self.score(x))
        live = slice(self.silent, self.silent + x.shape[1])
        parts = {key: weights[key][live] for key in ("6.weight", "6.bias")}
        parts["0.weight"] = weights["0.weight"][:, live]
        return x * torch.sigmoid(functional_call(self.score, parts, (x,)))


@dataclass(frozen=True)
class LSConv:
    """What an LS-Conv is made of, and what can be left out of it.

        paper:   y = W * (I + A) NSA(X)
        branch:  y = W * X + U A NSA(V X),    V, U: 1x1 convolutions to ``branch`` channels and from them to the gates

    In the branch the long range is added to a ConvLSTM and starts as nothing (U = 0; or A, see ``open``), so that it costs
    skill only where training finds it useful; and few channels travel far, which costs a fraction of mixing all of them.

    Attributes:
        attention: NSA.
        self_loop: the I of the paper's form.
        branch: channels that the long range carries; 0 for the paper's form.
        open: U starts at random, for an A that starts at zero: of two zeros none would ever learn.
        paper: gates as in the authors' code, W without a bias and ReLU(y), so that no gate closes below a half but by
            its peephole; Xavier's initial weights.
    """

    attention: bool = True
    self_loop: bool = True
    branch: int = 0
    open: bool = False
    paper: bool = False


_WHOLE = LSConv()


class LSConvLSTMCell(ConvLSTMCell):
    """ConvLSTM whose convolution becomes the LS-Conv, over all nodes (``LSConv`` has the equations).

    The adjacency A arrives as ``shared``: the layers of a network share it. None: there is no long range. What is zero has no
    part in what is computed: the hidden state before the first frame, which is None, and a ``silent`` input.

    Args:
        inputs, hidden, kernel: see ``ConvLSTMCell``.
        form: see ``LSConv``.
        silent: channels of an input that is always zero, as that of the paper's decoder. They have weights, which never
            get a gradient.
    """

    def __init__(self, inputs: int, hidden: int, kernel: int = 3, *, form: LSConv = _WHOLE, silent: int = 0) -> None:
        super().__init__(inputs, hidden, kernel)
        self.form, self.silent = form, silent
        channels = silent + inputs + hidden
        if form.paper:
            self.gates = Convolution(channels, 4 * hidden, kernel, bias=False)
            nn.init.xavier_normal_(self.gates.weight)
            self.peepholes.relu = True
            bound = math.sqrt(6 / (hidden + 1))  # Xavier's for a weight of the shape (1, hidden, 1, 1)
            nn.init.uniform_(self.peepholes.weight, -bound, bound)
        self.attention = (
            NodeAttention(form.branch or channels, silent, again=not form.branch) if form.attention else nn.Identity()
        )
        if form.branch:
            self.send = Convolution(channels, form.branch, 1)
            self.receive = Convolution(form.branch, 4 * hidden, 1, bias=False)
            if not form.open:
                nn.init.zeros_(self.receive.weight)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return None, for zeros, and zeros; of a cell without input zeros for both."""
        hidden, cell = super().initial_state(batch, height, width, like)
        return None if self.inputs else hidden, cell

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return ``h'`` and the state ``(h', c')``."""
        hidden, cell = state
        together = x if hidden is None else joined(x, hidden)
        assert together is not None  # a cell without input has a hidden state
        together = together.contiguous(memory_format=torch.channels_last)
        gates = self._branched(together, shared) if self.form.branch else self._whole(together, shared)
        hidden, cell = self.peepholes(gates, cell)
        return hidden, (hidden, cell)

    def _branched(self, x: Tensor, adjacency: Any) -> Tensor:
        sent = self._seen(self.send, x).contiguous()  # few channels: a point's own are too short to work along
        travelled = heard(self.attention(sent), adjacency).contiguous(memory_format=torch.channels_last)
        return torch.add(self._seen(self.gates, x), self.receive(travelled))

    def _whole(self, x: Tensor, adjacency: Any) -> Tensor:
        sent = self.attention(x)
        if adjacency is not None:
            sent = mix(sent, adjacency) if self.form.self_loop else heard(sent, adjacency)
        return self._seen(self.gates, sent)

    def _seen(self, convolution: nn.Conv2d, x: Tensor) -> Tensor:
        """Return the convolution of ``x``, which may be without channels that are zero."""
        if x.shape[1] == convolution.in_channels:
            seen: Tensor = convolution(x)
            return seen
        live = slice(self.silent, self.silent + x.shape[1])
        return functional_call(convolution, {"weight": convolution.weight[:, live]}, (x,))


class Halved(nn.Module):
    """A cell behind a linear convolution with stride 2: it sees every other point, ``(H - k) // 2 + 1`` rows.

    The convolution has no padding, so that nothing is added at the edges, and knows no closed circle.
    """

    def __init__(self, cell: Layers, kernel: int) -> None:
        super().__init__()
        self.cell, self.inputs, self.hidden = cell, cell.inputs, cell.hidden
        self.reduce = nn.Conv2d(self.inputs, self.inputs, kernel, stride=2)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return the state of the cell on its grid."""
        return self.cell.initial_state(batch, *halved(height, width, self.reduce.kernel_size[0]), like)

    def forward(self, x: Tensor, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return the output and the state of the cell."""
        following: tuple[Tensor, State] = self.cell(self.reduce(x), state, shared)
        return following


def halved(height: int, width: int, kernel: int) -> tuple[int, int]:
    """Return the size that a convolution with stride 2 leaves of a grid."""
    if min(height, width) < kernel or height % 2 == 0 or width % 2 == 0:
        raise ValueError(
            f"downsample needs odd height and width of at least {kernel}, so that its inverse restores them, got {height} x "
            f"{width}; leave out a row or a column, or downsample"
        )
    return (height - kernel) // 2 + 1, (width - kernel) // 2 + 1


def ls_ntp(
    *,
    height: int,
    width: int,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 3,
    embedding: int = 32,
    feedback: bool = False,
    one_pass: bool = False,
    variant: str = "climapred",
    downsample: bool = False,
    attention: bool = True,
    long_range: bool = True,
    short_range: bool = True,
    self_loop: bool = True,
    branch: int | None = None,
    smooth: int | None = None,
    directed: bool | None = None,
    relu: bool | None = None,
    floor: bool = True,
    max_km: float = math.inf,
    adjacency: str = "auto",
    links: int = 32,
    refresh: int = 50,
) -> EncoderForecaster:
    """Return LS-NTP for a grid of ``height`` x ``width`` points: LS-ConvLSTM cells that share one learned adjacency.

    ``variant="climapred"`` adds the long range to a ConvLSTM as a branch of 8 channels that starts at zero, over a directed
    adjacency without ReLU, which has no floor under every pair, from vectors that are bilinear between knots (one for each
    point learns a year of weather by heart, see benchmarks/results/ablation.md). Its gates have a bias and no ReLU that would
    hold them at a half or more; the forecaster has no weights for an input that is zero; the readout starts at zero.
    ``variant="paper"`` is the authors' network, to the last parameter: NSA and adjacency in front of every convolution, gates
    without bias and with ReLU, a decoder that eats zeros, whose weights are there but not computed with, and their initial
    weights. Like the other it forecasts over any horizon.

    Args:
        feedback, one_pass: see ``convlstm``.
        downsample: the cells work on half the rows and columns, behind a convolution with stride 2, and a transposed one
            reads the forecast off (the paper on ERA5). Only for odd ``height`` and ``width``.
        attention, long_range, short_range: False leaves out NSA, LAGC (the adjacency) or LSI (the gates then look at one node)
            for the ablations of Table 4. Its DAGG-ConvLSTM, for want of equations, is read as AGCRN's graph convolution in
            the gates: ``attention=False, short_range=False``.
        self_loop: False leaves a node with what it hears, A X, instead of (I + A) X; of the form without a branch.
        branch: channels of the long-range branch; 0: the form of the paper, see ``LSConv``. None: as the variant has it.
        smooth, directed, relu, floor, max_km: see ``LearnedAdjacency``; None: as the variant has it. ``max_km`` needs
            ``network.shared.place``.
        adjacency: "dense", "streamed" or "auto", see ``LearnedAdjacency``; both are exact. "sparse", which is not, with
            ``links`` and ``refresh``. Or "low_rank": weights of either sign, at a cost that grows with the points alone.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    paper, size = variant == "paper", kernel if short_range else 1
    branch = (0 if paper else 8) if branch is None else branch
    smooth = (1 if paper else 4) if smooth is None else smooth
    directed = not paper if directed is None else directed
    relu = paper if relu is None else relu
    _check(paper=paper, self_loop=self_loop, branch=branch, long_range=long_range)
    rows, columns = halved(height, width, kernel) if downsample else (height, width)
    form: Any = {
        "smooth": smooth,
        "directed": directed,
        "relu": relu,
        "floor": floor,
        "max_km": max_km,
        "form": adjacency,
    }
    few: Any = {"links": links, "refresh": refresh}
    shared = LearnedAdjacency((rows, columns), embedding, **form, **few) if long_range else None
    attention = attention and (long_range or not branch)  # NSA is a part of the branch
    parts = LSConv(attention, self_loop, branch if long_range else 0, adjacency == "low_rank", paper)

    def cells(inputs: int) -> nn.Module:
        silent = hidden if paper and not inputs else 0
        made = Layers(
            LSConvLSTMCell(hidden if layer else inputs, hidden, size, form=parts, silent=0 if layer else silent)
            for layer in range(layers)
        )
        return Halved(made, kernel) if downsample and inputs else made

    frames: Any = {"channels": channels, "forcings": forcings, "feedback": feedback, "one_pass": one_pass}
    readout = _readout(hidden, channels, kernel, downsample=downsample, paper=paper)
    return in_form(cells, readout=readout, shared=shared, **frames)


def _check(*, paper: bool, self_loop: bool, branch: int, long_range: bool) -> None:
    if branch < 0 or (paper and branch):
        raise ValueError(f"branch must be {'0, the form of the paper' if paper else 'at least 0'}, got {branch}")
    if not self_loop and (branch or not long_range):
        raise ValueError("self_loop=False needs the long range in the paper's form: long_range=True and branch=0")


def _readout(hidden: int, channels: int, kernel: int, *, downsample: bool, paper: bool) -> nn.Module | int:
    """Return what reads a frame off the last output, on the grid of the frames; zero at first, but in the paper."""
    if not downsample:
        return Convolution(hidden, channels, kernel) if paper else kernel
    readout = nn.ConvTranspose2d(hidden, channels, kernel, stride=2)
    for parameter in readout.parameters() if not paper else ():
        nn.init.zeros_(parameter)
    return readout
