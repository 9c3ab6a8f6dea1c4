import pytest
import torch
import torch.nn.functional as F

from climapred.models.conv_gru import ConvGRUCell, TrajGRUCell, conv_gru, traj_gru
from climapred.models.recurrent import Layers
from climapred.models.spatial import close_circle, shifted

INPUTS, HIDDEN, LINKS, SHAPE = 2, 3, 2, (5, 6)
MAKERS = {"conv_gru": conv_gru, "traj_gru": traj_gru}
every_model = pytest.mark.parametrize("name", MAKERS)


def randomised(module, *, periodic=False, std=0.3, seed=0):
    """A float64 module far from its initial state; flows, which are sums over 800 terms, are about two points long."""
    torch.manual_seed(seed)
    for name, parameter in module.double().named_parameters():
        torch.nn.init.normal_(parameter, std=0.1 if "flow" in name else std)
    if periodic:
        close_circle(module)
    return module


def make_field(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def convolve(x, weight, periodic, bias=None):
    pad = weight.shape[-1] // 2
    x = F.pad(x, (pad, pad, 0, 0), mode="circular" if periodic else "constant") if pad else x
    return F.conv2d(x, weight, bias, padding=(pad, 0))


def warp(field, down, right, periodic):
    """Shi et al. (2017), eq. 4, with all its terms; on a globe the columns n, n + W, n - W, ... are one and the same."""
    height, width = field.shape[-2:]
    rows, columns = torch.arange(height)[:, None] + down, torch.arange(width) + right
    images = [width * turn for turn in range(-3, 4)] if periodic else [0]
    by_row = torch.relu(1 - (rows[..., None] - torch.arange(height)).abs())
    by_column = sum(torch.relu(1 - (columns[..., None] - torch.arange(width) - image).abs()) for image in images)
    return torch.einsum("bcmn,bijm,bijn->bcij", field, by_row, by_column)


def reference_cell(cell, x, hidden):
    """Shi et al. (2017), eq. 1 and eq. 3, gate by gate; z, r and n lie in this order along the rows of the weights."""
    periodic = cell.from_state.periodic
    biases = cell.bias.chunk(3)
    of_input = [0, 0, 0] if x is None else [convolve(x, w, periodic) for w in cell.from_input.weight.chunk(3)]
    if isinstance(cell, TrajGRUCell):
        seen = hidden if x is None else torch.cat([x, hidden], dim=1)
        first, _, second = cell.flow
        maps = F.leaky_relu(convolve(seen, first.weight, periodic, first.bias), 0.2)
        flows = convolve(maps, second.weight, periodic, second.bias)
        warped = [warp(hidden, flows[:, link], flows[:, LINKS + link], periodic) for link in range(LINKS)]
        of_state = [
            sum(F.conv2d(warped[link], w[:, link::LINKS]) for link in range(LINKS))
            for w in cell.from_state.weight.chunk(3)
        ]
    else:
        of_state = [convolve(hidden, w, periodic) for w in cell.from_state.weight.chunk(3)]
    z = torch.sigmoid(of_input[0] + of_state[0] + biases[0])
    r = torch.sigmoid(of_input[1] + of_state[1] + biases[1])
    n = of_input[2] + r * of_state[2] + biases[2]
    n = torch.tanh(n) if cell.activation == "tanh" else F.leaky_relu(n, 0.2)
    return (1 - z) * n + z * hidden


@pytest.mark.parametrize("inputs", [INPUTS, 0])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(ConvGRUCell, {}), (ConvGRUCell, {"activation": "tanh"}), (TrajGRUCell, {"links": LINKS})],
)
def test_layers_and_their_gradients_are_the_equations(kind, options, inputs, periodic):
    cells = Layers([kind(inputs, HIDDEN, **options), kind(HIDDEN, HIDDEN, **options)])
    randomised(cells, periodic=periodic)
    frames, start = make_field(3, 2, INPUTS, *SHAPE), make_field(2, 2, HIDDEN, *SHAPE, seed=2).requires_grad_()
    state, apart, found, expected = tuple((h,) for h in start), list(start), [], []
    for frame in frames:
        x = below = frame if inputs else None
        output, state = cells(x, state)
        for layer, cell in enumerate(cells):
            below = apart[layer] = reference_cell(cell, below, apart[layer])
        found.append(output)
        expected.append(below)
    found, expected = torch.stack(found), torch.stack(expected)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    weigh, leaves = make_field(*found.shape, seed=3), [*cells.parameters(), start]
    gradients = [torch.autograd.grad((outputs * weigh).sum(), leaves) for outputs in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("size", [(5, 6), (1, 1), (4, 8), (1, 7)])
def test_shifts_are_equation_4(periodic, size):
    field = make_field(2, 3, *size)
    down, right = 3 * make_field(2, 4, *size, seed=2), 6 * make_field(2, 4, *size, seed=3)
    if size[1] == 1:
        right = right / 6  # the literal sum knows three turns of the globe
    expected = torch.stack([warp(field, down[:, k], right[:, k], periodic) for k in range(4)], dim=2).flatten(1, 2)
    torch.testing.assert_close(shifted(field, down, right, periodic=periodic), expected, rtol=1e-12, atol=1e-12)


def test_shifts_have_the_gradient_of_finite_differences():
    fields = [make_field(1, 2, 3, 4), *(make_field(1, 2, 3, 4, seed=seed) for seed in (2, 3))]
    leaves = [field.requires_grad_() for field in fields]
    assert torch.autograd.gradcheck(lambda *x: shifted(*x, periodic=True), leaves)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("size", [(24, 52), (73, 144)])
def test_no_shift_returns_the_very_field_and_looks_south_and_east(periodic, size):
    # Bilinear interpolation has a corner at every point: rounding must not decide which of its two slopes is taken.
    field = torch.randn(1, 1, *size)
    down, right = (torch.zeros(1, 1, *size, requires_grad=True) for _ in range(2))
    read = shifted(field, down, right, periodic=periodic)
    assert torch.equal(read, field)
    south, east = torch.autograd.grad(read.sum(), [down, right])
    beside = F.pad(field, (0, 1, 0, 0), mode="circular" if periodic else "constant")
    torch.testing.assert_close(south, F.pad(field, (0, 0, 0, 1)).diff(dim=-2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(east, beside.diff(dim=-1), rtol=1e-6, atol=1e-6)


def test_a_steady_flow_turns_the_globe():
    field, still = make_field(1, 2, *SHAPE), torch.zeros(1, 1, *SHAPE, dtype=torch.float64)
    for points in (2, -4, 9):
        found = shifted(field, still, still + points, periodic=True)
        torch.testing.assert_close(found, field.roll(-points, dims=-1), rtol=0, atol=1e-12)
    assert not shifted(field, still, still + 9, periodic=False).any()
    assert not shifted(field, still - 5, still, periodic=True).any()  # beyond the pole


def test_without_flow_trajgru_is_a_convgru_that_looks_at_one_point():
    torch.manual_seed(0)
    traj, conv = TrajGRUCell(INPUTS, HIDDEN, links=LINKS), ConvGRUCell(INPUTS, HIDDEN)
    torch.nn.init.zeros_(traj.flow[2].weight)
    torch.nn.init.zeros_(traj.flow[2].bias)
    conv.from_input, conv.bias = traj.from_input, traj.bias
    torch.nn.init.zeros_(conv.from_state.weight)
    summed = traj.from_state.weight.view(-1, HIDDEN, LINKS).sum(dim=2)
    with torch.no_grad():
        conv.from_state.weight[..., 1, 1] = summed
    x, hidden = torch.randn(2, INPUTS, *SHAPE), torch.randn(2, HIDDEN, *SHAPE)
    torch.testing.assert_close(traj(x, (hidden,))[0], conv(x, (hidden,))[0])


def test_a_shut_update_gate_keeps_the_memory():
    cell = randomised(ConvGRUCell(INPUTS, HIDDEN))
    with torch.no_grad():
        cell.bias[:HIDDEN] = 50
    hidden = make_field(2, HIDDEN, *SHAPE)
    torch.testing.assert_close(cell(make_field(2, INPUTS, *SHAPE), (hidden,))[0], hidden)
    assert ConvGRUCell(1, 2).bias.flatten().tolist() == [1, 1, 0, 0, 0, 0]


@every_model
def test_autocast_stays_close_to_single_precision_and_keeps_the_memory_in_it(name):
    # Every operand is off by up to 2^-9; see tests/models/test_convlstm.py.
    cell = randomised({"conv_gru": ConvGRUCell, "traj_gru": TrajGRUCell}[name](INPUTS, HIDDEN), std=0.2).float()
    x, hidden = make_field(2, INPUTS, *SHAPE).float(), make_field(2, HIDDEN, *SHAPE, seed=2).float()
    exact, _ = cell(x, (hidden,))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = cell(x, (hidden,))
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() < 0.01


def test_networks_have_the_parameters_that_the_equations_need():
    # One pass, two layers. ConvGRU: 3 h (in + h) k^2 weights and 3 h biases. TrajGRU: 3 h in k^2 and 3 h (L h) weights, 3 h
    # biases, and a flow network of 25 (in + h) 32 + 32 and 25 * 32 * 2 L + 2 L. Readout: 25 h + 1. A public port
    # of the paper's code has 3 h biases with each of the two products, of which z and r need but one.
    h, k, links, frame = 6, 5, 3, 2
    sizes, options = [frame, h], {"forcings": 1, "hidden": h, "kernel": k, "one_pass": True}
    readout = h * k**2 + 1
    gru = sum(3 * h * (n + h) * k**2 + 3 * h for n in sizes) + readout
    traj = sum(3 * h * n * k**2 + 3 * h * links * h + 3 * h + 25 * (n + h) * 32 + 32 for n in sizes)
    traj += 2 * (25 * 32 * 2 * links + 2 * links) + readout
    networks = (conv_gru(**options), traj_gru(links=links, **options))
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [gru, traj]


@every_model
def test_what_cannot_be_a_cell_is_refused(name):
    with pytest.raises(ValueError, match="kernel must be odd, so that the grid keeps its size, got 4"):
        MAKERS[name](hidden=2, kernel=4)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        MAKERS[name](hidden=0)
    with pytest.raises(ValueError, match="activation must be leaky_relu or tanh, got 'relu'"):
        MAKERS[name](hidden=2, activation="relu")
    with pytest.raises(ValueError, match="links must be at least 1, got 0"):
        traj_gru(hidden=2, links=0)
