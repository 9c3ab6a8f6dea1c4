import pytest
import torch

from climapred.models.agcrn import AdaptiveGraph, AGCRNCell, WeightPool, agcrn

HEIGHT, WIDTH, CHANNELS, FORCINGS, HIDDEN, EMBEDDING = 3, 4, 2, 1, 3, 5
NODES = HEIGHT * WIDTH
FORMS = {"states": {}, "feedback": {"feedback": True}, "one_pass": {"one_pass": True}}


def make_network(form="feedback", *, std=0.5, **options):
    """A small float64 network far from its initial state."""
    torch.manual_seed(0)
    sizes = {"channels": CHANNELS, "forcings": FORCINGS, "hidden": HIDDEN, "height": HEIGHT, "width": WIDTH}
    network = agcrn(**{**sizes, "embedding": EMBEDDING, **options}, **FORMS[form]).double()
    if std:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return network


def make_frames(times=3, *, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, times, CHANNELS + FORCINGS, HEIGHT, WIDTH, dtype=torch.float64, generator=random)


def reference_graph(embedding):
    """Bai et al. (2020), eq. 5, row by row."""
    rows = []
    for node in embedding:
        weights = torch.relu(embedding @ node).exp()
        rows.append(weights / weights.sum())
    return torch.stack(rows)


def reference_product(pool, embedding, adjacency, x, hidden):
    """Bai et al. (2020), eq. 4 and 6, node by node, with own weights for I and A: (N, outputs) from (N, inputs), (N, hidden).

    Rows of the pool belong to x, A x, h and A h, in this order.
    """
    seen = torch.cat([x, adjacency @ x, hidden, adjacency @ hidden], dim=1)
    outputs = []
    for node in range(NODES):
        theta = sum(embedding[node, d] * pool.weight[d] for d in range(EMBEDDING))
        bias = sum(embedding[node, d] * pool.bias[d] for d in range(EMBEDDING))
        outputs.append(seen[node] @ theta + bias)
    return torch.stack(outputs)


def reference_cell(cell, graph, x, hidden):
    """Bai et al. (2020), eq. 7, for one window; x (N, inputs), h (N, hidden)."""
    embedding = graph.adjacency.embedding
    adjacency = reference_graph(embedding)
    gates = reference_product(graph.pools[cell.gates], embedding, adjacency, x, hidden)
    z, r = torch.sigmoid(gates[:, :HIDDEN]), torch.sigmoid(gates[:, HIDDEN:])
    n = torch.tanh(reference_product(graph.pools[cell.candidate], embedding, adjacency, x, r * hidden))
    return z * hidden + (1 - z) * n


def reference(network, frames, future, steps):
    """The forecast of the conditional form, window by window."""
    forecasts = []
    for window, ahead in zip(frames, future, strict=True):
        states, leads = [torch.zeros(NODES, HIDDEN, dtype=frames.dtype)] * 2, []

        def run(cells, frame, states=states):
            x = frame.reshape(len(frame), NODES).T
            for layer, cell in enumerate(cells):
                x = states[layer] = reference_cell(cell, network.shared, x, states[layer])
            return x

        for frame in window:
            run(network.encoder, frame)
        frame = window[-1]
        for lead in range(steps):
            output = run(network.forecaster, frame) @ network.readout.weight[..., 0, 0].T + network.readout.bias
            leads.append(output.T.view(CHANNELS, HEIGHT, WIDTH))
            frame = torch.cat([leads[-1], ahead[lead, CHANNELS:]])
        forecasts.append(torch.stack(leads))
    return torch.stack(forecasts)


def test_forecast_and_gradients_are_the_equations():
    network, frames, future = make_network(), make_frames().requires_grad_(), make_frames(3, seed=2)
    leaves = [*network.parameters(), frames]
    found, expected = network(frames, 3, future=future), reference(network, frames, future, 3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weigh = torch.randn_like(found)
    gradients = [torch.autograd.grad((forecast * weigh).sum(), leaves) for forecast in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_the_adjacency_is_at_hand():
    graph = make_network().shared
    weights = graph.adjacency()
    torch.testing.assert_close(weights, reference_graph(graph.adjacency.embedding))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(NODES, dtype=torch.float64))
    assert torch.equal(graph().adjacency, weights)


def test_what_depends_on_parameters_alone_is_made_once_per_forward_pass():
    network, calls = make_network(), []
    for module in (network.shared.adjacency, *network.shared.pools):
        module.register_forward_hook(lambda module, *_: calls.append(module))
    network(make_frames(), 4, future=make_frames(4))
    assert len(calls) == 1 + len(network.shared.pools) == 1 + 2 * 4  # two pools per cell, two layers, two stacks


def test_points_may_be_renumbered():
    # A forecast depends on nodes through E alone: other places of the points, with their rows of E, move it along.
    network, frames, future = make_network(), make_frames(), make_frames(2, seed=2)
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(3))

    def moved(fields):
        return fields.flatten(-2)[..., order].view_as(fields)

    expected = moved(network(frames, 2, future=future))
    embedding = network.shared.adjacency.embedding
    with torch.no_grad():
        embedding.copy_(embedding[order])
    torch.testing.assert_close(network(moved(frames), 2, future=moved(future)), expected, rtol=1e-12, atol=1e-12)


def test_weights_of_nodes_start_with_the_spread_of_a_linear_layer():
    # Glorot: the variance is 2 / (inputs + outputs). 200 nodes x 40 x 20 weights out of a pool of 10 x 40 x 20, mixed by
    # 200 x 10 numbers, whose own spread is known to some per cent.
    torch.manual_seed(0)
    graph = AdaptiveGraph(200, 10)
    graph.add_pool(40, 20)
    with torch.no_grad():
        weights = graph().weights[0]
    assert weights.weight.shape == (200, 40, 20)
    assert float(weights.weight.var()) == pytest.approx(2 / 60, rel=0.15)
    assert not weights.bias.any()


def test_autocast_stays_close_to_single_precision_and_keeps_the_memory_in_it():
    # Every operand is off by up to 2^-9; see tests/models/test_convlstm.py.
    network, frames, future = make_network(std=0.3).float(), make_frames().float(), make_frames(2).float()
    exact = network(frames, 2, future=future)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(frames, 2, future=future)
        state = network.encoder.initial_state(2, HEIGHT, WIDTH, frames)
        _, state = network.encoder(frames[:, 0], state, network.shared())
    assert state[0][0].dtype == torch.float32
    assert (found - exact).abs().mean() < 0.01


def test_parameters_of_the_published_code():
    # PEMSD4: 307 nodes, one variable, two layers of 64, embedding 10, I and A: 748,810 numbers in the authors' code, of which
    # 780 are a readout of all 12 leads at once from 64 channels. Ours reads one lead: 65.
    network = agcrn(height=307, width=1, one_pass=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == 748_810 - 780 + 65
    assert sum(p.numel() for p in WeightPool(130, 128, 307, 10).parameters()) == 10 * (130 * 128 + 128)


def test_what_cannot_be_a_network_is_refused():
    with pytest.raises(ValueError, match="an adjacency needs at least 2 nodes and 1 embedding channel, got nodes=1"):
        agcrn(height=1, width=1)
    with pytest.raises(ValueError, match=r"at least 2 nodes and 1 embedding channel, got nodes=4, embedding=0"):
        agcrn(height=2, width=2, embedding=0)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        AGCRNCell(1, 0, AdaptiveGraph(4, 2))
    with pytest.raises(ValueError, match="a network needs at least one layer, got none"):
        agcrn(height=2, width=2, layers=0)
