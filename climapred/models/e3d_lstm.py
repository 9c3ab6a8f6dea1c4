"""E3D-LSTM: 3-D convolutions over a window of frames, and attention to past memories (Wang et al. 2019, ICLR)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from climapred.models.convlstm import check_hidden
from climapred.models.recurrent import EncoderForecaster, State
from climapred.models.spatial import Convolution3d


class EideticCell(nn.Module):
    """One layer of E3D-LSTM (Wang et al. 2019, section 3); * is a convolution of window x k x k, all states are windows.

        i, r, o = sigmoid(W * [x, h])     g = tanh(W_g * [x, h])
        c' = i g + LayerNorm(c + recall(r, (c_{t-tau}, ..., c_{t-1})))
        i_m, f_m = sigmoid(W_m * [x, m])  g_m = tanh(W_mg * [x, m])         m' = i_m g_m + f_m m
        h' = sigmoid(a_o + W_o * [c', m']) tanh(W_1x1x1 * [c', m'])         a_o: of the gate o, before its sigmoid

    Each gate has one bias; those of f_m start at 1. The layer norm is over channels, window and grid, with a gain and a shift
    per channel, so that it fits any grid. The published code normalises each convolution too (an option of its PyTorch
    port, off by default), has tanh(W * m) in place of m in the last equation for m', and takes a tanh within the output gate:
    none is in the paper. It also returns the old m, which so stays zero for ever; its authors call that a mistake.
    """

    def __init__(self, inputs: int, hidden: int, kernel: int, window: int) -> None:
        super().__init__()
        self.gates = Convolution3d(inputs + hidden, 4 * hidden, kernel, depth=window)
        self.memory_gates = Convolution3d(inputs + hidden, 3 * hidden, kernel, depth=window)
        self.output_gate = Convolution3d(2 * hidden, hidden, kernel, depth=window, bias=False)
        self.mix = nn.Conv3d(2 * hidden, hidden, 1, bias=False)
        self.norm = nn.GroupNorm(1, hidden)
        for gates in (self.gates, self.memory_gates):
            nn.init.zeros_(gates.bias)  # type: ignore[arg-type]
        nn.init.ones_(self.memory_gates.bias[2 * hidden :])  # type: ignore[index]

    def forward(
        self, x: Tensor, hidden: Tensor, history: tuple[Tensor, ...], memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``h'``, ``c'`` and ``m'``, each ``(B, hidden, window, H, W)``; the last of ``history`` is ``c``."""
        i, r, o, g = self.gates(torch.cat([x, hidden], dim=1)).chunk(4, dim=1)
        cell = self.norm(history[-1] + recall(torch.sigmoid(r), history)) + torch.sigmoid(i) * torch.tanh(g)
        i, g, f = self.memory_gates(torch.cat([x, memory], dim=1)).chunk(3, dim=1)
        memory = torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * memory
        both = torch.cat([cell, memory], dim=1)
        return torch.sigmoid(o + self.output_gate(both)) * torch.tanh(self.mix(both)), cell, memory


def recall(query: Tensor, memories: tuple[Tensor, ...]) -> Tensor:
    """Return ``softmax(Q K^T) K`` in the shape of ``query`` ``(B, C, D, H, W)``: for each of its positions a mean of memories.

    Q has a row of C channels for each of the D H W positions of the query, K one for each position of each memory. Nothing
    divides the products (the paper has no 1 / sqrt(C)). The PyTorch port reshapes without moving the channels last, so that
    its rows mix channels with places.
    """
    keys = _rows(torch.cat(memories, dim=2))
    mixed = F.scaled_dot_product_attention(_rows(query), keys, keys, scale=1.0)
    return mixed[:, 0].transpose(1, 2).unflatten(2, query.shape[2:])


def _rows(x: Tensor) -> Tensor:
    """Return ``(B, 1, D H W, C)``: one head of attention, contiguous, without which all scores would be kept in memory."""
    return x.flatten(2).transpose(1, 2).contiguous()[:, None]


class E3DLSTMCell(nn.Module):
    """All layers of E3D-LSTM at one time step.

    The state is the last ``window`` - 1 frames, the memory m, which goes up through the layers and from the last layer on to
    the first of the next step (zigzag), and h and the last ``memory`` cells c of each layer. Before the first frame all are
    zero, and that zero cell counts among the remembered ones. The output is the window h of the last layer, its frames side
    by side: ``(B, hidden * window, H, W)``.
    """

    def __init__(self, inputs: int, hidden: int, layers: int, kernel: int, window: int, memory: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * layers]
        self.cells = nn.ModuleList(EideticCell(size, hidden, kernel, window) for size in sizes[:-1])
        self.inputs, self.hidden = inputs, hidden * window
        self.window, self.memory = window, memory

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros: frames, m, and (h, cells) of each layer."""
        frames = like.new_zeros(batch, self.inputs, self.window - 1, height, width)
        zeros = like.new_zeros(batch, self.hidden // self.window, self.window, height, width)
        return frames, zeros, tuple((zeros, (zeros,)) for _ in self.cells)

    def forward(self, x: Tensor, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return ``h'`` of the last layer and the next state."""
        frames, memory, layers = state
        below = torch.cat([frames, x[:, :, None]], dim=2)
        frames, following = below[:, :, 1:], []
        for cell, (hidden, history) in zip(self.cells, layers, strict=True):
            below, newest, memory = cell(below, hidden, history, memory)
            following.append((below, (*history, newest)[-self.memory :]))
        return below.flatten(1, 2), (frames, memory, tuple(following))


def e3d_lstm(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 5,
    window: int = 2,
    memory: int = 5,
) -> EncoderForecaster:
    """Return E3D-LSTM, ``layers`` deep: one stack reads, then goes on with its own forecasts, as in the published code.

    ``window``: frames in a convolution (the code's 2). ``memory``: cells that RECALL attends to, tau; the code keeps all.
    A forecast is a linear function of each point's window, as there.

    RECALL compares every position of a window with every position of each remembered cell: 2 memory (window H W)**2 hidden
    multiply-adds for each layer and step, quadratic in the grid. On 24 x 52 with the defaults that is 4.0 G, beside 8.2 G in
    the convolutions of a layer above the first; on 64 x 128, 172 G. Use ``patch`` on large grids: a patch of 2 makes it 16
    times cheaper. The weights of the attention are not kept (``scaled_dot_product_attention``), so memory is linear in H W
    where a fused kernel for it exists.
    """
    check_hidden(hidden)
    for name, value in (("layers", layers), ("window", window), ("memory", memory)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    cell = E3DLSTMCell(channels + forcings, hidden, layers, kernel, window, memory)
    return EncoderForecaster(cell, None, channels=channels, forcings=forcings, readout=1)
