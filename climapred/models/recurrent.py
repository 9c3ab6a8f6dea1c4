"""The only time loop: an encoder reads the frames one by one, a forecaster unrolls the future from its states.

Encoding-forecasting structure of Shi et al. (2015), section 3.3, and of LS-NTP (Xu et al. 2022), Fig. 5: layer l of the
forecaster starts from the last state of layer l of the encoder. What a cell computes is its own business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class RecurrentCell(Protocol):
    """One layer at one time step.

    Attributes:
        inputs: channels of the frame it takes; 0 for a cell that lives on its state alone.
        hidden: channels of its output.
    """

    inputs: int
    hidden: int

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return the state before the first frame; every tensor starts with the batch dimension."""
        ...

    def __call__(self, x: Tensor | None, state: State, shared: Any) -> tuple[Tensor, State]:
        """Return the output ``(B, hidden, H, W)`` and the next state from ``x`` ``(B, inputs, H, W)`` (None if inputs = 0).

        ``shared`` is what the module ``EncoderForecaster.shared`` returned for this forward pass.
        """
        ...


class EncoderForecaster(nn.Module):
    """Frames ``(B, T, C, H, W)`` in, ``(B, steps, C, H, W)`` out, for any T >= 1 and steps >= 1.

    Args:
        encoder: one cell per layer; the first takes ``channels``, each other the output of the one below.
        forecaster: as many cells, with the same states. Where the first has ``inputs`` = 0 the future is unrolled from the
            states alone (LS-NTP); where it takes ``channels`` it eats the last frame, then each of its own forecasts.
        channels: variables in a frame.
        kernel: size of the convolution that reads a frame off the last hidden state. It starts at zero, so that an
            untrained network forecasts 0 everywhere.
        shared: a module without input, called once per forward pass; its result is handed to every cell at every step
            (LS-NTP's adjacency depends on parameters alone, so it is built once, not at each of layers x steps calls).
    """

    def __init__(
        self,
        encoder: Sequence[nn.Module],
        forecaster: Sequence[nn.Module],
        *,
        channels: int,
        kernel: int = 3,
        shared: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= len(encoder) == len(forecaster):
            raise ValueError(
                f"encoder and forecaster need as many layers, 1 or more, got {len(encoder)} and {len(forecaster)}"
            )
        self.encoder, self.forecaster = nn.ModuleList(encoder), nn.ModuleList(forecaster)
        self.shared = shared
        self.channels = channels
        self.readout = nn.Conv2d(int(forecaster[-1].hidden), channels, kernel, padding=kernel // 2)  # type: ignore[arg-type]
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)  # type: ignore[arg-type]

    def forward(self, frames: Tensor, steps: int) -> Tensor:
        """Return the forecast ``(B, steps, C, H, W)`` in the units of ``frames`` ``(B, T, C, H, W)``."""
        batch, _, channels, height, width = frames.shape
        if channels != self.channels:
            raise ValueError(f"frames must have {self.channels} channels, got shape {tuple(frames.shape)}")
        shared = None if self.shared is None else self.shared()
        states = [cell.initial_state(batch, height, width, frames) for cell in self.encoder]  # type: ignore[operator]
        for frame in frames.unbind(1):
            _, states = _step(self.encoder, frame, states, shared)
        feeds_back = self.forecaster[0].inputs != 0
        frame, outputs = frames[:, -1], []
        for _ in range(steps):
            hidden, states = _step(self.forecaster, frame if feeds_back else None, states, shared)
            frame = self.readout(hidden)
            outputs.append(frame)
        return torch.stack(outputs, dim=1)


def _step(cells: nn.ModuleList, x: Tensor | None, states: list[State], shared: Any) -> tuple[Tensor, list[State]]:
    following = []
    for cell, state in zip(cells, states, strict=True):
        x, state = cell(x, state, shared)
        following.append(state)
    assert x is not None
    return x, following
