"""The only time loop: what a network reads, what it is fed, and how a forecast is read off its state.

Encoding-forecasting structure of Shi et al. (2015), section 3.3, and of LS-NTP (Xu et al. 2022), Fig. 5: layer l of the
forecaster starts from the last state of layer l of the encoder. Or one stack of cells does both, as in PredRNN's code
(Wang et al. 2017). What a cell computes is its own business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from climapred.models.spatial import Convolution

State = tuple[Any, ...]  # tensors, or such tuples


class Network(nn.Module):
    """What ``build_model`` returns: frames ``(B, T, C + K, H, W)`` in, the next ``steps`` of them ``(B, steps, C, H, W)`` out.

    Args:
        channels: variables in a frame, C.
        forcings: channels that are known at any time and are not forecast, K; they come last in a frame.
    """

    def __init__(self, channels: int, forcings: int = 0) -> None:
        super().__init__()
        self.channels, self.forcings = channels, forcings

    @property
    def feeds_back(self) -> bool:
        """Whether the network eats its own forecasts, and so takes a ``future``."""
        return False

    @property
    def one_pass(self) -> bool:
        """Whether one stack of cells reads and then goes on, so that it can forecast the frames that it reads, too."""
        return False

    def take_penalty(self) -> Tensor | None:
        """Return what the last forward pass in training adds to the loss, a scalar, if anything; and forget it."""
        return None

    def check(self, frames: Tensor, steps: int, future: Tensor | None, use_truth: Tensor | None) -> None:
        """Raise ValueError for arguments of ``forward`` that have other shapes, or lack a ``future`` that is needed."""
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


class RecurrentCell(Protocol):
    """What happens at one time step: a layer, or all layers of a network and whatever passes between them.

    The loop knows nothing of a state but that it goes on: memories that zigzag through the layers (PredRNN), highways,
    differences, windows of past frames and parallel branches are the business of the cell that has them. ``Layers`` is the
    cell of those that are simply stacked.

    A cell may have a method ``penalty(state)``, which returns what the state after the last step adds to the loss, a scalar.

    Attributes:
        inputs: channels of the frame it takes; 0 for a cell that lives on its state alone.
        hidden: channels of its output.
    """

    inputs: int
    hidden: int

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return the state before the first frame; every tensor in it starts with the batch dimension."""
        ...

    def __call__(self, x: Tensor | None, state: State, shared: Any) -> tuple[Tensor, State]:
        """Return the output ``(B, hidden, H, W)`` and the next state from ``x`` ``(B, inputs, H, W)`` (None if inputs = 0).

        ``shared`` is what the module ``EncoderForecaster.shared`` returned for this forward pass.
        """
        ...


class Layers(nn.ModuleList):
    """Cells one above the other, each with a state of its own: the first takes the frame, each other the output below it."""

    def __init__(self, cells: Iterable[nn.Module]) -> None:
        super().__init__(cells)
        if not len(self):
            raise ValueError("a network needs at least one layer, got none")
        self.inputs, self.hidden = int(self[0].inputs), int(self[-1].hidden)  # type: ignore[arg-type]

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return the states of the layers."""
        return tuple(cell.initial_state(batch, height, width, like) for cell in self)  # type: ignore[operator]

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return the output of the last layer, and the states of all."""
        following = []
        for cell, before in zip(self, state, strict=True):
            x, after = cell(x, before, shared)
            following.append(after)
        assert x is not None
        return x, tuple(following)


