from dataclasses import replace

import dask
import numpy as np
import pytest
import torch
import xarray as xr

from climapred.calendar import climatology_at, harmonic_design
from climapred.data.regrid import regrid
from climapred.grid import Grid
from climapred.learning.forecast import forecast, rollout
from climapred.learning.windows import Window
from climapred.variables import VARIABLES

HOUR = np.timedelta64(1, "h")


def by_hand(model, fields, init_times, steps, seen=(-2, -1, 0), lead_spacing=1):
    """One forecast after another, straight through the network."""
    times, found = fields["time"].values, []
    for start in init_times:
        last = times.tolist().index(start.astype("datetime64[ns]").item())
        frames = [np.stack([fields[name].values[last + i] for name in model.variables]) for i in seen]
        clock = start + np.array([*seen, *(lead_spacing * lead for lead in range(1, steps + 1))]) * 6 * HOUR
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


@pytest.mark.parametrize(("spacing", "lead_spacing"), [(2, 1), (1, 4), (3, 2)])
def test_frames_and_leads_are_as_far_apart_as_in_training(make_model, fields, spacing, lead_spacing):
    model = replace(make_model(), window=Window(3, 2, spacing=spacing, lead_spacing=lead_spacing))
    init_times, seen = fields["time"].values[[6, 33]], (-2 * spacing, -spacing, 0)
    found = forecast(model, fields, init_times, steps=5, precision="float32")
    expected = by_hand(model, fields, init_times, 5, seen, lead_spacing)
    np.testing.assert_allclose(found["t2m"].values, expected[:, :, 0], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found["lead_time"] / (6 * HOUR), lead_spacing * np.arange(1, 6))
    message = rf"needs 3 frames, {6 * spacing} h apart, up to each initial time; 2 are missing, the first is 2000-12-"
    with pytest.raises(ValueError, match=message):
        forecast(model, fields, fields["time"].values[[0]])


def test_a_longer_rollout_begins_like_a_shorter_one(make_model, fields):
    for architecture in ("ls_ntp", "convlstm"):
        model = make_model(architecture, feedback=True)
        long, short = (model.forecast(fields, steps=steps, precision="float32") for steps in (40, 3))
        xr.testing.assert_allclose(long.isel(lead_time=slice(0, 3)), short, rtol=0, atol=1e-3)
        assert long["t2m"].notnull().all()


def test_the_model_forecasts_as_the_function_does(make_model, fields):
    model, times = make_model(), fields["time"].values[4:9]
    for arguments in ({}, {"steps": 3, "batch_size": 2, "precision": "bf16"}):
        assert model.forecast(fields, times, **arguments).identical(forecast(model, fields, times, **arguments))
    assert model.forecast(fields).identical(forecast(model, fields))


def test_a_forecast_leaves_the_model_as_it_was(make_model, fields):
    # A network in training would drop values; a GPU would keep a model that was moved to it.
    model = make_model()
    model.module.network.readout = torch.nn.Sequential(model.module.network.readout, torch.nn.Dropout(0.9))
    expected = forecast(model, fields)
    model.module.train()
    parts = rollout(model, fields, fields["time"].values[2:6], batch_size=1)
    next(parts)
    assert model.module.training
    assert all(tensor.device.type == "cpu" for tensor in model.module.state_dict().values())
    assert forecast(model, fields).identical(expected)


def test_the_layout_of_the_fields_does_not_matter(make_model, fields):
    model = make_model(variables=("skt", "t2m"))
    expected = forecast(model, fields)
    turned = fields.transpose("longitude", "time", "latitude")
    turned["skt"] = turned["skt"].transpose("latitude", "longitude", "time")
    seconds = fields.assign_coords(time=fields["time"].values.astype("datetime64[s]"))
    rounded = fields.assign_coords(longitude=fields["longitude"].values.astype(np.float32) + np.float32(2e-5))
    for other in (turned, seconds, rounded, fields.astype(np.float64), fields.assign(more=1)):
        assert forecast(model, other).identical(expected)


