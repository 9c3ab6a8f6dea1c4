import pytest
import torch
import torch.nn.functional as F

from climapred.models.convlstm import ConvLSTMCell, Peepholes, SampleNorm, _Gates, convlstm
from tests.models.literal import normed

STEPS, INPUTS, HIDDEN, SHAPE = 3, 2, 4, (5, 6)


def make_cell(*, inputs=INPUTS, dtype=torch.float64, kernel=3, seed=0):
    """A cell far from its initial state: peepholes and biases too have a part in the result."""
    torch.manual_seed(seed)
    cell = ConvLSTMCell(inputs, HIDDEN, kernel).to(dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return cell


def make_frames(dtype=torch.float64, inputs=INPUTS, batch=2):
    return torch.randn(STEPS, batch, inputs, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(1))


def unroll(cell, frames, state):
    outputs = []
    for frame in frames:
        hidden, state = cell(frame, state)
        outputs.append(hidden)
    return torch.stack(outputs), state[1]


def reference(weight, bias, peepholes, frames, hidden, cell):
    """Shi et al. (2015), eq. 3, term by term: one convolution per gate and operand.

    The gates lie in the order i, f, c, o along the rows of ``weight``; input channels come before hidden ones.
    """
    w_x, w_h = weight[:, : frames.shape[2]].chunk(4), weight[:, frames.shape[2] :].chunk(4)
    (w_xi, w_xf, w_xc, w_xo), (w_hi, w_hf, w_hc, w_ho) = w_x, w_h
    b_i, b_f, b_c, b_o = (part.view(1, -1, 1, 1) for part in bias.chunk(4))
    w_ci, w_cf, w_co = peepholes
    pad, outputs = weight.shape[-1] // 2, []

    def star(kernel, field):
        return F.conv2d(field, kernel, padding=pad) if field.shape[1] else 0

    for x in frames:
        i = torch.sigmoid(star(w_xi, x) + star(w_hi, hidden) + w_ci * cell + b_i)
        f = torch.sigmoid(star(w_xf, x) + star(w_hf, hidden) + w_cf * cell + b_f)
        cell = f * cell + i * torch.tanh(star(w_xc, x) + star(w_hc, hidden) + b_c)
        o = torch.sigmoid(star(w_xo, x) + star(w_ho, hidden) + w_co * cell + b_o)
        hidden = o * torch.tanh(cell)
        outputs.append(hidden)
    return torch.stack(outputs), cell


@pytest.mark.parametrize("inputs", [INPUTS, 0])
@pytest.mark.parametrize(
    # float64 rounds at 1e-16, float32 at 6e-8; three steps of sums over 54 terms lose two digits of it, gradients,
    # which sum over 60 cells too, three.
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 5e-5)],
)
def test_cell_and_its_gradients_are_equation_3(inputs, dtype, tolerance):
    cell = make_cell(inputs=inputs, dtype=dtype)
    frames = make_frames(dtype, inputs).requires_grad_()
    start = tuple(torch.randn(2, HIDDEN, *SHAPE, dtype=dtype, requires_grad=True) for _ in range(2))
    weigh = torch.randn(STEPS, 2, HIDDEN, *SHAPE, dtype=torch.float64)
    leaves = [cell.gates.weight, cell.gates.bias, cell.peepholes.weight, frames, *start]
    copies = [leaf.detach().double().requires_grad_() for leaf in leaves]

    outputs, last = unroll(cell, frames if inputs else [None] * STEPS, start)
    ((outputs * weigh).sum() + last.square().sum()).backward()
    expected, expected_last = reference(*copies)
    ((expected * weigh).sum() + expected_last.square().sum()).backward()

    torch.testing.assert_close(outputs.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(last.double(), expected_last, rtol=tolerance, atol=tolerance)
    for leaf, copy in zip(leaves, copies, strict=True):
        if leaf.numel():
            scale = copy.grad.abs().max()
            torch.testing.assert_close(leaf.grad.double() / scale, copy.grad / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(2, 12, 4, 5), (2, 12)])
