"""The only time loop: what a network reads, what it is fed, and how a forecast is read off its state.

Encoding-forecasting structure of Shi et al. (2015), section 3.3, and of LS-NTP (Xu et al. 2022), Fig. 5: layer l of the
forecaster starts from the last state of layer l of the encoder. Or one stack of cells does both, as in PredRNN's code
(Wang et al. 2017). What a cell computes is its own business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Frames ``(B, T, C + K, H, W)`` in, ``(B, steps, C, H, W)`` out, for any T >= 1 and steps >= 1.

    Args:
        encoder: one cell per layer; the first takes ``channels`` + ``forcings``, each other the output of the one below.
        forecaster: as many cells, with the same states. Where the first has ``inputs`` = 0 the future is unrolled from the
            states alone (LS-NTP); where it takes ``channels`` + ``forcings`` it eats the last frame, then each of its own
            forecasts. None: the encoder's cells go on by themselves, the one-pass form of PredRNN's code, in which a
            forecast is read off after every frame.
        channels: variables in a frame, C.
        forcings: channels that are known at any time and are not forecast, K; they come last in a frame.
        kernel: size of the convolution that reads a frame off the last hidden state. It starts at zero, so that an
            untrained network forecasts 0 everywhere.
        shared: a module without input, called once per forward pass; its result is handed to every cell at every step
            (LS-NTP's adjacency depends on parameters alone, so it is built once, not at each of layers x steps calls).
    """

    def __init__(
        self,
        encoder: Sequence[nn.Module],
        forecaster: Sequence[nn.Module] | None,
        *,
        channels: int,
        forcings: int = 0,
        kernel: int = 3,
        shared: nn.Module | None = None,
    ) -> None:
        super().__init__()
        layers = len(encoder) if forecaster is None else len(forecaster)
        if not 1 <= len(encoder) == layers:
            raise ValueError(f"encoder and forecaster need as many layers, 1 or more, got {len(encoder)} and {layers}")
        self.encoder = nn.ModuleList(encoder)
        self.forecaster = None if forecaster is None else nn.ModuleList(forecaster)
        self.shared = shared
        self.channels, self.forcings = channels, forcings
        self.readout = nn.Conv2d(int(encoder[-1].hidden), channels, kernel, padding=kernel // 2)  # type: ignore[arg-type]
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)  # type: ignore[arg-type]

    @property
    def feeds_back(self) -> bool:
        """Whether the network eats its own forecasts."""
        return self.forecaster is None or bool(self.forecaster[0].inputs)

    def forward(
        self,
        frames: Tensor,
        steps: int,
        *,
        change: bool = False,
        future: Tensor | None = None,
        use_truth: Tensor | None = None,
    ) -> Tensor:
        """Return the forecast ``(B, steps, C, H, W)`` in the units of ``frames`` ``(B, T, C + K, H, W)``.

        Args:
            frames: what has been seen.
            steps: leads.
            change: read the change since the last frame that was eaten off the state, instead of the frame: an untrained
                network then forecasts persistence.
            future: ``(B, steps, C + K, H, W)``: of a network that feeds back, the forcings of the leads; their first C
                channels count only where ``use_truth`` says so.
            use_truth: ``(B, T + steps - 1)`` bool, for training of a network that feeds back: whether it eats the true
                frame at each time or its own forecast of it (scheduled sampling, Bengio et al. 2015; its reverse,
                PredRNN-V2, Wang et al. 2022). None: the truth as long as it is seen, then its own. While an encoder
                reads, there is no own forecast and it eats the truth; the one-pass form has one from the second frame on.

        Raises:
            ValueError: for other shapes, or without a ``future`` that is needed.
        """
        self._check(frames, steps, future, use_truth)
        batch, seen, _, height, width = frames.shape
        shared = None if self.shared is None else self.shared()
        states = [cell.initial_state(batch, height, width, frames) for cell in self.encoder]  # type: ignore[operator]
        first, cells = 0, self.encoder
        if self.forecaster is not None:
            first, cells = seen - 1, self.forecaster
            for frame in frames.unbind(1):
                _, states = _step(self.encoder, frame, states, shared)
        known = frames if future is None else torch.cat([frames, future], dim=1)
        x, own, last, outputs = None, None, frames[:, -1], []
        for time in range(first, seen - 1 + steps):
            if self.feeds_back:
                x = self._eaten(known, time, own, seen, use_truth)
                last = x if time < seen else last
            hidden, states = _step(cells, x, states, shared)
            own = self.readout(hidden)
            own = own + last[:, : self.channels] if change else own
            outputs.append(own)
        return torch.stack(outputs[-steps:], dim=1)

    def _check(self, frames: Tensor, steps: int, future: Tensor | None, use_truth: Tensor | None) -> None:
        batch, seen, channels, height, width = frames.shape
        if channels != self.channels + self.forcings:
            raise ValueError(
                f"frames must have {self.channels} channels and {self.forcings} forcings, got shape {tuple(frames.shape)}"
            )
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if future is None and self.feeds_back and steps > 1 and (self.forcings or use_truth is not None):
            raise ValueError(f"a network that eats the forcings or the truth of {steps} leads needs future")
        wanted = {"future": (batch, steps, channels, height, width), "use_truth": (batch, seen + steps - 1)}
        for name, given in (("future", future), ("use_truth", use_truth)):
            if given is not None and given.shape != wanted[name]:
                raise ValueError(f"{name} must have the shape {wanted[name]}, got {tuple(given.shape)}")

    def _eaten(self, known: Tensor, time: int, own: Tensor | None, seen: int, use_truth: Tensor | None) -> Tensor:
        """Return the frame at ``time`` as the network eats it: the known one, or its own forecast with known forcings."""
        if own is None or (use_truth is None and time < seen):
            return known[:, time]
        if use_truth is not None:
            own = torch.where(use_truth[:, time, None, None, None], known[:, time, : self.channels], own)
        return torch.cat([own, known[:, time, self.channels :]], dim=1) if self.forcings else own


def stacked(
    cell: Callable[[int, int, int], nn.Module],
    *,
    channels: int,
    forcings: int,
    hidden: int,
    layers: int,
    kernel: int,
    feedback: bool,
    one_pass: bool,
    shared: nn.Module | None = None,
) -> EncoderForecaster:
    """Return ``layers`` cells of one kind, made by ``cell(inputs, hidden, kernel)``, in the form that the flags ask for."""

    def cells(first: int) -> list[nn.Module]:
        return [cell(hidden if layer else first, hidden, kernel) for layer in range(layers)]

    encoder = cells(channels + forcings)
    forecaster = None if one_pass else cells(channels + forcings if feedback else 0)
    return EncoderForecaster(encoder, forecaster, channels=channels, forcings=forcings, kernel=kernel, shared=shared)


def _step(cells: nn.ModuleList, x: Tensor | None, states: list[State], shared: Any) -> tuple[Tensor, list[State]]:
    following = []
    for cell, state in zip(cells, states, strict=True):
        x, state = cell(x, state, shared)
        following.append(state)
    assert x is not None
    return x, following
