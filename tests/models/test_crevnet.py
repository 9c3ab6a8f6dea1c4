import pytest
import torch
import torch.nn.functional as F

from climapred.models.crevnet import TwoWayAutoencoder, crevnet
from climapred.models.spatial import close_circle

SHAPE, CHANNELS, FORCINGS, HIDDEN = (5, 6), 2, 1, 4
SIZES = {"channels": CHANNELS, "forcings": FORCINGS, "hidden": HIDDEN, "layers": 2, "blocks": 3}


def make_network(**options):
    """A float64 network far from its initial state: readout, biases and norms too have a part in the result."""
    torch.manual_seed(0)
    network = crevnet(**{**SIZES, **options}).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network


def make_frames(times, *, channels=CHANNELS + FORCINGS, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, times, channels, *SHAPE, dtype=torch.float64, generator=random)


def star(weight, field, bias=None):
    return F.conv2d(field, weight, bias, padding=weight.shape[-1] // 2)


def norm(x, gain, shift):
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    variance = (x - mean).square().mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * gain.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def bottleneck(block, x):
    """Of the first block a convolution, then norm, ReLU and convolution again and again."""
    convolutions = [layer for layer in block.bottleneck if isinstance(layer, torch.nn.Conv2d)]
    norms = [layer for layer in block.bottleneck if isinstance(layer, torch.nn.GroupNorm)]
    norms = [None] * (3 - len(norms)) + norms
    for before, convolution in zip(norms, convolutions, strict=True):
        x = x if before is None else torch.clamp(norm(x, before.weight, before.bias), min=0)
        x = star(convolution.weight, x)
    return x


def lstm(cell, x, h, c):
    """Shi et al. (2015), eq. 3; see tests/models/test_convlstm.py."""
    gates = star(cell.gates.weight[:, : x.shape[1]], x) + star(cell.gates.weight[:, x.shape[1] :], h, cell.gates.bias)
    (a_i, a_f, a_c, a_o), (p_i, p_f, p_o) = gates.chunk(4, dim=1), cell.peepholes.weight
    c = torch.sigmoid(a_f + p_f * c) * c + torch.sigmoid(a_i + p_i * c) * torch.tanh(a_c)
    return torch.sigmoid(a_o + p_o * c) * torch.tanh(c), c


def gate(attention, h):
    first, second = attention[0], attention[2]
    return torch.sigmoid(star(second.weight, torch.clamp(star(first.weight, h, first.bias), min=0), second.bias))


def reference(network, frames, future, steps):
    """Two halves by name: even layers read the first and move the second one, odd layers the other way round."""
    cell, outputs = network.encoder, []
    states = [[frames.new_zeros(2, HIDDEN, *SHAPE)] * 2 for _ in cell.cells]
    for time in range(frames.shape[1] + steps - 1):
        lead = time - frames.shape[1]
        x = frames[:, time] if lead < 0 else torch.cat([outputs[-1], future[:, lead, CHANNELS:]], dim=1)
        one = torch.cat([x, x.new_zeros(2, HIDDEN - x.shape[1], *SHAPE)], dim=1)
        other = one
        for block in cell.autoencoder.blocks:
            one, other = other, one + bottleneck(block, other)
        for number, (layer, attention) in enumerate(zip(cell.cells, cell.attention, strict=True)):
            h, c = lstm(layer, other if number % 2 else one, *states[number])
            g, states[number] = gate(attention, h), (h, c)
            if number % 2:
                one = (1 - g) * one + g * h
            else:
                other = (1 - g) * other + g * h
        for block in reversed(cell.autoencoder.blocks):
            one, other = other - bottleneck(block, one), one
        outputs.append(star(network.readout.weight, torch.cat([one, other], dim=1), network.readout.bias))
    return torch.stack(outputs[-steps:], dim=1)


@pytest.mark.parametrize(("layers", "blocks"), [(2, 3), (3, 1), (1, 2)])
def test_network_and_its_gradients_are_the_equations(layers, blocks):
    network, frames, future = make_network(layers=layers, blocks=blocks), make_frames(3), make_frames(2, seed=2)
    leaves = [*network.parameters(), frames.requires_grad_(), future.requires_grad_()]
    forecast, expected = network(frames, 2, future=future), reference(network, frames, future, 2)
    torch.testing.assert_close(forecast, expected, rtol=1e-9, atol=1e-10)
    found, wanted = (torch.autograd.grad(field.square().sum(), leaves) for field in (forecast, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("periodic", [False, True])
def test_the_autoencoder_is_undone_with_the_same_weights(dtype, tolerance, periodic):
    torch.manual_seed(0)
    autoencoder = TwoWayAutoencoder(3, 5, 12, 3).to(dtype)
    if periodic:
        close_circle(autoencoder)
    frame, halves = torch.randn(2, 3, *SHAPE, dtype=dtype), torch.randn(2, 2, 5, *SHAPE, dtype=dtype)
    encoded = autoencoder(frame)
    assert (encoded[1][:, :3] - frame).abs().max() > 0.1
    for half in autoencoder.inverse(encoded):
        torch.testing.assert_close(half[:, :3], frame, rtol=0, atol=tolerance)
        torch.testing.assert_close(half[:, 3:], torch.zeros_like(half[:, 3:]), rtol=0, atol=tolerance)
    decoded = autoencoder.inverse(tuple(halves))
    for block in autoencoder.blocks:
        decoded = block(decoded)
    torch.testing.assert_close(torch.stack(decoded), halves, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_closed_gate_returns_the_frame(layers):
    # g = sigmoid(-1000) = 0 leaves the latent state alone, and the decoder undoes the encoder: twice the frame and a zero.
    network, frame = make_network(layers=layers), make_frames(1)[:, 0]
    for attention in network.encoder.attention:
        torch.nn.init.zeros_(attention[2].weight)
        torch.nn.init.constant_(attention[2].bias, -1000.0)
    decoded, _ = network.encoder(frame, network.encoder.initial_state(2, *SHAPE, frame))
    padded = F.pad(frame, (0, 0, 0, 0, 0, HIDDEN - 3))
    torch.testing.assert_close(decoded, torch.cat([padded, padded], dim=1))


def test_the_predictor_is_reversible_when_its_states_are_known():
    # From the decoded output and the new states alone: encode again, then b = (b' - g h) / (1 - g), layer by layer.
    network, frame = make_network(layers=3), make_frames(1)[:, 0]
    cell = network.encoder
    decoded, states = cell(frame, cell.initial_state(2, *SHAPE, frame))
    halves = tuple(decoded.chunk(2, dim=1))
    for block in cell.autoencoder.blocks:
        halves = block(halves)
    a, b = halves[::-1]  # three layers are followed by a change of places
    for attention, (hidden, _) in reversed(list(zip(cell.attention, states, strict=True))):
        g = attention(hidden)
        a, b = b, (a - g * hidden) / (1 - g)
    found = cell.autoencoder.inverse((a, b))[0][:, :3]
    torch.testing.assert_close(found, frame, rtol=0, atol=1e-8)


def test_frames_of_many_channels_widen_the_network():
    network = crevnet(channels=6, forcings=2, hidden=3, layers=1, blocks=1)
    assert network.encoder.hidden == 16
    assert network(torch.randn(1, 2, 8, *SHAPE), 1).shape == (1, 1, 6, *SHAPE)


def test_a_network_has_the_parameters_that_the_equations_need():
    # Blocks of h -> n -> n -> h with n = h / 4 and norms before each convolution, of the first but before the first; ConvLSTM
    # 4 h (2 h 9 + 1) + 3 h; attention 9 h^2 + h and h^2 + h; readout 2 h + 1. The 5.0 M that are published for Moving MNIST
    # belong to 3-D convolutions of 3 x 3 x 3 in an ST-LSTM of 32 channels, 8 layers deep (610,560 each): a ConvLSTM of 2-D
    # ones has an eighth of them.
    h, n, layers, blocks = 32, 8, 8, 12
    with torch.device("meta"):
        network = crevnet(hidden=h, layers=layers, blocks=blocks)
    coupling = blocks * (9 * (h * n + n * n + n * h) + 2 * (h + n + n)) - 2 * h
    predictor = layers * (4 * h * (2 * h * 9 + 1) + 3 * h + 9 * h * h + h + h * h + h)
    expected = coupling + predictor + 2 * h + 1
    assert sum(parameter.numel() for parameter in network.parameters()) == expected == 737_409


@pytest.mark.parametrize("name", ["hidden", "layers", "blocks"])
def test_what_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        crevnet(**{name: 0})
    with pytest.raises(ValueError, match="kernel must be odd, so that the grid keeps its size, got 4"):
        crevnet(hidden=2, kernel=4)