def test_the_norm_of_gates_is_that_of_each_sample_alone(shape):
    torch.manual_seed(0)
    norm, gates = SampleNorm(12).double(), 3 + 5 * torch.randn(shape, dtype=torch.float64)
    found = norm(gates).detach().flatten(1)
    torch.testing.assert_close(found.mean(1), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.square().mean(1), torch.ones(2).double(), rtol=0, atol=1e-5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    torch.testing.assert_close(norm(gates), normed(gates, norm), rtol=1e-12, atol=1e-12)
    assert SampleNorm(12)(gates.bfloat16().float()).dtype == torch.float32


def test_with_a_norm_the_cell_is_that_of_the_normed_gates():
    torch.manual_seed(0)
    cell, (x, *_) = ConvLSTMCell(INPUTS, HIDDEN, norm=True).double(), make_frames()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    state = tuple(torch.randn(2, HIDDEN, *SHAPE, dtype=torch.float64) for _ in range(2))
    gates = normed(F.conv2d(torch.cat([x, state[0]], dim=1), cell.gates.weight, padding=1), cell.norm)
    torch.testing.assert_close(cell(x, state)[1], cell.peepholes(gates, state[1]))
    with torch.autocast("cpu", torch.bfloat16):
        hidden, (_, memory) = cell.float()(x.float(), tuple(part.float() for part in state))
    assert (hidden.dtype, memory.dtype) == (torch.bfloat16, torch.float32)


def test_a_norm_leaves_the_forget_gate_open_and_brings_a_scale_for_each_channel():
    cell, plain = ConvLSTMCell(1, 3, norm=True), ConvLSTMCell(1, 3)
    assert cell.norm.bias.tolist() == [0] * 3 + [1] * 3 + [0] * 6
    found, expected = (sum(parameter.numel() for parameter in each.parameters()) for each in (cell, plain))
    assert found == expected + 12


@pytest.mark.parametrize("relu", [False, True])
def test_gates_have_the_gradient_of_finite_differences(relu):
    torch.manual_seed(0)
    gates, cell, weight = torch.randn(2, 8, 3, 2), torch.randn(2, 2, 3, 2), torch.randn(3, 2, 1, 1)
    inputs = [x.double().requires_grad_() for x in (gates, cell, weight)]
    assert torch.autograd.gradcheck(lambda *x: _Gates.apply(*x, relu), inputs)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("relu", [False, True])
def test_gates_of_large_fields_which_are_worked_off_in_parts_are_the_formula(order, relu):
    torch.manual_seed(0)
    shapes = [(5, 4 * 32, 32, 64), (5, 32, 32, 64)]  # 2^18 numbers a sample: each is a part with one thread
    gates, cell = (torch.randn(shape).double().to(memory_format=order).requires_grad_() for shape in shapes)
    weight = torch.randn(3, 32, 1, 1).double().requires_grad_()
    a_i, a_f, a_c, a_o = (torch.relu(gates) if relu else gates).chunk(4, dim=1)
    memory = torch.sigmoid(a_f + weight[1] * cell) * cell + torch.sigmoid(a_i + weight[0] * cell) * torch.tanh(a_c)
    expected = torch.sigmoid(a_o + weight[2] * memory) * torch.tanh(memory), memory
    found = _Gates.apply(gates, cell, weight, relu)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert all(part.is_contiguous(memory_format=order) for part in found)
    out = [torch.randn_like(part) for part in expected]
    gradients = [torch.autograd.grad(results, (gates, cell, weight), out) for results in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("used", [0, 1])
def test_gates_have_a_gradient_when_one_of_their_results_is_not_used(used):
    # The last step of a network throws the cell away, a network of one layer without outputs the hidden state.
    inputs = [torch.randn(shape).double().requires_grad_() for shape in ((1, 8, 2, 2), (1, 2, 2, 2), (3, 2, 1, 1))]
    assert torch.autograd.gradcheck(lambda *x: _Gates.apply(*x, False)[used], inputs)


def test_gates_refuse_a_second_derivative_rather_than_giving_a_wrong_one():
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((1, 8, 2, 2), (1, 2, 2, 2), (3, 2, 1, 1))]
    gradient = torch.autograd.grad(_Gates.apply(*inputs, False)[0].square().sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="marked with @once_differentiable"):
        gradient.sum().backward()


def test_autocast_stays_close_to_single_precision_and_keeps_the_memory_in_it():
    # bfloat16 has 8 significant bits: operands and sums of the convolution are off by 2^-9 = 0.2 % each. Pre-activations
    # of 5 or so, wrong by 0.01, meet slopes of at most 1/4 (sigmoid) and 1 (tanh, steep only near 0), so that a step may
    # be wrong by about 0.01 where it is steepest; three steps add up. The mean over cells is ten times smaller.
    cell, frames = make_cell(dtype=torch.float32), make_frames(torch.float32)
    start = cell.initial_state(2, *SHAPE, frames)
    exact, last = unroll(cell, frames, start)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, rounded = unroll(cell, frames, start)
    assert (outputs.dtype, rounded.dtype) == (torch.bfloat16, torch.float32)
    assert (outputs - exact).abs().max() < 0.03
    assert (outputs - exact).abs().mean() < 0.003
    assert (rounded - last).abs().mean() < 0.005


def test_autocast_gradients_stay_close_to_those_of_single_precision():
    # The same 0.2 % per rounding; of a whole gradient, in norm, errors of random sign leave about one per cent.
    cell, frames = make_cell(dtype=torch.float32), make_frames(torch.float32)
    start, gradients = cell.initial_state(2, *SHAPE, frames), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs, last = unroll(cell, frames, start)
        (outputs.float().square().sum() + last.square().sum()).backward()
        gradients.append([parameter.grad.clone() for parameter in cell.parameters()])
        cell.zero_grad()
    for exact, rounded in zip(*gradients, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_a_cell_starts_with_an_open_forget_gate_and_closed_peepholes():
    cell = ConvLSTMCell(1, 3)
    assert cell.gates.bias.tolist() == [0] * 3 + [1] * 3 + [0] * 6
    assert not cell.peepholes.weight.any()
    hidden, memory = cell.initial_state(2, 4, 5, torch.ones(1, dtype=torch.float64))
    assert hidden.shape == memory.shape == (2, 3, 4, 5)
    assert hidden.dtype == torch.float64
    assert not hidden.any()


def test_the_memory_of_an_idle_cell_decays_by_its_forget_gate():
    # Zero weights: c' = sigmoid(1) c + sigmoid(0) tanh(0) and h' = sigmoid(0) tanh(c').
    cell = ConvLSTMCell(1, 2)
    torch.nn.init.zeros_(cell.gates.weight)
    memory = torch.randn(1, 2, 3, 3)
    hidden, (_, following) = cell(torch.randn(1, 1, 3, 3), (torch.zeros_like(memory), memory))
    torch.testing.assert_close(following, memory / (1 + torch.exp(torch.tensor(-1.0))))
    torch.testing.assert_close(hidden, torch.tanh(following) / 2)


def test_peepholes_count_one_weight_per_channel_and_gate():
    assert Peepholes(5).weight.shape == (3, 5, 1, 1)


@pytest.mark.parametrize(
    ("form", "first"),
    # input channels of the first layer of each stack: of the frame, and of what the forecaster eats
    [
        ({}, [5, 0]),
        ({"feedback": True}, [5, 5]),
        ({"one_pass": True}, [5]),
        ({"one_pass": True, "feedback": True}, [5]),
    ],
)
def test_a_network_has_the_parameters_that_the_equations_need(form, first):
    # Per layer 4 h (in + h) k^2 weights, 4 h biases, 3 h peepholes; readout h k^2 + 1 per channel. Forcings are eaten,
    # but not forecast.
    h, k, channels, forcings = 6, 5, 2, 3
    inputs = [size for frame in first for size in (frame, h)]
    expected = sum(4 * h * (n + h) * k**2 + 7 * h for n in inputs) + channels * (h * k**2 + 1)
    network = convlstm(channels=channels, forcings=forcings, hidden=h, layers=2, kernel=k, **form)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_a_network_has_the_live_parameters_of_public_code():
    # OpenSTL on Moving MNIST (16 channels in a patch of 4, 4 layers of 128, kernel 5) counts 15,083,520, of which 4 x 851,968,
    # of convolutions that its cell never calls, are dead. Of the live 11,675,648 ours has all, 4 h biases and 3 h peepholes in
    # each layer, and a readout of 5 x 5 with bias in place of 1 x 1 without.
    with torch.device("meta"):
        network = convlstm(channels=16, hidden=128, layers=4, kernel=5, one_pass=True)
    more = 4 * 7 * 128 + 16 * 128 * 24 + 16
    assert sum(parameter.numel() for parameter in network.parameters()) - more == 15_083_520 - 4 * 851_968 == 11_675_648


def test_what_cannot_be_a_cell_is_refused():
    with pytest.raises(ValueError, match="kernel must be odd, so that the grid keeps its size, got 4"):
        convlstm(hidden=2, kernel=4)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        convlstm(hidden=0)
    with pytest.raises(ValueError, match="a network needs at least one layer, got none"):
        convlstm(hidden=2, layers=0)
