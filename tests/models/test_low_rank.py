import pytest
import torch

from climapred.models import build_model
from climapred.models.adjacency import LearnedAdjacency, heard
from climapred.models.convlstm import convlstm
from climapred.models.low_rank import LowRankAdjacency

HEIGHT, WIDTH, NODES = 4, 5, 20


def make_adjacency(shape=(HEIGHT, WIDTH), embedding=3, **options):
    torch.manual_seed(0)
    adjacency = LearnedAdjacency(shape, embedding, directed=True, relu=False, form="low_rank", **options).double()
    torch.nn.init.normal_(adjacency.embedding)
    return adjacency


def test_product_and_gradients_are_those_of_the_matrix():
    adjacency = make_adjacency()
    x = torch.randn(2, 3, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    targets, sources = (v.detach().requires_grad_() for v in (adjacency.embedding, adjacency.sources))
    expected = torch.einsum("id,jd,bcj->bci", targets, sources, x.flatten(2)).view_as(x) / NODES**0.5
    found = heard(x, adjacency())
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found.square().sum(), [x, adjacency.embedding, adjacency.sources])
    theirs = torch.autograd.grad(expected.square().sum(), [x, targets, sources])
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_a_block_is_what_a_product_with_unit_fields_gives():
    made = make_adjacency(smooth=2)()
    whole = made @ torch.eye(NODES, dtype=torch.float64)
    assert (whole < 0).any()
    assert (whole > 0).any()
    torch.testing.assert_close(made.block(slice(None)), whole)
    torch.testing.assert_close(made.block(slice(3, 9), slice(5, None)), whole[3:9, 5:])
    assert not made.block(slice(None)).requires_grad


def test_under_autocast_products_are_in_its_dtype():
    made, x = make_adjacency().float()(), torch.randn(NODES, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert (made @ x).dtype == torch.bfloat16
    torch.testing.assert_close((made @ x.bfloat16().float()), made @ x, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("size", [10, 40])
def test_sums_of_white_noise_are_as_large_on_any_grid(size):
    # Orthogonal waves of mean square D^-1/2, scaled by N^-1/2: each sum of unit white noise has the variance D^-1/2.
    adjacency = LearnedAdjacency((size, 2 * size), 16, directed=True, relu=False, form="low_rank")
    noise = torch.randn(adjacency.nodes, 4000, generator=torch.Generator().manual_seed(1))
    sums = adjacency().sources.T @ noise
    assert sums.square().mean().item() == pytest.approx(16**-0.5, rel=0.03)


def test_a_global_grid_of_a_quarter_degree_takes_no_more_than_its_vectors():
    # One copy of A would take 4 TB.
    adjacency = LearnedAdjacency((721, 1440), 8, smooth=8, directed=True, relu=False, form="low_rank")
    x = torch.randn(1, 2, 721, 1440, requires_grad=True)
    heard(x, adjacency()).sum().backward()
    assert adjacency.embedding.grad.isfinite().all()
    assert adjacency.embedding.grad.any()


def test_ls_ntp_starts_as_a_convlstm_and_learns_from_there():
    torch.manual_seed(0)
    plain = convlstm(hidden=3).double()
    network = build_model("ls_ntp", height=HEIGHT, width=WIDTH, hidden=3, adjacency="low_rank").double()
    torch.nn.init.normal_(plain.readout.weight)
    network.load_state_dict(plain.state_dict(), strict=False)
    frames = torch.randn(2, 3, 1, HEIGHT, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(network(frames, 2), plain(frames, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(frames, 2).square().sum().backward()
        optimizer.step()
    dead = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert dead == []


@pytest.mark.parametrize("options", [{"relu": True}, {"directed": False}, {"max_km": 900.0}])
def test_what_it_has_no_room_for_is_refused(options):
    with pytest.raises(ValueError, match="a low_rank adjacency needs directed=True and relu=False, and has no max_km"):
        LearnedAdjacency((3, 4), 2, **{"directed": True, "relu": False, "form": "low_rank"} | options)


def test_it_is_one_of_the_forms():
    assert isinstance(make_adjacency()(), LowRankAdjacency)
    assert "form=low_rank" in repr(make_adjacency())
