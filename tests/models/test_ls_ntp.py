import pytest
import torch
import torch.nn.functional as F

from climapred.models.adjacency import LearnedAdjacency
from climapred.models.ls_ntp import LSConvLSTMCell, NodeAttention, ls_ntp

INPUTS, HIDDEN, HEIGHT, WIDTH = 2, 3, 4, 5
NODES = HEIGHT * WIDTH


def randomise(module, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return module.double()


def attended(attention, x):
    """NSA node by node: each layer's 1x1 convolution is a matrix, its norm runs over all nodes and channels."""
    first, norm_1, _, second, norm_2, _, third = attention.score
    batch, channels, height, width = x.shape
    y = torch.zeros_like(x)
    for b in range(batch):
        values = x[b].reshape(channels, -1)
        for convolution, norm in ((first, norm_1), (second, norm_2)):
            values = convolution.weight[:, :, 0, 0] @ values + convolution.bias[:, None]
            variance, mean = torch.var_mean(values, correction=0)
            values = (values - mean) / torch.sqrt(variance + norm.eps)
            values = (values * norm.weight[:, None] + norm.bias[:, None]).clamp(min=0)
        score = third.weight[:, :, 0, 0] @ values + third.bias[:, None]
        y[b] = x[b] / (1 + torch.exp(-score.view(channels, height, width)))
    return y


def reference_step(cell, embedding, x, hidden, memory):
    """LS-Conv in the place of Shi's convolution, and an adjacency that is built anew."""
    weights = torch.softmax(F.relu(torch.einsum("ie,je->ij", embedding, embedding)), dim=1)
    together = attended(cell.attention, hidden if x is None else torch.cat([x, hidden], dim=1))
    mixed = together.clone()
    for target in range(NODES):
        for source in range(NODES):
            mixed[:, :, target // WIDTH, target % WIDTH] += (
                weights[target, source] * together[:, :, source // WIDTH, source % WIDTH]
            )
    a_i, a_f, a_c, a_o = F.conv2d(mixed, cell.gates.weight, cell.gates.bias, padding=1).chunk(4, dim=1)
    w_ci, w_cf, w_co = cell.peepholes.weight
    i, f = torch.sigmoid(a_i + w_ci * memory), torch.sigmoid(a_f + w_cf * memory)
    memory = f * memory + i * torch.tanh(a_c)
    return torch.sigmoid(a_o + w_co * memory) * torch.tanh(memory), memory


def test_attention_is_the_formula_node_by_node():
    attention, x = randomise(NodeAttention(4)), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(attention(x), attended(attention, x))


def test_attention_weighs_within_0_and_1_and_by_a_half_when_its_last_layer_is_zero():
    attention, x = randomise(NodeAttention(4)), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    ratio = attention(x) / x
    assert ((ratio > 0) & (ratio < 1)).all()
    torch.nn.init.zeros_(attention.score[-1].weight)
    torch.nn.init.zeros_(attention.score[-1].bias)
    torch.testing.assert_close(attention(x), x / 2)


def test_cell_and_its_gradients_are_those_of_the_literal_steps():
    adjacency, cell = randomise(LearnedAdjacency(NODES, 3)), randomise(LSConvLSTMCell(INPUTS, HIDDEN), seed=1)
    frames = torch.randn(2, 2, INPUTS, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    start = tuple(torch.randn(2, HIDDEN, HEIGHT, WIDTH, dtype=torch.float64) for _ in range(2))
    leaves = [frames, adjacency.embedding, *cell.parameters()]

    state, shared = start, adjacency()
    for frame in frames:
        hidden, state = cell(frame, state, shared)
    expected, memory = start
    for frame in frames:
        expected, memory = reference_step(cell, adjacency.embedding, frame, expected, memory)

    torch.testing.assert_close(hidden, expected)
    torch.testing.assert_close(state, (expected, memory))
    found = torch.autograd.grad(hidden.sum() + state[1].square().sum(), leaves)
    wanted = torch.autograd.grad(expected.sum() + memory.square().sum(), leaves)
    for gradient, reference in zip(found, wanted, strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(gradient, reference)


def test_a_cell_without_input_lives_on_its_state():
    adjacency, cell = randomise(LearnedAdjacency(NODES, 3)), randomise(LSConvLSTMCell(0, HIDDEN), seed=1)
    start = tuple(torch.randn(2, HIDDEN, HEIGHT, WIDTH, dtype=torch.float64) for _ in range(2))
    hidden, state = cell(None, start, adjacency())
    expected = reference_step(cell, adjacency.embedding, None, *start)
    torch.testing.assert_close(hidden, expected[0])
    torch.testing.assert_close(state, expected)


FORMS = [{}, {"feedback": True}, {"one_pass": True}]


@pytest.mark.parametrize("form", FORMS)
def test_one_step_reaches_every_node(form):
    # A 3 x 3 convolution alone would see the neighbours only.
    network = ls_ntp(height=6, width=7, hidden=3, layers=1, embedding=4, **form)
    torch.nn.init.normal_(network.readout.weight)
    frames = torch.randn(1, 1, 1, 6, 7, requires_grad=True)
    network(frames, 1)[0, 0, 0, 0, 0].backward()
    assert (frames.grad != 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_adjacency_is_shared_by_all_layers_and_built_once_a_pass(form):
    network = ls_ntp(height=4, width=5, hidden=3, layers=3, embedding=4, **form)
    assert [name for name, _ in network.named_parameters() if "embedding" in name] == ["shared.embedding"]
    calls = []
    network.shared.register_forward_hook(lambda *_: calls.append(1))
    network(torch.randn(2, 4, 1, 4, 5), 5)
    assert len(calls) == 1


@pytest.mark.parametrize(("form", "first"), list(zip(FORMS, [[3, 0], [3, 3], [3]], strict=True)))
def test_parameter_count_follows_the_published_arithmetic(form, first):
    # Per cell with C = inputs + hidden: gates 4 h C 9, attention 3 (C^2 + C) + 4 C, peepholes 3 h, as in the authors'
    # code; here plus 4 h biases, and C = h for the first layer of a forecaster without input. A frame is one variable
    # and two forcings.
    h = 5
    joined = [size for inputs in first for size in (inputs + h, 2 * h)]
    cells = sum(36 * h * c + 3 * (c * c + c) + 4 * c + 3 * h + 4 * h for c in joined)
    network = ls_ntp(height=4, width=6, forcings=2, hidden=h, embedding=7, **form)
    assert sum(parameter.numel() for parameter in network.parameters()) == 24 * 7 + cells + 9 * h + 1
