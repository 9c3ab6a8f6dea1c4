"""MIM: Memory In Memory, PredRNN whose forget gates are memories themselves (Wang et al. 2019, arXiv:1811.07490)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from climapred.models.predrnn import Fusion, STLSTMCell, Zigzag, gate_convolution, remember
from climapred.models.recurrent import EncoderForecaster, State, in_form
from climapred.models.spatial import Convolution


class InnerMemory(nn.Module):
    """The LSTM that both modules of a MIM block are, with a memory R.

        i, f, g = W * u + b          R' = sigmoid(f) R + sigmoid(i) tanh(g)
        y = sigmoid(W_o * [v, R'] + b_o) tanh(R')

    Args:
        gates_see, output_sees: channels of u and of v.
        hidden: channels of R and y.
    """

    def __init__(self, gates_see: int, output_sees: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.gates = gate_convolution(gates_see, hidden, kernel, gates=3)
        self.output = Convolution(output_sees + hidden, hidden, kernel)

    def forward(self, u: Tensor, v: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``y``, in the dtype of v, and ``R'``."""
        memory = remember(self.gates(u), memory)
        low = memory.to(v.dtype)
        return torch.sigmoid(self.output(torch.cat([v, low], dim=1))) * torch.tanh(low), memory


class MIMBlock(nn.Module):
    """One MIM layer (Wang et al. 2019, section 3.1): an ST-LSTM in which two memories find T, what C keeps, not a gate.

        D = MIM-N: u = [x - x_before, N], v = x - x_before, memory N      non-stationary: what has changed in the layer below
        T = MIM-S: u = v = [D, C], memory S                               stationary
        i, g, a = W_x * x + W_h * h + b           C' = T + sigmoid(i) tanh(g)
        i', f', g' = W'_x * x + W_m * M + b'      M' = sigmoid(f') M + sigmoid(i') tanh(g')
        h' = sigmoid(a + W_co * C' + W_mo * M') tanh(W_1x1 * [C', M'])

    For D and T see ``InnerMemory``. Before the first step all is zero, x_before too. Under autocast N, S and M stay in float32.

    The published code differs; here the equations count. There, the gates of C and M share their products with x, a sees M
    and neither C' nor M', D of the layer below stands for the change from the third layer on, R' in y has a peephole for
    every point instead of a convolution, which binds the weights to a grid, and MIM-N idles at the first step. Its port to
    torch has a 1 x 1 convolution without gradient in each MIM-N, and lets S go on from one batch to the next.
    """

    def __init__(self, hidden: int, kernel: int = 5) -> None:
        super().__init__()
        self.inputs = self.hidden = hidden
        self.trend = InnerMemory(2 * hidden, hidden, hidden, kernel)
        self.rest = InnerMemory(2 * hidden, 2 * hidden, hidden, kernel)
        self.temporal = Convolution(2 * hidden, 3 * hidden, kernel)
        self.spatial = gate_convolution(2 * hidden, hidden, kernel, gates=3)
        self.fusion = Fusion(hidden, kernel)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for (h, C, N, S, x_before)."""
        return (like.new_zeros(batch, self.hidden, height, width),) * 5

    def forward(self, x: Tensor, state: State, memory: Tensor) -> tuple[Tensor, State, Tensor]:
        """Return ``h'``, the state ``(h', C', N', S', x)`` and ``M'``."""
        hidden, cell, trend, rest, before = state
        change = x - before.to(x.dtype)
        drift, trend = self.trend(torch.cat([change, trend.to(x.dtype)], dim=1), change, trend)
        seen = torch.cat([drift, cell.to(x.dtype)], dim=1)
        kept, rest = self.rest(seen, seen, rest)
        i, g, output = self.temporal(torch.cat([x, hidden.to(x.dtype)], dim=1)).chunk(3, dim=1)
        cell = kept + torch.sigmoid(i) * torch.tanh(g)
        memory = remember(self.spatial(torch.cat([x, memory.to(x.dtype)], dim=1)), memory)
        hidden = self.fusion(output, cell, memory)
        return hidden, (hidden, cell, trend, rest, x), memory


def mim(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 5,
    feedback: bool = False,
    one_pass: bool = True,
) -> EncoderForecaster:
    """Return a MIM of ``layers`` (2 or more) layers with ``hidden`` channels each: an ST-LSTM, then MIM blocks.

    ``feedback`` and ``one_pass``: see ``predrnn``.
    """
    if layers < 2:
        raise ValueError(f"layers must be at least 2, an ST-LSTM and a MIM block, got {layers}")

    def cells(inputs: int) -> Zigzag:
        return Zigzag([STLSTMCell(inputs, hidden, kernel), *(MIMBlock(hidden, kernel) for _ in range(layers - 1))])

    form: Any = {"channels": channels, "forcings": forcings, "feedback": feedback, "one_pass": one_pass}
    return in_form(cells, readout=1, **form)
