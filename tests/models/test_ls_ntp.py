import pytest
import torch
import torch.nn.functional as F

from climapred.models import build_model
from climapred.models.adjacency import LearnedAdjacency
from climapred.models.convlstm import convlstm
from climapred.models.ls_ntp import LSConv, LSConvLSTMCell, NodeAttention, ls_ntp

INPUTS, HIDDEN, HEIGHT, WIDTH = 2, 3, 4, 5
NODES = HEIGHT * WIDTH
CLASSIC = {"branch": 0, "smooth": 1, "directed": False, "relu": True}  # the paper's LS-Conv between our gates
VARIANTS = pytest.mark.parametrize("variant", [{"variant": "paper"}, CLASSIC], ids=["paper", "classic"])


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


@pytest.mark.parametrize(
    "form",
    [LSConv(), LSConv(attention=False), LSConv(branch=4), LSConv(paper=True)],
    ids=["whole", "w/o NSA", "branch", "paper"],
)
def test_before_the_first_frame_the_hidden_state_is_zero(form):
    adjacency, cell = (
        randomise(LearnedAdjacency(NODES, 3)),
        randomise(LSConvLSTMCell(INPUTS, HIDDEN, form=form), seed=1),
    )
    x = torch.randn(2, INPUTS, HEIGHT, WIDTH, dtype=torch.float64)
    leaves = [adjacency.embedding, *(weight for name, weight in cell.named_parameters() if name != "peepholes.weight")]
    start = cell.initial_state(2, HEIGHT, WIDTH, x)
    assert start[0] is None  # half of what the cell would compute
    found, wanted = (cell(x, state, adjacency())[1] for state in (start, (torch.zeros_like(start[1]), start[1])))
    torch.testing.assert_close(found, wanted)
    for gradients in zip(
        *(torch.autograd.grad(state[0].square().sum(), leaves) for state in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(*gradients)
    assert LSConvLSTMCell(0, HIDDEN).initial_state(2, HEIGHT, WIDTH, x)[0].shape == (2, HIDDEN, HEIGHT, WIDTH)


FORMS = [{}, {"feedback": True}, {"one_pass": True}]


@pytest.mark.parametrize("form", FORMS)
def test_one_step_reaches_every_node(form):
    # A 3 x 3 convolution alone would see the neighbours only.
    network = ls_ntp(height=6, width=7, hidden=3, layers=1, embedding=4, **form)
    for weight in (
        network.readout.weight,
        *(weight for name, weight in network.named_parameters() if "receive" in name),
    ):
        torch.nn.init.normal_(weight)
    frames = torch.randn(1, 1, 1, 6, 7, requires_grad=True)
    network(frames, 1)[0, 0, 0, 0, 0].backward()
    assert (frames.grad != 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_adjacency_is_shared_by_all_layers_and_built_once_a_pass(form):
    network = ls_ntp(height=4, width=5, hidden=3, layers=3, embedding=4, **form)
    assert [name for name, _ in network.named_parameters() if "shared" in name] == [
        "shared.embedding",
        "shared.sources",
    ]
    calls = []
    network.shared.register_forward_hook(lambda *_: calls.append(1))
    network(torch.randn(2, 4, 1, 4, 5), 5)
    assert len(calls) == 1


@pytest.mark.parametrize(("form", "first"), list(zip(FORMS, [[3, 0], [3, 3], [3]], strict=True)))
def test_parameter_count_follows_the_published_arithmetic(form, first):
    # Per cell with C = inputs + hidden: gates 4 h C 9, attention 3 (C^2 + C) + 4 C, peepholes 3 h, as in the authors'
    # code; here plus 4 h biases, and C = h for the first layer of a forecaster without input. A frame is one variable
    # and two forcings. With a branch of r channels NSA sees these; V takes r C + r, U 4 h r, and each of the
    # 2 x 3 knots has two vectors.
    h, r = 5, 2
    joined = [size for inputs in first for size in (inputs + h, 2 * h)]
    gates, attention = [36 * h * c + 3 * h + 4 * h for c in joined], [3 * (c * c + c) + 4 * c for c in (*joined, r)]
    sizes = {"height": 4, "width": 6, "forcings": 2, "hidden": h, "embedding": 7, **form}
    wanted = 24 * 7 + sum(gates) + sum(attention[:-1]) + 9 * h + 1
    assert sum(parameter.numel() for parameter in ls_ntp(**sizes, **CLASSIC).parameters()) == wanted
    wanted = 2 * 6 * 7 + sum(gates) + sum(r * c + r + 4 * h * r + attention[-1] for c in joined) + 9 * h + 1
    assert sum(parameter.numel() for parameter in ls_ntp(**sizes, branch=r).parameters()) == wanted


# The paper's network


def paper_cell(cell, embedding, x, hidden, memory):
    """The authors' cell: adjacency with I from scratch, no bias, ReLU before the gates; the input is there even if zero."""
    nodes = len(embedding)
    support = torch.eye(nodes, dtype=embedding.dtype) + torch.softmax(F.relu(embedding @ embedding.T), dim=1)
    together = attended(cell.attention, torch.cat([x, hidden], dim=1))
    mixed = torch.einsum("nm,bcm->bcn", support, together.flatten(2)).view_as(together)
    products = F.relu(F.conv2d(mixed, cell.gates.weight, padding=cell.gates.kernel_size[0] // 2))
    a_i, a_f, a_c, a_o = products.split(hidden.shape[1], dim=1)
    w_ci, w_cf, w_co = cell.peepholes.weight
    i, f = torch.sigmoid(a_i + w_ci * memory), torch.sigmoid(a_f + w_cf * memory)
    memory = f * memory + i * torch.tanh(a_c)
    return torch.sigmoid(a_o + w_co * memory) * torch.tanh(memory), memory


def paper_forecast(network, frames, steps, *, downsample):
    """Encoder, then a decoder of as many layers that eats zeros and starts from the encoder's states."""
    encoder = network.encoder.cell if downsample else network.encoder
    embedding, states = network.shared.embedding, None
    for frame in frames.unbind(1):
        x = frame
        if downsample:
            x = F.conv2d(frame, network.encoder.reduce.weight, network.encoder.reduce.bias, stride=2)
        states = states or [tuple(x.new_zeros(len(x), HIDDEN, *x.shape[2:]) for _ in range(2)) for _ in encoder]
        for layer, cell in enumerate(encoder):
            states[layer] = paper_cell(cell, embedding, x, *states[layer])
            x = states[layer][0]
    outputs = []
    for _ in range(steps):
        x = torch.zeros_like(x)
        for layer, cell in enumerate(network.forecaster):
            states[layer] = paper_cell(cell, embedding, x, *states[layer])
            x = states[layer][0]
        up = {"stride": 2} if downsample else {"padding": 1}
        read = F.conv_transpose2d if downsample else F.conv2d
        outputs.append(read(x, network.readout.weight, network.readout.bias, **up))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("adjacency", ["dense", "streamed"])
@pytest.mark.parametrize("downsample", [False, True])
def test_the_papers_network_is_the_authors_in_output_and_all_gradients(downsample, adjacency):
    sizes = {
        "height": 7,
        "width": 9,
        "hidden": HIDDEN,
        "embedding": 4,
        "downsample": downsample,
        "adjacency": adjacency,
    }
    network = randomise(ls_ntp(variant="paper", **sizes))
    frames = torch.randn(2, 3, 1, 7, 9, dtype=torch.float64, requires_grad=True)
    forecast, expected = network(frames, 3), paper_forecast(network, frames, 3, downsample=downsample)
    assert forecast.shape == (2, 3, 1, 7, 9)
    assert expected.std() > 0.03
    torch.testing.assert_close(forecast, expected)
    leaves = [frames, *network.parameters()]
    found, wanted = (torch.autograd.grad(each.square().sum(), leaves) for each in (forecast, expected))
    for gradient, reference in zip(found, wanted, strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"height": 77, "width": 125, "hidden": 128, "downsample": True}, 5_988_373),  # ERA5; the paper says 5.99M
        ({"height": 21, "width": 35, "hidden": 256}, 19_475_979),  # NCEP; 19.48M
    ],
)
def test_the_papers_network_has_the_papers_parameters(options, count):
    with torch.device("meta"):
        network = build_model("ls_ntp", variant="paper", embedding=512, **options)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_dead_weights_of_the_paper_are_those_of_the_zero_input():
    # Of the decoder's first layer: 4 h x h k^2 of the gates, and in NSA the columns of the first convolution that see the
    # zeros (2 h x h), the rows of the last one that weigh them (h x 2 h) and their biases: at h = 128, 655,488.
    h = 4
    network = randomise(ls_ntp(variant="paper", height=5, width=6, hidden=h, embedding=4))
    frames = torch.randn(2, 3, 1, 5, 6, dtype=torch.float64)
    before = network(frames, 3)
    before.square().sum().backward()
    cell = network.forecaster[0]
    first, last = cell.attention.score[0], cell.attention.score[6]
    dead = [(cell.gates.weight, (slice(None), slice(h))), (first.weight, (slice(None), slice(h)))]
    dead += [(last.weight, (slice(h),)), (last.bias, (slice(h),))]
    count = 0
    for weight, where in dead:
        assert not weight.grad[where].any()
        assert weight.grad.any()
        count += weight[where].numel()
        with torch.no_grad():
            weight[where] += torch.randn_like(weight[where])
    assert torch.equal(network(frames, 3), before)
    assert count == 4 * h * h * 9 + 4 * h * h + h


def test_the_papers_weights_start_as_the_authors():
    torch.manual_seed(0)
    network = ls_ntp(variant="paper", height=8, width=9, hidden=16, embedding=64)
    gates, peepholes = network.encoder[1].gates, network.encoder[1].peepholes.weight
    assert gates.bias is None
    assert gates.weight.std().item() == pytest.approx((2 / (32 * 9 + 64 * 9)) ** 0.5, rel=0.05)
    bound = (6 / 17) ** 0.5
    assert 0.8 * bound < peepholes.abs().max() < bound
    assert network.shared.embedding.std().item() == pytest.approx((2 / (72 + 64)) ** 0.5, rel=0.05)
    assert network.readout.weight.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", ["paper", "climapred"])
def test_half_the_grid_is_an_option_of_every_form(variant, form):
    network = ls_ntp(variant=variant, height=7, width=9, forcings=1, hidden=3, embedding=4, downsample=True, **form)
    frames, future = torch.randn(2, 3, 2, 7, 9), torch.randn(2, 4, 2, 7, 9)
    forecast = network(frames, 4, future=future)
    assert forecast.shape == (2, 4, 1, 7, 9)
    assert forecast.any() == (variant == "paper")
    assert network.shared.embedding.shape == (3 * 4 if variant == "paper" else 2 * 2, 4)


@pytest.mark.parametrize(("height", "width", "kernel"), [(24, 53, 3), (25, 52, 3), (5, 9, 7)])
def test_half_of_an_even_grid_is_refused(height, width, kernel):
    wanted = f"downsample needs odd height and width of at least {kernel}.*got {height} x {width}"
    with pytest.raises(ValueError, match=wanted):
        ls_ntp(height=height, width=width, kernel=kernel, downsample=True)


# What can be left out or changed


def pair(one, other, **sizes):
    """Two networks of random weights, the second with those of the first as far as it has them."""
    sizes = {"height": HEIGHT, "width": WIDTH, "hidden": HIDDEN, "embedding": 4, **sizes}
    one, other = (randomise(ls_ntp(**{**sizes, **options})) for options in (one, other))
    known = one.state_dict()
    other.load_state_dict({key: known.get(key, value) for key, value in other.state_dict().items()})
    return one, other


def forecasts(*networks, steps=3):
    torch.manual_seed(5)
    frames = torch.randn(2, 3, 1, HEIGHT, WIDTH, dtype=torch.float64)
    return [network(frames, steps) for network in networks]


@VARIANTS
def test_without_attention_every_weight_of_it_is_1(variant):
    whole, ablated = pair(variant, {**variant, "attention": False})
    assert {key for key in whole.state_dict() if "attention" not in key} == set(ablated.state_dict())
    for name, parameter in whole.named_parameters():
        if "score.6" in name:
            torch.nn.init.constant_(parameter, 50.0 if "bias" in name else 0.0)
    torch.testing.assert_close(*forecasts(whole, ablated))


@VARIANTS
def test_without_long_range_the_adjacency_is_0(variant):
    whole, ablated = pair({**variant, "floor": False}, {**variant, "long_range": False})
    assert set(whole.state_dict()) - set(ablated.state_dict()) == {"shared.embedding"}
    torch.nn.init.zeros_(whole.shared.embedding)  # nobody is related to anybody
    torch.testing.assert_close(*forecasts(whole, ablated))


@VARIANTS
def test_without_short_range_only_the_middle_of_the_kernel_is_left(variant):
    whole, ablated = (
        randomise(ls_ntp(height=4, width=5, hidden=HIDDEN, embedding=4, short_range=short_range, **variant))
        for short_range in (True, False)
    )
    changed = set()
    for name, weight in ablated.named_parameters():
        target = whole.get_parameter(name).data
        if target.shape == weight.shape:
            target.copy_(weight)
        else:
            target.zero_()[:, :, 1:2, 1:2] = weight.detach()
            changed.add(name)
    assert changed == {f"{part}.{layer}.gates.weight" for part in ("encoder", "forecaster") for layer in (0, 1)}
    torch.testing.assert_close(*forecasts(whole, ablated))


def test_without_self_loop_a_node_has_what_it_hears():
    adjacency = randomise(LearnedAdjacency(NODES, 3))()
    whole = randomise(LSConvLSTMCell(INPUTS, HIDDEN), seed=1)
    ablated = randomise(LSConvLSTMCell(INPUTS, HIDDEN, form=LSConv(self_loop=False)), seed=1)
    x, *start = (torch.randn(2, size, HEIGHT, WIDTH).double() for size in (INPUTS, HIDDEN, HIDDEN))
    looped = adjacency + torch.eye(NODES, dtype=torch.float64)
    torch.testing.assert_close(ablated(x, start, looped), whole(x, start, adjacency))


def test_without_attention_and_long_range_it_is_a_convlstm():
    plain, ablated = (
        convlstm(hidden=HIDDEN),
        ls_ntp(height=4, width=5, hidden=HIDDEN, attention=False, long_range=False, **CLASSIC),
    )
    ablated.load_state_dict(randomise(plain).state_dict())
    torch.testing.assert_close(*forecasts(plain, ablated.double()))


@pytest.mark.parametrize("options", [{}, {"attention": False}, {"directed": False, "relu": True, "floor": False}])
def test_an_untrained_branch_leaves_a_convlstm(options):
    plain = randomise(convlstm(hidden=HIDDEN))
    branch = randomise(ls_ntp(height=4, width=5, hidden=HIDDEN, branch=2, **options), seed=1)
    branch.load_state_dict(plain.state_dict(), strict=False)
    for cell in (*branch.encoder, *branch.forecaster):
        torch.nn.init.zeros_(cell.receive.weight)
    expected, forecast = forecasts(plain, branch)
    torch.testing.assert_close(forecast, expected)
    forecast.square().sum().backward()
    assert all(cell.receive.weight.grad.all() for cell in branch.encoder)
    assert not any(cell.receive.weight.any() for cell in ls_ntp(height=4, width=5, hidden=3).encoder)


def test_without_long_range_the_branch_is_gone_and_a_convlstm_left():
    plain, ablated = convlstm(hidden=HIDDEN), ls_ntp(height=4, width=5, hidden=HIDDEN, long_range=False)
    ablated.load_state_dict(randomise(plain).state_dict())
    torch.testing.assert_close(*forecasts(plain, ablated.double()))


def test_the_branch_is_added_to_the_gates_of_a_convlstm():
    adjacency = randomise(LearnedAdjacency(NODES, 3, directed=True, relu=False))()
    cell = randomise(LSConvLSTMCell(INPUTS, HIDDEN, form=LSConv(branch=4)), seed=1)
    x, hidden, memory = (torch.randn(2, size, HEIGHT, WIDTH).double() for size in (INPUTS, HIDDEN, HIDDEN))
    together = torch.cat([x, hidden], dim=1)
    send, receive = (part.weight[:, :, 0, 0] for part in (cell.send, cell.receive))
    sent = torch.einsum("rc,bchw->brhw", send, together) + cell.send.bias[:, None, None]
    travelled = torch.einsum("nm,brm->brn", adjacency, attended(cell.attention, sent).flatten(2)).view_as(sent)
    gates = F.conv2d(together, cell.gates.weight, cell.gates.bias, padding=1)
    gates = gates + torch.einsum("gr,brhw->bghw", receive, travelled)
    expected = cell.peepholes(gates, memory)
    found = cell(x, (hidden, memory), adjacency)[1]
    torch.testing.assert_close(found, expected)
    leaves = [adjacency.grad_fn.next_functions[0][0], *cell.parameters()][1:]
    one, other = (torch.autograd.grad(sum(part.square().sum() for part in each), leaves) for each in (found, expected))
    for gradient, reference in zip(one, other, strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(gradient, reference)


@VARIANTS
def test_the_streamed_path_makes_the_same_network(variant):
    options = {**variant, "directed": True, "floor": False}
    dense, streamed = pair({**options, "adjacency": "dense"}, {**options, "adjacency": "streamed"})
    assert (dense.shared.form, streamed.shared.form) == ("dense", "streamed")
    one, other = forecasts(dense, streamed)
    torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)
    one.square().sum().backward()
    other.square().sum().backward()
    for wanted, found in zip(dense.parameters(), streamed.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-9, atol=1e-10)


def test_options_of_the_adjacency_reach_it():
    network = ls_ntp(height=70, width=80, hidden=1, embedding=1, relu=True, floor=False, max_km=900)
    assert repr(network.shared) == (
        "LearnedAdjacency(nodes=5600, embedding=1, directed=True, floor=False, smooth=4, form=streamed, max_km=900)"
    )
    network = ls_ntp(height=3, width=4, hidden=2, embedding=2, adjacency="sparse", links=3, refresh=7)
    assert (network.shared.links, network.shared.refresh, network.shared.kept.shape) == (3, 7, (12, 3))
    network = ls_ntp(height=3, width=4, hidden=2, embedding=2, max_km=900.0)
    network.shared.place([0.0, 10.0, 20.0], [0.0, 10.0, 20.0, 30.0])
    assert network(torch.randn(1, 2, 1, 3, 4), 2).shape == (1, 2, 1, 3, 4)


@pytest.mark.parametrize(
    "options", [{"variant": "paper"}, CLASSIC, {}, {"adjacency": "sparse", "links": 5}, {**CLASSIC, "self_loop": False}]
)
def test_every_form_learns(options):
    torch.manual_seed(0)
    network = ls_ntp(height=5, width=6, hidden=4, embedding=4, **options)
    places = torch.arange(6.0)
    east = torch.stack([torch.exp(-((places - 0.5 * time - 1) ** 2)).expand(5, 6) for time in range(5)])
    frames, truth = east[None, :3, None], east[None, 3:, None]
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=0.01), []
    for _ in range(40):
        loss = (network(frames, 2) - truth).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_unknown_and_contradicting_options_are_refused():
    with pytest.raises(ValueError, match="variant must be one of climapred, paper, got 'official'"):
        ls_ntp(height=4, width=5, variant="official")
    for options in ({"long_range": False, "branch": 0}, {"branch": 3}):
        with pytest.raises(ValueError, match="self_loop=False needs the long range in the paper's form"):
            ls_ntp(height=4, width=5, self_loop=False, **options)
    with pytest.raises(ValueError, match="branch must be at least 0, got -1"):
        ls_ntp(height=4, width=5, branch=-1)
    with pytest.raises(ValueError, match="branch must be 0, the form of the paper, got 8"):
        ls_ntp(height=4, width=5, variant="paper", branch=8)
    with pytest.raises(ValueError, match="a network needs at least one layer"):
        ls_ntp(height=4, width=5, layers=0)
