import pytest
import torch

from climapred.models import build_model
from climapred.models.patched import Patched
from climapred.models.recurrent import Network


class Last(Network):
    """Forecasts the last frame it was given, or eaten, and says what it got."""

    def forward(self, frames, steps, *, change=False, future=None, use_truth=None):
        self.check(frames, steps, future, use_truth)
        self.got = frames, future
        return frames[:, -1:, : self.channels].repeat(1, steps, 1, 1, 1)

    def take_penalty(self):
        return torch.tensor(2.0)


@pytest.mark.parametrize(("height", "width", "patch"), [(4, 6, 1), (4, 6, 2), (5, 7, 2), (5, 7, 4)])
def test_what_is_packed_comes_back(height, width, patch):
    network = Patched(Last(2 * patch**2, patch**2), patch)
    frames = torch.randn(2, 3, 3, height, width)
    assert (network.channels, network.forcings) == (2, 1)
    torch.testing.assert_close(network(frames, 2), frames[:, -1:, :2].repeat(1, 2, 1, 1, 1), rtol=0, atol=0)


def test_a_point_is_a_channel_of_its_patch():
    frames, future = torch.randn(1, 2, 3, 5, 7), torch.randn(1, 4, 3, 5, 7)
    network = Patched(Last(2 * 4, 4), 2)
    network(frames, 4, future=future)
    for given, got in zip((frames, future), network.network.got, strict=True):
        assert got.shape[2:] == (12, 3, 4)
        for channel in range(3):  # variables, then forcings
            for row in range(2):
                for column in range(2):
                    rows, columns = torch.arange(row, 6, 2).clamp(max=4), torch.arange(column, 8, 2).clamp(max=6)
                    point = 4 * channel + 2 * row + column
                    torch.testing.assert_close(got[:, :, point], given[:, :, channel][..., rows, :][..., columns])


@pytest.mark.parametrize("change", [False, True])
def test_sampling_passes_through(change):
    network = build_model("convlstm", hidden=4, one_pass=True, patch=2)
    frames, future = torch.randn(2, 3, 1, 5, 7), torch.randn(2, 2, 1, 5, 7)
    truth = torch.rand(2, 4) < 0.5
    torch.nn.init.normal_(network.network.readout.weight)
    forecast = network(frames, 2, change=change, future=future, use_truth=truth)
    assert network.feeds_back
    assert forecast.shape == (2, 2, 1, 5, 7)
    assert not torch.equal(forecast, network(frames, 2, change=change))


def test_a_whole_forecast_passes_through():
    network, frames = build_model("convlstm", hidden=4, one_pass=True, patch=2), torch.randn(2, 3, 1, 5, 7)
    torch.nn.init.normal_(network.network.readout.weight)
    assert network.one_pass
    whole = network(frames, 2, whole=True)
    assert whole.shape == (2, 4, 1, 5, 7)
    assert torch.equal(whole[:, 2:], network(frames, 2))
    assert not Patched(Last(4), 2).one_pass


def test_a_penalty_passes_through():
    assert not Patched(Last(4), 2).feeds_back
    assert Patched(Last(4), 2).take_penalty() == 2


def test_no_patch_is_smaller_than_a_point():
    with pytest.raises(ValueError, match="patch must be at least 1, got 0"):
        Patched(Last(4), 0)
