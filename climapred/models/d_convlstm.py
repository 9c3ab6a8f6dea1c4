"""D-ConvLSTM: ConvLSTM whose convolutions choose where to look (Dai et al. 2017, arXiv:1703.06211)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from climapred.models.convlstm import ConvLSTMCell
from climapred.models.recurrent import EncoderForecaster, stacked
from climapred.models.spatial import Convolution, shifted


class Deformable(nn.Module):
    """A convolution whose taps are moved, at every point, by offsets that its input determines (Dai et al. 2017, eq. 2-4).

        y(p) = sum_k w(k) x(p + k + offset_k(p)) + b

    k runs over the taps of the kernel, x is read bilinearly between its points, with zeros beyond the grid, and the offsets
    come from a convolution of the same kernel that starts at zero: at first this is the convolution itself. All channels and
    gates share the offsets.

    Args:
        convolution: k x k, without stride, dilation and groups; a layer's own.

    Attributes:
        periodic: taps beyond the last column read from the first one on.
    """

    periodic: bool = False

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        kernel = convolution.kernel_size[0]
        self.convolution = convolution
        self.offsets = Convolution(convolution.in_channels, 2 * kernel**2, kernel)
        nn.init.zeros_(self.offsets.weight)
        assert self.offsets.bias is not None
        nn.init.zeros_(self.offsets.bias)
        taps = torch.arange(kernel, dtype=torch.float32) - kernel // 2
        self.taps: Tensor
        self.register_buffer("taps", torch.cartesian_prod(taps, taps).T.reshape(2, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, outputs, H, W)`` from ``(B, inputs, H, W)``."""
        down, right = self.offsets(x).chunk(2, dim=1)
        columns = shifted(x, self.taps[0] + down, self.taps[1] + right, periodic=self.periodic)
        weight, bias = self.convolution.weight, self.convolution.bias
        return F.conv2d(columns, weight.flatten(1)[..., None, None], bias)


class DConvLSTMCell(ConvLSTMCell):
    """One ConvLSTM layer (Shi et al. 2015, eq. 3) with a deformable convolution of input and hidden state."""

    def __init__(self, inputs: int, hidden: int, kernel: int = 3) -> None:
        super().__init__(inputs, hidden, kernel)
        self.gates = Deformable(self.gates)  # type: ignore[assignment]


def d_convlstm(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 3,
    feedback: bool = False,
    one_pass: bool = False,
) -> EncoderForecaster:
    """Return a ConvLSTM of ``layers`` cells with ``hidden`` channels each, whose convolutions are deformable.

    The readout is not. ``feedback`` and ``one_pass``: see ``convlstm``.
    """
    sizes: Any = {"channels": channels, "forcings": forcings, "hidden": hidden, "layers": layers, "kernel": kernel}
    return stacked(DConvLSTMCell, feedback=feedback, one_pass=one_pass, **sizes)
