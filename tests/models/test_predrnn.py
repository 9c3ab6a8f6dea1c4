import pytest
import torch
import torch.nn.functional as F

from climapred.models.predrnn import Decoupled, STLSTMCell, Zigzag, increment, predrnn, remember
from climapred.models.recurrent import Layers
from tests.models.literal import CHANNELS, FORCINGS, HIDDEN, HISTORY, SHAPE, make_frames, make_network, normed, unrolled

ENCODER_FORECASTERS = [{"one_pass": False}, {"one_pass": False, "feedback": True}]
FORMS = [{}, *ENCODER_FORECASTERS]
CELLS = [{"cell": "st"}, {"cell": "conv"}, {"decouple": 0.5}, {"norm": True}, {"cell": "conv", "norm": True}]
every_form = pytest.mark.parametrize("form", FORMS)
every_cell = pytest.mark.parametrize("cell", CELLS)


def zeros(frames):
    return torch.zeros(len(frames), HIDDEN, *SHAPE, dtype=frames.dtype)


def star(kernel, field):
    return F.conv2d(field, kernel, padding=kernel.shape[-1] // 2) if field is not None else 0


def gate(layer, number, *operands):
    """Pre-activation of gate ``number``: one convolution for each operand, weights side by side; then the norm, if any."""
    convolution, norm = layer if isinstance(layer, (tuple, torch.nn.Sequential)) else (layer, None)
    sizes = [0 if operand is None else operand.shape[1] for operand in operands]
    kernels = convolution.weight.split(sizes, dim=1)
    total = sum(star(kernel, operand) for kernel, operand in zip(kernels, operands, strict=True))
    total = total if convolution.bias is None else total + convolution.bias.view(-1, 1, 1)
    total = normed(total, norm) if isinstance(norm, torch.nn.GroupNorm) else total
    return total[:, number * HIDDEN : (number + 1) * HIDDEN]


def st_lstm(layer, x, h, c, m):
    """Wang et al. (2017), eq. 4, and what is added to C and M."""
    i = torch.sigmoid(gate(layer.temporal, 0, x, h))
    f = torch.sigmoid(gate(layer.temporal, 1, x, h))
    g = torch.tanh(gate(layer.temporal, 2, x, h))
    c = f * c + i * g
    i_m = torch.sigmoid(gate(layer.spatial, 0, x, m))
    f_m = torch.sigmoid(gate(layer.spatial, 1, x, m))
    g_m = torch.tanh(gate(layer.spatial, 2, x, m))
    m = f_m * m + i_m * g_m
    o = torch.sigmoid(gate(layer.temporal, 3, x, h) + gate(layer.fusion.gate, 0, c, m))
    h = o * torch.tanh(gate(layer.fusion.value, 0, c, m))
    return h, c, m, i * g, i_m * g_m


def conv_lstm(layer, x, h, m):
    """Wang et al. (2017), eq. 3."""
    w_i, w_f, w_o = layer.peepholes.weight
    i = torch.sigmoid(gate((layer.gates, layer.norm), 0, x, h) + w_i * m)
    f = torch.sigmoid(gate((layer.gates, layer.norm), 1, x, h) + w_f * m)
    m = f * m + i * torch.tanh(gate((layer.gates, layer.norm), 2, x, h))
    o = torch.sigmoid(gate((layer.gates, layer.norm), 3, x, h) + w_o * m)
    return o * torch.tanh(m), m


class Literal:
    """The state of a network, step by step: (H, C) of each layer and M; or, of the cell conv, one (H, M)."""

    def __init__(self, frames, layers):
        self.h, self.c, self.m = [zeros(frames)] * layers, [zeros(frames)] * layers, zeros(frames)
        self.added = []

    def step(self, cells, x):
        for number, layer in enumerate(cells):
            if hasattr(layer, "peepholes"):
                self.h[-1], self.m = conv_lstm(layer, x, self.h[-1], self.m)
                x = None
                continue
            self.h[number], self.c[number], self.m, *added = st_lstm(layer, x, self.h[number], self.c[number], self.m)
            x = self.h[number]
            self.added.append(added)
        return self.h[-1]


def layers_of(cell):
    return cell.layers if isinstance(cell, Decoupled) else cell


def literal(network, frames, steps, future):
    """The forecast, frame by frame, and what was added to the memories at each step and layer."""
    state = Literal(frames, len(layers_of(network.encoder)))
    return unrolled(network, frames, steps, future, state.step, cells=layers_of), state.added


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@every_form
@every_cell
def test_forecast_and_gradients_are_those_of_the_equations(form, cell):
    network, frames, future = (
        make_network(predrnn, **form, **cell),
        make_frames().requires_grad_(),
        make_frames(3, seed=2),
    )
    weigh = torch.randn(2, 3, CHANNELS, *SHAPE, dtype=torch.float64)
    leaves = [*network.parameters(), frames]
    found, (wanted, _) = network(frames, 3, future=future), literal(network, frames, 3, future)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    gradients = (
        torch.autograd.grad((forecast * weigh).sum(), leaves, materialize_grads=True) for forecast in (found, wanted)
    )
    assert_same(*gradients)


@every_form
def test_decoupling_penalty_and_its_gradients_are_those_of_the_literal_form(form):
    network, frames, future = make_network(predrnn, decouple=0.3, **form), make_frames(), make_frames(3, seed=2)
    network(frames, 3, future=future)
    found, (_, added) = network.take_penalty(), literal(network, frames, 3, future)
    steps = HISTORY + 2 if network.forecaster is None else HISTORY + 3
    assert len(added) == steps * 3
    likeness = []
    for number, pair in enumerate(added):
        cell = network.encoder if network.forecaster is None or number < 3 * HISTORY else network.forecaster
        dc, dm = (F.conv2d(part, cell.adapter.weight) for part in pair)
        for sample in range(2):
            for channel in range(HIDDEN):
                a, b = dc[sample, channel].flatten(), dm[sample, channel].flatten()
                likeness.append((a @ b).abs() / (a.norm() * b.norm()))
    wanted = 0.3 * torch.stack(likeness).mean()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    leaves = [*network.encoder.parameters()]
    assert_same(*(torch.autograd.grad(value, leaves, materialize_grads=True) for value in (found, wanted)))


@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_memories_that_learn_the_same_cost_the_whole_weight(weight):
    # Both sets of gates have the same weights on x, and none on h and M: the increments are the same, their cosine is 1.
    network = make_network(predrnn, decouple=weight, layers=1)
    (cell,) = network.encoder.layers
    with torch.no_grad():
        for convolution in (cell.temporal, cell.spatial):
            convolution.weight[:, CHANNELS + FORCINGS :] = 0
        cell.spatial.weight.copy_(cell.temporal.weight[: 3 * HIDDEN])
        cell.spatial.bias.copy_(cell.temporal.bias[: 3 * HIDDEN])
    network(make_frames(), 2, future=make_frames())
    assert float(network.take_penalty().detach()) == pytest.approx(weight, rel=1e-12)


def test_there_is_no_penalty_but_in_training_and_with_a_weight():
    network = make_network(predrnn, decouple=0.3)
    frames, future = make_frames(), make_frames(3, seed=2)
    trained = network(frames, 3, future=future)
    assert network.take_penalty() is not None
    torch.testing.assert_close(network.eval()(frames, 3, future=future), trained, rtol=0, atol=0)
    assert network.take_penalty() is None
    plain = make_network(predrnn)
    plain(frames, 3, future=future)
    assert plain.take_penalty() is None


def test_the_increment_is_what_the_forget_gate_leaves_out():
    gates, memory = torch.randn(2, 9, 4, 5).double(), torch.randn(2, 3, 4, 5).double()
    kept = torch.sigmoid(gates[:, 3:6]) * memory
    torch.testing.assert_close(remember(gates, memory) - increment(gates), kept)


def test_the_memory_zigzags():
    # A mark on M alone, after the first step: it must reach the first layer of the second step, and so all that follows.
    network = make_network(predrnn, layers=2)
    cells, x = network.encoder, make_frames()[:, 0]
    _, (states, memory) = cells(x, cells.initial_state(2, *SHAPE, x))
    _, (plain, last) = cells(x, (states, memory))
    _, (marked, other) = cells(x, (states, memory + 1))
    for layer, other_layer in zip(plain, marked, strict=True):
        assert (layer[0] != other_layer[0]).all()
    assert torch.equal(plain[0][1], marked[0][1])  # C of the first layer does not see M within a step
    assert (last != other).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Weights of the public code with 4 layers of 128, kernel 5, and frames of 16 channels: all of them live.
        ({}, 23_838_720),
        # ... with the 1 x 1 convolution of the second version, which its layers share
        ({"decouple": 0.1}, 23_838_720 + 128**2),
        # ConvLSTM: 4 h (in + h) k^2 weights, with x in the first layer alone; peepholes of 3 h; readout 16 h
        ({"cell": "conv"}, 4 * 128 * (16 + 4 * 128) * 25 + 4 * 3 * 128 + 16 * 128),
    ],
)
def test_a_network_has_the_published_parameters_and_a_bias(options, expected):
    with torch.device("meta"):
        network = predrnn(channels=16, hidden=128, layers=4, kernel=5, **options)
    biases = [parameter.numel() for name, parameter in network.named_parameters() if name.endswith("bias")]
    # The public code has none: ours has one for each gate (7 h of an ST-LSTM, 4 h of a ConvLSTM), and the readout's.
    assert sum(biases) == 4 * 128 * (4 if "cell" in options else 7) + 16
    assert sum(parameter.numel() for parameter in network.parameters()) - sum(biases) == expected


