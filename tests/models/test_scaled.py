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

    def forward(self, frames, steps):
        self.seen = frames
        return frames[:, -1:].expand(-1, steps, -1, -1, -1)


def make_case(channels=2, seed=0):
    """Fields near 280 K, the harmonic coefficients of their climatology and that climatology, in float64."""
    random = np.random.default_rng(seed)
    design = harmonic_design(TIMES, 1, 1)
    coefficients = random.normal(0, 4, (design.shape[-1], channels, HEIGHT, WIDTH))
    coefficients[0] += 280
    climate = np.einsum("btf,fchw->btchw", design, coefficients)
    fields = climate[:, :HISTORY] + random.normal(0, 5, (BATCH, HISTORY, channels, HEIGHT, WIDTH))
    return fields, design, coefficients, climate


def forecast(module, fields, calendar):
    with torch.no_grad():
        return module(torch.tensor(fields).float(), torch.tensor(calendar).float()).double().numpy()


def make_untrained(coefficients, scale, target):
    channels = coefficients.shape[1]
    network = build_model("ls_ntp", channels=channels, height=HEIGHT, width=WIDTH, hidden=4, embedding=3)
    return Scaled(network, reference=torch.tensor(coefficients), scale=torch.tensor(scale), target=target)


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
    network = Repeat()
    module = Scaled(network, reference=torch.tensor(coefficients), scale=torch.tensor(scale), target="value")
    found = forecast(module, fields, calendar)
    expected = (fields - climate[:, :HISTORY]) / scale[:, None, None]
    np.testing.assert_allclose(network.seen.numpy(), expected, atol=5e-5)
    # "value" of a repeated frame is the anomaly persistence that "change" of a zero is
    persisted = climate[:, HISTORY:] + (fields - climate[:, :HISTORY])[:, -1:]
    np.testing.assert_allclose(found, persisted, atol=2e-4)


def test_minmax_maps_the_extremes_to_0_and_1():
    fields, *_ = make_case(1)
    network, low, high = Repeat(), fields.min(), fields.max()
    scale = torch.tensor([high - low])
    module = Scaled(network, reference=torch.full((1, 1, 1, 1), low), scale=scale, target="value")
    forecast(module, fields, np.ones((BATCH, HISTORY + STEPS, 1)))
    assert network.seen.min().item() == pytest.approx(0, abs=1e-6)
    assert network.seen.max().item() == pytest.approx(1, abs=1e-6)


def test_autocast_does_not_touch_kelvin():
    # bfloat16 knows 280 K and 282 K and nothing between: subtraction, sum and product must stay in float32.
    fields, calendar, coefficients, climate = make_case()
    expected = climate[:, HISTORY:] + (fields - climate[:, :HISTORY])[:, -1:]
    repeat = Scaled(Repeat(), reference=torch.tensor(coefficients), scale=torch.tensor([4.0, 2.5]), target="value")
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
