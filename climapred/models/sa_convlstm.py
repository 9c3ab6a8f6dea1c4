"""SA-ConvLSTM: ConvLSTM with a self-attention memory (Lin et al. 2020, AAAI 34, 11531-11538, doi:10.1609/aaai.v34i07.6819)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from climapred.models.convlstm import ConvLSTMCell
from climapred.models.recurrent import EncoderForecaster, State, stacked
from climapred.models.spatial import Convolution


class SelfAttentionMemory(nn.Module):
    """Self-attention memory (SAM): every point asks all points of the hidden state, and of a memory M, and updates both.

        Z_h = softmax(Q_h^T K_h) V_h         Q_h, K_h, V_h = W_q h, W_k h, W_v h
        Z_m = softmax(Q_h^T K_m) V_m         K_m, V_m = W_mk M, W_mv M                Z = W_z [Z_h; Z_m]
        i = sigmoid(W_zi * Z + W_hi * h + b_i)       g = tanh(W_zg * Z + W_hg * h + b_g)
        o = sigmoid(W_zo * Z + W_ho * h + b_o)       M' = (1 - i) M + i g             h' = o M'

    Rows of softmax run over the points asked; scores are not divided by the root of the channels. The products W are 1 x 1
    and have no bias: that of a key would add the same to a whole row, which softmax takes away again.

    The convolutions * are separable in depth: kernel x kernel for each channel by itself, then 1 x 1 over all. Public code
    often has the 1 x 1 alone, which makes W_z one of two matrices in a row. Queries and keys have as many channels as values
    (the paper may give them less), which lets ``scaled_dot_product_attention`` do without the N x N scores in memory.
    """

    def __init__(self, hidden: int, kernel: int = 3) -> None:
        super().__init__()
        self.of_hidden = nn.Linear(hidden, 3 * hidden, bias=False)  # query, key, value
        self.of_memory = nn.Linear(hidden, 2 * hidden, bias=False)  # key, value
        self.fuse = nn.Linear(2 * hidden, hidden, bias=False)
        self.around = Convolution(2 * hidden, 2 * hidden, kernel, groups=2 * hidden, bias=False)
        self.gates = nn.Conv2d(2 * hidden, 3 * hidden, 1)

    def forward(self, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(h', M')`` from the ConvLSTM's ``h`` and ``M``, each ``(B, hidden, H, W)``."""
        query, h_key, h_value = self.of_hidden(hidden.flatten(2).mT).chunk(3, dim=-1)  # each (B, N, hidden)
        m_key, m_value = self.of_memory(memory.flatten(2).mT).chunk(2, dim=-1)
        key, value = torch.stack([h_key, m_key], dim=1), torch.stack([h_value, m_value], dim=1)
        found = F.scaled_dot_product_attention(query[:, None].expand_as(key), key, value, scale=1.0)
        fused = self.fuse(found.transpose(1, 2).flatten(2)).mT.unflatten(2, hidden.shape[-2:])
        i, g, o = self.gates(self.around(torch.cat([fused, hidden], dim=1))).chunk(3, dim=1)
        memory = torch.lerp(memory, torch.tanh(g).to(memory.dtype), torch.sigmoid(i).to(memory.dtype))
        return (torch.sigmoid(o) * memory).to(hidden.dtype), memory


class SAConvLSTMCell(ConvLSTMCell):
    """One ConvLSTM layer (Shi et al. 2015, eq. 3) whose hidden state passes through the self-attention memory.

    The state is ``(h, c, M)``; M stays in float32 under autocast, as c does. Peepholes as in ``ConvLSTMCell``.
    """

    def __init__(self, inputs: int, hidden: int, kernel: int = 3) -> None:
        super().__init__(inputs, hidden, kernel)
        self.memory = SelfAttentionMemory(hidden, kernel)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for (h, c, M)."""
        zeros = like.new_zeros(batch, self.hidden, height, width)
        return zeros, zeros, zeros

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return ``h'`` and the state ``(h', c', M')``."""
        hidden, cell, memory = state
        hidden, (_, cell) = super().forward(x, (hidden, cell))
        hidden, memory = self.memory(hidden, memory)
        return hidden, (hidden, cell, memory)


def sa_convlstm(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 3,
    feedback: bool = False,
    one_pass: bool = False,
) -> EncoderForecaster:
    """Return a ConvLSTM of ``layers`` cells with ``hidden`` channels each, every one with a self-attention memory.

    Its cost grows with the square of the points; ``feedback`` and ``one_pass``: see ``convlstm``.
    """
    sizes: Any = {"channels": channels, "forcings": forcings, "hidden": hidden, "layers": layers, "kernel": kernel}
    return stacked(SAConvLSTMCell, feedback=feedback, one_pass=one_pass, **sizes)
