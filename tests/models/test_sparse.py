import pytest
import torch

from climapred.models.adjacency import LearnedAdjacency, heard

NODES, HEIGHT, WIDTH = 20, 4, 5
OPTIONS = [{}, {"floor": False}, {"relu": False}, {"directed": True, "relu": False}]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")


def make_sparse(*, links=4, refresh=50, dtype=torch.float64, **options):
    torch.manual_seed(0)
    adjacency = LearnedAdjacency(NODES, 3, form="sparse", links=links, refresh=refresh, **options).to(dtype)
    for vectors in adjacency.parameters():
        torch.nn.init.normal_(vectors)
    return adjacency


def dense_of(adjacency, **options):
    dense = LearnedAdjacency(NODES, 3, **options).to(adjacency.embedding.dtype)
    dense.load_state_dict(adjacency.state_dict(), strict=False)
    return dense


def literal(adjacency):
    """The formula as it stands: scores of all pairs, those that are no link set to nothing, then the softmax."""
    theirs = adjacency.embedding if adjacency.sources is None else adjacency.sources
    scores = adjacency.embedding @ theirs.T
    linked = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, adjacency.kept, True)
    if not adjacency.relu:
        return torch.softmax(scores.masked_fill(~linked, -torch.inf), dim=1)
    weights = torch.softmax(torch.relu(scores).masked_fill(~linked, 0.0), dim=1)
    return weights if adjacency.floor else weights - weights[~linked].view(NODES, -1)[:, :1]


@every_option
def test_product_and_all_gradients_are_those_of_the_formula(options):
    adjacency = make_sparse(**options)
    x = torch.randn(2, 3, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    found = heard(x, adjacency())
    expected = (x.flatten(2) @ literal(adjacency).T).view_as(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(adjacency().block(slice(None)), literal(adjacency))
    torch.testing.assert_close(adjacency().block(slice(2, 5), torch.tensor([7, 1])), literal(adjacency)[2:5][:, [7, 1]])
    leaves = [x, *adjacency.parameters()]
    one, other = (torch.autograd.grad(each.square().sum(), leaves) for each in (found, expected))
    for gradient, reference in zip(one, other, strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(gradient, reference)


@every_option
def test_the_links_are_the_largest_weights_of_each_row(options):
    adjacency = make_sparse(**options)
    adjacency()
    wanted = dense_of(adjacency, **options)().topk(4, dim=1).values
    found = dense_of(adjacency, **options)().gather(1, adjacency.kept).sort(dim=1, descending=True).values
    torch.testing.assert_close(found, wanted)
    assert (adjacency.kept.diff(dim=1) > 0).all()


@pytest.mark.parametrize("floor", [True, False])
def test_it_is_exact_where_all_others_are_unrelated(floor):
    adjacency = make_sparse(links=16, floor=floor)
    whole = dense_of(adjacency, floor=floor)()
    related = adjacency.embedding @ adjacency.embedding.T > 0
    exact = related.sum(dim=1) <= 16
    assert exact.sum() > NODES / 2
    torch.testing.assert_close(adjacency().block(slice(None))[exact], whole[exact])


def test_links_are_chosen_anew_after_so_many_passes_of_training_and_never_else():
    adjacency = make_sparse(refresh=3)
    adjacency()
    first = adjacency.kept.clone()
    torch.manual_seed(1)
    torch.nn.init.normal_(adjacency.embedding)
    changed = []
    for _ in range(4):
        adjacency()
        changed.append(not torch.equal(adjacency.kept, first))
    assert changed == [False, False, True, True]
    kept = adjacency.kept.clone()
    torch.nn.init.normal_(adjacency.embedding)
    adjacency.eval()
    for _ in range(5):
        adjacency()
    assert torch.equal(adjacency.kept, kept)
    assert adjacency.passes == 5


def test_a_reloaded_adjacency_has_the_links_it_was_trained_with():
    adjacency = make_sparse()
    adjacency()
    torch.nn.init.normal_(adjacency.embedding)
    again = make_sparse()
    again.load_state_dict(adjacency.state_dict())
    assert torch.equal(again.eval()().sources, adjacency.eval()().sources)
    torch.testing.assert_close(again().block(slice(None)), adjacency().block(slice(None)))


def test_links_that_are_too_long_have_no_weight():
    adjacency = make_sparse(relu=False, directed=True, max_km=1500.0)
    adjacency.place([10.0, 20.0, 30.0, 40.0], [0.0, 15.0, 30.0, 50.0, 70.0])
    dense = dense_of(adjacency, relu=False, directed=True, max_km=1500.0)
    dense.place([10.0, 20.0, 30.0, 40.0], [0.0, 15.0, 30.0, 50.0, 70.0])
    far = dense() == 0
    assert far.any()
    assert not adjacency().block(slice(None))[far].any()


def test_under_autocast_products_are_low_and_weights_are_not():
    adjacency = make_sparse(dtype=torch.float32)
    x = torch.randn(2, 3, HEIGHT, WIDTH, requires_grad=True)
    exact = heard(x, adjacency())
    with torch.autocast("cpu", torch.bfloat16):
        links = adjacency()
        low = heard(x, links)
    assert low.dtype == torch.bfloat16
    assert links.weights.dtype == torch.float32
    torch.testing.assert_close(low.float(), exact, rtol=0.02, atol=0.05)
    low.float().square().sum().backward()
    assert x.grad.dtype == adjacency.embedding.grad.dtype == torch.float32


def test_impossible_choices_are_refused():
    for options in ({"links": 0}, {"links": NODES}, {"refresh": 0}):
        with pytest.raises(ValueError, match="links must be 1 to 19 and refresh at least 1"):
            make_sparse(**options)
    with pytest.raises(ValueError, match="sparse adjacency with max_km needs floor=False or relu=False"):
        make_sparse(max_km=500.0)
    with pytest.raises(ValueError, match="floor=False takes off what ReLU leaves"):
        LearnedAdjacency(NODES, 3, relu=False, floor=False)
