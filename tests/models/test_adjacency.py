import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from climapred.models.adjacency import DENSE_NODES, LearnedAdjacency, heard, mix
from climapred.models.streamed import StreamedAdjacency


def make_adjacency(shape=12, embedding=3, *, size=1.0, seed=0, **options):
    torch.manual_seed(seed)
    adjacency = LearnedAdjacency(shape, embedding, **options).double()
    with torch.no_grad():
        if not adjacency.embedding.any():
            adjacency.embedding.normal_(std=embedding**-0.25)
        adjacency.embedding.mul_(size)
    return adjacency


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.integers(1, 5), st.floats(0, 20), st.integers(0, 99))
def test_rows_are_weights_of_sum_1(nodes, embedding, size, seed):
    weights = make_adjacency(nodes, embedding, size=size, seed=seed)()
    assert weights.shape == (nodes, nodes)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(nodes, dtype=torch.float64))


def test_weights_are_those_of_the_formula_element_by_element():
    adjacency = make_adjacency()
    vectors = adjacency.embedding.detach()
    weights = adjacency().detach()
    for i in range(12):
        scores = [torch.exp((vectors[i] @ vectors[j]).clamp(min=0)) for j in range(12)]
        for j in range(12):
            assert weights[i, j].item() == pytest.approx((scores[j] / sum(scores)).item(), rel=1e-12)


def test_all_nodes_of_negative_similarity_share_the_smallest_weight_of_their_row():
    # exp(ReLU(s)) = 1 for s < 0, and no other exp(ReLU(s)) is smaller; their sum is at least N.
    adjacency = make_adjacency(30, 4, size=2.0)
    weights = adjacency().detach()
    unlike = (adjacency.embedding @ adjacency.embedding.T).detach() < 0
    assert unlike.any(dim=1).all()
    floor = weights.min(dim=1).values
    assert (floor <= 1 / 30).all()
    torch.testing.assert_close(weights[unlike], floor[:, None].expand(30, 30)[unlike])


def test_without_similarity_every_node_listens_to_the_mean():
    torch.testing.assert_close(make_adjacency(size=0.0)(), torch.full((12, 12), 1 / 12, dtype=torch.float64))


def test_renumbered_nodes_give_renumbered_weights():
    adjacency, order = make_adjacency(), torch.randperm(12)
    before = adjacency()
    with torch.no_grad():
        adjacency.embedding.copy_(adjacency.embedding[order].clone())
    torch.testing.assert_close(adjacency(), before[order][:, order])


