"""Patches: a network on a coarser grid with more channels (space to depth), as a wrapper round it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from climapred.models.recurrent import Network


class Patched(Network):
    """A network whose pixels are patches of ``patch`` x ``patch`` points, each point a channel (Shi et al. 2015, section 4.1).

    Convolutions then cost patch**2 times less and look patch times as far. A grid that is no multiple of the patch is
    continued by its last row and column, and cut again.

    Args:
        network: with channels and forcings patch**2 times those of the frames.
        patch: points along each side.
    """

    def __init__(self, network: Network, patch: int) -> None:
        if patch < 1:
            raise ValueError(f"patch must be at least 1, got {patch}")
        super().__init__(network.channels // patch**2, network.forcings // patch**2)
        self.network, self.patch = network, patch

    @property
    def feeds_back(self) -> bool:
        """Whether the network eats its own forecasts."""
        return self.network.feeds_back

    @property
    def one_pass(self) -> bool:
        """Whether one stack of cells reads and then goes on."""
        return self.network.one_pass

    def take_penalty(self) -> Tensor | None:
        """Return what the last forward pass adds to the loss, if anything, and forget it."""
        return self.network.take_penalty()

    def forward(
        self,
        frames: Tensor,
        steps: int,
        *,
        change: bool = False,
        future: Tensor | None = None,
        use_truth: Tensor | None = None,
        **options: bool,
    ) -> Tensor:
        """Return the forecast ``(B, steps, C, H, W)`` of ``frames`` ``(B, T, C + K, H, W)``; see the network's."""
        height, width = frames.shape[-2:]
        ahead = None if future is None else self._packed(future)
        packed = self.network(self._packed(frames), steps, change=change, future=ahead, use_truth=use_truth, **options)
        return F.pixel_shuffle(packed, self.patch)[..., :height, :width]

    def _packed(self, frames: Tensor) -> Tensor:
        """Return ``(B, T, (C + K) patch**2, H', W')``; the variables stay before the forcings."""
        below, beside = (-size % self.patch for size in frames.shape[-2:])
        flat = F.pad(frames.flatten(0, 1), (0, beside, 0, below), mode="replicate") if below or beside else frames
        return F.pixel_unshuffle(flat, self.patch).view(*frames.shape[:2], -1, *_sizes(frames, self.patch))


def _sizes(frames: Tensor, patch: int) -> tuple[int, int]:
    height, width = (-(-size // patch) for size in frames.shape[-2:])
    return height, width
