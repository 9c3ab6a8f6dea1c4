import pytest
import torch

from climapred.models import MODELS, build_model
from climapred.models.convlstm import ConvLSTMCell
from climapred.models.recurrent import EncoderForecaster

HEIGHT, WIDTH = 5, 6
OPTIONS = {"convlstm": {}, "ls_ntp": {"embedding": 4}}
every_network = pytest.mark.parametrize(
    ("name", "feedback"), [(name, feedback) for name in MODELS for feedback in (False, True)]
)


def make_network(name, *, feedback=False, channels=2, layers=2, readout=True):
    """A small float64 network whose readout, unless told otherwise, is no longer zero."""
    torch.manual_seed(0)
    options = {"hidden": 4, "layers": layers, "feedback": feedback, **OPTIONS[name]}
    network = build_model(name, channels=channels, height=HEIGHT, width=WIDTH, **options).double()
    if readout:
        torch.nn.init.normal_(network.readout.weight)
        torch.nn.init.normal_(network.readout.bias)
    return network


def make_frames(history=3, *, batch=2, channels=2, height=HEIGHT, width=WIDTH):
    random = torch.Generator().manual_seed(1)
    return torch.randn(batch, history, channels, height, width, dtype=torch.float64, generator=random)


@every_network
@pytest.mark.parametrize(("history", "steps"), [(1, 1), (1, 4), (5, 2)])
def test_any_history_and_any_number_of_steps(name, feedback, history, steps):
    forecast = make_network(name, feedback=feedback)(make_frames(history), steps)
    assert forecast.shape == (2, steps, 2, HEIGHT, WIDTH)
    assert forecast.isfinite().all()


@every_network
def test_a_longer_forecast_begins_with_the_shorter_one(name, feedback):
    network, frames = make_network(name, feedback=feedback), make_frames()
    torch.testing.assert_close(network(frames, 6)[:, :3], network(frames, 3), rtol=0, atol=0)


@every_network
def test_forecast_is_that_of_a_literal_loop_over_its_cells(name, feedback):
    network, frames = make_network(name, feedback=feedback), make_frames(4)
    shared = network.shared() if name == "ls_ntp" else None
    zeros = torch.zeros(2, 4, HEIGHT, WIDTH, dtype=torch.float64)
    lower = upper = (zeros, zeros)
    for step in range(4):
        below, lower = network.encoder[0](frames[:, step], lower, shared)
        _, upper = network.encoder[1](below, upper, shared)
    last, expected = frames[:, 3], []
    for _ in range(3):
        below, lower = network.forecaster[0](last if feedback else None, lower, shared)
        above, upper = network.forecaster[1](below, upper, shared)
        last = network.readout(above)
        expected.append(last)
    torch.testing.assert_close(network(frames, 3), torch.stack(expected, dim=1))


@every_network
def test_an_untrained_network_forecasts_zero(name, feedback):
    network = make_network(name, feedback=feedback, readout=False)
    assert not network(make_frames(), 4).any()


@every_network
def test_no_parameter_is_dead(name, feedback):
    network = make_network(name, feedback=feedback)
    network(make_frames(), 3).square().sum().backward()
    dead = [key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert dead == []


@pytest.mark.parametrize("feedback", [False, True])
def test_no_single_weight_of_a_convlstm_is_dead(feedback):
    network = make_network("convlstm", feedback=feedback)
    network(make_frames(), 3).square().sum().backward()
    assert all((parameter.grad != 0).all() for parameter in network.parameters())


@every_network
def test_the_members_of_a_batch_do_not_meet(name, feedback):
    network, frames = make_network(name, feedback=feedback), make_frames(batch=3)
    alone = [network(frames[[member]], 2) for member in range(3)]
    torch.testing.assert_close(network(frames, 2), torch.cat(alone))


@every_network
def test_the_last_frame_counts_and_so_does_the_first(name, feedback):
    network, frames = make_network(name, feedback=feedback), make_frames().requires_grad_()
    network(frames, 2).sum().backward()
    assert (frames.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_a_convlstm_applies_to_other_grids():
    network = make_network("convlstm")
    assert network(make_frames(height=9, width=4), 2).shape == (2, 2, 2, 9, 4)


def test_a_convlstm_moves_with_its_input_away_from_the_edges():
    # Three frames and one step through 2 layers of 3 x 3 convolutions and a readout of 3 x 3 see 2 * 4 + 1 = 9 cells far.
    network = make_network("convlstm", channels=1)
    frames = torch.zeros(1, 3, 1, 25, 25, dtype=torch.float64)
    frames[0, :, 0, 12, 10] = 1
    forecast, moved = network(frames, 1), network(frames.roll(3, dims=-1), 1)
    torch.testing.assert_close(forecast.roll(3, dims=-1)[..., 9:16, 12:14], moved[..., 9:16, 12:14])


def test_other_cells_with_the_same_protocol_fit_in():
    class Leak(torch.nn.Module):
        """One state, which forgets half of itself and adds its input."""

        def __init__(self, inputs):
            super().__init__()
            self.inputs, self.hidden = inputs, 1

        def initial_state(self, batch, height, width, like):
            return (like.new_zeros(batch, 1, height, width),)

        def forward(self, x, state, shared):
            level = state[0] / 2 if x is None else state[0] / 2 + x
            return level, (level,)

    network = EncoderForecaster([Leak(1)], [Leak(0)], channels=1, kernel=1)
    torch.nn.init.ones_(network.readout.weight)
    frames = torch.tensor([8.0, 4.0, 2.0]).view(1, 3, 1, 1, 1)
    # (8 / 2 + 4) / 2 + 2 = 6 after the last frame, then a half of it at each step
    assert network(frames, 3).flatten().tolist() == [3.0, 1.5, 0.75]


def test_errors_name_what_came():
    with pytest.raises(ValueError, match=r"frames must have 2 channels, got shape \(2, 3, 1, 5, 6\)"):
        make_network("convlstm")(make_frames(channels=1), 1)
    cells = [ConvLSTMCell(1, 2), ConvLSTMCell(2, 2)]
    with pytest.raises(ValueError, match="as many layers, 1 or more, got 2 and 1"):
        EncoderForecaster(cells, [ConvLSTMCell(0, 2)], channels=1)
    with pytest.raises(ValueError, match="as many layers, 1 or more, got 0 and 0"):
        EncoderForecaster([], [], channels=1)
