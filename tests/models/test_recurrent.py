import numpy as np
import pytest
import torch

from climapred.models import build_model
from climapred.models.convlstm import ConvLSTMCell
from climapred.models.recurrent import EncoderForecaster, Layers

HEIGHT, WIDTH, CHANNELS, FORCINGS, HISTORY = 5, 6, 2, 3, 3
OPTIONS = {"convlstm": {}, "ls_ntp": {"embedding": 4}}
FORMS = {"states": {}, "feedback": {"feedback": True}, "one_pass": {"one_pass": True}}
EATERS = ["feedback", "one_pass"]  # of their own forecasts
every_form = pytest.mark.parametrize("form", FORMS)
every_network = pytest.mark.parametrize(("name", "form"), [(name, form) for name in OPTIONS for form in FORMS])
both_targets = pytest.mark.parametrize("change", [False, True])


def make_network(name="convlstm", form="states", *, channels=CHANNELS, forcings=0, readout=True):
    """A small float64 network in which, unless told otherwise, neither the readout nor a branch is zero any longer."""
    torch.manual_seed(0)
    options = {"hidden": 4, "layers": 2, **FORMS[form], **OPTIONS[name]}
    network = build_model(name, channels=channels, forcings=forcings, height=HEIGHT, width=WIDTH, **options).double()
    starts_at_zero = ("readout.", "receive.", "shared.embedding")
    at_zero = [weight for key, weight in network.named_parameters() if any(part in key for part in starts_at_zero)]
    for weight in at_zero if readout else ():
        torch.nn.init.normal_(weight, std=0.3)
    return network


def make_frames(times=HISTORY, *, batch=2, channels=CHANNELS, height=HEIGHT, width=WIDTH, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, times, channels, height, width, dtype=torch.float64, generator=random)


def make_truth(kind, steps, *, batch=2):
    """``use_truth``: the truth always, never, or by chance in each window at each time."""
    shape = (batch, HISTORY + steps - 1)
    if kind == "random":
        drawn = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.5
        assert drawn[0].tolist() != drawn[1].tolist()
        return drawn
    return torch.full(shape, kind == "all")


def through(cells, x, states, shared):
    following = []
    for cell, state in zip(cells, states, strict=True):
        x, state = cell(x, state, shared)
        following.append(state)
    return x, following


def reference(network, frames, steps, *, change=False, future=None, use_truth=None):
    """The forecast window by window and time by time; frames and leads lie on one line of times, 0 to T + steps - 1."""
    seen, channels, forecasts = frames.shape[1], network.channels, []
    eats_itself = network.forecaster is None or network.forecaster[0].inputs > 0
    shared = None if network.shared is None else network.shared()
    for window in range(len(frames)):

        def actual(time, window=window):
            at = frames[window, time] if time < seen else future[window, time - seen]
            return at[None]

        def may_eat(time, window=window):
            return time < seen if use_truth is None else bool(use_truth[window, time])

        start = [torch.zeros(1, cell.hidden, *frames.shape[-2:], dtype=frames.dtype) for cell in network.encoder]
        states, own, cells, times = [(zeros, zeros) for zeros in start], {}, network.encoder, range(seen - 1 + steps)
        if network.forecaster is not None:
            for time in range(seen):
                _, states = through(network.encoder, actual(time), states, shared)
            cells, times = network.forecaster, range(seen - 1, seen - 1 + steps)
        base = frames[window, seen - 1, :channels][None]
        for time in times:
            eaten = None
            if eats_itself and (time not in own or may_eat(time)):
                eaten = actual(time)
            elif eats_itself:
                eaten = own[time]
                if network.forcings:
                    eaten = torch.cat([eaten, actual(time)[:, channels:]], dim=1)
            if eats_itself and time < seen:
                base = eaten[:, :channels]
            hidden, states = through(cells, eaten, states, shared)
            own[time + 1] = network.readout(hidden) + (base if change else 0)
        forecasts.append(torch.cat([own[seen + lead] for lead in range(steps)]))
    return torch.stack(forecasts)


