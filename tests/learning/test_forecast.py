import dask
import numpy as np
import pytest
import torch
import xarray as xr

from climapred.calendar import climatology_at, harmonic_design
from climapred.grid import Grid
from climapred.learning.forecast import forecast, rollout
from climapred.variables import VARIABLES

HOUR = np.timedelta64(1, "h")


def by_hand(model, fields, init_times, steps):
    """One forecast after another, straight through the network."""
    times, found = fields["time"].values, []
    for start in init_times:
        last = times.tolist().index(start.astype("datetime64[ns]").item())
        frames = [np.stack([fields[name].values[i] for name in model.variables]) for i in range(last - 2, last + 1)]
        clock = start + np.arange(-2, steps + 1) * 6 * HOUR
        calendar = np.ones((steps + 3, 1)) if model.orders is None else harmonic_design(clock, *model.orders)
        with torch.no_grad():
            module, inputs = model.module.cpu(), torch.tensor(np.stack(frames))[None]
            found.append(module(inputs, torch.tensor(calendar).float()[None])[0].numpy())
    return np.stack(found)


@pytest.mark.parametrize(
    ("architecture", "inputs", "variables"),
    [("ls_ntp", "anomaly", ("t2m",)), ("convlstm", "standard", ("skt", "t2m"))],
)
@pytest.mark.parametrize("steps", [None, 1, 5])
def test_a_forecast_is_what_the_network_says(make_model, fields, architecture, inputs, variables, steps):
    model = make_model(architecture, inputs=inputs, variables=variables)
    init_times = fields["time"].values[[9, 2, 40, 59]]
    found = forecast(model, fields, init_times, steps=steps, batch_size=3, precision="float32")
    expected = by_hand(model, fields, init_times, steps or 2)
    assert list(found.data_vars) == list(variables)
    for channel, name in enumerate(variables):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name].values, expected[:, :, channel], rtol=0, atol=1e-3)


def test_a_forecast_has_the_coordinates_of_the_house(make_model, fields):
    model, init_times = make_model(), fields["time"].values[[10, 20]]
    found = forecast(model, fields, init_times, steps=3)
    assert found["t2m"].dims == ("init_time", "lead_time", "latitude", "longitude")
    assert set(found.coords) == {"init_time", "lead_time", "valid_time", "latitude", "longitude"}
    assert found["init_time"].dtype == found["valid_time"].dtype == np.dtype("datetime64[ns]")
    np.testing.assert_array_equal(found["init_time"], init_times)
    np.testing.assert_array_equal(found["lead_time"], (np.array([6, 12, 18]) * HOUR).astype("timedelta64[ns]"))
    assert found["valid_time"].dims == ("init_time", "lead_time")
    np.testing.assert_array_equal(found["valid_time"], init_times[:, None] + np.array([6, 12, 18]) * HOUR)
    assert Grid.of(found) == Grid.of(fields)
    assert found["t2m"].attrs["units"] == "K"
    assert found["t2m"].attrs["standard_name"] == VARIABLES["t2m"].standard_name
    assert found.attrs == {"model": "small", "model_identity": model.identity()}


def test_an_untrained_model_is_anomaly_persistence(make_model, fields, statistics):
    # T(lead) = climatology(lead) + T(init) - climatology(init); float32 near 280 K rounds at 3e-5 K.
    model = make_model()
    torch.nn.init.zeros_(model.module.network.readout.weight)
    init_times = fields["time"].values[[5, 30]]
    found = forecast(model, fields, init_times, steps=4)
    coefficients = statistics["climatology"].sel(variable="t2m")
    now = fields["t2m"].sel(time=init_times)
    anomaly = (now - climatology_at(coefficients, now["time"])).values
    expected = climatology_at(coefficients, found["valid_time"]).values + anomaly[:, None]
    np.testing.assert_allclose(found["t2m"].values, expected, atol=3e-4)


