"""PhyDNet: a latent partial differential equation beside a ConvLSTM (Le Guen and Thome 2020, arXiv:2003.01460)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from climapred.models.convlstm import ConvLSTMCell
from climapred.models.recurrent import EncoderForecaster, Layers, State
from climapred.models.spatial import Convolution


class PhyCell(nn.Module):
    """Prediction by a combination of partial derivatives, then correction by what is seen (eq. 3 and 6-8).

        p  = h + C N(D * h)               D: k**2 kernels of k x k, C: 1x1
        h' = p + K (e - p)                K = sigmoid(W * [e, h])

    Kernel i k + j of D is to be the derivative i times down and j times along the grid, which ``moment_loss`` asks for. As in
    the authors' code there is a group norm N between derivatives and their combination: kernels of high derivatives have
    norms of hundreds. The gain K is theirs too: between 0 (trust the equation) and 1 (trust the frame).
    """

    basis: Tensor

    def __init__(self, hidden: int, stencil: int, kernel: int) -> None:
        super().__init__()
        self.derivatives = Convolution(hidden, stencil**2, stencil)
        self.norm = nn.GroupNorm(stencil, stencil**2)
        self.combine = nn.Conv2d(stencil**2, hidden, 1)
        self.gain = Convolution(2 * hidden, hidden, kernel)
        self.register_buffer("basis", moment_basis(stencil), persistent=False)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return ``h'`` from ``e`` = ``x`` and ``h``, each ``(B, hidden, H, W)``."""
        predicted = hidden + self.combine(self.norm(self.derivatives(hidden)))
        gain = torch.sigmoid(self.gain(torch.cat([x, hidden], dim=1)))
        return predicted + gain * (x - predicted)

    def moment_loss(self) -> Tensor:
        """Return how far the kernels are from derivatives (eq. 9), a scalar: mean squares, summed over the latent channels."""
        count, size = len(self.derivatives.weight), len(self.basis)
        wanted = torch.eye(count, dtype=self.basis.dtype, device=self.basis.device).view(count, 1, size, size)
        return (moments(self.derivatives.weight, self.basis) - wanted).square().mean(dim=(0, 2, 3)).sum()


def moment_basis(size: int) -> Tensor:
    """Return ``u**i / i!`` ``(i, u)`` with u counted from the middle of ``size`` points.

    >>> moment_basis(3).tolist()
    [[1.0, 1.0, 1.0], [-1.0, 0.0, 1.0], [0.5, 0.0, 0.5]]
    """
    places = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.stack([places**order / math.factorial(order) for order in range(size)]).float()


def moments(kernels: Tensor, basis: Tensor) -> Tensor:
    """Return the moments ``m[i, j] = sum_{u, v} u**i v**j w[u, v] / (i! j!)`` of kernels ``(..., k, k)``.

    By Taylor, w * f is the sum of all m[i, j] d^{i+j} f / dx^i dy^j: a kernel whose only moment is a 1 at (i, j) is that
    derivative, exactly so for polynomials of degree k - 1 in x and in y. Sums of products rather than a product of matrices,
    which autocast would round to 8 bits.
    """
    down = (kernels[..., None, :, :] * basis[:, :, None]).sum(dim=-2)
    return (down[..., None, :] * basis).sum(dim=-1)


class PhyDNetCell(nn.Module):
    """PhyDNet at one time step (Fig. 2): an encoder, the two branches PhyCell and ConvLSTM, the sum of both, a decoder.

    Blocks are a convolution, group norm and leaky ReLU. The authors' encoder halves the grid twice and their decoder doubles
    it; here it stays, so that any grid fits and a globe may turn: ``patch`` makes it coarser. Their last layer is the readout
    of ``EncoderForecaster``, here without a sigmoid: fields are no pictures.
    """

    def __init__(self, inputs: int, *, hidden: int, layers: int, kernel: int, stencil: int, moment: float) -> None:
        super().__init__()
        narrow = max(2, hidden // 2)
        self.inputs, self.hidden, self.moment = inputs, narrow, moment
        self.encode = _blocks(kernel, inputs, narrow, narrow, hidden)
        self.to_physics, self.to_memory = (_blocks(kernel, hidden, hidden, hidden) for _ in range(2))
        self.physics = PhyCell(hidden, stencil, kernel)
        widths = [hidden, *[2 * hidden] * (layers - 1), hidden]
        self.memory = Layers(ConvLSTMCell(*pair, kernel) for pair in pairwise(widths))
        self.from_physics, self.from_memory = (_blocks(kernel, hidden, hidden, hidden) for _ in range(2))
        self.decode = _blocks(kernel, hidden, narrow, narrow)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for h of the PhyCell, and the states of the ConvLSTM."""
        physics = like.new_zeros(batch, self.memory.hidden, height, width)
        return physics, self.memory.initial_state(batch, height, width, like)

    def forward(self, x: Tensor, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return ``(B, hidden // 2, H, W)`` and the states of both branches."""
        physics, memory = state
        encoded = self.encode(x)
        physics = self.physics(self.to_physics(encoded), physics)
        residual, memory = self.memory(self.to_memory(encoded), memory)
        return self.decode(self.from_physics(physics) + self.from_memory(residual)), (physics, memory)

    def penalty(self, state: State) -> Tensor:
        """Return the weighted moment loss of the PhyCell; it depends on weights alone."""
        return self.moment * self.physics.moment_loss()


def _blocks(kernel: int, *channels: int) -> nn.Sequential:
    """Return blocks from each number of channels to the next.

    The authors' 16 groups, but at least two channels in each: alone in its group, a channel would lose its bias to the norm.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        groups = math.gcd(16, outputs // 2)
        layers += [Convolution(inputs, outputs, kernel), nn.GroupNorm(groups, outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


def phydnet(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 3,
    kernel: int = 3,
    stencil: int = 7,
    moment: float = 1.0,
) -> EncoderForecaster:
    """Return PhyDNet with ``hidden`` latent channels: it reads, then goes on with its own forecasts, as in the authors' code.

    ``layers`` of ConvLSTM, of 2 ``hidden`` channels each and ``hidden`` in the last. ``stencil``: points along a derivative's
    kernel; there are stencil**2 derivatives. ``moment``: weight of the moment loss, lambda of eq. 10, which training adds to
    the loss of the forecast. The defaults are the authors'.
    """
    if hidden < 2:
        raise ValueError(f"hidden must be at least 2, got {hidden}")
    if stencil < 3 or stencil % 2 == 0:
        raise ValueError(f"stencil must be odd and at least 3, got {stencil}")
    if not (moment >= 0 and math.isfinite(moment)):
        raise ValueError(f"moment must be a number from 0 on, got {moment}")
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    sizes: Any = {"hidden": hidden, "layers": layers, "kernel": kernel, "stencil": stencil, "moment": moment}
    cell = PhyDNetCell(channels + forcings, **sizes)
    return EncoderForecaster(cell, None, channels=channels, forcings=forcings, readout=kernel)
