import pytest
import torch

from climapred.models.mim import MIMBlock, mim
from climapred.models.predrnn import STLSTMCell
from tests.models.literal import CHANNELS, HIDDEN, SHAPE, gate, make_frames, make_network, unrolled

every_form = pytest.mark.parametrize("form", [{}, {"one_pass": False}, {"one_pass": False, "feedback": True}])


def following(i, f, g, memory):
    return torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)


def fused(fusion, o, c, m):
    return torch.sigmoid(o + gate(fusion.gate, 0, c, m)) * torch.tanh(gate(fusion.value, 0, c, m))


def st_lstm(layer, x, h, c, m):
    """Wang et al. (2017), eq. 4."""
    i, f, g, o = (gate(layer.temporal, number, x, h) for number in range(4))
    c = following(i, f, g, c)
    m = following(*(gate(layer.spatial, number, x, m) for number in range(3)), m)
    return fused(layer.fusion, o, c, m), c, m


def mim_n(module, x, x_before, n):
    """The non-stationary module: D and N."""
    n_next = following(*(gate(module.gates, number, x - x_before, n) for number in range(3)), n)
    return torch.sigmoid(gate(module.output, 0, x - x_before, n_next)) * torch.tanh(n_next), n_next


def mim_s(module, d, c, s):
    """The stationary module: T and S."""
    s = following(*(gate(module.gates, number, d, c) for number in range(3)), s)
    return torch.sigmoid(gate(module.output, 0, d, c, s)) * torch.tanh(s), s


def mim_block(layer, x, x_before, h, c, m, n, s):
    """Wang et al. (2019), section 3.1."""
    d, n = mim_n(layer.trend, x, x_before, n)
    t, s = mim_s(layer.rest, d, c, s)
    i, g, o = (gate(layer.temporal, number, x, h) for number in range(3))
    c = t + torch.sigmoid(i) * torch.tanh(g)
    m = following(*(gate(layer.spatial, number, x, m) for number in range(3)), m)
    return fused(layer.fusion, o, c, m), c, m, n, s


class Literal:
    """H and C of three layers, M, and N and S of the two above the first."""

    def __init__(self, frames):
        zeros = torch.zeros(len(frames), HIDDEN, *SHAPE, dtype=frames.dtype)
        self.h, self.c, self.m, self.n, self.s = [zeros] * 3, [zeros] * 3, zeros, [zeros] * 3, [zeros] * 3

    def step(self, cells, x):
        before = list(self.h)
        self.h[0], self.c[0], self.m = st_lstm(cells[0], x, self.h[0], self.c[0], self.m)
        for k in (1, 2):
            states = self.h[k - 1], before[k - 1], before[k], self.c[k], self.m, self.n[k], self.s[k]
            self.h[k], self.c[k], self.m, self.n[k], self.s[k] = mim_block(cells[k], *states)
        return self.h[2]


def literal(network, frames, steps, future):
    return unrolled(network, frames, steps, future, Literal(frames).step)


@every_form
def test_forecast_and_gradients_are_those_of_the_equations(form):
    network, frames, future = make_network(mim, **form), make_frames().requires_grad_(), make_frames(3, seed=2)
    weigh = torch.randn(2, 3, CHANNELS, *SHAPE, dtype=torch.float64)
    leaves = [*network.parameters(), frames]
    found, wanted = network(frames, 3, future=future), literal(network, frames, 3, future)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad((forecast * weigh).sum(), leaves) for forecast in (found, wanted))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_what_stands_still_makes_no_trend():
    # The gates of MIM-N see the change and N alone: without bias, no change and no N leave N at 0 and D too, whatever stands.
    block = MIMBlock(HIDDEN, 3).double()
    for name, parameter in block.named_parameters():
        torch.nn.init.zeros_(parameter) if name.endswith("bias") else torch.nn.init.normal_(parameter)
    x, memory = torch.randn(2, 2, HIDDEN, *SHAPE, dtype=torch.float64)
    state = block.initial_state(2, *SHAPE, x)
    _, (_, _, trend, _, seen), _ = block(x, (*state[:4], x), memory)
    assert not trend.any()
    assert seen is x
    _, (_, _, trend, _, _), _ = block(x, (*state[:4], x + 1), memory)
    assert trend.all()


def test_a_network_has_the_parameters_that_the_equations_need():
    # 4 layers of 128, kernel 5, frames of 16 channels. The public code has 38,043,648 parameters: 4,077,568 in the ST-LSTM,
    # in each of 3 blocks 27 h^2 k^2 and 2 h^2, 6 h of peepholes at each of 16 x 16 points, and 2 h^2 more, dead; readout 16 h.
    square, area, readout, blocks = 128**2, 25, 16 * 128, 3
    assert 4_077_568 + blocks * ((27 * area + 4) * square + 6 * 128 * 16 * 16) + readout == 38_043_648
    # The equations need 31 h^2 k^2 and 2 h^2 in a block: for its own gates 6 with x, 3 with h, 3 with M, 2 with C' and M'; in
    # MIM-N 4 with the change, 3 with N, 1 with N'; in MIM-S 4 with D, 4 with C, 1 with S'. In the public code the gates of C
    # and M share their products with x (4), a sees M alone (4 with M), and N and S in the output gates are peepholes.
    with torch.device("meta"):
        network = mim(channels=16, hidden=128, layers=4, kernel=5)
    weights = 4_077_568 + blocks * (31 * area + 2) * square + readout
    # The public code has no bias: ours has one for each gate, 7 h of the ST-LSTM, 14 h of a block, and the readout's.
    biases = (7 + blocks * 14) * 128 + 16
    assert sum(parameter.numel() for parameter in network.parameters()) == weights + biases


def test_the_default_is_one_pass_with_an_st_lstm_below():
    network = mim(hidden=2, layers=3)
    assert network.forecaster is None
    assert [type(layer) for layer in network.encoder] == [STLSTMCell, MIMBlock, MIMBlock]
    block = network.encoder[1]
    for convolution in (block.trend.gates, block.rest.gates, block.spatial):
        assert convolution.bias.tolist() == [0, 0, 1, 1, 0, 0]
    assert not network(torch.randn(1, 2, 1, *SHAPE), 3).any()


def test_autocast_keeps_the_memories_in_single_precision():
    # bfloat16 has 8 significant bits: gates are off by about 0.2 %, a state of a few such steps by a few parts in 1000.
    torch.manual_seed(0)
    cells, frames = mim(hidden=4, kernel=3).encoder, torch.randn(3, 2, 1, *SHAPE)
    states = {}
    for enabled in (False, True):
        states[enabled] = cells.initial_state(2, *SHAPE, frames)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for x in frames:
                hidden, states[enabled] = cells(x, states[enabled])
    assert hidden.dtype == torch.bfloat16
    ((_, exact), exact_m), ((_, rounded), rounded_m) = states.values()
    for one, other in zip((*exact[2:4], exact_m), (*rounded[2:4], rounded_m), strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, one, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 1}, "layers must be at least 2, an ST-LSTM and a MIM block, got 1"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"kernel": 4}, "kernel must be odd, so that the grid keeps its size, got 4"),
    ],
)
def test_what_cannot_be_a_network_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mim(**{"hidden": 2, **options})
