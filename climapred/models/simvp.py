"""SimVP: convolutions in place of recurrence (Gao et al. 2022, arXiv:2206.05099; gSTA: Tan et al. 2022, arXiv:2211.12509)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from climapred.models.recurrent import Network, zero_readout
from climapred.models.spatial import Convolution

_DILATION = 3


class GatedAttention(nn.Module):
    """Gated spatiotemporal attention, gSTA (Tan et al. 2022): a large kernel, taken apart, gates itself.

        y = x + P2 (sigmoid(g) f),    [f, g] = W D_d * D * gelu(P1 x)

    with 1x1 convolutions P1, P2, W, a depthwise one D of 5 x 5, and a dilated depthwise one D_d (every third point) of about
    ``kernel`` / 3, together about as wide as ``kernel``.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        near, far = 2 * _DILATION - 1, kernel // _DILATION - (kernel // _DILATION % 2 == 0)
        self.enter, self.leave = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.near = Convolution(channels, channels, near, groups=channels)
        self.far = Convolution(channels, channels, far, dilation=_DILATION, groups=channels)
        self.split = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, H, W)``."""
        features, gates = self.split(self.far(self.near(F.gelu(self.enter(x))))).chunk(2, dim=1)
        return x + self.leave(torch.sigmoid(gates) * features)


class TranslatorBlock(nn.Module):
    """gSTA and a perceptron with a depthwise 3 x 3 convolution in it, each normalised, scaled and added to its input.

    The scales, one per channel, start at 0.01, as in the authors' code. Their norm is over a batch; this one is over a window
    (``GroupNorm``), so that a forecast does not depend on the others that are made beside it. 1x1 to ``outputs`` last, where
    that is another number of channels.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * inputs
        self.attention = nn.Sequential(nn.GroupNorm(1, inputs), GatedAttention(inputs, kernel))
        self.perceptron = nn.Sequential(
            nn.GroupNorm(1, inputs),
            nn.Conv2d(inputs, wide, 1),
            Convolution(wide, wide, groups=wide),
            nn.GELU(),
            nn.Conv2d(wide, inputs, 1),
        )
        self.scales = nn.Parameter(torch.full((2, inputs, 1, 1), 0.01))
        self.resize = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, outputs, H, W)``."""
        x = x + self.scales[0] * self.attention(x)
        return self.resize(x + self.scales[1] * self.perceptron(x))


class SimVP(Network):
    """Frames are encoded each by itself, translated all together, and decoded each by itself; see ``simvp``.

    As the authors' network, apart from these: ``horizon`` need not be ``history``, so the skip connection, theirs from frame i
    to lead i, is from the last frame to all leads; and the grid stays, so that any fits and a globe may turn (theirs is
    halved and doubled; ``patch`` makes it coarser).
    """

    def __init__(
        self,
        channels: int,
        forcings: int,
        *,
        history: int,
        horizon: int,
        hidden: int,
        translator: int,
        layers: int,
        coders: int,
        kernel: int,
        expansion: int,
    ) -> None:
        super().__init__(channels, forcings)
        self.history, self.horizon, self.hidden = history, horizon, hidden
        self.first = _coder(channels + forcings, hidden)
        self.encoder = nn.Sequential(*(_coder(hidden, hidden) for _ in range(coders - 1)))
        widths = [history * hidden, *[translator] * (layers - 1), horizon * hidden]
        self.translator = nn.Sequential(*(TranslatorBlock(*pair, kernel, expansion) for pair in pairwise(widths)))
        self.decoder = nn.Sequential(*(_coder(hidden, hidden) for _ in range(coders - 1)))
        self.last = _coder(hidden, hidden)
        self.readout = zero_readout(self, channels, 1)

    @property
    def feeds_back(self) -> bool:
        """True: leads beyond the horizon are forecast from its own forecasts."""
        return True

    def check(self, frames: Tensor, steps: int, future: Tensor | None, use_truth: Tensor | None) -> None:
        """Raise ValueError as ``Network.check`` does, if for no ``future`` only beyond the horizon; and for another history."""
        if future is None and 1 <= steps <= self.horizon:
            super().check(frames, steps, frames[:, -1:].expand(-1, steps, -1, -1, -1), use_truth)  # fits; is not read
        else:
            super().check(frames, steps, future, use_truth)
        if frames.shape[1] != self.history:
            raise ValueError(f"SimVP with history={self.history} takes so many frames, got {frames.shape[1]}")

    def forward(
        self,
        frames: Tensor,
        steps: int,
        *,
        change: bool = False,
        future: Tensor | None = None,
        use_truth: Tensor | None = None,
    ) -> Tensor:
        """Return the forecast ``(B, steps, C, H, W)`` of ``frames`` ``(B, history, C + K, H, W)``.

        All ``horizon`` leads come at once, from the frames alone; so do the next ones, from the last ``history`` frames, of
        which the forecasts are now a part. Arguments are those of ``EncoderForecaster.forward``, but ``change`` is since the
        last frame of each such block; forcings and truth of ``future`` count for blocks after the first.
        """
        self.check(frames, steps, future, use_truth)
        window, blocks = frames, [self._block(frames, change)]
        for first in range(0, steps - self.horizon, self.horizon):
            own, leads = blocks[-1], slice(first, first + self.horizon)
            if future is not None:
                if use_truth is not None:
                    chosen = use_truth[:, self.history :][:, leads, None, None, None]
                    own = torch.where(chosen, future[:, leads, : self.channels], own)
                own = torch.cat([own, future[:, leads, self.channels :]], dim=2)
            window = torch.cat([window, own], dim=1)[:, -self.history :]
            blocks.append(self._block(window, change))
        return torch.cat(blocks, dim=1)[:, :steps]

    def _block(self, window: Tensor, change: bool) -> Tensor:
        """Return the ``horizon`` leads after ``window`` ``(B, history, C + K, H, W)``."""
        batch = len(window)
        first = self.first(window.flatten(0, 1))
        encoded = self.encoder(first).unflatten(0, (batch, -1)).flatten(1, 2)
        translated = self.translator(encoded).unflatten(1, (self.horizon, -1))
        decoded = self.decoder(translated.flatten(0, 1)).unflatten(0, (batch, -1))
        skipped = decoded + first.unflatten(0, (batch, -1))[:, -1:]
        leads = self.readout(self.last(skipped.flatten(0, 1))).unflatten(0, (batch, -1))
        return leads + window[:, -1:, : self.channels] if change else leads


def _coder(inputs: int, outputs: int) -> nn.Sequential:
    """Return convolution, norm of two groups (one of fewer than four channels) and SiLU."""
    return nn.Sequential(Convolution(inputs, outputs), nn.GroupNorm(math.gcd(2, outputs // 2), outputs), nn.SiLU())


def simvp(
    *,
    channels: int = 1,
    forcings: int = 0,
    history: int = 6,
    horizon: int = 6,
    hidden: int = 32,
    translator: int = 256,
    layers: int = 8,
    coders: int = 2,
    kernel: int = 21,
    expansion: int = 8,
) -> SimVP:
    """Return SimVP with gated spatiotemporal attention, which has no recurrence: ``history`` frames in, ``horizon`` leads out.

    Args:
        channels, forcings: see ``Network``.
        history: frames that it takes; it takes no other number.
        horizon: leads that come at once; more are forecast block by block.
        hidden: features of each frame.
        translator: channels of the blocks between encoder and decoder, where time is a channel.
        layers: of these blocks, 2 or more.
        coders: convolutions of 3 x 3 in the encoder, and as many in the decoder.
        kernel: points that the attention looks across, 3 or more.
        expansion: of the perceptrons.

    The defaults are those of OpenSTL for 5.625 degrees, apart from its 12 frames.
    """
    wanted = {"history": 1, "horizon": 1, "hidden": 2, "translator": 1, "layers": 2, "coders": 1, "kernel": 3}
    given = {"history": history, "horizon": horizon, "hidden": hidden, "translator": translator}
    given |= {"layers": layers, "coders": coders, "kernel": kernel, "expansion": expansion}
    for name, value in given.items():
        if value < wanted.get(name, 1):
            raise ValueError(f"{name} must be at least {wanted.get(name, 1)}, got {value}")
    return SimVP(channels, forcings, **given)
