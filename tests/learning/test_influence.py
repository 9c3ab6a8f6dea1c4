import numpy as np
import pytest

from climapred.learning.influence import influence

POINTS = 35


def by_differences(model, fields, times, *, lead, step=0.5):
    """Central differences of the forecasts themselves: every point of every frame moved up and down by half a kelvin."""
    names = list(model.variables)
    found = np.zeros((POINTS, 3, POINTS))
    for time in times:
        at = int(np.flatnonzero(fields["time"].values == time)[0])
        seen = fields[names].isel(time=slice(at - 2, at + 1)).load()
        for frame in range(3):
            for point in range(POINTS):
                ends = []
                for sign in (1, -1):
                    moved = seen.copy(deep=True)
                    moved[names[0]].values[frame].flat[point] += sign * step
                    forecast = model.forecast(moved, [time], precision="float32")[names[0]].values[0].astype(float)
                    ends.append((forecast.mean(axis=0) if lead is None else forecast[lead - 1]).ravel())
                found[:, frame, point] += (ends[0] - ends[1]) / (2 * step)
    return np.abs(found / len(times)).max(axis=1)


@pytest.mark.parametrize(("architecture", "lead"), [("ls_ntp", None), ("convlstm", 2)])
def test_influence_is_what_differences_of_forecasts_show(make_model, fields, architecture, lead):
    model, times = make_model(architecture, layers=1), fields["time"].values[[10]]
    found = influence(model, fields, times, lead=lead)
    expected = by_differences(model, fields, times, lead=lead)
    # float32 forecasts of 280 K are known to 3e-5: a difference of 1 K to as much
    np.testing.assert_allclose(found, expected, atol=2e-4 + 0.01 * expected.max())
    assert expected.max() > 0.05


def test_targets_may_come_in_any_number_and_signs_cancel(make_model, fields):
    model, times = make_model("ls_ntp"), fields["time"].values[[10, 30]]
    both = influence(model, fields, times)
    np.testing.assert_allclose(influence(model, fields, times, targets_at_once=4), both, rtol=1e-4, atol=1e-6)
    each = [influence(model, fields, times[[at]]) for at in (0, 1)]
    assert (both <= np.maximum(*each) + 1e-6).all()
    assert both.shape == (POINTS, POINTS)


def test_a_convolution_hears_no_further_than_its_kernels_reach(make_model, fields):
    """One layer, 3 frames and the last of 2 leads: kernels of 3 x 3 in 5 steps, and the readout: 6 points."""
    model = make_model("convlstm", layers=1, hidden=2, kernel=3)
    found = influence(model, fields, fields["time"].values[[10]], lead=1).reshape(5, 7, 5, 7)
    # lead 1: of the last frame one convolution in the encoder, one in the forecaster, the readout: 3 points; of the first 5
    assert found[0, 0, 0, 6] == 0
    assert found[0, 0, 0, 1] > 0


def test_errors_name_what_was_wanted(make_model, fields):
    model, times = make_model(), fields["time"].values
    with pytest.raises(ValueError, match="variable must be one of t2m, got 'skt'"):
        influence(model, fields, times[[10]], variable="skt")
    with pytest.raises(ValueError, match="lead must lie between 1 and 2, got 3"):
        influence(model, fields, times[[10]], lead=3)
    with pytest.raises(ValueError, match="5 in a row; they do not for 2 of 3"):
        influence(model, fields, times[[0, 10, -1]])