class EncoderForecaster(Network):
    """A network of recurrent cells, for any number of frames and steps, 1 or more.

    Args:
        encoder: a cell that takes ``channels`` + ``forcings``; most often ``Layers``.
        forecaster: a cell with the same states. Where it has ``inputs`` = 0 the future is unrolled from the states alone
            (LS-NTP); where it takes ``channels`` + ``forcings`` it eats the last frame, then each of its own forecasts.
            None: the encoder goes on by itself, the one-pass form of PredRNN's code, in which a forecast is read off after
            every frame.
        channels, forcings: see ``Network``.
        readout: reads a frame ``(B, C, H, W)`` off the last output; the size of the kernel of a convolution that does,
            and that starts at zero, so that an untrained network forecasts 0 everywhere.
        shared: a module without input, called once per forward pass; its result is handed to every cell at every step
            (LS-NTP's adjacency depends on parameters alone, so it is built once, not at each of layers x steps calls).
    """

    def __init__(
        self,
        encoder: nn.Module,
        forecaster: nn.Module | None,
        *,
        channels: int,
        forcings: int = 0,
        readout: nn.Module | int = 3,
        shared: nn.Module | None = None,
    ) -> None:
        super().__init__(channels, forcings)
        self.encoder, self.forecaster, self.shared = encoder, forecaster, shared
        self.readout = zero_readout(encoder, channels, readout) if isinstance(readout, int) else readout
        self._penalty: Tensor | None = None

    @property
    def feeds_back(self) -> bool:
        """Whether the network eats its own forecasts."""
        return self.forecaster is None or bool(self.forecaster.inputs)

    @property
    def one_pass(self) -> bool:
        """Whether the encoder goes on by itself."""
        return self.forecaster is None

    def take_penalty(self) -> Tensor | None:
        """Return what the last forward pass adds to the loss, by the ``penalty`` of its cells, and forget it."""
        penalty, self._penalty = self._penalty, None
        return penalty

    def forward(
        self,
        frames: Tensor,
        steps: int,
        *,
        change: bool = False,
        future: Tensor | None = None,
        use_truth: Tensor | None = None,
        whole: bool = False,
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
            whole: return what the one-pass form forecasts while it reads, too, from the second frame on:
                ``(B, T - 1 + steps, C, H, W)``. PredRNN's authors train on all of it.

        Raises:
            ValueError: for other shapes, without a ``future`` that is needed, or for a ``whole`` forecast in another form.
        """
        self.check(frames, steps, future, use_truth)
        if whole and not self.one_pass:
            raise ValueError("an encoder that reads forecasts nothing: whole=True is for the one-pass form")
        batch, seen, _, height, width = frames.shape
        shared = None if self.shared is None else self.shared()
        state = self.encoder.initial_state(batch, height, width, frames)  # type: ignore[operator]
        first, cell = 0, self.encoder
        if self.forecaster is not None:
            first, cell = seen - 1, self.forecaster
            for frame in frames.unbind(1):
                _, state = self.encoder(frame, state, shared)
        known = frames if future is None else torch.cat([frames, future], dim=1)
        x, own, last, outputs = None, None, frames[:, -1], []
        for time in range(first, seen - 1 + steps):
            if self.feeds_back:
                x = self._eaten(known, time, own, seen, use_truth)
                last = x if time < seen else last
            hidden, state = cell(x, state, shared)
            own = self.readout(hidden)
            own = own + last[:, : self.channels] if change else own
            outputs.append(own)
        if self.training and hasattr(cell, "penalty"):
            self._penalty = cell.penalty(state)  # type: ignore[operator]
        return torch.stack(outputs if whole else outputs[-steps:], dim=1)

    def _eaten(self, known: Tensor, time: int, own: Tensor | None, seen: int, use_truth: Tensor | None) -> Tensor:
        """Return the frame at ``time`` as the network eats it: the known one, or its own forecast with known forcings."""
        if own is None or (use_truth is None and time < seen):
            return known[:, time]
        if use_truth is not None:
            own = torch.where(use_truth[:, time, None, None, None], known[:, time, : self.channels], own)
        return torch.cat([own, known[:, time, self.channels :]], dim=1) if self.forcings else own


def zero_readout(cell: nn.Module, channels: int, kernel: int) -> Convolution:
    """Return a convolution from the output of ``cell`` to ``channels`` that is zero everywhere."""
    readout = Convolution(int(cell.hidden), channels, kernel)  # type: ignore[arg-type]
    nn.init.zeros_(readout.weight)
    nn.init.zeros_(readout.bias)  # type: ignore[arg-type]
    return readout


def in_form(
    cell: Callable[[int], nn.Module],
    *,
    channels: int,
    forcings: int,
    feedback: bool,
    one_pass: bool,
    readout: nn.Module | int = 3,
    shared: nn.Module | None = None,
) -> EncoderForecaster:
    """Return a network of cells ``cell(inputs)`` in the form that the flags ask for.

    Args:
        cell: makes a cell that takes so many channels.
        feedback: the forecaster eats its last forecast; else it has no input.
        one_pass: one cell reads, and goes on with its own forecasts.
    """
    inputs = channels + forcings
    encoder = cell(inputs)  # first: a seed gives the same weights whatever follows
    forecaster = None if one_pass else cell(inputs if feedback else 0)
    sizes: Any = {"channels": channels, "forcings": forcings, "readout": readout, "shared": shared}
    return EncoderForecaster(encoder, forecaster, **sizes)


def stacked(
    cell: Callable[[int, int, int], nn.Module], *, hidden: int, layers: int, kernel: int, **form: Any
) -> EncoderForecaster:
    """Return ``layers`` cells of one kind, made by ``cell(inputs, hidden, kernel)``; for ``form`` see ``in_form``."""

    def cells(inputs: int) -> Layers:
        return Layers(cell(hidden if layer else inputs, hidden, kernel) for layer in range(layers))

    return in_form(cells, readout=kernel, **form)