@every_network
@both_targets
@pytest.mark.parametrize("forcings", [0, FORCINGS])
@pytest.mark.parametrize(("history", "steps"), [(3, 1), (1, 3), (3, 12)])
def test_a_forecast_is_that_of_a_literal_loop(name, form, change, forcings, history, steps):
    network = make_network(name, form, forcings=forcings)
    frames = make_frames(history, channels=CHANNELS + forcings)
    future = make_frames(steps, channels=CHANNELS + forcings, seed=2) if forcings else None
    forecast = network(frames, steps, change=change, future=future)
    assert forecast.shape == (2, steps, CHANNELS, HEIGHT, WIDTH)
    torch.testing.assert_close(forecast, reference(network, frames, steps, change=change, future=future))


@every_form
@both_targets
@pytest.mark.parametrize("forcings", [0, FORCINGS])
@pytest.mark.parametrize("kind", ["all", "none", "random"])
def test_sampling_is_that_of_a_literal_loop(form, change, forcings, kind):
    network, frames = make_network(form=form, forcings=forcings), make_frames(channels=CHANNELS + forcings)
    future, use_truth = make_frames(4, channels=CHANNELS + forcings, seed=2), make_truth(kind, 4)
    options = {"change": change, "future": future, "use_truth": use_truth}
    torch.testing.assert_close(network(frames, 4, **options), reference(network, frames, 4, **options))


@every_network
@both_targets
@pytest.mark.parametrize("kind", [None, "random"])
def test_gradients_are_those_of_the_literal_loop(name, form, change, kind):
    network, frames = make_network(name, form, forcings=FORCINGS), make_frames(channels=CHANNELS + FORCINGS)
    future = make_frames(3, channels=CHANNELS + FORCINGS, seed=2)
    use_truth = None if kind is None else make_truth(kind, 3)
    leaves = [*network.parameters(), frames.requires_grad_(), future.requires_grad_()]
    weigh, options = make_frames(3, seed=4), {"change": change, "future": future, "use_truth": use_truth}
    found, wanted = (
        torch.autograd.grad((forecast * weigh).sum(), leaves, materialize_grads=True)
        for forecast in (network(frames, 3, **options), reference(network, frames, 3, **options))
    )
    for gradient, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected)


@every_form
@both_targets
def test_gradients_are_those_of_finite_differences(form, change):
    # Along a random direction in all weights and inputs at once: (f(+e) - f(-e)) / 2e, off by e^2 = 1e-10 of the third
    # derivative and by rounding, 1e-16 / 1e-5.
    network, frames = make_network(form=form, forcings=FORCINGS), make_frames(channels=CHANNELS + FORCINGS)
    options = {"change": change, "future": make_frames(3, channels=CHANNELS + FORCINGS, seed=2)}
    options["use_truth"], weigh = make_truth("random", 3), make_frames(3, seed=4)
    leaves = [*network.parameters(), frames.requires_grad_(), options["future"].requires_grad_()]
    directions = [torch.randn_like(leaf) for leaf in leaves]

    def moved(distance):
        with torch.no_grad():
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.add_(distance * direction)
        return (network(frames, 3, **options) * weigh).sum()

    gradients = torch.autograd.grad(moved(0.0), leaves, materialize_grads=True)
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
    above, below = moved(1e-5).item(), moved(-2e-5).item()
    assert slope.item() == pytest.approx((above - below) / 2e-5, rel=1e-6)


