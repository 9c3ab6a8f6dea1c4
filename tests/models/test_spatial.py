import pytest
import torch

from climapred.models.spatial import Convolution, Convolution3d, close_circle


def closed(layer):
    close_circle(layer)
    return layer


@pytest.mark.parametrize(
    ("kernel", "dilation", "stride", "groups"), [(1, 1, 1, 1), (3, 1, 1, 1), (5, 2, 1, 2), (3, 1, 2, 1)]
)
def test_without_a_circle_it_is_torchs_own(kernel, dilation, stride, groups):
    ours = Convolution(2, 4, kernel, dilation=dilation, stride=stride, groups=groups)
    padding = dilation * (kernel // 2)
    theirs = torch.nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, 8, 12)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x).shape == (2, 4, 8 // stride, 12 // stride)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_on_a_circle_three_globes_side_by_side_say_the_same(kernel):
    # Far from the outer edges, the middle one of three copies has its neighbours without any padding in longitude.
    layer, x = Convolution(2, 3, kernel).double(), torch.randn(1, 2, 6, 7, dtype=torch.float64)
    expected = layer(x.repeat(1, 1, 1, 3))[..., 7:14]
    torch.testing.assert_close(closed(layer)(x), expected)


@pytest.mark.parametrize("width", [4, 9, 12])
def test_a_far_convolution_goes_round_the_globe_as_often_as_it_must(width):
    # Seven globes side by side, of which the middle one has all that it sees inside.
    torch.manual_seed(0)
    far, field = Convolution(2, 2, 7, dilation=3, groups=2).double(), torch.randn(1, 2, 5, width, dtype=torch.float64)
    beside = far(field.repeat(1, 1, 1, 7))[..., 3 * width : 4 * width]
    close_circle(far)
    torch.testing.assert_close(far(field), beside)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_three_dimensions_keep_their_depth(depth):
    layer, x = Convolution3d(2, 3, 3, depth=depth).double(), torch.randn(1, 2, 4, 6, 7, dtype=torch.float64)
    plane = layer(x.repeat(1, 1, 1, 1, 3))[..., 7:14]
    torch.testing.assert_close(closed(layer)(x), plane)
    # Depth d sees the depths d - (depth - 1) // 2 to d + depth // 2; beyond the ends are zeros.
    weight, bias = layer.weight.detach(), layer.bias.detach()
    for at in range(4):
        expected = bias.view(1, -1, 1, 1).expand(1, 3, 6, 7)
        for number in range(depth):
            seen = at - (depth - 1) // 2 + number
            if 0 <= seen < 4:
                wide = torch.cat([x[:, :, seen, :, -1:], x[:, :, seen], x[:, :, seen, :, :1]], dim=-1)
                expected = expected + torch.nn.functional.conv2d(wide, weight[:, :, number], padding=(1, 0))
        torch.testing.assert_close(layer(x)[:, :, at], expected)


def test_only_layers_that_look_at_neighbours_are_closed():
    network = torch.nn.Sequential(Convolution(1, 1), torch.nn.Conv2d(1, 1, 3), Convolution3d(1, 1))
    close_circle(network)
    assert [getattr(layer, "periodic", None) for layer in network] == [True, None, True]
    assert not Convolution(1, 1).periodic


@pytest.mark.parametrize("kernel", [0, 2, 4])
def test_even_kernels_are_refused(kernel):
    with pytest.raises(ValueError, match=f"kernel must be odd, so that the grid keeps its size, got {kernel}"):
        Convolution(1, 1, kernel)
    with pytest.raises(ValueError, match=f"kernel must be odd, so that the grid keeps its size, got {kernel}"):
        Convolution3d(1, 1, kernel)


def test_a_kernel_has_a_depth():
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        Convolution3d(1, 1, depth=0)
