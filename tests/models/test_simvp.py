import math

import pytest
import torch
import torch.nn.functional as F

from climapred.models.simvp import GatedAttention, simvp

SHAPE, CHANNELS, FORCINGS = (5, 6), 2, 1
SIZES = {"channels": CHANNELS, "forcings": FORCINGS, "history": 3, "horizon": 2, "hidden": 4}
SIZES |= {"translator": 5, "layers": 3, "kernel": 9, "expansion": 2}


def make_network(**options):
    """A float64 network far from its initial state: readout, scales and norms too have a part in the result."""
    torch.manual_seed(0)
    network = simvp(**{**SIZES, **options}).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network


def make_frames(times=3, *, channels=CHANNELS + FORCINGS, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, times, channels, *SHAPE, dtype=torch.float64, generator=random)


def norm(x, groups, layer):
    parts = []
    for part in x.chunk(groups, dim=1):
        mean = part.mean(dim=(1, 2, 3), keepdim=True)
        variance = (part - mean).square().mean(dim=(1, 2, 3), keepdim=True)
        parts.append((part - mean) / torch.sqrt(variance + 1e-5))
    return torch.cat(parts, dim=1) * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


def coder(layers, x):
    convolution, groups = layers[0], layers[1]
    x = norm(F.conv2d(x, convolution.weight, convolution.bias, padding=1), groups.num_groups, groups)
    return x * torch.sigmoid(x)


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def pointwise(layer, x):
    return torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias.view(1, -1, 1, 1)


