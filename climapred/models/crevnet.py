"""CrevNet: a reversible autoencoder whose inverse decodes, round a recurrent predictor (Yu et al. 2020, ICLR)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from climapred.models.convlstm import ConvLSTMCell, check_hidden
from climapred.models.recurrent import EncoderForecaster, State
from climapred.models.spatial import Convolution

Halves = tuple[Tensor, Tensor]


class Coupling(nn.Module):
    """Additive coupling of two halves: (a, b) -> (b, a + f(b)), undone by (b, y) -> (y - f(b), b).

    f is a bottleneck of three convolutions with group norm and ReLU before each, as in the authors' code (and in i-RevNet,
    Jacobsen et al. 2018); the first block of a network begins with the convolution.
    """

    def __init__(self, channels: int, kernel: int, *, first: bool) -> None:
        super().__init__()
        narrow = max(2, channels // 4)
        sizes = [channels, narrow, narrow, channels]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.GroupNorm(1, inputs), nn.ReLU(), Convolution(inputs, outputs, kernel, bias=False)]
        self.bottleneck = nn.Sequential(*layers[2:] if first else layers)

    def forward(self, halves: Halves) -> Halves:
        """Return the coupled halves, in changed places."""
        a, b = halves
        return b, a + self.bottleneck(b)

    def inverse(self, halves: Halves) -> Halves:
        """Return what ``forward`` took."""
        b, y = halves
        return y - self.bottleneck(b), b


class TwoWayAutoencoder(nn.Module):
    """An encoder that loses nothing: its inverse, with the same weights, is the decoder (section 3.1).

    Each half begins as the frame, with zeros for the channels that it lacks (injective padding). The paper doubles the
    channels by pixel unshuffling, before the first block and between blocks; here the grid stays, so that any fits and a
    globe may turn by a single column: ``patch`` unshuffles once, before the network.
    """

    def __init__(self, inputs: int, channels: int, blocks: int, kernel: int) -> None:
        super().__init__()
        self.padding = channels - inputs
        self.blocks = nn.ModuleList(Coupling(channels, kernel, first=not block) for block in range(blocks))

    def forward(self, frame: Tensor) -> Halves:
        """Return two halves ``(B, channels, H, W)`` of the latent state of a frame ``(B, inputs, H, W)``."""
        padded = F.pad(frame, (0, 0, 0, 0, 0, self.padding))
        halves = padded, padded
        for block in self.blocks:
            halves = block(halves)
        return halves

    def inverse(self, halves: Halves) -> Halves:
        """Return the two halves of which ``forward`` makes these: of an encoded frame, the frame and zeros, twice."""
        for block in reversed(self.blocks):
            halves = block.inverse(halves)  # type: ignore[operator]
        return halves


class CrevNetCell(nn.Module):
    """CrevNet at one time step: encode, predict the next latent state by the reversible predictive module, decode.

    Each layer of that module (section 3.2) reads one half and moves the other, then they change places:

        h = ConvLSTM(a)     g = sigmoid(W2 relu(W1 * h))     b' = (1 - g) b + g h

    so that, the states h being known, b = (b' - g h) / (1 - g): conditionally reversible. The paper's unit may be any
    convolutional recurrent one: this is the ConvLSTM, the authors' code has an ST-LSTM (and in g a third convolution, and group
    norms). An odd number of layers is followed by one more change of places.

    The output is both decoded halves, ``(B, 2 channels, H, W)``.
    """

    def __init__(self, inputs: int, *, hidden: int, layers: int, blocks: int, kernel: int) -> None:
        super().__init__()
        channels = max(hidden, inputs)
        self.inputs, self.hidden = inputs, 2 * channels
        self.autoencoder = TwoWayAutoencoder(inputs, channels, blocks, kernel)
        self.cells = nn.ModuleList(ConvLSTMCell(channels, channels, kernel) for _ in range(layers))
        self.attention = nn.ModuleList(_attention(channels, kernel) for _ in range(layers))

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return the states of the ConvLSTM layers."""
        return tuple(cell.initial_state(batch, height, width, like) for cell in self.cells)  # type: ignore[operator]

    def forward(self, x: Tensor, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return the decoded halves of the next latent state, and the next states of the layers."""
        a, b = self.autoencoder(x)
        following = []
        for cell, attention, before in zip(self.cells, self.attention, state, strict=True):
            hidden, after = cell(a, before)
            a, b = b + attention(hidden) * (hidden - b), a
            following.append(after)
        halves = (b, a) if len(self.cells) % 2 else (a, b)
        return torch.cat(self.autoencoder.inverse(halves), dim=1), tuple(following)


def _attention(channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        Convolution(channels, channels, kernel), nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.Sigmoid()
    )


def crevnet(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 4,
    blocks: int = 4,
    kernel: int = 3,
) -> EncoderForecaster:
    """Return CrevNet: it reads frames, then goes on with its own forecasts, as in the authors' code.

    ``hidden``: channels of each half of the latent state; a frame of more channels than that makes it as wide as itself, so
    that nothing is lost. ``layers`` of the predictive module, ``blocks`` of the autoencoder. Frames come one at a time, and
    convolutions are 2-D; the paper's are 3-D over three frames. What backward needs is kept, not computed again from the
    output as reversibility would allow.

    In the paper the decoded frame is the forecast. Here it is read by a 1x1 convolution that starts at zero, so that an
    untrained network forecasts 0 (or no change), as all networks here do; with the weights of an identity it is the paper's.
    A change is not part of a frame, but the decoded halves have channels to spare that may carry it.
    """
    check_hidden(hidden)
    for name, value in (("layers", layers), ("blocks", blocks)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    cell = CrevNetCell(channels + forcings, hidden=hidden, layers=layers, blocks=blocks, kernel=kernel)
    return EncoderForecaster(cell, None, channels=channels, forcings=forcings, readout=1)
