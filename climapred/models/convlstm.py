"""ConvLSTM: LSTM whose products with matrices are convolutions (Shi et al. 2015, arXiv:1506.04214)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from climapred.models.recurrent import EncoderForecaster, State, stacked
from climapred.models.spatial import Convolution

_SLICE = 2**18  # numbers of all gates for each thread: 1 MiB of float32


class _Gates(torch.autograd.Function):
    """Peephole gates with a closed-form gradient, which needs fewer passes over memory than autograd's own, and less of it.

    Kept are the gates before their sigmoids and the cell before and after; on the way back the rest is computed again.
    The cell keeps its dtype (float32 under autocast: it is the memory, and sums over all steps); the gates keep theirs.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, cell: Tensor, weight: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
        hidden = torch.empty_like(gates.chunk(4, dim=1)[0])
        following = torch.empty_like(hidden, dtype=cell.dtype)
        for a, c, h, c_next in _samples(gates, cell, hidden, following):
            i, f, g, a_o = _opened(a, c, weight, relu)
            c_next.copy_(f.mul_(c).addcmul_(i, g))
            h.copy_(torch.addcmul(a_o, weight[2], f).sigmoid_().mul_(f.tanh_()))
        ctx.save_for_backward(gates, cell, following, weight)
        ctx.relu = relu
        return hidden, following

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_hidden: Tensor, d_following: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gates, cell, following, weight = ctx.saved_tensors
        through_sigmoid, through_tanh = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
        d_gates, d_before = torch.empty_like(gates), torch.empty_like(following)
        d_weight = torch.zeros_like(weight[..., 0, 0], dtype=cell.dtype)
        given, wanted = (gates, cell, following, d_hidden, d_following), (d_gates, d_before)
        for a, c, c_next, d_h, d_next, d_a, d_c in _samples(*given, *wanted):
            i, f, g, a_o = _opened(a, c, weight, ctx.relu)
            o, squashed = torch.addcmul(a_o, weight[2], c_next).sigmoid_(), torch.tanh(c_next)
            d_h = d_h.to(c.dtype)
            d_o = through_sigmoid(d_h * squashed, o)
            d_cell = through_tanh(o.mul_(d_h), squashed).add_(d_next).addcmul_(d_o, weight[2])
            d_i, d_f = through_sigmoid(d_cell * g, i), through_sigmoid(d_cell * c, f)
            d_g = through_tanh(i.mul_(d_cell), g)
            for place, part in zip(d_a.chunk(4, dim=1), (d_i, d_f, d_g, d_o), strict=True):
                place.copy_(part)
            if ctx.relu:
                torch.ops.aten.threshold_backward(d_a, a, 0, grad_input=d_a)
            d_c.copy_(d_cell.mul_(f).addcmul_(d_f, weight[1]).addcmul_(d_i, weight[0]))
            sums = [product.sum(dim=(0, 2, 3)) for product in (d_i.mul_(c), d_f.mul_(c), d_o.mul_(c_next))]
            d_weight.add_(torch.stack(sums))
        return d_gates, d_before, d_weight.to(weight.dtype)[..., None, None], None


def _samples(*fields: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the samples of all fields, on a processor as few at a time as keep it busy and stay in its cache."""
    first, size = fields[0], len(fields[0])
    if first.is_cpu and not torch.compiler.is_compiling():
        size = -(-size // max(1, first.numel() // (_SLICE * torch.get_num_threads())))
    yield from zip(*(field.split(size) for field in fields), strict=True)


def _opened(gates: Tensor, cell: Tensor, weight: Tensor, relu: bool) -> tuple[Tensor, ...]:
    """Return i, f, tanh(a_c) and a_o in the dtype of the cell."""
    gates = gates.to(cell.dtype, copy=relu)
    a_i, a_f, a_c, a_o = (gates.relu_() if relu else gates).chunk(4, dim=1)
    i, f = (torch.addcmul(a, w, cell).sigmoid_() for a, w in ((a_i, weight[0]), (a_f, weight[1])))
    return i, f, a_c.clone().tanh_(), a_o  # tanh is four times as fast where numbers lie side by side


class Peepholes(nn.Module):
    """The LSTM's gates from their pre-activations, with a peephole weight per channel (Shi et al. 2015, eq. 3).

        i = sigmoid(a_i + w_i c)          f = sigmoid(a_f + w_f c)
        c' = f c + i tanh(a_c)            o = sigmoid(a_o + w_o c')         h' = o tanh(c')

    The paper's peepholes are whole fields; one number per channel (as in LS-NTP's code) fits any grid. ``relu``: ReLU(a)
    instead of each a, as in that code.
    """

    def __init__(self, hidden: int, *, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        self.weight = nn.Parameter(torch.zeros(3, hidden, 1, 1))

    def forward(self, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(h', c')``, each ``(B, hidden, H, W)``, from gates ``(B, 4 hidden, H, W)`` (order i, f, c, o) and ``c``."""
        return _Gates.apply(gates, cell, self.weight, self.relu)


