import math

import pytest
import torch

from climapred.models import streamed
from climapred.models.adjacency import LearnedAdjacency, heard
from climapred.models.streamed import StreamedAdjacency, log_sums, within

LATITUDE, LONGITUDE = [10.0, 20.0, 30.0, 40.0], [0.0, 15.0, 30.0, 50.0, 70.0]
NODES = 20
OPTIONS = [{}, {"directed": True}, {"floor": False}, {"max_km": 3000.0}]
OPTIONS += [{"directed": True, "floor": False, "max_km": 3000.0}, {"relu": False}]
OPTIONS += [{"relu": False, "directed": True, "max_km": 3000.0}]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")


@pytest.fixture(params=[3, 7, 512], ids=lambda size: f"blocks of {size}")
def block(request, monkeypatch):
    monkeypatch.setitem(streamed.BLOCKS, "cpu", request.param)
    return request.param


def make_pair(*, size=1.0, seed=0, dtype=torch.float64, **options):
    """The same adjacency as a matrix and streamed."""
    torch.manual_seed(seed)
    dense = LearnedAdjacency(NODES, 3, **options).to(dtype)
    torch.nn.init.normal_(dense.embedding, std=size)
    stream = LearnedAdjacency(NODES, 3, **options, form="streamed").to(dtype)
    stream.load_state_dict(dense.state_dict())
    for adjacency in (dense, stream):
        adjacency.place(LATITUDE, LONGITUDE)
    return dense, stream


def output_and_gradients(adjacency, x, weights):
    """A X, and the gradients of a sum of it for X and for every vector of the nodes."""
    x = x.clone().requires_grad_()
    y = heard(x, adjacency())
    return [y, *torch.autograd.grad((y * weights).square().sum(), [x, *adjacency.parameters()])]


@every_option
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_it_is_the_dense_path_in_output_and_all_gradients(block, options, dtype, tolerance):
    dense, stream = make_pair(dtype=dtype, **options)
    x, weights = torch.randn(2, 2, 3, 4, 5, dtype=dtype).unbind()
    found, wanted = (output_and_gradients(each, x, weights) for each in (stream, dense))
    for ours, reference in zip(found, wanted, strict=True):
        assert reference.abs().max() > 0.01
        torch.testing.assert_close(
            ours, reference, rtol=tolerance, atol=tolerance * float(reference.detach().abs().max())
        )


@every_option
def test_its_gradient_is_that_of_differences(options, monkeypatch):
    monkeypatch.setitem(streamed.BLOCKS, "cpu", 8)
    _, stream = make_pair(**options)
    x = torch.randn(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)

    def product(x, *vectors):
        with torch.no_grad():  # L is made of the vectors, as a forward pass does it
            sums = log_sums(vectors[0], vectors[-1], relu=stream.relu)
        near = (stream.positions, 2 * math.sin(3000 / 6371.229 / 2)) if "max_km" in options else (None, 2.0)
        return heard(x, StreamedAdjacency(vectors[0], vectors[-1], sums, stream.relu, stream.floor, *near))

    assert torch.autograd.gradcheck(product, (x, *stream.parameters()))


@every_option
def test_rows_columns_and_blocks_are_those_of_the_matrix(block, options):
    dense, stream = make_pair(**options)
    matrix, links = dense(), stream()
    torch.testing.assert_close(links.block(slice(None)), matrix)
    torch.testing.assert_close(links.block(slice(4, 6)), matrix[4:6])
    torch.testing.assert_close(links.block(slice(None), torch.tensor([7])), matrix[:, [7]])
    torch.testing.assert_close(links.block(torch.tensor([3, 1]), slice(5, 9)), matrix[[3, 1], 5:9])
    assert not links.block(slice(2)).requires_grad


def test_log_sums_hold_where_exponentials_do_not():
    # s_ii = 40**2: exp overflows, and the row is all its own
    vectors = 40 * torch.eye(5)
    torch.testing.assert_close(log_sums(vectors, vectors), torch.full((5,), 1600.0))
    links = StreamedAdjacency(vectors, vectors, log_sums(vectors, vectors))
    x = torch.randn(5, 2)
    torch.testing.assert_close(links @ x, x)


def test_under_autocast_products_are_low_and_weights_are_not():
    _, stream = make_pair(dtype=torch.float32)
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    exact = heard(x, stream())
    with torch.autocast("cpu", torch.bfloat16):
        links = stream()
        low = heard(x, links)
    assert low.dtype == torch.bfloat16
    assert links.log_sums.dtype == links.block(slice(2)).dtype == torch.float32
    torch.testing.assert_close(low.float(), exact, rtol=0.02, atol=0.02)
    low.float().square().sum().backward()
    assert x.grad.dtype == stream.embedding.grad.dtype == torch.float32


def test_nothing_of_the_size_of_the_matrix_is_made(monkeypatch):
    monkeypatch.setitem(streamed.BLOCKS, "cpu", 16)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in torch.utils._pytree.tree_leaves(made) if hasattr(t, "numel"))])
            return made

    adjacency = LearnedAdjacency(400, 3, form="streamed")
    x = torch.randn(1, 2, 20, 20, requires_grad=True)
    with Watch():
        heard(x, adjacency()).sum().backward()
    assert largest == 3 * 400  # the embedding; a block has 16 x 16


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # what torch says wherever a compiled graph breaks
def test_it_works_in_a_compiled_network():
    torch.compiler.reset()
    _, stream = make_pair()
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda x: heard(x, stream()), backend="eager")
    torch.testing.assert_close(compiled(x), heard(x, stream()))


def test_chords_are_exact_at_no_distance():
    points = torch.nn.functional.normalize(torch.randn(50, 3), dim=1)
    assert within(points, points, 0.0).diagonal().all()
    assert within(points, -points, 2.0 + 1e-6).all()
