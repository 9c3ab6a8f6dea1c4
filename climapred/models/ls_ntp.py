"""LS-NTP: long- and short-range convolution in an LSTM (Xu et al. 2022, Neural Networks 155, 242-257)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from climapred.models.adjacency import LearnedAdjacency, mix
from climapred.models.convlstm import ConvLSTMCell, joined
from climapred.models.recurrent import EncoderForecaster, State, stacked


class NodeAttention(nn.Module):
    """Node-based spatial attention (NSA): a weight in (0, 1) for each channel of each node.

    y = x * sigmoid(W3 r(N(W2 r(N(W1 x))))) with 1x1 convolutions W, r = ReLU and N = GroupNorm of one group.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(channels, channels, 1), nn.GroupNorm(1, channels), nn.ReLU()]
        self.score = nn.Sequential(*layers, nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``(B, C, H, W)``, each node weighed."""
        return x * torch.sigmoid(self.score(x))


class LSConvLSTMCell(ConvLSTMCell):
    """ConvLSTM whose convolution becomes the LS-Conv: NSA, then ``(I + A) X`` over all nodes, then k x k (LSI).

    The adjacency A arrives as ``shared``, (H W, H W): the layers of a network share it.
    """

    def __init__(self, inputs: int, hidden: int, kernel: int = 3) -> None:
        super().__init__(inputs, hidden, kernel)
        self.attention = NodeAttention(inputs + hidden)

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return ``h'`` and the state ``(h', c')``."""
        hidden, cell = state
        mixed = mix(self.attention(joined(x, hidden)), shared)
        hidden, cell = self.peepholes(self.gates(mixed), cell)
        return hidden, (hidden, cell)


def ls_ntp(
    *,
    height: int,
    width: int,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 3,
    embedding: int = 128,
    feedback: bool = False,
    one_pass: bool = False,
) -> EncoderForecaster:
    """Return LS-NTP for a grid of ``height`` x ``width`` points: LS-ConvLSTM cells that share one learned adjacency.

    Apart from the paper's code: gates without the ReLU that would hold them at 0.5 or more, a bias, and no weights on the
    forecaster's input, which is zero there. ``feedback`` and ``one_pass``: see ``convlstm``.
    """
    sizes: Any = {"channels": channels, "forcings": forcings, "hidden": hidden, "layers": layers, "kernel": kernel}
    adjacency = LearnedAdjacency(height * width, embedding)
    return stacked(LSConvLSTMCell, **sizes, feedback=feedback, one_pass=one_pass, shared=adjacency)
