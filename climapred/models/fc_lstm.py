"""FC-LSTM: an LSTM over whole frames as vectors, the baseline of ConvLSTM (Shi et al. 2015, arXiv:1506.04214, eq. 1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from climapred.models.convlstm import Peepholes, SampleNorm, check_hidden, joined, start_remembering
from climapred.models.recurrent import EncoderForecaster, Layers, State, in_form


class FCLSTMCell(nn.Module):
    """One fully connected LSTM layer (Shi et al. 2015, eq. 1), with a peephole weight for each unit.

        i = sigmoid(W_xi x + W_hi h + w_ci c + b_i)      f = sigmoid(W_xf x + W_hf h + w_cf c + b_f)
        c' = f c + i tanh(W_xc x + W_hc h + b_c)         o = sigmoid(W_xo x + W_ho h + w_co c' + b_o)      h' = o tanh(c')

    Vectors are ``(B, units, 1, 1)``: for the gates, units are the channels of a field of one point. All four gates are one
    product with a matrix. The forget gate's bias starts at 1, as in ``ConvLSTMCell``; so is ``norm``.
    """

    def __init__(self, inputs: int, hidden: int, *, norm: bool = False) -> None:
        super().__init__()
        self.inputs, self.hidden = inputs, hidden
        self.gates = nn.Linear(inputs + hidden, 4 * hidden, bias=not norm)
        self.norm = SampleNorm(4 * hidden) if norm else nn.Identity()
        self.peepholes = Peepholes(hidden)
        start_remembering(self.norm if isinstance(self.norm, SampleNorm) else self.gates, hidden)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for (h, c), whatever the grid."""
        zeros = like.new_zeros(batch, self.hidden, 1, 1)
        return zeros, zeros

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return ``h'`` and the state ``(h', c')``."""
        hidden, cell = state
        gates = self.norm(self.gates(joined(x, hidden).flatten(1)))
        hidden, cell = self.peepholes(gates[..., None, None], cell)
        return hidden, (hidden, cell)


class Flattened(nn.Module):
    """Layers that see a frame ``(B, inputs, H, W)`` as one vector.

    Args:
        layers: cells of vectors; the first takes inputs * H * W numbers.
        inputs: channels of a frame.
    """

    def __init__(self, layers: Layers, inputs: int) -> None:
        super().__init__()
        self.layers = layers
        self.inputs, self.hidden = inputs, layers.hidden

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return the states of the layers."""
        return self.layers.initial_state(batch, height, width, like)

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return the output of the last layer ``(B, hidden, 1, 1)``, and the states of all."""
        x = None if x is None else x.flatten(1)[..., None, None]
        output: tuple[Tensor, State] = self.layers(x, state, shared)
        return output


class LinearReadout(nn.Module):
    """A frame ``(B, channels, H, W)`` from a vector ``(B, hidden, 1, 1)``; zero at first."""

    def __init__(self, hidden: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.shape = (channels, height, width)
        self.linear = nn.Linear(hidden, channels * height * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the frame."""
        return self.linear(hidden.flatten(1)).unflatten(1, self.shape)


def fc_lstm(
    *,
    height: int,
    width: int,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 2048,
    layers: int = 2,
    feedback: bool = True,
    one_pass: bool = False,
    norm: bool = False,
) -> EncoderForecaster:
    """Return an FC-LSTM of ``layers`` layers with ``hidden`` units each, for a grid of ``height`` x ``width`` points.

    By default the conditional encoder-forecaster of Srivastava et al. (2015, arXiv:1502.04681), whose forecaster eats its
    last forecast; ``feedback=False``: its forecaster has no input. ``one_pass=True``: one stack of cells reads and then goes
    on with its own forecasts. ``norm=True``: layer norm of the gates.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a grid has at least one point, got {height=}, {width=}")
    check_hidden(hidden)

    def cell(inputs: int) -> Flattened:
        sizes = [inputs * height * width] + [hidden] * (layers - 1)
        return Flattened(Layers(FCLSTMCell(size, hidden, norm=norm) for size in sizes[:layers]), inputs)

    readout = LinearReadout(hidden, channels, height, width)
    form: Any = {"channels": channels, "forcings": forcings, "feedback": feedback, "one_pass": one_pass}
    return in_form(cell, readout=readout, **form)