@every_network
@both_targets
@pytest.mark.parametrize("steps", [1, 3])
def test_no_parameter_is_dead(name, form, change, steps):
    network, frames = make_network(name, form, forcings=FORCINGS), make_frames(channels=CHANNELS + FORCINGS)
    future = make_frames(steps, channels=CHANNELS + FORCINGS, seed=2)
    network(frames, steps, change=change, future=future).square().sum().backward()
    dead = [key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert dead == []


@every_form
def test_no_single_weight_of_a_convlstm_is_dead(form):
    network, channels = make_network(form=form, forcings=FORCINGS), CHANNELS + FORCINGS
    network(make_frames(channels=channels), 3, future=make_frames(channels=channels, seed=2)).square().sum().backward()
    assert all((parameter.grad != 0).all() for parameter in network.parameters())


@every_network
@pytest.mark.parametrize("forcings", [0, FORCINGS])
def test_an_untrained_network_forecasts_zero_or_persistence(name, form, forcings):
    network = make_network(name, form, forcings=forcings, readout=False)
    frames, future = make_frames(channels=CHANNELS + forcings), make_frames(9, channels=CHANNELS + forcings, seed=2)
    assert not network(frames, 9, future=future).any()
    persisted = frames[:, -1:, :CHANNELS].expand(-1, 9, -1, -1, -1)
    torch.testing.assert_close(network(frames, 9, change=True, future=future), persisted, rtol=0, atol=0)


def test_an_untrained_one_pass_network_persists_the_last_frame_that_it_was_shown():
    network, frames, future = make_network(form="one_pass", readout=False), make_frames(), make_frames(4, seed=2)
    use_truth = torch.tensor([[False] * 6, [False, True, False, True, False, True]])  # frame 0 is always shown
    forecast = network(frames, 4, change=True, future=future, use_truth=use_truth)
    shown = torch.stack([frames[0, 0], frames[1, 1]])[:, None].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(forecast, shown, rtol=0, atol=0)


@every_network
@both_targets
def test_a_longer_forecast_begins_with_the_shorter_one(name, form, change):
    network, frames = make_network(name, form, forcings=1), make_frames(channels=CHANNELS + 1)
    future = make_frames(6, channels=CHANNELS + 1, seed=2)
    long, short = (network(frames, steps, change=change, future=future[:, :steps]) for steps in (6, 3))
    torch.testing.assert_close(long[:, :3], short, rtol=0, atol=0)


@both_targets
def test_one_pass_shown_the_truth_of_each_lead_is_a_network_that_has_seen_it(change):
    network, channels = make_network(form="one_pass", forcings=FORCINGS), CHANNELS + FORCINGS
    everything = make_frames(HISTORY + 4, channels=channels)
    frames, future = everything[:, :HISTORY], everything[:, HISTORY:]
    forecast = network(frames, 4, change=change, future=future, use_truth=make_truth("all", 4))
    for lead in range(4):
        last = everything[:, HISTORY + lead - 1, :CHANNELS]
        base = frames[:, -1, :CHANNELS] - last if change else 0  # the change is since the last frame, not since a lead
        alone = network(everything[:, : HISTORY + lead], 1, change=change)[:, 0]
        torch.testing.assert_close(forecast[:, lead], alone + base)


@every_form
@both_targets
@pytest.mark.parametrize("kind", [None, "none"])
def test_the_truth_of_a_lead_does_not_leak(form, change, kind):
    network, channels = make_network(form=form, forcings=FORCINGS), CHANNELS + FORCINGS
    frames, future = make_frames(channels=channels), make_frames(5, channels=channels, seed=2)
    use_truth = None if kind is None else make_truth(kind, 5)
    forecast = network(frames, 5, change=change, future=future, use_truth=use_truth)
    hidden = future.clone()
    hidden[:, :, :CHANNELS] = torch.nan
    hidden[:, -1] = torch.nan  # nothing comes after the last lead
    found = network(frames, 5, change=change, future=hidden, use_truth=use_truth)
    torch.testing.assert_close(found, forecast, rtol=0, atol=0)
    found.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@both_targets
def test_one_pass_does_not_see_the_frames_that_are_hidden_from_it(change):
    network, channels = make_network(form="one_pass", forcings=FORCINGS), CHANNELS + FORCINGS
    frames, future = make_frames(channels=channels), make_frames(4, channels=channels, seed=2)
    use_truth = torch.tensor([[True, False, False, True, False, True], [True, True, False, False, True, False]])
    forecast = network(frames, 4, change=change, future=future, use_truth=use_truth)
    everything = torch.cat([frames, future], dim=1)
    everything[:, :-1, :CHANNELS][~use_truth] = torch.nan
    frames, future = everything[:, :HISTORY], everything[:, HISTORY:]
    found = network(frames, 4, change=change, future=future, use_truth=use_truth)
    torch.testing.assert_close(found, forecast, rtol=0, atol=0)


@both_targets
@pytest.mark.parametrize("forcings", [0, FORCINGS])
def test_the_whole_forecast_is_what_each_frame_leads_to_and_then_the_leads(change, forcings):
    network, frames = make_network(form="one_pass", forcings=forcings), make_frames(channels=CHANNELS + forcings)
    future = make_frames(4, channels=CHANNELS + forcings, seed=2)
    options = {"change": change, "future": future, "use_truth": make_truth("random", 4)}
    for given in ({**options, "use_truth": None}, options):
        whole = network(frames, 4, whole=True, **given)
        assert whole.shape == (2, HISTORY - 1 + 4, CHANNELS, HEIGHT, WIDTH)
        assert torch.equal(whole[:, -4:], network(frames, 4, **given))
    whole = network(frames, 4, whole=True, change=change, future=future)
    for seen in range(1, HISTORY):
        torch.testing.assert_close(whole[:, seen - 1 : seen], network(frames[:, :seen], 1, change=change))


@pytest.mark.parametrize("form", ["states", "feedback"])
def test_an_encoder_forecasts_nothing_while_it_reads(form):
    assert not make_network(form=form).one_pass
    with pytest.raises(ValueError, match="whole=True is for the one-pass form"):
        make_network(form=form)(make_frames(), 2, whole=True)


def test_an_encoder_reads_the_truth_whatever_is_asked_for():
    network, frames, future = make_network(form="feedback"), make_frames(), make_frames(4, seed=2)
    shown, hidden = make_truth("random", 4), make_truth("random", 4)
    shown[:, :HISTORY], hidden[:, :HISTORY] = True, False
    expected = network(frames, 4, future=future, use_truth=shown)
    torch.testing.assert_close(network(frames, 4, future=future, use_truth=hidden), expected, rtol=0, atol=0)
    assert (network(frames, 4, future=future) - expected).abs().max() > 1e-3


def test_a_network_that_lives_on_its_states_needs_no_future():
    network, frames = make_network(forcings=FORCINGS), make_frames(channels=CHANNELS + FORCINGS)
    future, use_truth = make_frames(4, channels=CHANNELS + FORCINGS, seed=2), make_truth("random", 4)
    forecast = network(frames, 4, future=future * torch.nan, use_truth=use_truth)
    torch.testing.assert_close(network(frames, 4), forecast, rtol=0, atol=0)


@pytest.mark.parametrize("form", EATERS)
def test_the_forcings_of_a_lead_count_from_the_next_lead_on(form):
    network, channels = make_network(form=form, forcings=FORCINGS), CHANNELS + FORCINGS
    frames, future = make_frames(channels=channels), make_frames(4, channels=channels, seed=2).requires_grad_()
    forecast = network(frames, 4, future=future)
    for lead in range(4):
        gradient = torch.autograd.grad(forecast[:, lead].sum(), future, retain_graph=True)[0]
        counts = gradient.abs().amax(dim=(0, 3, 4)) > 0
        assert counts[:lead, CHANNELS:].all()
        assert not counts[lead:].any()
        assert not counts[:, :CHANNELS].any()


@every_network
def test_every_frame_and_forcing_counts(name, form):
    network, frames = make_network(name, form, forcings=FORCINGS), make_frames(channels=CHANNELS + FORCINGS)
    network(frames.requires_grad_(), 1).sum().backward()
    assert (frames.grad.abs().amax(dim=(0, 3, 4)) > 0).all()


@every_network
def test_the_members_of_a_batch_do_not_meet(name, form):
    network, frames = make_network(name, form), make_frames(batch=3)
    alone = [network(frames[[member]], 2) for member in range(3)]
    torch.testing.assert_close(network(frames, 2), torch.cat(alone))


@every_form
@both_targets
def test_autocast_stays_close_to_single_precision(form, change):
    # Every operand is off by up to 2^-9; see tests/models/test_convlstm.py. Here eight steps and two layers add up, and
    # the readout sums over 36 terms of size 0.1: some per cent.
    network, channels = make_network(form=form, forcings=FORCINGS).float(), CHANNELS + FORCINGS
    frames, future = make_frames(channels=channels).float(), make_frames(5, channels=channels, seed=2).float()
    options = {"change": change, "future": future, "use_truth": make_truth("random", 5)}
    exact = network(frames, 5, **options)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(frames, 5, **options)
    assert (found - exact).abs().max() < 0.05
    if change:  # the frame that the change is added to keeps its precision
        assert found.dtype == torch.float32


@pytest.mark.parametrize(("form", "feeds_back"), [("states", False), ("feedback", True), ("one_pass", True)])
def test_a_network_knows_whether_it_feeds_back(form, feeds_back):
    assert make_network(form=form).feeds_back is feeds_back


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


class Leak(torch.nn.Module):
    """A cell of one state, which forgets half of itself and adds the sum of its inputs."""

    def __init__(self, inputs):
        super().__init__()
        self.inputs, self.hidden = inputs, 1

    def initial_state(self, batch, height, width, like):
        return (like.new_zeros(batch, 1, height, width),)

    def forward(self, x, state, shared):
        level = state[0] / 2 if x is None else state[0] / 2 + x.sum(dim=1, keepdim=True)
        return level, (level,)


def make_leak(form, *, forcings=0):
    """A network of leaks that forecasts its state, or a change by its state; it has no other weight."""
    forecaster = {"states": Leak(0), "feedback": Leak(1 + forcings), "one_pass": None}[form]
    network = EncoderForecaster(Leak(1 + forcings), forecaster, channels=1, forcings=forcings, readout=1)
    torch.nn.init.ones_(network.readout.weight)
    return network


@pytest.mark.parametrize(
    ("form", "change", "expected"),
    [
        # Frames 8, 4, 2 leave the state 8, 8, 6. Then a half of it at each step ...
        ("states", False, [3.0, 1.5, 0.75]),
        ("states", True, [2 + 3.0, 2 + 1.5, 2 + 0.75]),
        # ... and the last frame again: 6 / 2 + 2 = 5; then the forecast, of which the change is only a part
        ("feedback", False, [5.0, 5 / 2 + 5, 7.5 / 2 + 7.5]),
        ("feedback", True, [2 + 5.0, 2 + (5 / 2 + 7), 2 + (9.5 / 2 + 11.5)]),
        # One pass has read the last frame once.
        ("one_pass", False, [6.0, 6 / 2 + 6, 9 / 2 + 9]),
        ("one_pass", True, [2 + 6.0, 2 + (6 / 2 + 8), 2 + (11 / 2 + 13)]),
    ],
)
def test_other_cells_with_the_same_protocol_fit_in(form, change, expected):
    frames = torch.tensor([8.0, 4.0, 2.0]).view(1, 3, 1, 1, 1)
    assert make_leak(form)(frames, 3, change=change).flatten().tolist() == expected


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # Frames (8, 1), (4, 1), (2, 1) leave the state 9, 9.5, 7.75; then (2, 1), (own, 10), (own, 20): 3.875 + 3 = 6.875, ...
        ("feedback", [2 + 6.875, 2 + (6.875 / 2 + 8.875 + 10), 2 + (22.3125 / 2 + 24.3125 + 20)]),
        ("one_pass", [2 + 7.75, 2 + (7.75 / 2 + 9.75 + 10), 2 + (23.625 / 2 + 25.625 + 20)]),
    ],
)
def test_a_forecast_is_eaten_with_the_forcings_of_its_lead(form, expected):
    frames = torch.tensor([[8.0, 1.0], [4.0, 1.0], [2.0, 1.0]]).view(1, 3, 2, 1, 1)
    future = torch.tensor([[np.nan, 10.0], [np.nan, 20.0], [np.nan, 30.0]]).view(1, 3, 2, 1, 1)
    found = make_leak(form, forcings=1)(frames, 3, change=True, future=future)
    assert found.flatten().tolist() == expected


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"frames must have 2 channels and 0 forcings, got shape \(2, 3, 1, 5, 6\)"):
        make_network()(make_frames(channels=1), 1)
    with pytest.raises(ValueError, match=r"frames must have 2 channels and 3 forcings, got shape \(2, 3, 2, 5, 6\)"):
        make_network(forcings=3)(make_frames(), 1)


