import math

import pytest
import torch
import torch.nn.functional as F

from climapred.models.phydnet import PhyCell, moment_basis, moments, phydnet

SHAPE, CHANNELS, FORCINGS = (5, 6), 2, 1
SIZES = {"channels": CHANNELS, "forcings": FORCINGS, "hidden": 4, "layers": 2, "stencil": 3}


def make_network(**options):
    """A float64 network far from its initial state: readout, biases and norms too have a part in the result."""
    torch.manual_seed(0)
    network = phydnet(**{**SIZES, **options}).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network


def make_frames(times, *, channels=CHANNELS + FORCINGS, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, times, channels, *SHAPE, dtype=torch.float64, generator=random)


def star(weight, field, bias=None):
    return F.conv2d(field, weight, bias, padding=weight.shape[-1] // 2)


def group_norm(x, groups, gain, shift):
    parts = []
    for part in x.chunk(groups, dim=1):
        mean = part.mean(dim=(1, 2, 3), keepdim=True)
        variance = (part - mean).square().mean(dim=(1, 2, 3), keepdim=True)
        parts.append((part - mean) / torch.sqrt(variance + 1e-5))
    return torch.cat(parts, dim=1) * gain.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def blocks(modules, x):
    """Convolution, group norm, leaky ReLU, again and again."""
    for convolution, norm in zip(modules[::3], modules[1::3], strict=True):
        x = group_norm(star(convolution.weight, x, convolution.bias), norm.num_groups, norm.weight, norm.bias)
        x = torch.where(x > 0, x, 0.2 * x)
    return x


def physics(cell, e, h):
    """Le Guen and Thome (2020), eq. 3 and 6-8: derivative by derivative, with the group norm of the authors' code."""
    derivatives = [
        star(kernel[None], h, bias[None])
        for kernel, bias in zip(cell.derivatives.weight, cell.derivatives.bias, strict=True)
    ]
    derivatives = group_norm(torch.cat(derivatives, dim=1), cell.norm.num_groups, cell.norm.weight, cell.norm.bias)
    change = cell.combine.bias.view(1, -1, 1, 1)
    for number in range(derivatives.shape[1]):
        change = change + cell.combine.weight[:, number].view(1, -1, 1, 1) * derivatives[:, [number]]
    predicted = h + change
    w_e, w_h = cell.gain.weight.chunk(2, dim=1)
    gain = torch.sigmoid(star(w_e, e) + star(w_h, h) + cell.gain.bias.view(1, -1, 1, 1))
    return (1 - gain) * predicted + gain * e


def lstm(cell, x, h, c):
    """Shi et al. (2015), eq. 3; see tests/models/test_convlstm.py."""
    gates = star(cell.gates.weight[:, : x.shape[1]], x) + star(cell.gates.weight[:, x.shape[1] :], h, cell.gates.bias)
    (a_i, a_f, a_c, a_o), (p_i, p_f, p_o) = gates.chunk(4, dim=1), cell.peepholes.weight
    c = torch.sigmoid(a_f + p_f * c) * c + torch.sigmoid(a_i + p_i * c) * torch.tanh(a_c)
    return torch.sigmoid(a_o + p_o * c) * torch.tanh(c), c


def reference(network, frames, future, steps):
    cell, outputs = network.encoder, []
    h = frames.new_zeros(2, 4, *SHAPE)
    states = [[frames.new_zeros(2, layer.hidden, *SHAPE)] * 2 for layer in cell.memory]
    for time in range(frames.shape[1] + steps - 1):
        lead = time - frames.shape[1]
        x = frames[:, time] if lead < 0 else torch.cat([outputs[-1], future[:, lead, CHANNELS:]], dim=1)
        encoded = blocks(cell.encode, x)
        h = physics(cell.physics, blocks(cell.to_physics, encoded), h)
        x = blocks(cell.to_memory, encoded)
        for number, layer in enumerate(cell.memory):
            states[number] = lstm(layer, x, *states[number])
            x = states[number][0]
        decoded = blocks(cell.decode, blocks(cell.from_physics, h) + blocks(cell.from_memory, x))
        outputs.append(star(network.readout.weight, decoded, network.readout.bias))
    return torch.stack(outputs[-steps:], dim=1)


def test_network_and_its_gradients_are_the_equations():
    network, frames, future = make_network(), make_frames(3), make_frames(2, seed=2)
    leaves = [*network.parameters(), frames.requires_grad_(), future.requires_grad_()]
    forecast, expected = network(frames, 2, future=future), reference(network, frames, future, 2)
    torch.testing.assert_close(forecast, expected, rtol=1e-9, atol=1e-10)
    found, wanted = (torch.autograd.grad(field.square().sum(), leaves) for field in (forecast, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_moments_of_known_differences():
    # Central differences: f(x + 1) / 2 - f(x - 1) / 2 = f' + f''' / 6 + ... and f(x + 1) - 2 f(x) + f(x - 1) = f'' + ...;
    # with 3 points, moments up to order 2 are all that there is.
    first, second, none = torch.tensor([-0.5, 0, 0.5]), torch.tensor([1.0, -2, 1]), torch.tensor([0.0, 1, 0])
    pairs = [(down, along) for down in (none, first, second) for along in (none, first, second)]
    kernels = torch.stack([torch.outer(down, along) for down, along in pairs])
    torch.testing.assert_close(moments(kernels, moment_basis(3)), torch.eye(9).view(9, 3, 3))


@pytest.mark.parametrize("size", [3, 5, 7])
def test_a_kernel_of_one_moment_is_that_derivative(size):
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    basis = torch.stack([offsets**order / math.factorial(order) for order in range(size)])
    torch.testing.assert_close(moment_basis(size).double(), basis, rtol=1e-7, atol=0)  # float32
    places = torch.arange(-5, 6, dtype=torch.float64)
    inverse, middle = torch.linalg.inv(basis), slice(size // 2, 11 - size // 2)
    for i, j in [(0, 0), (1, 0), (0, 2), (2, 1), (size - 1, 1)]:
        kernel = torch.outer(inverse[:, i], inverse[:, j])
        wanted = torch.zeros(size, size, dtype=torch.float64)
        wanted[i, j] = 1
        torch.testing.assert_close(moments(kernel, basis), wanted, rtol=0, atol=1e-9)
        for p, q in [(2, 2), (size - 1, 1), (1, 2)]:
            field = torch.outer(places**p, places**q)
            derivative = torch.outer(power_derivative(places, p, i), power_derivative(places, q, j))
            found = F.conv2d(field[None, None], kernel[None, None])[0, 0]
            torch.testing.assert_close(found, derivative[middle, middle], rtol=1e-9, atol=1e-6)


def power_derivative(x, power, order):
    return math.perm(power, order) * x ** (power - order) if order <= power else torch.zeros_like(x)


def test_the_moment_loss_is_zero_for_derivatives_and_only_for_them():
    cell = PhyCell(2, 5, 3).double()
    inverse = torch.linalg.inv(cell.basis)
    with torch.no_grad():
        for number, kernel in enumerate(cell.derivatives.weight):
            kernel.copy_(torch.outer(inverse[:, number // 5], inverse[:, number % 5]))
    assert cell.moment_loss() < 1e-12
    with torch.no_grad():
        cell.derivatives.weight[3, 1, 2, 2] += 1  # in the middle: of all moments, it adds 1 to (0, 0) only
    assert cell.moment_loss().item() == pytest.approx(1 / 25**2)


def test_the_penalty_is_the_weighted_moment_loss_of_every_channel():
    network = make_network(moment=0.3)
    network(make_frames(1), 1)
    kernels = network.encoder.physics.derivatives.weight
    expected = 0.0
    for number in range(9):
        for channel in range(4):
            for i in range(3):
                for j in range(3):
                    factors = [
                        (u - 1) ** i * (v - 1) ** j * kernels[number, channel, u, v].item()
                        for u in range(3)
                        for v in range(3)
                    ]
                    moment = sum(factors) / math.factorial(i) / math.factorial(j)
                    expected += (moment - (number == 3 * i + j)) ** 2 / 81
    penalty = network.take_penalty()
    assert penalty.item() == pytest.approx(0.3 * expected)
    assert penalty.requires_grad
    assert network.eval()(make_frames(1), 1).isfinite().all()
    assert network.take_penalty() is None


def test_a_gain_of_one_trusts_the_frame_and_one_of_zero_the_equation():
    cell, e, h = PhyCell(2, 3, 3).double(), *torch.randn(2, 1, 2, *SHAPE, dtype=torch.float64)
    torch.nn.init.zeros_(cell.gain.weight)
    torch.nn.init.constant_(cell.gain.bias, 100.0)
    torch.testing.assert_close(cell(e, h), e)
    torch.nn.init.constant_(cell.gain.bias, -1000.0)
    torch.testing.assert_close(cell(e, h), h + cell.combine(cell.norm(cell.derivatives(h))))


def test_a_network_has_the_parameters_of_the_authors():
    # 3,091,732 on Moving MNIST (encoder and decoders 352,897; PhyCell 230,803; ConvLSTM 2,508,032), and the peepholes of our
    # ConvLSTM, three for each of its 128 + 128 + 64 channels, which theirs has not.
    with torch.device("meta"):
        network = phydnet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_091_732 + 3 * (128 + 128 + 64)


def test_autocast_keeps_the_state_and_the_penalty_in_single_precision():
    # bfloat16 has 8 bits; the norms keep all fields at size 1, so that 0.4 % of each operand add up to some per cent.
    network, frames, future = make_network().float(), make_frames(3).float(), make_frames(2, seed=2).float()
    exact = network(frames, 2, future=future)
    penalty = network.take_penalty()
    with torch.autocast("cpu", torch.bfloat16):
        found = network(frames, 2, future=future)
        _, (physical, _) = network.encoder(frames[:, 0], network.encoder.initial_state(2, *SHAPE, frames))
    assert (found - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert physical.dtype == torch.float32
    assert torch.equal(network.take_penalty(), penalty)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="hidden must be at least 2, got 1"):
        phydnet(hidden=1)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        phydnet(layers=0)
    for stencil in (1, 4):
        with pytest.raises(ValueError, match=f"stencil must be odd and at least 3, got {stencil}"):
            phydnet(stencil=stencil)
    for moment in (-0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"moment must be a number from 0 on, got {moment}"):
            phydnet(moment=moment)
    with pytest.raises(ValueError, match="kernel must be odd, so that the grid keeps its size, got 4"):
        phydnet(hidden=2, kernel=4)
