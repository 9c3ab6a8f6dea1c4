import pytest
import torch
import torch.nn.functional as F

from climapred.models.convlstm import convlstm
from climapred.models.recurrent import Layers
from climapred.models.sa_convlstm import SAConvLSTMCell, SelfAttentionMemory, sa_convlstm

INPUTS, HIDDEN, SHAPE = 2, 3, (5, 6)
FORMS = {"states": {}, "feedback": {"feedback": True}, "one_pass": {"one_pass": True}}
every_form = pytest.mark.parametrize("form", FORMS)


def randomised(module, *, std=0.5):
    """A float64 module far from its initial state; attention is far from even."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module


def make_field(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attend(query, key, value):
    """Every point asks all points: (B, C, N) each; alpha_ij = exp(q_i k_j) / sum_j exp(q_i k_j)."""
    scores = torch.einsum("bci,bcj->bij", query, key).exp()
    alpha = scores / scores.sum(dim=2, keepdim=True)
    assert torch.allclose(alpha.sum(dim=2), torch.ones_like(alpha[:, 0]))
    return torch.einsum("bij,bcj->bci", alpha, value)


def reference_memory(module, hidden, memory):
    """Lin et al. (2020), the self-attention memory, product by product."""
    w_q, w_hk, w_hv = module.of_hidden.weight.chunk(3)
    w_mk, w_mv = module.of_memory.weight.chunk(2)
    channels, h, m = hidden.shape[1], hidden.flatten(2), memory.flatten(2)
    z_h = attend(w_q @ h, w_hk @ h, w_hv @ h)
    z_m = attend(w_q @ h, w_mk @ m, w_mv @ m)
    z = (module.fuse.weight[:, :channels] @ z_h + module.fuse.weight[:, channels:] @ z_m).view_as(hidden)
    around = module.around.weight

    def star(field, depthwise, pointwise):
        alone = [F.conv2d(field[:, [c]], depthwise[[c]], padding=1) for c in range(channels)]
        return torch.einsum("bchw,oc->bohw", torch.cat(alone, dim=1), pointwise)

    gates = []
    for weight, bias in zip(module.gates.weight[..., 0, 0].chunk(3), module.gates.bias.chunk(3), strict=True):
        of_z = star(z, around[:channels], weight[:, :channels])
        of_h = star(hidden, around[channels:], weight[:, channels:])
        gates.append(of_z + of_h + bias.view(1, -1, 1, 1))
    i, g, o = torch.sigmoid(gates[0]), torch.tanh(gates[1]), torch.sigmoid(gates[2])
    memory = (1 - i) * memory + i * g
    return o * memory, memory


def reference_cell(cell, x, hidden, memory, attention):
    """Shi et al. (2015), eq. 3, then the memory."""
    seen = hidden if x is None else torch.cat([x, hidden], dim=1)
    i, f, c, o = F.conv2d(seen, cell.gates.weight, cell.gates.bias, padding=1).chunk(4, dim=1)
    w_ci, w_cf, w_co = cell.peepholes.weight
    i, f = torch.sigmoid(i + w_ci * memory), torch.sigmoid(f + w_cf * memory)
    memory = f * memory + i * torch.tanh(c)
    hidden = torch.sigmoid(o + w_co * memory) * torch.tanh(memory)
    hidden, attention = reference_memory(cell.memory, hidden, attention)
    return hidden, memory, attention


@pytest.mark.parametrize("inputs", [INPUTS, 0])
def test_layers_and_their_gradients_are_the_equations(inputs):
    cells = randomised(Layers([SAConvLSTMCell(inputs, HIDDEN), SAConvLSTMCell(HIDDEN, HIDDEN)]))
    frames, start = make_field(3, 2, INPUTS, *SHAPE), make_field(6, 2, HIDDEN, *SHAPE, seed=2).requires_grad_()
    state = (tuple(start[:3]), tuple(start[3:]))
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


def test_attention_needs_no_matrix_between_all_points():
    # The kernel that never holds N x N scores takes what the module gives it; one that cannot would raise here.
    module = SelfAttentionMemory(8)
    hidden, memory = torch.randn(2, 8, *SHAPE, requires_grad=True), torch.randn(2, 8, *SHAPE)
    expected = module(hidden, memory)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        found = module(hidden, memory)
    torch.testing.assert_close(found, expected)


def test_attention_does_not_know_where_points_lie():
    # With 1 x 1 in place of the k x k part, shuffling the points shuffles the result.
    module = randomised(SelfAttentionMemory(HIDDEN, kernel=1))
    hidden, memory = make_field(2, HIDDEN, 1, 30), make_field(2, HIDDEN, 1, 30, seed=2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    found = module(hidden[..., order], memory[..., order])
    expected = [field[..., order] for field in module(hidden, memory)]
    torch.testing.assert_close(list(found), expected, rtol=1e-12, atol=1e-12)


def test_one_point_reaches_all_in_one_step():
    # A ConvLSTM of one layer, kernel 3, would see one point far, and its readout another.
    network, frames = randomised(sa_convlstm(hidden=3, layers=1)), make_field(1, 1, 1, 9, 9).requires_grad_()
    gradient = torch.autograd.grad(network(frames, 1)[0, 0, 0, 0, 0], frames)[0]
    assert gradient.all()


def test_autocast_stays_close_to_single_precision_and_keeps_the_memories_in_it():
    # Every operand is off by up to 2^-9; see tests/models/test_convlstm.py.
    cell = randomised(SAConvLSTMCell(INPUTS, HIDDEN), std=0.3).float()
    x, state = make_field(2, INPUTS, *SHAPE).float(), tuple(make_field(3, 2, HIDDEN, *SHAPE, seed=2).float())
    exact, _ = cell(x, state)
    with torch.autocast("cpu", torch.bfloat16):
        found, following = cell(x, state)
    assert [part.dtype for part in following] == [torch.bfloat16, torch.float32, torch.float32]
    assert (found - exact).abs().mean() < 0.005


@every_form
def test_a_network_has_the_parameters_of_a_convlstm_and_those_of_the_memories(form):
    # Per layer: query, 2 keys, 2 values 5 h^2, W_z 2 h^2, 2 h k^2 by channel, 3 h (2 h + 1) across.
    h, k, options = 6, 3, {"channels": 2, "hidden": 6, "layers": 2, "kernel": 3, **FORMS[form]}
    memories = (2 if form == "one_pass" else 4) * (5 * h**2 + 2 * h**2 + 2 * h * k**2 + 3 * h * (2 * h + 1))
    plain, attentive = (sum(p.numel() for p in make(**options).parameters()) for make in (convlstm, sa_convlstm))
    assert attentive == plain + memories


def test_what_cannot_be_a_cell_is_refused():
    with pytest.raises(ValueError, match="kernel must be odd, so that the grid keeps its size, got 4"):
        sa_convlstm(hidden=2, kernel=4)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        sa_convlstm(hidden=0)