@pytest.mark.parametrize("form", EATERS)
def test_a_future_that_is_missing_or_does_not_fit_is_refused(form):
    network, frames = make_network(form=form, forcings=1), make_frames(channels=3)
    assert network(frames, 1).isfinite().all()  # the forcings of the last lead are never eaten
    with pytest.raises(ValueError, match="that eats the forcings or the truth of 2 leads needs future"):
        network(frames, 2)
    with pytest.raises(ValueError, match="that eats the forcings or the truth of 2 leads needs future"):
        make_network(form=form)(make_frames(), 2, use_truth=make_truth("all", 2))
    with pytest.raises(ValueError, match=r"future must have the shape \(2, 2, 3, 5, 6\), got \(2, 2, 2, 5, 6\)"):
        network(frames, 2, future=make_frames(2))
    with pytest.raises(ValueError, match=r"future must have the shape \(2, 2, 3, 5, 6\), got \(2, 1, 3, 5, 6\)"):
        network(frames, 2, future=frames[:, :1])
    with pytest.raises(ValueError, match=r"use_truth must have the shape \(2, 4\), got \(2, 5\)"):
        network(frames, 2, future=frames[:, :2], use_truth=make_truth("all", 3))


@every_form
def test_a_forecast_has_at_least_one_lead(form):
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        make_network(form=form)(make_frames(), 0)


