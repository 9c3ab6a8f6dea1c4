import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from climapred.models.e3d_lstm import e3d_lstm, recall

SHAPE, CHANNELS, FORCINGS, HIDDEN = (5, 6), 2, 1, 3


def make_network(**options):
    """A float64 network far from its initial state: readout, biases and norms too have a part in the result."""
    torch.manual_seed(0)
    network = e3d_lstm(
        **{"channels": CHANNELS, "forcings": FORCINGS, "hidden": HIDDEN, "kernel": 3, **options}
    ).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network


def make_frames(times, *, channels=CHANNELS + FORCINGS, seed=1, shape=SHAPE):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, times, channels, *shape, dtype=torch.float64, generator=random)


def star(kernel, field):
    """3-D convolution with zeros beyond the edges; a window of even length is continued at its end only."""
    depth, across, along = ((size - 1) // 2 for size in kernel.shape[2:])
    field = F.pad(field, (along, along, across, across, depth, kernel.shape[2] - 1 - depth))
    return F.conv3d(field, kernel)


def slow_recall(query, memories):
    """Row by row: each position of the query is compared with each position of each memory."""
    result = torch.zeros_like(query)
    keys = [memory[:, :, d, y, x] for memory in memories for d, y, x in positions(memory)]
    for d, y, x in positions(query):
        scores = [torch.exp((query[:, :, d, y, x] * key).sum(dim=1, keepdim=True)) for key in keys]
        result[:, :, d, y, x] = sum(score * key for score, key in zip(scores, keys, strict=True)) / sum(scores)
    return result


def positions(field):
    return [(d, y, x) for d in range(field.shape[2]) for y in range(field.shape[3]) for x in range(field.shape[4])]


def layer_norm(x, gain, shift):
    mean = x.mean(dim=(1, 2, 3, 4), keepdim=True)
    variance = (x - mean).square().mean(dim=(1, 2, 3, 4), keepdim=True)
    gain, shift = (vector.view(1, -1, 1, 1, 1) for vector in (gain, shift))
    return gain * (x - mean) / torch.sqrt(variance + 1e-5) + shift


def layer(cell, x, h, history, m):
    """Wang et al. (2019), section 3: one convolution for each gate and operand."""
    size, sigmoid, tanh = x.shape[1], torch.sigmoid, torch.tanh
    (w_xi, w_xr, w_xo, w_xg), (w_hi, w_hr, w_ho, w_hg) = (
        part.chunk(4) for part in (cell.gates.weight[:, :size], cell.gates.weight[:, size:])
    )
    (v_xi, v_xg, v_xf), (v_mi, v_mg, v_mf) = (
        part.chunk(3) for part in (cell.memory_gates.weight[:, :size], cell.memory_gates.weight[:, size:])
    )
    b_i, b_r, b_o, b_g = (part.view(1, -1, 1, 1, 1) for part in cell.gates.bias.chunk(4))
    d_i, d_g, d_f = (part.view(1, -1, 1, 1, 1) for part in cell.memory_gates.bias.chunk(3))
    w_co, w_mo = cell.output_gate.weight.chunk(2, dim=1)
    w_c, w_m = cell.mix.weight.chunk(2, dim=1)

    r = sigmoid(star(w_xr, x) + star(w_hr, h) + b_r)
    i = sigmoid(star(w_xi, x) + star(w_hi, h) + b_i)
    g = tanh(star(w_xg, x) + star(w_hg, h) + b_g)
    c = i * g + layer_norm(history[-1] + slow_recall(r, history), cell.norm.weight, cell.norm.bias)
    i = sigmoid(star(v_xi, x) + star(v_mi, m) + d_i)
    g = tanh(star(v_xg, x) + star(v_mg, m) + d_g)
    f = sigmoid(star(v_xf, x) + star(v_mf, m) + d_f)
    m = i * g + f * m
    o = sigmoid(star(w_xo, x) + star(w_ho, h) + star(w_co, c) + star(w_mo, m) + b_o)
    return o * tanh(star(w_c, c) + star(w_m, m)), c, m


def reference(network, frames, future, steps, *, window, memory):
    """All frames on one line of times; what is before the first is zero."""
    cells, channels = network.encoder.cells, network.channels
    zeros = frames.new_zeros(2, HIDDEN, window, *frames.shape[-2:])
    h, c, m = [zeros] * len(cells), [[zeros] for _ in cells], zeros
    eaten, outputs = [torch.zeros_like(frames[:, 0])] * (window - 1), []
    for time in range(frames.shape[1] + steps - 1):
        lead = time - frames.shape[1]
        eaten.append(frames[:, time] if lead < 0 else torch.cat([outputs[-1], future[:, lead, channels:]], dim=1))
        x = torch.stack(eaten[-window:], dim=2)
        for number, cell in enumerate(cells):
            h[number], newest, m = layer(cell, x, h[number], c[number][-memory:], m)
            c[number].append(newest)
            x = h[number]
        kernel = network.readout.weight.view(channels, HIDDEN, window, 1, 1)
        outputs.append(F.conv3d(x, kernel, network.readout.bias)[:, :, 0])
    return torch.stack(outputs[-steps:], dim=1)


@pytest.mark.parametrize(("window", "memory", "times"), [(2, 2, 2), (1, 3, 2), (3, 1, 1)])
def test_network_and_its_gradients_are_the_equations(window, memory, times):
    network = make_network(window=window, memory=memory)
    frames, future = make_frames(times, shape=(3, 4)), make_frames(2, seed=2, shape=(3, 4))
    leaves = [*network.parameters(), frames.requires_grad_(), future.requires_grad_()]
    forecast = network(frames, 2, future=future)
    expected = reference(network, frames, future, 2, window=window, memory=memory)
    torch.testing.assert_close(forecast, expected, rtol=1e-10, atol=1e-10)
    found, wanted = (torch.autograd.grad(field.square().sum(), leaves) for field in (forecast, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_recall_is_a_mean_with_weights_that_sum_to_one():
    query, constant = (
        torch.randn(2, 3, 2, 4, 5),
        torch.ones(2, 3, 2, 4, 5) * torch.tensor([1.0, -2.0, 3.0])[:, None, None, None],
    )
    torch.testing.assert_close(recall(query, (constant, constant)), constant)
    memories = torch.randn(2, 2, 3, 2, 4, 5)
    found = recall(query, tuple(memories))
    low, high = (memories.amin(dim=(0, 3, 4, 5)), memories.amax(dim=(0, 3, 4, 5)))
    assert (found >= low[:, :, None, None, None] - 1e-6).all()
    assert (found <= high[:, :, None, None, None] + 1e-6).all()


def test_recall_does_not_know_places():
    query, memory = torch.randn(1, 3, 2, 4, 5), torch.randn(1, 3, 2, 4, 5)
    found = recall(query.roll((1, 2), dims=(3, 4)), (memory.flip(3),))
    torch.testing.assert_close(found, recall(query, (memory,)).roll((1, 2), dims=(3, 4)))


def test_cells_are_remembered_for_as_long_as_asked():
    network, frames = make_network(memory=2), make_frames(4)
    state, lengths = network.encoder.initial_state(2, *SHAPE, frames), []
    for frame in frames.unbind(1):
        _, state = network.encoder(frame, state)
        lengths.append([len(history) for _, history in state[2]])
    assert lengths == [[2, 2]] * 4
    assert torch.equal(state[0][:, :, 0], frames[:, -1])


def test_a_network_has_the_parameters_that_the_equations_need():
    # OpenSTL on Moving MNIST (16 channels in a patch of 4, 4 layers of 128, kernels of 2 x 5 x 5, grid 16 x 16) counts
    # 51,347,456, of which ours lacks in each layer the convolution m of tanh(W * m) (128 * 128 * 50; not in the paper, whose
    # equation has the memory itself) and most of its layer norm (2 * 128 * 2 * 16 * 16, a gain and a shift for each point;
    # here for each channel), and has 7 * 128 biases of the gates, 16 of the readout. (As its cell returns the old m, which
    # stays zero, its weights on m never get a gradient: 4 * 4 * 128 * 128 * 50 = 13,107,200; live are 38,240,256.)
    with torch.device("meta"):
        network = e3d_lstm(channels=16, hidden=128, layers=4)
    expected = 51_347_456 - 4 * (128 * 128 * 50 + 2 * 128 * (2 * 16 * 16 - 1) - 7 * 128) + 16
    assert sum(parameter.numel() for parameter in network.parameters()) == expected == 47_550_992


def test_an_untrained_network_forecasts_nothing_and_forgets_little():
    network = e3d_lstm(channels=2, hidden=3)
    assert not network(torch.randn(1, 2, 2, *SHAPE), 2).any()
    assert network.encoder.cells[0].memory_gates.bias.tolist() == [0] * 6 + [1] * 3


def test_autocast_keeps_the_memories_in_single_precision():
    # bfloat16 has 8 bits: 0.4 % of pre-activations of size 2, over four steps; see tests/models/test_convlstm.py.
    network, frames, future = make_network().float(), make_frames(3).float(), make_frames(2, seed=2).float()
    exact = network(frames, 2, future=future)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(frames, 2, future=future)
        _, (_, memory, layers) = network.encoder(frames[:, 0], network.encoder.initial_state(2, *SHAPE, frames))
    assert (found - exact).abs().max() < 0.1
    assert memory.dtype == layers[0][1][-1].dtype == torch.float32


@pytest.mark.parametrize("name", ["hidden", "layers", "window", "memory"])
def test_what_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        e3d_lstm(**{name: 0})
    with pytest.raises(ValueError, match="kernel must be odd, so that the grid keeps its size, got 4"):
        e3d_lstm(hidden=2, kernel=4)


def test_recall_never_keeps_all_scores():
    """Torch's fused kernel takes the rows, in the backward pass too; without it the scores of 5 memories fill gigabytes."""
    fields = [torch.randn(2, 3, 2, 5, 6, requires_grad=True) for _ in range(3)]
    expected = recall(fields[0], tuple(fields[1:]))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it cannot
        found = recall(fields[0], tuple(fields[1:]))
    found.sum().backward()
    torch.testing.assert_close(found, expected)
    assert all(field.grad.isfinite().all() for field in fields)