def depthwise(layer, x, dilation=1):
    """Channel by channel."""
    pad = dilation * (layer.weight.shape[-1] // 2)
    fields = [
        F.conv2d(x[:, [number]], layer.weight[[number]], layer.bias[[number]], padding=pad, dilation=dilation)
        for number in range(x.shape[1])
    ]
    return torch.cat(fields, dim=1)


def attention(layer, x):
    """Tan et al. (2022): gSTA."""
    inner = pointwise(layer.split, depthwise(layer.far, depthwise(layer.near, gelu(pointwise(layer.enter, x))), 3))
    features, gates = inner[:, : x.shape[1]], inner[:, x.shape[1] :]
    return x + pointwise(layer.leave, features / (1 + torch.exp(-gates)))


def translated(block, x):
    x = x + block.scales[0] * attention(block.attention[1], norm(x, 1, block.attention[0]))
    before, enter, middle, _, leave = block.perceptron
    x = x + block.scales[1] * pointwise(leave, gelu(depthwise(middle, pointwise(enter, norm(x, 1, before)))))
    return x if isinstance(block.resize, torch.nn.Identity) else pointwise(block.resize, x)


def block(network, frames):
    first = [coder(network.first, frame) for frame in frames]
    encoded = first
    for layers in network.encoder:
        encoded = [coder(layers, features) for features in encoded]
    x = torch.cat(encoded, dim=1)
    for layers in network.translator:
        x = translated(layers, x)
    leads = []
    for lead in x.chunk(network.horizon, dim=1):
        for layers in network.decoder:
            lead = coder(layers, lead)
        leads.append(pointwise(network.readout, coder(network.last, lead + first[-1])))
    return leads


def reference(network, frames, future, steps, *, change=False, use_truth=None):
    """Frames and leads on one line of times; a block is forecast whenever the next lead is missing."""
    seen, times = frames.shape[1], list(frames.unbind(1))
    leads = []
    while len(leads) < steps:
        for lead in leads[len(times) - seen :]:
            at = len(times)
            own = lead
            if use_truth is not None:
                rows = [future[row, at - seen, :CHANNELS] if use_truth[row, at] else lead[row] for row in range(2)]
                own = torch.stack(rows)
            times.append(torch.cat([own, future[:, at - seen, CHANNELS:]], dim=1))
        eaten = times[-network.history :]
        leads += [lead + eaten[-1][:, :CHANNELS] if change else lead for lead in block(network, eaten)]
    return torch.stack(leads[:steps], dim=1)


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize(("steps", "options"), [(1, {}), (2, {"coders": 1}), (5, {"coders": 3}), (5, {"horizon": 4})])
def test_network_and_its_gradients_are_the_equations(change, steps, options):
    network, frames, future = make_network(**options), make_frames(), make_frames(steps, seed=2)
    leaves = [*network.parameters(), frames.requires_grad_(), future.requires_grad_()]
    forecast = network(frames, steps, change=change, future=future)
    expected = reference(network, frames, future, steps, change=change)
    torch.testing.assert_close(forecast, expected, rtol=1e-9, atol=1e-9)
    found, wanted = (
        torch.autograd.grad(field.square().sum(), leaves, materialize_grads=True) for field in (forecast, expected)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("change", [False, True])
def test_sampling_chooses_what_the_later_blocks_eat(change):
    network, frames, future = make_network(), make_frames(), make_frames(7, seed=2)
    use_truth = torch.rand(2, 9, generator=torch.Generator().manual_seed(3)) < 0.5
    assert use_truth[0, 3:].tolist() != use_truth[1, 3:].tolist()
    options = {"change": change, "use_truth": use_truth}
    found = network(frames, 7, future=future, **options)
    torch.testing.assert_close(found, reference(network, frames, future, 7, **options), rtol=1e-9, atol=1e-9)
    hidden = future.clone()
    hidden[:, :-1, :CHANNELS][~use_truth[:, 3:]] = torch.nan
    hidden[:, -1] = torch.nan
    assert torch.equal(network(frames, 7, future=hidden, **options), found)


def test_the_first_block_needs_no_future_and_later_ones_only_forcings():
    network, frames, future = make_network(), make_frames(), make_frames(5, seed=2)
    assert network.feeds_back
    whole = network(frames, 5, future=future)
    torch.testing.assert_close(network(frames, 2), whole[:, :2])
    future[:, :, :CHANNELS] = torch.nan
    future[:, 4:] = torch.nan
    torch.testing.assert_close(network(frames, 5, future=future), whole)
    alone = make_network(forcings=0)
    assert alone(make_frames(channels=2), 5).shape == (2, 5, CHANNELS, *SHAPE)


def test_the_attention_looks_as_far_as_its_kernel():
    # 5 x 5, then 7 x 7 of every third point: 2 + 9 = 11 points to each side, the 21 of the name and one more.
    torch.manual_seed(0)
    field = torch.zeros(1, 2, 31, 31, dtype=torch.float64, requires_grad=True)
    GatedAttention(2, 21).double()(field)[0, :, 15, 15].sum().backward()
    reached = (field.grad[0].abs().sum(dim=0) > 0).nonzero()
    assert reached.amin(dim=0).tolist() == [4, 4]
    assert reached.amax(dim=0).tolist() == [26, 26]
    sizes = {kernel: GatedAttention(2, kernel).far.kernel_size[0] for kernel in (3, 6, 9, 11, 15, 21)}
    assert sizes == {3: 1, 6: 1, 9: 3, 11: 3, 15: 5, 21: 7}


def test_a_network_has_the_parameters_of_the_authors():
    # OpenSTL's 46.8 M on Moving MNIST are 46,769,665, its 12.76 M at 5.625 degrees 12,758,305. In the decoder they have four
    # times the outputs where they double the grid (twice and once), which we do not.
    with torch.device("meta"):
        digits = simvp(history=10, horizon=10, hidden=64, translator=512, coders=4)
        weather = simvp(history=12, horizon=12)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (digits, weather)]
    assert counts == [46_769_665 - 2 * 3 * 64 * (64 * 9 + 1), 12_758_305 - 3 * 32 * (32 * 9 + 1)]


def test_arguments_that_do_not_fit_are_refused():
    network, frames = make_network(), make_frames()
    with pytest.raises(ValueError, match="SimVP with history=3 takes so many frames, got 2"):
        network(frames[:, :2], 1)
    with pytest.raises(ValueError, match=r"frames must have 2 channels and 1 forcings, got shape \(2, 3, 2, 5, 6\)"):
        network(frames[:, :, :2], 1)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        network(frames, 0)
    with pytest.raises(ValueError, match="that eats the forcings or the truth of 3 leads needs future"):
        network(frames, 3)
    with pytest.raises(ValueError, match=r"future must have the shape \(2, 2, 3, 5, 6\), got \(2, 1, 3, 5, 6\)"):
        network(frames, 2, future=frames[:, :1])
    with pytest.raises(ValueError, match=r"use_truth must have the shape \(2, 4\), got \(2, 1\)"):
        network(frames, 2, use_truth=torch.ones(2, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("history", 1),
        ("horizon", 1),
        ("hidden", 2),
        ("translator", 1),
        ("layers", 2),
        ("coders", 1),
        ("kernel", 3),
        ("expansion", 1),
    ],
)
def test_what_cannot_be_is_refused(name, least):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        simvp(**{name: least - 1})
