import pytest
import torch
import torch.nn.functional as F

from climapred.models.convlstm import ConvLSTMCell, convlstm
from climapred.models.d_convlstm import DConvLSTMCell, Deformable, d_convlstm
from climapred.models.recurrent import Layers
from climapred.models.spatial import Convolution, close_circle

INPUTS, HIDDEN, SHAPE = 2, 3, (5, 6)
FORMS = {"states": {}, "feedback": {"feedback": True}, "one_pass": {"one_pass": True}}
every_form = pytest.mark.parametrize("form", FORMS)


def randomised(module, *, periodic=False, std=0.3):
    """A float64 module far from its initial state; offsets are about a point long."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        torch.nn.init.normal_(parameter, std=std)
    if periodic:
        close_circle(module)
    return module


def make_field(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def read(field, rows, columns, periodic):
    """Dai et al. (2017), eq. 3-4, all terms: (B, C, H, W) at the places (B, H, W)."""
    height, width = field.shape[-2:]
    images = [width * turn for turn in range(-3, 4)] if periodic else [0]
    by_row = torch.relu(1 - (rows[..., None] - torch.arange(height)).abs())
    by_column = sum(torch.relu(1 - (columns[..., None] - torch.arange(width) - image).abs()) for image in images)
    return torch.einsum("bcmn,bijm,bijn->bcij", field, by_row, by_column)


def reference_convolution(layer, x):
    """Dai et al. (2017), eq. 2, tap by tap; offsets to the south come before those to the east."""
    weight, reach = layer.convolution.weight, layer.convolution.kernel_size[0] // 2
    wide = F.pad(x, (reach, reach, 0, 0), mode="circular" if layer.periodic else "constant")
    offsets = F.conv2d(wide, layer.offsets.weight, layer.offsets.bias, padding=(reach, 0))
    result, (height, width) = layer.convolution.bias.view(1, -1, 1, 1), x.shape[-2:]
    taps = [(down, right) for down in range(-reach, reach + 1) for right in range(-reach, reach + 1)]
    for k, (down, right) in enumerate(taps):
        rows = torch.arange(height)[:, None] + down + offsets[:, k]
        columns = torch.arange(width) + right + offsets[:, len(taps) + k]
        moved = read(x, rows, columns, layer.periodic)
        result = result + torch.einsum("bcij,oc->boij", moved, weight[:, :, down + reach, right + reach])
    return result


def reference_cell(cell, x, hidden, memory):
    """Shi et al. (2015), eq. 3, with the deformable convolution."""
    seen = hidden if x is None else torch.cat([x, hidden], dim=1)
    i, f, c, o = reference_convolution(cell.gates, seen).chunk(4, dim=1)
    w_ci, w_cf, w_co = cell.peepholes.weight
    i, f = torch.sigmoid(i + w_ci * memory), torch.sigmoid(f + w_cf * memory)
    memory = f * memory + i * torch.tanh(c)
    return torch.sigmoid(o + w_co * memory) * torch.tanh(memory), memory


@pytest.mark.parametrize("inputs", [INPUTS, 0])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_layers_and_their_gradients_are_the_equations(inputs, periodic, kernel):
    cells = Layers([DConvLSTMCell(inputs, HIDDEN, kernel), DConvLSTMCell(HIDDEN, HIDDEN, kernel)])
    randomised(cells, periodic=periodic, std=0.5 / kernel)
    frames, start = make_field(3, 2, INPUTS, *SHAPE), make_field(4, 2, HIDDEN, *SHAPE, seed=2).requires_grad_()
    state = ((start[0], start[1]), (start[2], start[3]))
    apart, found, expected = list(state), [], []
    for frame in frames:
        x = below = frame if inputs else None
        output, state = cells(x, state)
        for layer, cell in enumerate(cells):
            apart[layer] = reference_cell(cell, below, *apart[layer])
            below = apart[layer][0]
        found.append(output)
        expected.append(below)
    found, expected = torch.stack(found), torch.stack(expected)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    weigh, leaves = make_field(*found.shape, seed=3), [*cells.parameters(), start]
    gradients = [torch.autograd.grad((outputs * weigh).sum(), leaves) for outputs in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_offsets_start_at_zero_and_then_it_is_the_convolution(periodic, kernel):
    torch.manual_seed(0)
    convolution = Convolution(INPUTS, HIDDEN, kernel).double()
    layer, x = Deformable(convolution).double(), make_field(2, INPUTS, *SHAPE)
    if periodic:
        close_circle(layer)
    torch.testing.assert_close(layer(x), convolution(x), rtol=1e-13, atol=1e-13)


def test_an_untrained_cell_is_a_convlstm():
    torch.manual_seed(0)
    plain = ConvLSTMCell(INPUTS, HIDDEN)
    torch.manual_seed(0)
    cell = DConvLSTMCell(INPUTS, HIDDEN)
    assert torch.equal(plain.gates.weight, cell.gates.convolution.weight)
    x, state = torch.randn(2, INPUTS, *SHAPE), (torch.randn(2, HIDDEN, *SHAPE), torch.randn(2, HIDDEN, *SHAPE))
    torch.testing.assert_close(cell(x, state), plain(x, state), rtol=1e-6, atol=1e-6)


def test_offsets_move_what_is_seen():
    # All taps one point further east: the convolution of the field turned by one to the west.
    layer, x = randomised(Deformable(Convolution(INPUTS, HIDDEN)), periodic=True), make_field(2, INPUTS, *SHAPE)
    torch.nn.init.zeros_(layer.offsets.weight)
    with torch.no_grad():
        layer.offsets.bias.copy_(torch.cat([torch.zeros(9), torch.ones(9)]))
    torch.testing.assert_close(layer(x), layer.convolution(x.roll(-1, dims=-1)), rtol=1e-12, atol=1e-12)


@every_form
def test_every_parameter_has_a_gradient_also_at_first(form):
    network = d_convlstm(channels=2, forcings=1, hidden=3, **FORMS[form]).double()
    torch.nn.init.normal_(network.readout.weight)
    network(make_field(2, 3, 3, *SHAPE), 3, future=make_field(2, 3, 3, *SHAPE)).square().sum().backward()
    assert all(parameter.grad.all() for parameter in network.parameters())


@every_form
def test_a_network_has_the_parameters_of_a_convlstm_and_those_of_the_offsets(form):
    # Offsets: 2 k^2 channels from in + hidden, k x k, and biases.
    h, k, options = 6, 3, {"channels": 2, "hidden": 6, "layers": 2, "kernel": 3, **FORMS[form]}
    inputs = {"states": [2, h, 0, h], "feedback": [2, h, 2, h], "one_pass": [2, h]}[form]
    offsets = sum(2 * k**2 * ((n + h) * k**2 + 1) for n in inputs)
    plain, deformable = (sum(p.numel() for p in make(**options).parameters()) for make in (convlstm, d_convlstm))
    assert deformable == plain + offsets


def test_what_cannot_be_a_cell_is_refused():
    with pytest.raises(ValueError, match="kernel must be odd, so that the grid keeps its size, got 4"):
        d_convlstm(hidden=2, kernel=4)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        d_convlstm(hidden=0)
