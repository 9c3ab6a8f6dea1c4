"""ConvGRU and TrajGRU: GRU with convolutions, or with links along learned paths (Shi et al. 2017, arXiv:1706.03458)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from climapred.models.convlstm import check_hidden, joined
from climapred.models.recurrent import EncoderForecaster, State, stacked
from climapred.models.spatial import Convolution, shifted

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "tanh": torch.tanh,
}
_FLOW_MAPS, _FLOW_KERNEL = 32, 5  # of the network that finds the paths (Shi et al. 2017, section 3.3)


class ConvGRUCell(nn.Module):
    """One ConvGRU layer (Shi et al. 2017, eq. 1).

        z = sigmoid(W_xz * x + W_hz * h)     r = sigmoid(W_xr * x + W_hr * h)
        n = f(W_xn * x + r (W_hn * h))       h' = (1 - z) n + z h

    with a bias in each of z, r and n, which the paper does not write. f is a leaky ReLU of slope 0.2, as in the paper, or
    tanh. Ballas et al. (2016, arXiv:1511.06432) apply r to h, not to W_hn * h, and z the other way round; as it stands, all
    products with x are one convolution and all with h another. The bias of z starts at 1, so that the memory survives from
    the first step of training on.
    """

    def __init__(self, inputs: int, hidden: int, kernel: int = 3, *, activation: str = "leaky_relu") -> None:
        super().__init__()
        check_hidden(hidden)
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be {' or '.join(_ACTIVATIONS)}, got {activation!r}")
        self.inputs, self.hidden, self.activation = inputs, hidden, activation
        self.from_input = Convolution(inputs, 3 * hidden, kernel, bias=False) if inputs else None
        self.from_state = Convolution(hidden, 3 * hidden, kernel, bias=False)
        self.bias = nn.Parameter(torch.zeros(3 * hidden, 1, 1))
        nn.init.ones_(self.bias[:hidden])

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for (h,)."""
        return (like.new_zeros(batch, self.hidden, height, width),)

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return ``h'`` and the state ``(h',)``; it is the memory, and stays in float32 under autocast."""
        (hidden,) = state
        of_state = self._of_state(x, hidden)
        of_input = self.bias.to(of_state.dtype)
        if self.from_input is not None:
            of_input = self.from_input(x) + of_input
        h_z, h_r, h_n = of_state.chunk(3, dim=-3)
        x_z, x_r, x_n = of_input.chunk(3, dim=-3)
        z = torch.sigmoid(x_z + h_z).to(hidden.dtype)
        n = _ACTIVATIONS[self.activation](x_n + torch.sigmoid(x_r + h_r) * h_n)
        hidden = torch.lerp(n.to(hidden.dtype), hidden, z)
        return hidden, (hidden,)

    def _of_state(self, x: Tensor | None, hidden: Tensor) -> Tensor:
        """Return the products with the state, ``(B, 3 hidden, H, W)``."""
        return self.from_state(hidden)


class TrajGRUCell(ConvGRUCell):
    """One TrajGRU layer (Shi et al. 2017, eq. 3): the state comes along L paths that x and h choose at every point.

        U, V = flow(x, h)                    W_h * h becomes sum_l W_h^l warp(h, U_l, V_l), with 1 x 1 matrices W^l

    The flow network has one layer of 32 maps, leaky ReLU of slope 0.2, and a layer of 2 L, both with kernels 5 x 5, as in
    the paper. For ``warp`` see ``shifted``; flows are in points.

    Attributes:
        periodic: a path across the last column comes in again by the first one; else it meets zeros.
    """

    periodic: bool = False

    def __init__(
        self, inputs: int, hidden: int, kernel: int = 3, *, links: int = 5, activation: str = "leaky_relu"
    ) -> None:
        if links < 1:
            raise ValueError(f"links must be at least 1, got {links}")
        super().__init__(inputs, hidden, kernel, activation=activation)
        self.from_state = Convolution(links * hidden, 3 * hidden, 1, bias=False)
        self.flow = nn.Sequential(
            Convolution(inputs + hidden, _FLOW_MAPS, _FLOW_KERNEL),
            nn.LeakyReLU(0.2),
            Convolution(_FLOW_MAPS, 2 * links, _FLOW_KERNEL),
        )

    def _of_state(self, x: Tensor | None, hidden: Tensor) -> Tensor:
        """Return the products with the state that comes along the paths, ``(B, 3 hidden, H, W)``."""
        down, right = self.flow(joined(x, hidden)).chunk(2, dim=1)
        return self.from_state(shifted(hidden, down, right, periodic=self.periodic))


def conv_gru(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 3,
    activation: str = "leaky_relu",
    feedback: bool = False,
    one_pass: bool = False,
) -> EncoderForecaster:
    """Return a ConvGRU of ``layers`` cells with ``hidden`` channels each.

    ``activation``: "leaky_relu" (Shi et al. 2017) or "tanh" (Ballas et al. 2016). ``feedback`` and ``one_pass``: see
    ``convlstm``. The layers keep the grid, and the forecaster's follow each other as the encoder's do; the paper halves the
    grid between layers, and its forecaster runs from the coarsest to the finest.
    """
    sizes: Any = {"channels": channels, "forcings": forcings, "hidden": hidden, "layers": layers, "kernel": kernel}
    cell = partial(ConvGRUCell, activation=activation)
    return stacked(cell, feedback=feedback, one_pass=one_pass, **sizes)


def traj_gru(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 3,
    links: int = 5,
    activation: str = "leaky_relu",
    feedback: bool = False,
    one_pass: bool = False,
) -> EncoderForecaster:
    """Return a TrajGRU of ``layers`` cells with ``hidden`` channels each, and ``links`` paths L that lead to every point.

    ``kernel`` is that of the input; for the rest see ``conv_gru``.
    """
    sizes: Any = {"channels": channels, "forcings": forcings, "hidden": hidden, "layers": layers, "kernel": kernel}
    cell = partial(TrajGRUCell, links=links, activation=activation)
    return stacked(cell, feedback=feedback, one_pass=one_pass, **sizes)
