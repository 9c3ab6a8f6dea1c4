"""What looks at neighbours: convolutions that keep the grid, and reading beside its points; round the globe on request."""

from __future__ import annotations

import torch
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
        x = _wrapped(x, along)
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
        x = _wrapped(x, along)
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, across, 0))


def shifted(field: Tensor, down: Tensor, right: Tensor, *, periodic: bool) -> Tensor:
    """Return ``field`` ``(B, C, H, W)`` read beside its points, bilinearly, at K shifts each: ``(B, C K, H, W)``, C slowest.

        out[c, k, i, j] = sum_mn field[c, m, n] max(0, 1 - |i + down[k, i, j] - m|) max(0, 1 - |j + right[k, i, j] - n|)

    The warping of TrajGRU (Shi et al. 2017, eq. 4) and the sampling of deformable convolutions (Dai et al. 2017, eq. 3-4).
    Beyond the grid lie zeros; ``periodic``: the columns go on round the globe.

    The field is continued with zeros to powers of two, so that the normalised coordinates of grid_sample are exact: a shift
    of 0 returns the very field, and its derivative, which jumps there, is that to the south and the east everywhere.

    Args:
        field: what is read.
        down, right: shifts ``(B, K, H, W)`` in points, south along the rows and east along the columns.
    """
    _, _, height, width = down.shape
    dtype = torch.promote_types(field.dtype, torch.float32)  # bfloat16 has no room for a coordinate
    rows = torch.arange(height, device=field.device, dtype=dtype)[:, None] + down.to(dtype)
    columns = torch.arange(width, device=field.device, dtype=dtype) + right.to(dtype)
    if periodic:
        columns = columns.remainder(width)
        field = F.pad(field, (0, 1, 0, 0), mode="circular")
    below, beside = ((1 << (size - 1).bit_length()) - size for size in field.shape[-2:])
    field = F.pad(field.to(dtype), (0, beside, 0, below))
    places = torch.stack([(2 * columns + 1) / field.shape[-1] - 1, (2 * rows + 1) / field.shape[-2] - 1], dim=-1)
    read = F.grid_sample(field, places.flatten(1, 2), padding_mode="zeros", align_corners=False)
    return read.reshape(len(field), -1, height, width)


def close_circle(network: nn.Module) -> None:
    """Let every layer of ``network`` that looks at neighbours go on from the last column to the first."""
    for module in network.modules():
        if hasattr(module, "periodic"):
            module.periodic = True  # type: ignore[assignment]


def _wrapped(x: Tensor, columns: int) -> Tensor:
    """Return ``(..., W)`` with so many columns more on either side, which may be more than once round the globe."""
    width = x.shape[-1]
    if columns <= width:
        return torch.cat([x[..., width - columns :], x, x[..., :columns]], dim=-1)
    return x[..., torch.arange(-columns, width + columns, device=x.device) % width]


def _check_kernel(kernel: int) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, so that the grid keeps its size, got {kernel}")
