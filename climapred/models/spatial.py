"""Convolutions that keep the grid: zeros beyond its edges, or round the globe in longitude."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(nn.Conv2d):
    """Convolution of ``(B, C, H, W)`` with an odd kernel, padded so that the grid keeps its size (with ``stride`` s: H / s).

    Attributes:
        periodic: the first column follows the last one, as on a globe; else zeros lie beyond them. North and south of the
            grid there are zeros always.
    """

    periodic: bool = False
    padding: tuple[int, int]

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        _check_kernel(kernel)
        padding = dilation * (kernel // 2)
        super().__init__(inputs, outputs, kernel, stride, padding, dilation, groups, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, outputs, H, W)``."""
        across, along = self.padding
        if not (self.periodic and along):
            return super().forward(x)
        x = F.pad(x, (along, along, 0, 0), mode="circular")
        return F.conv2d(x, self.weight, self.bias, self.stride, (across, 0), self.dilation, self.groups)


class Convolution3d(nn.Conv3d):
    """The same over ``(B, C, D, H, W)`` with a kernel (depth, k, k); the depth is padded too, so that it stays.

    Attributes:
        periodic: see ``Convolution``.
    """

    periodic = False

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, depth: int = 1, bias: bool = True) -> None:
        _check_kernel(kernel)
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        super().__init__(inputs, outputs, (depth, kernel, kernel), padding=(0, kernel // 2, kernel // 2), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, outputs, D, H, W)``."""
        depth, across, along = self.kernel_size[0], int(self.padding[1]), int(self.padding[2])
        x = F.pad(x, (0, 0, 0, 0, (depth - 1) // 2, depth // 2)) if depth > 1 else x
        if not (self.periodic and along):
            return super().forward(x)
        x = F.pad(x, (along, along, 0, 0, 0, 0), mode="circular")
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, across, 0))


def close_circle(network: nn.Module) -> None:
    """Let every layer of ``network`` that looks at neighbours go on from the last column to the first."""
    for module in network.modules():
        if hasattr(module, "periodic"):
            module.periodic = True  # type: ignore[assignment]


def _check_kernel(kernel: int) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, so that the grid keeps its size, got {kernel}")
