import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from climapred.models.adjacency import LearnedAdjacency, mix


def make_adjacency(nodes=12, embedding=3, *, size=1.0, seed=0):
    torch.manual_seed(seed)
    adjacency = LearnedAdjacency(nodes, embedding).double()
    with torch.no_grad():
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


def test_sizes_are_checked_and_shown():
    assert repr(LearnedAdjacency(6, 2)) == "LearnedAdjacency(nodes=6, embedding=2)"
    with pytest.raises(ValueError, match="at least 2 nodes and 1 embedding channel, got nodes=1, embedding=4"):
        LearnedAdjacency(1, 4)
    with pytest.raises(ValueError, match="got nodes=5, embedding=0"):
        LearnedAdjacency(5, 0)