def test_units_of_another_spelling_are_the_same_units(make_model, fields):
    model, expected = make_model(), forecast(make_model(), fields)
    for attributes in ({"units": "kelvin"}, {"units": "degK"}, {}):
        other = fields[["t2m"]].copy()
        other["t2m"].attrs = attributes
        assert forecast(model, other).identical(expected)
    for units in ("degC", "Celsius", "degF", "Pa", "furlong", 1):
        other["t2m"].attrs = {"units": units}
        with pytest.raises(
            ValueError, match=rf"needs t2m in K, the fields have it in {units}; convert it with climapred.h"
        ):
            forecast(model, other)


def test_missing_values_are_named_where_they_matter(make_model, fields):
    model, times = make_model(variables=("t2m", "skt")), fields["time"].values
    holey = fields.astype(np.float32).copy(deep=True)
    holey["skt"].values[[10, 12], 1, :] = np.nan  # one of five latitudes
    holey["t2m"].values[20, 0, 0] = np.inf
    for fine in (9, 15, 19, 23):  # frames 7 to 9, 13 to 15, ...
        assert forecast(model, holey, times[fine]).identical(forecast(model, fields, times[fine]))
    message = (
        r"model small needs skt at 2001-01-03T12:00, where 20.0% of the values are missing \(2 of 4 frames have gaps\); "
        "fill them, or start from other times"
    )
    with pytest.raises(ValueError, match=message):
        forecast(model, holey, times[[11, 12]])
    with pytest.raises(ValueError, match=r"skt at 2001-01-04T00:00, .* \(1 of 3 frames have gaps\)"):
        forecast(model, holey, times[14])
    with pytest.raises(ValueError, match=r"t2m at 2001-01-06T00:00, where 2.9% of the values are missing \(1 of 3"):
        forecast(model, holey, times[22])
    forecast(make_model(), holey, times[12])  # the model does not need the variable with the gaps
    parts = rollout(model, holey, times[[9, 12]], batch_size=1)
    assert next(parts).sizes["init_time"] == 1
    with pytest.raises(ValueError, match="model small needs skt at 2001-01-03T12:00"):
        next(parts)


def test_times_must_increase_each_once(make_model, fields):
    model = make_model()
    swapped, twice = fields.isel(time=[0, 1, 3, 2, 4, 5]), fields.isel(time=[0, 1, 2, 2, 3, 3])
    message = (
        r"increase, each once, but 2001-01-01T12:00 follows 2001-01-01T18:00 \(1 such places\); call climapred.harm"
    )
    with pytest.raises(ValueError, match=message):
        forecast(model, swapped)
    with pytest.raises(ValueError, match=r"but 2001-01-01T12:00 follows 2001-01-01T12:00 \(2 such places\)"):
        forecast(model, twice)
    unknown = fields.isel(time=slice(0, 3)).assign_coords(time=[*fields["time"].values[:2], np.datetime64("NaT")])
    with pytest.raises(ValueError, match="but NaT follows 2001-01-01T06:00"):
        forecast(model, unknown)
    numbers = fields.assign_coords(time=np.arange(60))
    with pytest.raises(
        ValueError, match=r"as a coordinate of type datetime64, got 60 of type int64; call climapred.harmo"
    ):
        forecast(model, numbers)
    with pytest.raises(ValueError, match="at least one time, as a coordinate of type datetime64, got 0 of type"):
        forecast(model, fields.drop_vars("time"))
    with pytest.raises(ValueError, match="at least one time, as a coordinate of type datetime64, got 0 of type"):
        forecast(model, fields.isel(time=slice(0, 0)))


