import pytest
import torch

from climapred.models.predrnn_pp import CausalLSTMCell, GradientHighway, predrnn_pp
from tests.models.literal import CHANNELS, HIDDEN, SHAPE, gate, make_frames, make_network, unrolled

every_form = pytest.mark.parametrize("form", [{}, {"one_pass": False}, {"one_pass": False, "feedback": True}])


def causal_lstm(layer, x, h, c, m):
    """Wang et al. (2018), section 4.1."""
    i, f, g = (gate(layer.temporal, number, x, h, c) for number in range(3))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    i, f, g = (gate(layer.spatial, number, x, c, m) for number in range(3))
    m = torch.sigmoid(f) * torch.tanh(gate(layer.carry, 0, m)) + torch.sigmoid(i) * torch.tanh(g)
    o = torch.tanh(gate(layer.output, 0, x, c, m))
    return o * torch.tanh(gate(layer.fusion, 0, c, m)), c, m


def highway(layer, x, z):
    """Wang et al. (2018), section 4.2."""
    p, s = torch.tanh(gate(layer.gates, 0, x, z)), torch.sigmoid(gate(layer.gates, 1, x, z))
    return s * p + (1 - s) * z


class Literal:
    """H and C of three Causal LSTMs, M, and Z of the highway between the first two."""

    def __init__(self, frames):
        zeros = torch.zeros(len(frames), HIDDEN, *SHAPE, dtype=frames.dtype)
        self.h, self.c, self.m, self.z = [zeros] * 3, [zeros] * 3, zeros, zeros

    def step(self, cells, x):
        first, between, second, third = cells
        self.h[0], self.c[0], self.m = causal_lstm(first, x, self.h[0], self.c[0], self.m)
        self.z = highway(between, self.h[0], self.z)
        self.h[1], self.c[1], self.m = causal_lstm(second, self.z, self.h[1], self.c[1], self.m)
        self.h[2], self.c[2], self.m = causal_lstm(third, self.h[1], self.h[2], self.c[2], self.m)
        return self.h[2]


def literal(network, frames, steps, future):
    return unrolled(network, frames, steps, future, Literal(frames).step)


@every_form
def test_forecast_and_gradients_are_those_of_the_equations(form):
    network, frames, future = make_network(predrnn_pp, **form), make_frames().requires_grad_(), make_frames(3, seed=2)
    weigh = torch.randn(2, 3, CHANNELS, *SHAPE, dtype=torch.float64)
    leaves = [*network.parameters(), frames]
    found, wanted = network(frames, 3, future=future), literal(network, frames, 3, future)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad((forecast * weigh).sum(), leaves) for forecast in (found, wanted))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("bias", "passed"), [(-50.0, 0.0), (50.0, 1.0)])
def test_the_highway_goes_round_or_through(bias, passed):
    # A closed switch (sigmoid(-50) = 2e-22) hands on what it had, for any number of steps; an open one hands on p alone.
    highway = GradientHighway(HIDDEN, 3).double()
    with torch.no_grad():
        highway.gates.bias.fill_(0)[HIDDEN:] = bias
        highway.gates.weight[HIDDEN:] = 0
    x, z, memory = torch.randn(3, 2, HIDDEN, *SHAPE, dtype=torch.float64)
    out, (following,), same = highway(x, (z,), memory)
    p = torch.tanh(highway.gates(torch.cat([x, z], dim=1))[:, :HIDDEN])
    torch.testing.assert_close(out, p if passed else z, rtol=0, atol=1e-15)
    assert following is out
    assert same is memory


def test_a_network_has_the_parameters_that_the_equations_need():
    # 4 layers of 128, kernel 5, frames of 16 channels. The public code has 38,584,320 parameters, of which 4 x 819,200, of a
    # convolution from 2 h to h that it does not call, are dead. Of the live 35,307,520 the equations need less in each of 4
    # layers: o does not see h (h^2 k^2), W_3 is 1 x 1 (h^2 (k^2 - 1)); and more: g' sees M (h^2 k^2).
    with torch.device("meta"):
        network = predrnn_pp(channels=16, hidden=128, layers=4, kernel=5)
    square, area = 128**2, 25
    weights = 38_584_320 - 4 * 819_200 - 4 * square * (area - 1)
    # The public code has no bias: ours has one for each gate, 7 h of a layer and 2 h of the highway, and the readout's.
    biases = (4 * 7 + 2) * 128 + 16
    assert sum(parameter.numel() for parameter in network.parameters()) == weights + biases


def test_the_default_is_one_pass_with_a_highway_above_the_first_layer():
    network = predrnn_pp(hidden=2, layers=3)
    assert network.forecaster is None
    assert [type(layer) for layer in network.encoder] == [
        CausalLSTMCell,
        GradientHighway,
        CausalLSTMCell,
        CausalLSTMCell,
    ]
    first = network.encoder[0]
    assert first.temporal.bias.tolist() == first.spatial.bias.tolist() == [0, 0, 1, 1, 0, 0]
    assert not network(torch.randn(1, 2, 1, *SHAPE), 3).any()


def test_autocast_keeps_what_sums_over_time_in_single_precision():
    # bfloat16 has 8 significant bits: gates are off by about 0.2 %, a state of a few such steps by a few parts in 1000.
    torch.manual_seed(0)
    cells, frames = predrnn_pp(hidden=4, kernel=3).encoder, torch.randn(3, 2, 1, *SHAPE)
    states = {}
    for enabled in (False, True):
        states[enabled] = cells.initial_state(2, *SHAPE, frames)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for x in frames:
                hidden, states[enabled] = cells(x, states[enabled])
    assert hidden.dtype == torch.bfloat16
    (exact, _), (rounded, _) = states.values()
    for one, other in zip(exact, rounded, strict=True):
        assert other[-1].dtype == torch.float32
        torch.testing.assert_close(other[-1], one[-1], rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 1}, "layers must be at least 2, with the gradient highway between them, got 1"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"kernel": 4}, "kernel must be odd, so that the grid keeps its size, got 4"),
    ],
)
def test_what_cannot_be_a_network_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        predrnn_pp(**{"hidden": 2, **options})
