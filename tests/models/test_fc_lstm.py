import pytest
import torch

from climapred.models.convlstm import ConvLSTMCell, convlstm
from climapred.models.fc_lstm import fc_lstm
from climapred.models.recurrent import EncoderForecaster, Layers
from tests.models.literal import normed

HEIGHT, WIDTH, CHANNELS, FORCINGS, HIDDEN = 3, 4, 2, 1, 4
FORMS = {"states": {"feedback": False}, "feedback": {}, "one_pass": {"one_pass": True}}


def make_network(form="feedback", *, std=0.5, **options):
    """A small float64 network far from its initial state: readout and peepholes too have a part in the result."""
    torch.manual_seed(0)
    sizes = {"channels": CHANNELS, "forcings": FORCINGS, "hidden": HIDDEN, "height": HEIGHT, "width": WIDTH, **options}
    network = fc_lstm(**sizes, **FORMS[form]).double()
    if std:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return network


def make_frames(times=3, *, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, times, CHANNELS + FORCINGS, HEIGHT, WIDTH, dtype=torch.float64, generator=random)


def reference_step(cell, x, hidden, memory):
    """Shi et al. (2015), eq. 1, gate by gate; the gates lie in the order i, f, c, o along the rows of the weights."""
    w_x, w_h = cell.gates.weight[:, : cell.inputs], cell.gates.weight[:, cell.inputs :]
    w_ci, w_cf, w_co = cell.peepholes.weight[..., 0, 0]
    gates = x @ w_x.T + hidden @ w_h.T
    gates = gates + cell.gates.bias if cell.gates.bias is not None else normed(gates, cell.norm)
    i, f, c, o = gates.chunk(4, dim=1)
    i = torch.sigmoid(i + w_ci * memory)
    f = torch.sigmoid(f + w_cf * memory)
    memory = f * memory + i * torch.tanh(c)
    o = torch.sigmoid(o + w_co * memory)
    return o * torch.tanh(memory), memory


def reference(network, frames, future, steps):
    """The forecast of the conditional form, with frames as vectors."""
    zeros = torch.zeros(len(frames), HIDDEN, dtype=frames.dtype)
    states, x, forecasts = [(zeros, zeros)] * 2, None, []

    def run(cells, x):
        for layer, cell in enumerate(cells):
            states[layer] = reference_step(cell, x, *states[layer])
            x = states[layer][0]
        return x

    for frame in frames.unbind(1):
        run(network.encoder.layers, frame.reshape(len(frames), -1))
    x = frames[:, -1].reshape(len(frames), -1)
    for lead in range(steps):
        x = run(network.forecaster.layers, x) @ network.readout.linear.weight.T + network.readout.linear.bias
        forecasts.append(x.view(-1, CHANNELS, HEIGHT, WIDTH))
        x = torch.cat([x, future[:, lead, CHANNELS:].reshape(len(frames), -1)], dim=1)
    return torch.stack(forecasts, dim=1)


@pytest.mark.parametrize("norm", [False, True])
def test_forecast_and_gradients_are_equation_1(norm):
    network, frames, future = make_network(norm=norm), make_frames().requires_grad_(), make_frames(4, seed=2)
    leaves = [*network.parameters(), frames]
    found, expected = network(frames, 4, future=future), reference(network, frames, future, 4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weigh = torch.randn_like(found)
    gradients = [torch.autograd.grad((forecast * weigh).sum(), leaves) for forecast in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_every_point_knows_of_every_other():
    frames = make_frames().requires_grad_()
    forecast = make_network()(frames, 1)
    gradient = torch.autograd.grad(forecast[0, 0, 0, 0, 0], frames)[0]
    assert gradient[0].all()
    assert not gradient[1].any()


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("side", "published"), [(64, 92_295_168), (101, 154_816_473)])
def test_parameters_of_the_thesis_baseline(side, published):
    # Two layers of 2048 units on frames of n = side^2 points: 4 (2048 (n + 2048) + 2048) + 4 (2048 * 4096 + 2048) for the
    # layers and 2048 n + n for the readout are the numbers of Tables 4.1 and 4.2 exactly. They count one stack of two layers
    # (Keras' LSTM, which has no peepholes): our one-pass form, and 3 * 2048 peepholes per layer. The encoder-forecaster that
    # the text describes has the layers twice, once for reading and once for forecasting.
    with torch.device("meta"):
        one_pass = fc_lstm(height=side, width=side, one_pass=True)
        both = fc_lstm(height=side, width=side)
    peepholes, readout = 2 * 3 * 2048, 2048 * side**2 + side**2
    assert count(one_pass) - peepholes == published
    assert count(both) == 2 * (published + peepholes) - readout


@pytest.mark.parametrize(
    ("layers", "kernel", "across", "published"),
    [
        ([128], 5, 64, 3_311_617),
        ([64, 64], 5, 64, 2_475_521),
        ([64, 32, 32], 5, 32, 1_858_049),
        ([128], 3, 16, 1_191_937),
        ([64, 64], 3, 64, 894_465),
        ([64, 32, 32], 3, 32, 670_209),
    ],
)
def test_parameters_of_the_thesis_convlstm(layers, kernel, across, published):
    # Tables 4.1 (5 x 5) and 4.2 (3 x 3): encoder and forecaster that eats its last forecast, gates as ours. Two things
    # differ. Keras has no peepholes: 3 per channel and stack here. And the readout of the thesis is a Conv3D over (time,
    # height, width) with kernel (1, 1, 64) in the code of its section 3.4: a row of 64 neighbours of each of h channels,
    # 64 h + 1 numbers, where the text means 1 x 1. 64, 16 or 32 neighbours make its sums come out. Ours is kernel x kernel.
    def stack():
        pairs = zip([1, *layers], layers, strict=False)
        return Layers(ConvLSTMCell(inputs, hidden, kernel) for inputs, hidden in pairs)

    with torch.device("meta"):
        network = EncoderForecaster(stack(), stack(), channels=1, readout=kernel)
        if len(set(layers)) == 1:
            options = {"hidden": layers[0], "layers": len(layers), "kernel": kernel, "feedback": True}
            assert count(convlstm(**options)) == count(network)
    peepholes, readout = 2 * 3 * sum(layers), layers[-1] * kernel**2 + 1
    assert count(network) - peepholes - readout + layers[-1] * across + 1 == published


def test_what_cannot_be_a_network_is_refused():
    with pytest.raises(ValueError, match="a grid has at least one point, got height=0, width=4"):
        fc_lstm(height=0, width=4)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        fc_lstm(height=2, width=2, hidden=0)
    with pytest.raises(ValueError, match="a network needs at least one layer, got none"):
        fc_lstm(height=2, width=2, hidden=2, layers=0)