def test_a_network_has_at_least_one_layer():
    with pytest.raises(ValueError, match="a network needs at least one layer, got none"):
        build_model("convlstm", layers=0)


@every_form
def test_a_penalty_is_that_of_the_last_state_in_training_and_is_taken_once(form):
    class Warm(Leak):
        def penalty(self, state):
            return state[0].square().mean()

    forecaster = {"states": Warm(0), "feedback": Warm(1), "one_pass": None}[form]
    network = EncoderForecaster(Warm(1), forecaster, channels=1, readout=1)
    frames = torch.tensor([8.0, 4.0, 2.0])[None, :, None, None, None].requires_grad_()
    network(frames, 1)
    # Frames 8, 4, 2 leave the state 6 (8, 8, 6); a forecaster halves it, after eating the last frame again or not.
    assert float(network.take_penalty().detach()) == {"states": 3, "feedback": 5, "one_pass": 6}[form] ** 2
    assert network.take_penalty() is None
    network.eval()(frames, 1)
    assert network.take_penalty() is None
    assert make_network(form=form)(make_frames(), 1).isfinite().all()


def test_layers_are_a_cell_themselves():
    cells = [ConvLSTMCell(1, 2), ConvLSTMCell(2, 3)]
    layers, frames = Layers(cells), torch.randn(3, 2, 1, 4, 5)
    assert (layers.inputs, layers.hidden) == (1, 3)
    state = layers.initial_state(2, 4, 5, frames)
    apart = [cell.initial_state(2, 4, 5, frames) for cell in cells]
    for frame in frames:
        hidden, state = layers(frame, state)
        expected, apart = through(cells, frame, apart, None)
        torch.testing.assert_close(hidden, expected)