class SampleNorm(nn.GroupNorm):
    """Layer norm (Ba et al. 2016, arXiv:1607.06450) over all channels and points of a sample, then a scale and a bias.

    Each channel has a scale and a bias; in PredRNN's code each point has, so that weights fit one grid only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``(B, channels, ...)``, normalised, in its dtype; sums and statistics are of float32 at least.

        Autocast would convert it to float32 before and the next convolution back: on a processor, where the norm takes what
        it gets, the same values by more copies.
        """
        with torch.autocast("cpu", enabled=False):
            return super().forward(x).to(x.dtype)


class ConvLSTMCell(nn.Module):
    """One ConvLSTM layer (Shi et al. 2015, eq. 3); all four gates of input and hidden state in one convolution.

    The products with all frames in one call, and those with h apart, would take longer: 1.3 times on a processor.

    Zero padding keeps the grid, as in the paper. The forget gate's bias starts at 1 (Jozefowicz et al. 2015), so that
    memory survives from the first step of training on. ``norm``: ``SampleNorm`` of the gates, whose biases come after it.
    """

    def __init__(self, inputs: int, hidden: int, kernel: int = 3, *, norm: bool = False) -> None:
        super().__init__()
        check_hidden(hidden)
        self.inputs, self.hidden = inputs, hidden
        self.gates = Convolution(inputs + hidden, 4 * hidden, kernel, bias=not norm)
        self.norm = SampleNorm(4 * hidden) if norm else nn.Identity()
        self.peepholes = Peepholes(hidden)
        start_remembering(self.norm if isinstance(self.norm, SampleNorm) else self.gates, hidden)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> State:
        """Return zeros for (h, c)."""
        zeros = like.new_zeros(batch, self.hidden, height, width)
        return zeros, zeros

    def forward(self, x: Tensor | None, state: State, shared: Any = None) -> tuple[Tensor, State]:
        """Return ``h'`` and the state ``(h', c')``."""
        hidden, cell = state
        hidden, cell = self.peepholes(self.norm(self.gates(joined(x, hidden))), cell)
        return hidden, (hidden, cell)


def joined(x: Tensor | None, hidden: Tensor) -> Tensor:
    """Return input and hidden state side by side; the hidden state alone for a cell without input."""
    return hidden if x is None else torch.cat([x.to(hidden.dtype), hidden], dim=1)


def check_hidden(hidden: int) -> None:
    """Refuse a layer without channels."""
    if hidden < 1:
        raise ValueError(f"hidden must be at least 1, got {hidden}")


def start_remembering(gates: nn.Conv2d | nn.Linear | nn.GroupNorm, hidden: int) -> None:
    """Set the biases of gates i, f and others, ``hidden`` each, to 0, and that of f to 1."""
    assert gates.bias is not None
    nn.init.zeros_(gates.bias)
    nn.init.ones_(gates.bias[hidden : 2 * hidden])


def convlstm(
    *,
    channels: int = 1,
    forcings: int = 0,
    hidden: int = 64,
    layers: int = 2,
    kernel: int = 3,
    feedback: bool = False,
    one_pass: bool = False,
    norm: bool = False,
) -> EncoderForecaster:
    """Return a ConvLSTM of ``layers`` cells with ``hidden`` channels each.

    By default the encoder-forecaster of Shi et al. (2015), Fig. 3, whose forecaster has no input. ``feedback=True``: the
    forecaster eats its last forecast (the paper's conditional form). ``one_pass=True``: one stack of cells reads and then
    goes on with its own forecasts (the form of PredRNN's code, Wang et al. 2017). ``norm=True``: layer norm of the gates.
    """
    sizes: Any = {"channels": channels, "forcings": forcings, "hidden": hidden, "layers": layers, "kernel": kernel}
    return stacked(partial(ConvLSTMCell, norm=norm), feedback=feedback, one_pass=one_pass, **sizes)
