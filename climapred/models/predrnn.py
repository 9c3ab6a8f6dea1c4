"""PredRNN: LSTM with a memory that zigzags through the layers (Wang et al. 2017, NeurIPS 30; V2: 2022, arXiv:2103.09504)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from climapred.models.convlstm import ConvLSTMCell, SampleNorm, check_hidden, joined, start_remembering
from climapred.models.recurrent import EncoderForecaster, Layers, State, in_form
from climapred.models.spatial import Convolution

_CELLS = ("st", "conv")


def increment(gates: Tensor) -> Tensor:
    """Return what gates ``(B, 3 hidden, H, W)`` (order i, f, g) add to a memory: sigmoid(i) tanh(g)."""
    i, _, g = gates.chunk(3, dim=1)
    return torch.sigmoid(i) * torch.tanh(g)


def remember(gates: Tensor, memory: Tensor) -> Tensor:
    """Return the next memory, sigmoid(f) memory + sigmoid(i) tanh(g); it keeps its dtype, float32 under autocast.

    Operations of torch as they are: an autograd function with a closed-form gradient, as ``convlstm.Peepholes`` has one, was
    no faster with three gates.
    """
    return torch.sigmoid(gates.chunk(3, dim=1)[1]) * memory + increment(gates)


def gate_convolution(inputs: int, hidden: int, kernel: int, *, gates: int, norm: bool = False) -> nn.Module:
    """Return the convolution of all gates at once, in the order i, f and others: biases 0, but 1 for f.

    So memory survives from the first step of training on; the authors' code has no bias, but adds 1 to f for good. ``norm``:
    followed by a ``SampleNorm``, which has the biases then.
    """
    convolution = Convolution(inputs, gates * hidden, kernel, bias=not norm)
    normed = SampleNorm(gates * hidden)
    start_remembering(normed if norm else convolution, hidden)
    return nn.Sequential(convolution, normed) if norm else convolution


class Fusion(nn.Module):
    """One output of two memories (Wang et al. 2017, the last two lines of eq. 4).

    h' = sigmoid(a + W_co * C + W_mo * M) tanh(W_1x1 * [C, M])
    """

    def __init__(self, hidden: int, kernel: int) -> None:
        super().__init__()
        self.gate = Convolution(2 * hidden, hidden, kernel, bias=False)
        self.value = nn.Conv2d(2 * hidden, hidden, 1, bias=False)

    def forward(self, gate: Tensor, cell: Tensor, memory: Tensor) -> Tensor:
        """Return ``h'`` from the pre-activation ``a`` and the memories, all ``(B, hidden, H, W)``; its dtype is that of a."""
        both = torch.cat([cell.to(gate.dtype), memory.to(gate.dtype)], dim=1)
        return torch.sigmoid(gate + self.gate(both)) * torch.tanh(self.value(both))


class STLSTMCell(nn.Module):
    """One ST-LSTM layer (Wang et al. 2017, eq. 4): a memory C in time, and M, which comes from the layer below.

        i, f, g, a = W_x * x + W_h * h + b        C' = sigmoid(f) C + sigmoid(i) tanh(g)
        i', f', g' = W'_x * x + W_m * M + b'      M' = sigmoid(f') M + sigmoid(i') tanh(g')
        h' = sigmoid(a + W_co * C' + W_mo * M') tanh(W_1x1 * [C', M'])

    Each line is one convolution, of its operands side by side. Under autocast C and M stay in float32.

    Args:
        inputs: channels of x, 0 for none.
        hidden: channels of h, C and M.
        increments: put what has been added to C and to M (their second terms) behind (h, C) in the state.
        norm: see ``convlstm.SampleNorm``: of the first line's sums, and of the second's. The authors' code, which has it as an
            option too, normalises W_x * x, W_h * h, W_m * M and the products with C' and M' one by one.
    """

    def __init__(
        self, inputs: int, hidden: int, kernel: int = 5, *, increments: bool = False, norm: bool = False
    ) -> None:
        super().__init__()
        check_hidden(hidden)
        self.inputs, self.hidden, self.increments = inputs, hidden, increments
        self.temporal = gate_convolution(inputs + hidden, hidden, kernel, gates=4, norm=norm)
        self.spatial = gate_convolution(inputs + hidden, hidden, kernel, gates=3, norm=norm)
        self.fusion = Fusion(hidden, kernel)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for (h, C)."""
        zeros = like.new_zeros(batch, self.hidden, height, width)
        return zeros, zeros

    def forward(self, x: Tensor | None, state: State, memory: Tensor) -> tuple[Tensor, State, Tensor]:
        """Return ``h'``, the state ``(h', C')`` and ``M'``."""
        hidden, cell, *_ = state
        temporal, output = self.temporal(joined(x, hidden)).split((3 * self.hidden, self.hidden), dim=1)
        spatial = self.spatial(joined(x, memory.to(hidden.dtype)))
        cell, memory = remember(temporal, cell), remember(spatial, memory)
        hidden = self.fusion(output, cell, memory)
        added = (increment(temporal), increment(spatial)) if self.increments and self.training else ()
        return hidden, (hidden, cell, *added), memory


class Zigzag(Layers):
    """Layers with states of their own and one memory M: up through them, and from the last one to the first a step later.

    (Wang et al. 2017, Fig. 2, right.) A layer is called as ``layer(x, state, memory)``, and returns its output, its state and
    the memory.
    """

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return the states of the layers, and zeros for M."""
        states = super().initial_state(batch, height, width, like)
        return states, like.new_zeros(batch, self.hidden, height, width)

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return the output of the last layer; the states of all, and M'."""
        states, memory = state
        following = []
        for layer, before in zip(self, states, strict=True):
            x, after, memory = layer(x, before, memory)
            following.append(after)
        assert x is not None
        return x, (tuple(following), memory)