def test_forget_gates_start_open_and_the_readout_at_zero():
    network = predrnn(hidden=2, layers=1)
    (cell,) = network.encoder
    assert cell.temporal.bias.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert cell.spatial.bias.tolist() == [0, 0, 1, 1, 0, 0]
    assert not network(torch.randn(1, 2, 1, *SHAPE), 3).any()


def test_the_default_is_one_pass_with_st_lstm_layers():
    network = predrnn(hidden=2)
    assert network.forecaster is None
    assert isinstance(network.encoder, Zigzag)
    assert isinstance(network.encoder, Layers)
    assert [type(cell) for cell in network.encoder] == [STLSTMCell] * 2


@every_form
@every_cell
def test_every_parameter_has_a_gradient(form, cell):
    network, frames = make_network(predrnn, **form, **cell), make_frames()
    loss = network(frames, 3, future=make_frames(3, seed=2)).square().mean()
    penalty = network.take_penalty()
    (loss if penalty is None else loss + penalty).backward()
    dead = [
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert not dead


def test_autocast_keeps_the_memories_in_single_precision():
    # bfloat16 has 8 significant bits: gates are off by about 0.2 %, a state of a few such steps by a few parts in 1000.
    torch.manual_seed(0)
    cells, frames = predrnn(hidden=4, kernel=3).encoder, torch.randn(3, 2, 1, *SHAPE)
    states = {}
    for enabled in (False, True):
        states[enabled] = cells.initial_state(2, *SHAPE, frames)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for x in frames:
                hidden, states[enabled] = cells(x, states[enabled])
    assert hidden.dtype == torch.bfloat16
    (*exact, exact_m), (*rounded, rounded_m) = states.values()
    for (_, c), (_, c_rounded) in zip(exact[0], rounded[0], strict=True):
        assert c_rounded.dtype == torch.float32
        torch.testing.assert_close(c_rounded, c, rtol=0, atol=0.01)
    assert rounded_m.dtype == torch.float32
    torch.testing.assert_close(rounded_m, exact_m, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstm"}, "cell must be st or conv, got 'lstm'"),
        ({"decouple": -0.1}, r"decouple must be at least 0, and 0 for the cell conv, got -0.1"),
        ({"decouple": 0.1, "cell": "conv"}, r"decouple must be at least 0, and 0 for the cell conv, got 0.1"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"hidden": 0, "cell": "conv"}, "hidden must be at least 1, got 0"),
        ({"layers": 0}, "a network needs at least one layer, got none"),
        ({"layers": 0, "cell": "conv"}, "a network needs at least one layer, got none"),
        ({"kernel": 4}, "kernel must be odd, so that the grid keeps its size, got 4"),
    ],
)
def test_what_cannot_be_a_network_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        predrnn(**{"hidden": 2, **options})
