import numpy as np
import pytest
import torch
from torch import nn

from climapred.calendar import harmonic_design
from climapred.models import build_model
from climapred.models.scaled import Scaled

BATCH, HISTORY, STEPS, HEIGHT, WIDTH = 2, 3, 4, 4, 5
TIMES = np.datetime64("2013-03-01", "h") + 6 * np.arange(HISTORY + STEPS) + 100 * np.arange(BATCH)[:, None]


class Repeat(nn.Module):
    """Knows that tomorrow is like today: a network whose forecast is exact in any precision it is given."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, frames, steps, **given):
        self.seen, self.given = frames, given
        return frames[:, -1:, : self.channels].expand(-1, steps, -1, -1, -1)


class Foresee(Repeat):
    """Knows the future, and says so."""

    def forward(self, frames, steps, **given):
        super().forward(frames, steps, **given)
        return given["future"][:, :, : self.channels]


def make_case(channels=2, seed=0):
    """Fields near 280 K, the harmonic coefficients of their climatology and that climatology, in float64."""
    random = np.random.default_rng(seed)
    design = harmonic_design(TIMES, 1, 1)
    coefficients = random.normal(0, 4, (design.shape[-1], channels, HEIGHT, WIDTH))
    coefficients[0] += 280
    climate = np.einsum("btf,fchw->btchw", design, coefficients)
    fields = climate[:, :HISTORY] + random.normal(0, 5, (BATCH, HISTORY, channels, HEIGHT, WIDTH))
    return fields, design, coefficients, climate


def forecast(module, fields, calendar, *, whole=False, **options):
    options = {key: torch.as_tensor(value) for key, value in options.items()}
    options = {key: value.float() if value.is_floating_point() else value for key, value in options.items()}
    with torch.no_grad():
        found = module(torch.tensor(fields).float(), torch.tensor(calendar).float(), whole=whole, **options)
    return found.double().numpy()


def scaled(network, coefficients, scale=(4.0, 2.5), target="value", **options):
    return Scaled(network, reference=torch.tensor(coefficients), scale=torch.tensor(scale), target=target, **options)


def make_untrained(coefficients, scale, target, **options):
    channels = coefficients.shape[1]
    network = build_model("ls_ntp", channels=channels, height=HEIGHT, width=WIDTH, hidden=4, embedding=3)
    return scaled(network, coefficients, scale, target, **options)


def make_future(climate, *, forcings=0, seed=5):
    """Fields of the leads, near the climatology of the leads, and forcings between -1 and 1."""
    random, climate = np.random.default_rng(seed), climate[:, HISTORY:]
    return with_forcings(climate + random.normal(0, 5, climate.shape), forcings, seed)


def with_forcings(fields, forcings, seed=6):
    shape = (*fields.shape[:2], forcings, *fields.shape[3:])
    return np.concatenate([fields, np.random.default_rng(seed).uniform(-1, 1, shape)], axis=2)


def test_an_untrained_network_that_predicts_the_change_is_anomaly_persistence():
    # x(lead) = x(last): T(lead) = climatology(lead) + T(last) - climatology(last). Float32 near 280 K rounds at 3e-5 K.
    fields, calendar, coefficients, climate = make_case()
    module = make_untrained(coefficients, [4.0, 2.5], "change")
    expected = climate[:, HISTORY:] + (fields - climate[:, :HISTORY])[:, -1:]
    np.testing.assert_allclose(forecast(module, fields, calendar), expected, atol=2e-4)


def test_an_untrained_network_that_predicts_the_value_is_the_climatology():
    fields, calendar, coefficients, climate = make_case()
    module = make_untrained(coefficients, [4.0, 2.5], "value")
    np.testing.assert_allclose(forecast(module, fields, calendar), climate[:, HISTORY:], atol=1e-4)


@pytest.mark.parametrize("target", ["change", "value"])
@pytest.mark.parametrize("kind", ["standard", "minmax"])
def test_a_constant_reference_gives_persistence_or_that_constant(kind, target):
    fields, *_ = make_case()
    low = (fields.mean if kind == "standard" else fields.min)(axis=(0, 1, 3, 4))
    scale = fields.std(axis=(0, 1, 3, 4)) if kind == "standard" else fields.max(axis=(0, 1, 3, 4)) - low
    module = make_untrained(low[None, :, None, None], scale, target)
    found = forecast(module, fields, np.ones((BATCH, HISTORY + STEPS, 1)))
    expected = fields[:, -1:] if target == "change" else low[:, None, None]
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_network_sees_each_channel_scaled_on_its_own(channels):
    fields, calendar, coefficients, climate = make_case(channels)
    scale = np.array([4.0, 2.5][:channels])
    network = Repeat(channels)
    module = scaled(network, coefficients, scale)
    found = forecast(module, fields, calendar)
    expected = (fields - climate[:, :HISTORY]) / scale[:, None, None]
    np.testing.assert_allclose(network.seen.numpy(), expected, atol=5e-5)
    # "value" of a repeated frame is the anomaly persistence that "change" of a zero is
    persisted = climate[:, HISTORY:] + (fields - climate[:, :HISTORY])[:, -1:]
    np.testing.assert_allclose(found, persisted, atol=2e-4)


def test_minmax_maps_the_extremes_to_0_and_1():
    fields, *_ = make_case(1)
    network, low, high = Repeat(1), fields.min(), fields.max()
    scale = torch.tensor([high - low])
    module = Scaled(network, reference=torch.full((1, 1, 1, 1), low), scale=scale, target="value")
    forecast(module, fields, np.ones((BATCH, HISTORY + STEPS, 1)))
    assert network.seen.min().item() == pytest.approx(0, abs=1e-6)
    assert network.seen.max().item() == pytest.approx(1, abs=1e-6)


def test_autocast_does_not_touch_kelvin():
    # bfloat16 knows 280 K and 282 K and nothing between: subtraction, sum and product must stay in float32.
    fields, calendar, coefficients, climate = make_case()
    expected = climate[:, HISTORY:] + (fields - climate[:, :HISTORY])[:, -1:]
    repeat = scaled(Repeat(2), coefficients)
    for module in (repeat, make_untrained(coefficients, [4.0, 2.5], "change")):
        with torch.autocast("cpu", torch.bfloat16):
            found = forecast(module, fields, calendar)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_statistics_travel_with_the_weights_and_are_not_learned():
    module = make_untrained(make_case()[2], [4.0, 2.5], "change")
    assert {"reference", "scale"} < set(module.state_dict())
    assert not {"reference", "scale"} & {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("scale", [[1.0, 0.0], [1.0, -2.0], [1.0, np.nan]])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match=rf"positive in every channel, got \[1.0, {scale[1]}\]; is a field constant"):
        make_untrained(make_case()[2], scale, "change")


@pytest.mark.parametrize("missing", ["refuse", "mask"])
def test_what_a_network_foresees_comes_back_in_physical_units(missing):
    # The leads are scaled with the climatology of their own times: that of the frames would be off by kelvins.
    fields, calendar, coefficients, climate = make_case()
    network, future = Foresee(2), make_future(climate, forcings=3)
    module = scaled(network, coefficients, missing=missing)
    found = forecast(module, with_forcings(fields, 3), calendar, future=future)
    np.testing.assert_allclose(found, future[:, :, :2], atol=1e-4)
    expected = (future[:, :, :2] - climate[:, HISTORY:]) / np.array([4.0, 2.5])[:, None, None]
    np.testing.assert_allclose(network.given["future"][:, :, :2].numpy(), expected, atol=5e-5)


@pytest.mark.parametrize("target", ["change", "value"])
def test_a_network_is_told_what_it_needs(target):
    fields, calendar, coefficients, climate = make_case()
    network, shown = Repeat(2), np.zeros((BATCH, HISTORY + STEPS - 1), dtype=bool)
    module = scaled(network, coefficients, target=target)
    forecast(module, fields, calendar)
    assert network.given == {"change": target == "change", "future": None, "use_truth": None}
    forecast(module, fields, calendar, future=make_future(climate), use_truth=shown)
    assert network.given["use_truth"].tolist() == shown.tolist()


@pytest.mark.parametrize("missing", ["refuse", "mask"])
@pytest.mark.parametrize("autocast", [False, True])
def test_forcings_pass_as_they_are(missing, autocast):
    fields, calendar, coefficients, climate = make_case()
    network, fields, future = Repeat(2), with_forcings(fields, 3), make_future(climate, forcings=3)
    module = scaled(network, coefficients, missing=missing)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = forecast(module, fields, calendar, future=future)
    assert found.shape == (BATCH, STEPS, 2, HEIGHT, WIDTH)
    np.testing.assert_array_equal(network.seen[:, :, 2:].numpy(), fields[:, :, 2:].astype(np.float32))
    np.testing.assert_array_equal(network.given["future"][:, :, 2:].numpy(), future[:, :, 2:].astype(np.float32))


@pytest.mark.parametrize("target", ["change", "value"])
@pytest.mark.parametrize("form", [{}, {"feedback": True}, {"one_pass": True}])
def test_a_network_between_fields_is_the_network_between_scaled_fields(form, target):
    fields, calendar, coefficients, climate = make_case()
    fields, future = with_forcings(fields, 3), make_future(climate, forcings=3)
    torch.manual_seed(0)
    network = build_model("convlstm", channels=2, forcings=3, hidden=4, **form)
    torch.nn.init.normal_(network.readout.weight)
    shown = torch.rand(BATCH, HISTORY + STEPS - 1) < 0.5
    found = forecast(scaled(network, coefficients, target=target), fields, calendar, future=future, use_truth=shown)

    scale = np.array([4.0, 2.5])[:, None, None]
    seen, ahead = fields.copy(), future.copy()
    seen[:, :, :2] = (fields[:, :, :2] - climate[:, :HISTORY]) / scale
    ahead[:, :, :2] = (future[:, :, :2] - climate[:, HISTORY:]) / scale
    options = {"change": target == "change", "future": torch.tensor(ahead), "use_truth": shown}
    with torch.no_grad():
        expected = network.double()(torch.tensor(seen), STEPS, **options).numpy()
    np.testing.assert_allclose(found, expected * scale + climate[:, HISTORY:], atol=1e-3)


@pytest.mark.parametrize("target", ["change", "value"])
def test_the_frames_that_are_seen_are_forecast_with_the_climatology_of_their_times(target):
    fields, calendar, coefficients, _ = make_case()
    torch.manual_seed(0)
    network = build_model("convlstm", channels=2, hidden=4, one_pass=True)
    torch.nn.init.normal_(network.readout.weight)
    module = scaled(network, coefficients, target=target)
    whole = forecast(module, fields, calendar, whole=True)
    assert whole.shape == (BATCH, HISTORY - 1 + STEPS, 2, HEIGHT, WIDTH)
    np.testing.assert_allclose(whole[:, HISTORY - 1 :], forecast(module, fields, calendar), atol=1e-3)
    for seen in range(1, HISTORY):
        one = forecast(module, fields[:, :seen], calendar[:, : seen + 1])
        np.testing.assert_allclose(whole[:, seen - 1 : seen], one, atol=1e-3)


def make_gaps(shape, seed=7):
    return np.random.default_rng(seed).random(shape) < 0.3


@pytest.mark.parametrize("form", [{}, {"feedback": True}, {"one_pass": True}])
def test_masked_gaps_are_seen_as_the_climatology(form):
    fields, calendar, coefficients, climate = make_case()
    future, shown = make_future(climate), make_gaps((BATCH, HISTORY + STEPS - 1))
    gaps, gaps_ahead = make_gaps(fields.shape), make_gaps(future.shape, seed=8)
    torch.manual_seed(0)
    network = build_model("convlstm", channels=2, hidden=4, **form)
    torch.nn.init.normal_(network.readout.weight)
    module = scaled(network, coefficients, target="change", missing="mask")

    def between(gap, gap_ahead):
        seen, ahead = np.where(gaps, gap, fields), np.where(gaps_ahead, gap_ahead, future)
        return forecast(module, seen, calendar, future=ahead, use_truth=shown)

    np.testing.assert_allclose(
        between(np.nan, np.nan), between(climate[:, :HISTORY], climate[:, HISTORY:]), rtol=0, atol=1e-3
    )


def test_a_mask_sees_zero_in_gaps_and_the_rest_untouched():
    fields, calendar, coefficients, _ = make_case()
    gaps, seen = make_gaps(fields.shape), {}
    for missing, values in (("refuse", fields), ("mask", np.where(gaps, np.nan, fields))):
        network = Repeat(2)
        forecast(scaled(network, coefficients, missing=missing), values, calendar)
        seen[missing] = network.seen.numpy()
    np.testing.assert_array_equal(seen["mask"], np.where(gaps, 0, seen["refuse"]))


def test_persistence_of_a_masked_gap_is_the_climatology():
    fields, calendar, coefficients, climate = make_case()
    gaps = make_gaps(fields.shape[2:])
    module = make_untrained(coefficients, (4.0, 2.5), "change", missing="mask")
    found = forecast(module, np.where(gaps, np.nan, fields), calendar)
    anomaly = (fields - climate[:, :HISTORY])[:, -1:]
    np.testing.assert_allclose(found, climate[:, HISTORY:] + np.where(gaps, 0, anomaly), atol=2e-4)


def test_without_a_mask_gaps_spread():
    # Repeat touches no neighbours; LS-NTP's first layer mixes all cells, and NaN * 0 = NaN even in an untrained readout.
    fields, calendar, coefficients, _ = make_case()
    fields[0, -1, 1, 2, 3] = np.nan
    found = np.isnan(forecast(scaled(Repeat(2), coefficients), fields, calendar))
    assert found[0, :, 1, 2, 3].all()
    assert found.sum() == STEPS
    found = np.isnan(forecast(make_untrained(coefficients, (4.0, 2.5), "value"), fields, calendar))
    assert found[0].all()
    assert not found[1:].any()


@pytest.mark.parametrize("target", ["change", "value"])
def test_a_cell_without_climatology_has_no_forecast_and_spoils_no_other(target):
    # Such as a sea surface temperature on land: no value in the training years, none in the frames.
    fields, calendar, coefficients, _ = make_case()
    torch.manual_seed(0)
    network = build_model("convlstm", channels=2, hidden=4, one_pass=True)
    torch.nn.init.normal_(network.readout.weight)
    land = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    land[1, 1:3, 2] = True
    fields[:, :, land] = np.nan
    unknown = coefficients.copy()
    unknown[:, land] = np.nan
    found, known = (
        forecast(scaled(network, values, target=target, missing="mask"), fields, calendar)
        for values in (unknown, coefficients)
    )
    np.testing.assert_array_equal(np.isnan(found), np.broadcast_to(land, found.shape))
    np.testing.assert_array_equal(found[..., ~land], known[..., ~land])
    assert np.isnan(forecast(scaled(network, unknown, target=target), fields, calendar)[..., 0, :, :]).any()


def test_masked_gaps_leave_the_gradient_finite():
    fields, calendar, coefficients, climate = make_case()
    fields[:, :, 1, 2] = np.nan
    future = np.full_like(make_future(climate), np.nan)
    network = build_model("convlstm", channels=2, hidden=4, feedback=True)
    torch.nn.init.normal_(network.readout.weight)
    module = scaled(network, coefficients, target="change", missing="mask")
    shown = torch.ones(BATCH, HISTORY + STEPS - 1, dtype=torch.bool)
    seen, calendar, future = (torch.tensor(values).float() for values in (fields, calendar, future))
    module(seen, calendar, future=future, use_truth=shown).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_fields_that_do_not_fit_the_statistics_are_refused():
    # They would broadcast: one variable as if it were both, one lead as if it were all.
    fields, calendar, coefficients, climate = make_case()
    module, future = scaled(Repeat(2), coefficients), make_future(climate)
    with pytest.raises(ValueError, match=r"must have 2 variables .* got shape \(2, 3, 1, 4, 5\) for .* \(2, 3, 2\)"):
        forecast(module, fields[:, :, :1], calendar)
    with pytest.raises(
        ValueError, match=r"as many times as the calendar, got shape \(2, 1, 2, 4, 5\) for .* \(2, 4, 2\)"
    ):
        forecast(module, fields, calendar, future=future[:, :1])
    with pytest.raises(ValueError, match=r"got shape \(2, 3, 2, 4, 5\) for .* \(2, 2, 2\)"):
        forecast(module, fields, calendar[:, :2])