def test_fields_of_another_step_are_refused(make_model, fields):
    model = make_model()
    with pytest.raises(
        ValueError,
        match=r"needs 3 frames, 6 h apart, .*; 2 are missing, the first is .*; the fields hold 15 times from "
        "2001-01-01T00:00 to 2001-01-15T00:00, 24 h apart",
    ):
        forecast(model, fields.isel(time=slice(None, None, 4)))
    with pytest.raises(ValueError, match=r"the fields hold 1 times from 2001-01-01T18:00 to 2001-01-01T18:00$"):
        forecast(model, fields.isel(time=[3]))
    # Finer fields hold all that is needed.
    hours = fields["time"].values[0] + np.arange(24) * HOUR
    fine = fields.interp(time=hours).astype(np.float32)
    found = forecast(model, fine, fields["time"].values[3])
    xr.testing.assert_allclose(found, forecast(model, fields, fields["time"].values[3]), rtol=0, atol=0.1)


def test_fields_on_another_grid_are_refused_with_the_ways_out(make_model, fields):
    inner = Grid.regular(5, (20, 60, 200, 260))
    other = regrid(fields, inner, "bilinear")
    where = r"is for Grid\(5 x 7, 20..60 N, 200..260 E\), the fields are on Grid\(9 x 13, 20..60 N, 200..260 E\); "
    with pytest.raises(ValueError, match=where + r"regrid them with climapred.regrid\(fields, model.grid\)$"):
        forecast(make_model("ls_ntp"), other)
    both = r"regrid.*\(fields, model.grid\), or move the model with model.on_grid\(climapred.Grid.of\(fields\)\)$"
    model = make_model("convlstm")
    with pytest.raises(ValueError, match=where + both):
        forecast(model, other)
    with pytest.raises(ValueError, match=r"the fields are on Grid\(5 x 7, 20..60 N, 190..250 E\)"):
        forecast(model, fields.assign_coords(longitude=fields["longitude"] - 10))
    # Both ways lead to a forecast.
    back = forecast(model, regrid(other, model.grid, "bilinear"), precision="float32")
    xr.testing.assert_allclose(back, forecast(model, fields, precision="float32"), rtol=0, atol=1e-3)
    assert Grid.of(model.on_grid(Grid.of(other)).forecast(other)) == inner
    # Cells may end elsewhere between the same points.
    edges = np.array([15, 26, 34, 46, 54, 65.0])
    cells = Grid(model.grid.latitude, model.grid.longitude, latitude_bounds=edges)
    assert model.on_grid(cells).forecast(fields)["t2m"].identical(model.forecast(fields)["t2m"])


def test_errors_name_what_does_not_fit(make_model, fields):
    model, times = make_model(variables=("t2m", "skt")), fields["time"].values
    with pytest.raises(ValueError, match=r"model small needs skt; the fields hold \['t2m'\]"):
        forecast(model, fields[["t2m"]])
    with pytest.raises(ValueError, match=r"model small needs skt, t2m; .*; climapred.harmonise\(fields\) gives"):
        forecast(model, fields.rename(t2m="2t", skt="VAR_SKT"))
    with pytest.raises(
        ValueError, match=r"needs t2m with the dims \('time', 'latitude', 'longitude'\), got .*'member'"
    ):
        forecast(model, fields.expand_dims(member=2))
    with pytest.raises(ValueError, match=r"needs t2m with the dims .*, got \('latitude', 'longitude'\)"):
        forecast(model, fields.isel(time=-1))
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
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        forecast(model, fields, batch_size=0)
    for shape in ((0,), (1, 2)):
        with pytest.raises(
            ValueError, match=rf"init_times must be one time or a list of them, got shape \({shape[0]},"
        ):
            forecast(model, fields, times[: np.prod(shape)].reshape(shape))
    with pytest.raises(ValueError, match="3 are missing, the first is NaT"):
        forecast(model, fields, np.datetime64("NaT"))
    with pytest.raises(ValueError, match="precision must be one of auto, bf16, float32, got 'half'"):
        rollout(model, fields, precision="half")  # before the first batch is asked for