def test_without_initial_times_a_forecast_starts_from_the_last_field(make_model, fields):
    model = make_model()
    found, last = forecast(model, fields), fields["time"].values[-1:]
    np.testing.assert_array_equal(found["init_time"], last)
    assert found.identical(forecast(model, fields, last))
    assert found.identical(forecast(model, fields, np.datetime_as_string(last[0], unit="m")))
    assert found.sizes["lead_time"] == model.window.horizon


def test_batches_make_no_difference(make_model, fields):
    model, init_times = make_model(), fields["time"].values[3:14]
    whole = forecast(model, fields, init_times, precision="float32")
    parts = list(rollout(model, fields, init_times, batch_size=4, precision="float32"))
    assert [part.sizes["init_time"] for part in parts] == [4, 4, 3]
    for part in parts:
        xr.testing.assert_allclose(part, whole.sel(init_time=part["init_time"]), rtol=1e-6)


def test_bfloat16_changes_a_forecast_by_less_than_a_tenth_of_a_kelvin(make_model, fields):
    # It rounds the predicted change (here about a kelvin) by 0.4 % in each of a few places, never the field itself.
    model, init_times = make_model(), fields["time"].values[5:25]
    exact, rounded = (forecast(model, fields, init_times, precision=name)["t2m"] for name in ("float32", "bf16"))
    assert 0 < np.abs(exact - rounded).max() < 0.1


def test_gaps_elsewhere_do_not_matter(make_model, fields):
    model, init = make_model(), fields["time"].values[[30]]
    holey = fields.isel(time=[0, 1, 5, 28, 29, 30, 41])
    assert forecast(model, holey, init).identical(forecast(model, fields, init))


def test_of_lazy_fields_only_the_frames_that_are_seen_are_read(make_model, fields):
    read = []

    def load(block, block_info=None):
        read.append(block_info[0]["array-location"][0][0])
        return block

    lazy = fields[["t2m"]].chunk(time=1)
    lazy["t2m"] = lazy["t2m"].copy(data=lazy["t2m"].data.map_blocks(load, dtype=np.float32, meta=np.empty((0, 0, 0))))
    model, init_times = make_model(), fields["time"].values[[10, 11, 40]]
    with dask.config.set(scheduler="synchronous"):
        found = forecast(model, lazy, init_times, batch_size=2)
    assert found.identical(forecast(model, fields, init_times, batch_size=2))
    assert sorted(read) == [8, 9, 10, 11, 38, 39, 40]


def test_errors_name_what_does_not_fit(make_model, fields):
    model, times = make_model(variables=("t2m", "skt")), fields["time"].values
    with pytest.raises(ValueError, match=r"model small needs skt; the fields hold \['t2m'\]"):
        forecast(model, fields[["t2m"]])
    with pytest.raises(ValueError, match=r"was trained on Grid.*, the fields are on Grid.*; regrid them first"):
        forecast(model, fields.isel(longitude=slice(1, None)))
    too_early = (
        r"model small needs 3 frames, 6 h apart, up to each initial time; 2 are missing, the first is 2000-12-31T12"
    )
    with pytest.raises(ValueError, match=too_early):
        forecast(model, fields, times[[0]])
    with pytest.raises(ValueError, match="1 are missing, the first is 2001-01-04T00:00"):
        forecast(model, fields.drop_sel(time="2001-01-04T00"), times[[14]])
    with pytest.raises(ValueError, match="3 are missing, the first is 2001-01-01T21:00"):
        forecast(model, fields, times[[5]] + 3 * HOUR)
    with pytest.raises(ValueError, match="1 are missing, the first is 2001-01-16T00:00"):
        forecast(model, fields, times[[-1]] + 6 * HOUR)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        forecast(model, fields, steps=0)
    with pytest.raises(ValueError, match="init_times must hold at least one time, got none"):
        forecast(model, fields, times[:0])
    with pytest.raises(ValueError, match="precision must be one of auto, bf16, float32, got 'half'"):
        forecast(model, fields, precision="half")
