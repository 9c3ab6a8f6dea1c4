"""PredRNN++: Causal LSTM and a gradient highway (Wang et al. 2018, arXiv:1804.06300)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from climapred.models.convlstm import check_hidden, joined
from climapred.models.predrnn import Zigzag, gate_convolution, remember
from climapred.models.recurrent import EncoderForecaster, State, in_form
from climapred.models.spatial import Convolution


class CausalLSTMCell(nn.Module):
    """One Causal LSTM layer (Wang et al. 2018, section 4.1): the memory C in time first, then M, which sees what C has become.

        i, f, g = W_1 * [x, h, C] + b_1           C' = sigmoid(f) C + sigmoid(i) tanh(g)
        i', f', g' = W_2 * [x, C', M] + b_2       M' = sigmoid(f') tanh(W_3 * M) + sigmoid(i') tanh(g')
        o = tanh(W_4 * [x, C', M'] + b_4)         h' = o tanh(W_5 * [C', M'])

    W_3 and W_5 are 1 x 1, the others kernel x kernel. The published code differs: o sees h too, g' does not see M, W_3 is
    kernel x kernel, and of its parameters a convolution from C' and M' to h never gets a gradient. Here the equations count.
    Under autocast C stays in float32; M goes through W_3 at every step.
    """

    def __init__(self, inputs: int, hidden: int, kernel: int = 5) -> None:
        super().__init__()
        check_hidden(hidden)
        self.inputs, self.hidden = inputs, hidden
        self.temporal = gate_convolution(inputs + 2 * hidden, hidden, kernel, gates=3)
        self.spatial = gate_convolution(inputs + 2 * hidden, hidden, kernel, gates=3)
        self.carry = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.output = Convolution(inputs + 2 * hidden, hidden, kernel)
        self.fusion = nn.Conv2d(2 * hidden, hidden, 1, bias=False)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for (h, C)."""
        zeros = like.new_zeros(batch, self.hidden, height, width)
        return zeros, zeros

    def forward(self, x: Tensor | None, state: State, memory: Tensor) -> tuple[Tensor, State, Tensor]:
        """Return ``h'``, the state ``(h', C')`` and ``M'``."""
        hidden, cell = state
        cell = remember(self.temporal(torch.cat([joined(x, hidden), cell.to(hidden.dtype)], dim=1)), cell)
        seen = joined(x, cell.to(hidden.dtype))
        gates = self.spatial(torch.cat([seen, memory.to(seen.dtype)], dim=1))
        memory = remember(gates, torch.tanh(self.carry(memory)))
        seen = torch.cat([seen, memory.to(seen.dtype)], dim=1)
        hidden = torch.tanh(self.output(seen)) * torch.tanh(self.fusion(seen[:, self.inputs :]))
        return hidden, (hidden, cell), memory


class GradientHighway(nn.Module):
    """Gradient highway unit, GHU (Wang et al. 2018, section 4.2): a short way back through time.

        p = tanh(W_px * x + W_pz * z + b_p)     s = sigmoid(W_sx * x + W_sz * z + b_s)     z' = s p + (1 - s) z

    It lies between layers and leaves M as it is. Weights start as those of any convolution here, not below 0.001 as in the
    published code, where p and the input of the next layer are next to nothing at first. Under autocast z stays in float32.
    """

    def __init__(self, hidden: int, kernel: int = 5) -> None:
        super().__init__()
        self.inputs = self.hidden = hidden
        self.gates = Convolution(2 * hidden, 2 * hidden, kernel)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for (z,)."""
        return (like.new_zeros(batch, self.hidden, height, width),)

    def forward(self, x: Tensor, state: State, memory: Tensor) -> tuple[Tensor, State, Tensor]:
        """Return ``z'``, the state ``(z',)`` and M."""
        (z,) = state
        p, s = self.gates(joined(x, z.to(x.dtype))).chunk(2, dim=1)
        z = torch.lerp(z, torch.tanh(p).to(z.dtype), torch.sigmoid(s).to(z.dtype))
        return z.to(x.dtype), (z,), memory


def predrnn_pp(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 5,
    feedback: bool = False,
    one_pass: bool = True,
) -> EncoderForecaster:
    """Return PredRNN++: ``layers`` (2 or more) Causal LSTMs, with the gradient highway between the first two.

    ``feedback`` and ``one_pass``: see ``predrnn``.
    """
    if layers < 2:
        raise ValueError(f"layers must be at least 2, with the gradient highway between them, got {layers}")

    def cells(inputs: int) -> Zigzag:
        first, *others = (CausalLSTMCell(hidden if layer else inputs, hidden, kernel) for layer in range(layers))
        return Zigzag([first, GradientHighway(hidden, kernel), *others])

    form: Any = {"channels": channels, "forcings": forcings, "feedback": feedback, "one_pass": one_pass}
    return in_form(cells, readout=1, **form)