class Decoupled(nn.Module):
    """ST-LSTM layers whose memories are kept from learning the same (PredRNN-V2, Wang et al. 2022).

        dC, dM = W * (sigmoid(i) tanh(g)), W * (sigmoid(i') tanh(g'))         penalty = mean |<dC, dM>| / (|dC| |dM|)

    with products and norms over the points of a channel, and a 1 x 1 convolution W that all layers share. The mean runs over
    channels, layers, steps and samples, as in the authors' code (the paper writes a sum), so that the weight of the penalty
    does not depend on sizes. The state is that of the layers and ``(B, 2)``: the sum over the steps so far, and their number.
    """

    def __init__(self, layers: Zigzag, weight: float) -> None:
        super().__init__()
        self.layers, self.weight = layers, weight
        self.inputs, self.hidden = layers.inputs, layers.hidden
        self.adapter = nn.Conv2d(layers.hidden, layers.hidden, 1, bias=False)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return the state of the layers, and zeros."""
        return self.layers.initial_state(batch, height, width, like), like.new_zeros(batch, 2)

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return the output of the last layer, and the state; likeness is summed up in training only."""
        before, tally = state
        hidden, after = self.layers(x, before, shared)
        if self.training:
            added = zip(*(of_layer[2:] for of_layer in after[0]), strict=True)
            cells, memories = (self.adapter(torch.cat(fields)).to(tally.dtype).flatten(2) for fields in added)
            likeness = F.cosine_similarity(cells, memories, dim=-1).abs().mean(dim=1)
            likeness = likeness.view(len(self.layers), -1).mean(dim=0)  # (B,)
            tally = tally + torch.stack([likeness, torch.ones_like(likeness)], dim=1)
        return hidden, (after, tally)

    def penalty(self, state: State) -> Tensor:
        """Return ``weight`` times the mean likeness."""
        total, steps = state[1].unbind(dim=1)
        return self.weight * (total / steps).mean()


class ZigzagConvLSTM(Layers):
    """ConvLSTM layers with one state for all: h and M of the layer below, or of the last one a step before (2017, eq. 3).

    The frame goes to the first layer alone; each is a ``ConvLSTMCell``, with its peepholes.
    """

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for (h, M)."""
        state: State = self[0].initial_state(batch, height, width, like)  # type: ignore[operator]
        return state

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return ``h'`` of the last layer, and ``(h', M')``."""
        for layer in self:
            _, state = layer(x, state)
            x = None
        return state[0], state


def _cell(
    name: str, *, hidden: int, layers: int, kernel: int, decouple: float, norm: bool
) -> Callable[[int], nn.Module]:
    def conv(inputs: int) -> nn.Module:
        return ZigzagConvLSTM(
            ConvLSTMCell(0 if layer else inputs, hidden, kernel, norm=norm) for layer in range(layers)
        )

    def st(inputs: int) -> nn.Module:
        sizes = (hidden if layer else inputs for layer in range(layers))
        cells = Zigzag(STLSTMCell(size, hidden, kernel, increments=decouple > 0, norm=norm) for size in sizes)
        return Decoupled(cells, decouple) if decouple else cells

    if name not in _CELLS:
        raise ValueError(f"cell must be {' or '.join(_CELLS)}, got {name!r}")
    if decouple < 0 or (decouple and name != "st"):
        raise ValueError(f"decouple must be at least 0, and 0 for the cell conv, got {decouple}")
    return st if name == "st" else conv


def predrnn(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 5,
    cell: str = "st",
    decouple: float = 0.0,
    feedback: bool = False,
    one_pass: bool = True,
    norm: bool = False,
) -> EncoderForecaster:
    """Return a PredRNN of ``layers`` cells with ``hidden`` channels each.

    By default one stack of cells reads and goes on with its own forecasts, as in the authors' code, with a readout of 1 x 1.
    ``one_pass=False``: an encoder and a forecaster, which has no input, or, with ``feedback=True``, eats its last forecast.

    Args:
        cell: "st", ST-LSTM; "conv", ConvLSTM with the zigzag memory alone (both are rows of the paper's Table 1).
        decouple: weight of PredRNN-V2's decoupling of the memories C and M; see ``Decoupled``.
        norm: layer norm of the gates, as an option of the authors' code; see ``STLSTMCell``.
    """
    cells = _cell(cell, hidden=hidden, layers=layers, kernel=kernel, decouple=decouple, norm=norm)
    form: Any = {"channels": channels, "forcings": forcings, "feedback": feedback, "one_pass": one_pass}
    return in_form(cells, readout=1, **form)