def test_mix_is_a_sum_over_all_nodes():
    torch.manual_seed(1)
    x, weights = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.rand(20, 20, dtype=torch.float64)
    mixed = mix(x, weights)
    assert mixed.shape == x.shape
    for target in range(20):
        row, column = divmod(target, 5)
        expected = x[:, :, row, column].clone()
        for source in range(20):
            expected += weights[target, source] * x[:, :, source // 5, source % 5]
        torch.testing.assert_close(mixed[:, :, row, column], expected)


def test_mix_does_not_depend_on_the_numbering():
    x, weights = torch.randn(2, 3, 20, dtype=torch.float64), make_adjacency(20)()
    order = torch.randperm(20)
    permuted = mix(x[:, :, order].view(2, 3, 4, 5), weights[order][:, order])
    torch.testing.assert_close(permuted.flatten(2), mix(x.view(2, 3, 4, 5), weights).flatten(2)[:, :, order])


def test_a_constant_field_doubles():
    # (I + A) 1 = 1 + row sum = 2
    torch.testing.assert_close(mix(torch.ones(1, 2, 3, 4), make_adjacency()().float()), torch.full((1, 2, 3, 4), 2.0))


def test_heard_is_mix_without_the_point_itself():
    x, weights = torch.randn(2, 3, 4, 5), make_adjacency(20)().float()
    torch.testing.assert_close(heard(x, weights), mix(x, weights) - x)


def test_symmetric_logits_know_no_direction_and_directed_ones_do():
    # log A_ij = s_ij - L_i; with L added again, what is left is s.
    for directed in (False, True):
        adjacency = make_adjacency(size=3.0, directed=directed)
        weights = adjacency()
        logits = weights.log() - weights.min(dim=1, keepdim=True).values.log()
        assert torch.allclose(logits, logits.T) != directed
        assert len(list(adjacency.parameters())) == 1 + directed


def test_directed_weights_are_those_of_the_formula():
    adjacency = make_adjacency(directed=True)
    scores = torch.exp((adjacency.embedding @ adjacency.sources.T).clamp(min=0))
    torch.testing.assert_close(adjacency(), scores / scores.sum(dim=1, keepdim=True))


def test_without_floor_unrelated_pairs_have_no_weight_and_the_others_keep_what_is_above_it():
    whole, above = make_adjacency(30, 4, size=2.0)(), make_adjacency(30, 4, size=2.0, floor=False)()
    floor = whole.min(dim=1, keepdim=True).values
    torch.testing.assert_close(above, whole - floor)
    adjacency = make_adjacency(30, 4, size=2.0)
    unlike = adjacency.embedding @ adjacency.embedding.T < 0
    assert above[unlike].abs().max() < 1e-16
    assert (above.sum(dim=1) < 1).all()


def test_without_floor_and_similarity_nobody_is_heard():
    assert not make_adjacency(size=0.0, floor=False)().any()


def of_nodes(adjacency, vectors):
    """The vectors of the nodes between knots that are evenly spaced from edge to edge, by torch's own interpolation."""
    knots = vectors.view(1, *adjacency.knots, -1).permute(0, 3, 1, 2)
    return F.interpolate(knots, adjacency.shape, mode="bilinear", align_corners=True)[0].flatten(1).T


@pytest.mark.parametrize("form", ["dense", "streamed", "sparse"])
@pytest.mark.parametrize(("shape", "smooth", "knots"), [((9, 13), 4, (3, 4)), ((5, 8), 3, (3, 4)), ((1, 6), 2, (1, 4))])
def test_between_knots_the_vectors_are_bilinear(shape, smooth, knots, form):
    nodes = shape[0] * shape[1]
    options = {"directed": True, "relu": False, "form": form, "links": nodes - 1}
    adjacency = make_adjacency(shape, 3, smooth=smooth, size=3.0, **options)
    assert (adjacency.knots, adjacency.embedding.shape) == (knots, (knots[0] * knots[1], 3))
    single = make_adjacency(shape, 3, **options)
    targets, sources = (of_nodes(adjacency, v).detach() for v in (adjacency.embedding, adjacency.sources))
    single.embedding.data, single.sources.data = targets, sources
    x = torch.randn(nodes, 5, dtype=torch.float64)
    found, wanted = adjacency() @ x, single() @ x
    torch.testing.assert_close(found, wanted)
    # The chain rule, through torch's interpolation.
    found.square().sum().backward()
    wanted.square().sum().backward()
    leaf = adjacency.embedding.detach().clone().requires_grad_()
    of_nodes(adjacency, leaf).backward(single.embedding.grad)
    torch.testing.assert_close(adjacency.embedding.grad, leaf.grad)


@pytest.mark.parametrize(("columns", "smooth"), [(12, 4), (7, 3), (4, 1), (5, 2)])
def test_round_the_globe_the_first_knot_follows_the_last(columns, smooth):
    adjacency = make_adjacency((2, columns), 1, smooth=smooth, directed=True, relu=False)
    adjacency.periodic = True
    rows, around = adjacency.knots
    found = adjacency._of_nodes(adjacency.embedding).detach().view(2, columns)
    knots = adjacency.embedding.detach().view(rows, around)
    for row in range(2):  # knots are the rows here
        at = np.interp(np.arange(columns), np.arange(around) * columns / around, knots[row], period=columns)
        np.testing.assert_allclose(found[row], at if smooth > 1 else knots[row], atol=1e-15)


def test_smooth_rows_of_weights_vary_little_between_neighbours():
    rough, smooth = (make_adjacency((9, 17), 8, smooth=s, directed=True, relu=False)().view(9, 17, -1) for s in (1, 8))
    differences = [((w[:, 1:] - w[:, :-1]).square().mean() / w.var()).item() for w in (rough, smooth)]
    assert differences[1] < differences[0] / 10


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(("shape", "smooth"), [((4, 7), 1), ((5, 8), 2), ((1, 6), 1), ((13, 24), 4)])
def test_a_directed_adjacency_without_relu_starts_even_from_the_longest_waves(shape, smooth, closed):
    adjacency = LearnedAdjacency(shape, 9, smooth=smooth, directed=True, relu=False).double()
    adjacency.periodic = closed
    torch.testing.assert_close(adjacency(), torch.full((adjacency.nodes,) * 2, 1 / adjacency.nodes).double())
    rows, columns = adjacency.knots
    count = min(9, rows * columns)
    waves = adjacency.sources.detach()[:, :count]
    torch.testing.assert_close(waves.T @ waves, torch.eye(count).double() * rows * columns / 3, atol=1e-5, rtol=1e-6)
    # A Laplacian, by its five points and even across an edge that is not closed, tells how short a wave is.
    field = waves.T.reshape(count, 1, rows, columns)
    padded = F.pad(
        F.pad(field, (0, 0, 1, 1), mode="replicate"), (1, 1, 0, 0), mode="circular" if closed else "replicate"
    )
    second = [
        padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2] - 2 * field,
        padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1] - 2 * field,
    ]
    found = [-(field * part).mean(dim=(1, 2, 3)) / field.square().mean(dim=(1, 2, 3)) for part in second]
    numbers = [torch.arange(columns), torch.arange(rows)]
    numbers = [(numbers[0] + 1) // 2 * 2 if closed else numbers[0], numbers[1]]
    half_waves = [number.double() / size for number, size in zip(numbers, (columns, rows), strict=True)]
    wanted = sorted((half_waves[0] ** 2 + half_waves[1][:, None] ** 2).flatten().tolist())[:count]
    got = [(2 / torch.pi * (part.clamp(0, 4).sqrt() / 2).asin()).square() for part in found]
    np.testing.assert_allclose(sum(got), wanted, atol=1e-4)


def test_the_start_needs_no_seed_and_learns():
    first, second = (make_raw(seed) for seed in (0, 1))
    torch.testing.assert_close(first.sources, second.sources)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    (first() @ x).square().sum().backward()
    assert first.embedding.grad.abs().max() > 0.01
    assert not first.sources.grad.any()  # until the listening vectors have moved


def make_raw(seed):
    torch.manual_seed(seed)
    return LearnedAdjacency((2, 3), 4, directed=True, relu=False)


def test_channels_beyond_all_waves_and_a_sparse_form_start_at_random():
    torch.manual_seed(0)
    sources = LearnedAdjacency((2, 3), 9, directed=True, relu=False).sources
    assert len(torch.unique(sources[:, 6:])) == 18
    for options in ({"form": "sparse", "relu": False, "links": 3}, {"relu": True}):
        assert LearnedAdjacency((2, 3), 9, directed=True, **options).embedding.all()


def place(adjacency):
    adjacency.place([0.0, 45.0, 90.0], torch.tensor([0.0, 90.0, 180.0, 270.0]))
    return adjacency


QUARTER = 6371.229 * torch.pi / 2  # km from the equator to the pole


@pytest.mark.parametrize("form", ["dense", "streamed"])
@pytest.mark.parametrize(
    ("max_km", "linked"),
    [
        # from 0 N 0 E: itself; its neighbour at 45 N; 0 N 90 E, 0 N 270 E and the pole, which has four nodes,
        # and 45 N 90 E and 45 N 270 E, also at a quarter of the circle; at the antipode ends the world
        (0.0, {0}),
        (0.51 * QUARTER, {0, 4}),
        (1.01 * QUARTER, {0, 1, 3, 4, 5, 7, 8, 9, 10, 11}),
        (2.01 * QUARTER, set(range(12))),
        (1e9, set(range(12))),
    ],
)
def test_links_beyond_a_great_circle_distance_are_cut_and_the_others_kept(form, max_km, linked):
    whole = make_adjacency()()
    cut = place(make_adjacency(max_km=max_km, form=form))()
    row = (cut if form == "dense" else cut.block(slice(None)))[0]
    assert set(row.nonzero().flatten().tolist()) == linked
    torch.testing.assert_close(row[sorted(linked)], whole[0, sorted(linked)])


def test_a_distance_needs_places_and_places_fit_the_nodes():
    with pytest.raises(
        ValueError, match=r"max_km=500.0 needs the places of the nodes: call place\(latitude, longitude\)"
    ):
        make_adjacency(max_km=500.0)()
    with pytest.raises(ValueError, match="12 nodes are not the points of 2 x 5"):
        make_adjacency().place([0.0, 1.0], range(5))
    with pytest.raises(ValueError, match="max_km must be at least 0, got -1"):
        LearnedAdjacency(6, 2, max_km=-1)
    with pytest.raises(ValueError, match="max_km must be at least 0, got nan"):
        LearnedAdjacency(6, 2, max_km=float("nan"))
    assert "positions" not in make_adjacency().state_dict()  # they belong to the grid, which a model knows anyway


def test_the_path_is_chosen_by_size():
    made = {nodes: LearnedAdjacency(nodes, 1, form="auto") for nodes in (DENSE_NODES, DENSE_NODES + 1)}
    assert [adjacency.form for adjacency in made.values()] == ["dense", "streamed"]
    assert isinstance(LearnedAdjacency(5, 2, form="streamed")(), StreamedAdjacency)
    assert isinstance(LearnedAdjacency(5, 2)(), torch.Tensor)
    with pytest.raises(ValueError, match="adjacency must be one of auto, dense, streamed, sparse, low_rank, got 'few'"):
        LearnedAdjacency(5, 2, form="few")


def test_sizes_are_checked_and_shown():
    assert repr(LearnedAdjacency(6, 2)) == "LearnedAdjacency(nodes=6, embedding=2)"
    changed = LearnedAdjacency(6, 2, directed=True, floor=False, max_km=500, form="streamed")
    assert repr(changed) == (
        "LearnedAdjacency(nodes=6, embedding=2, directed=True, floor=False, form=streamed, max_km=500)"
    )
    with pytest.raises(ValueError, match="at least 2 nodes and 1 embedding channel, got nodes=1, embedding=4"):
        LearnedAdjacency(1, 4)
    with pytest.raises(ValueError, match="got nodes=5, embedding=0"):
        LearnedAdjacency(5, 0)
    with pytest.raises(ValueError, match=r"smooth must be at least 1 \(a vector for each node\), got 0"):
        LearnedAdjacency((2, 3), 4, smooth=0)
