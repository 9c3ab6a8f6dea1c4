import numpy as np
import pytest
import xarray as xr

from climapred.grid import Grid, great_circle_km
from climapred.learning.ensemble import Perturbation, combine_members, random_field
from climapred.learning.forecast import forecast, rollout


def test_random_fields_have_the_variance_and_the_correlation_that_they_promise():
    # 400 fields: a standard deviation is known to 1 / sqrt(800) = 4 %, a correlation of 0.6 to (1 - 0.36) / 20 = 3 %.
    grid = Grid.regular(30)
    random = np.random.default_rng(0)
    drawn = np.stack([random_field(grid, 2000, random) for _ in range(400)]).reshape(400, -1)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=4 / 20)
    np.testing.assert_allclose(drawn.std(axis=0), 1, atol=4 * 0.04)
    latitude, longitude = (axis.ravel() for axis in np.meshgrid(grid.latitude, grid.longitude, indexing="ij"))
    for here in (0, 30, 45):  # the south pole, the equator
        angle = great_circle_km(latitude[here], longitude[here], latitude, longitude) / 6371.229
        chord = 2 * 6371.229 * np.sin(angle / 2)
        found = np.array([np.corrcoef(drawn[:, here], other)[0, 1] for other in drawn.T])
        np.testing.assert_allclose(found, np.exp(-((chord / 2000) ** 2) / 2), atol=0.2)


def test_random_fields_are_smooth_without_a_seam():
    grid = Grid.regular(5)
    field = random_field(grid, 3000, np.random.default_rng(1))
    inner = np.abs(np.diff(field, axis=1)).max()
    assert np.abs(field[:, 0] - field[:, -1]).max() <= 1.5 * inner < 1
    for pole in (field[0], field[-1]):
        np.testing.assert_allclose(pole, pole[0], atol=1e-4)  # one point


def test_member_0_is_the_forecast_and_the_others_spread_with_the_amplitude(make_model, fields):
    model, starts = make_model(variables=("t2m", "skt")), fields["time"].values[[10, 20]]
    plain = forecast(model, fields, starts, precision="float32")
    spread = []
    for amplitude in (0.05, 0.1):
        whole = forecast(model, fields, starts, precision="float32", perturbation=Perturbation(4, amplitude))
        assert whole["t2m"].dims == ("init_time", "realization", "lead_time", "latitude", "longitude")
        assert whole["realization"].values.tolist() == [0, 1, 2, 3]
        xr.testing.assert_allclose(whole.sel(realization=0, drop=True), plain, rtol=0, atol=1e-4)
        spread.append(float((whole["skt"] - plain["skt"]).sel(realization=slice(1, None)).std()))
    assert 1.6 < spread[1] / spread[0] < 2.4  # nearly linear for small perturbations


def test_what_is_perturbed_is_what_the_model_sees(make_model, fields):
    # Fields that are perturbed by hand, all frames alike, and forecast without perturbation, give the member.
    model, start = make_model(), fields["time"].values[[15]]
    noise = Perturbation(3, 0.2, seed=7)
    member = forecast(model, fields, start, perturbation=noise, precision="float32").sel(realization=2, drop=True)
    scale = float(model.module.scale.squeeze())
    added = noise.fields(model.grid, start[0], 2, 1)[0] * scale
    by_hand = fields.assign(t2m=(fields["t2m"] + added).astype("float32").assign_attrs(fields["t2m"].attrs))
    xr.testing.assert_allclose(forecast(model, by_hand, start, precision="float32"), member, rtol=0, atol=1e-4)
    assert 0.05 * scale < added.std() < 0.4 * scale


def test_batches_and_seeds(make_model, fields):
    model, starts = make_model(), fields["time"].values[3:9]
    whole = forecast(model, fields, starts, perturbation=Perturbation(2, seed=1), precision="float32")
    parts = list(
        rollout(model, fields, starts, perturbation=Perturbation(2, seed=1), batch_size=4, precision="float32")
    )
    xr.testing.assert_allclose(xr.concat(parts, "init_time", data_vars="minimal"), whole, rtol=0, atol=1e-4)
    other = forecast(model, fields, starts, perturbation=Perturbation(2, seed=2), precision="float32")
    assert not np.allclose(other["t2m"], whole["t2m"], atol=1e-3)
    noise = Perturbation(3)
    fields_of = [noise.fields(model.grid, start, member, 1) for start in starts[:2] for member in (1, 2)]
    assert len({field.tobytes() for field in fields_of}) == 4


def test_a_model_that_does_not_know_its_anomalies_must_be_told(make_model, fields):
    model, start = make_model("convlstm", inputs="standard"), fields["time"].values[[10]]
    with pytest.raises(
        ValueError,
        match=r"standard deviation of the anomalies of t2m \(its inputs are 'standard'\).*anomaly_std=\{'t2m'",
    ):
        forecast(model, fields, start, perturbation=Perturbation(2))
    found = forecast(model, fields, start, perturbation=Perturbation(2, anomaly_std={"t2m": 4.0}))
    assert found.sizes["realization"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": 0}, "members of a perturbation must be at least 1, got 0"),
        ({"members": 2, "amplitude": -1}, "amplitude of a perturbation must be 0 or more, got -1"),
        ({"members": 2, "length_km": 0}, "length_km of a perturbation must be positive, got 0"),
        ({"members": 2, "seed": -3}, "seed of a perturbation must be 0 or more, got -3"),
    ],
)
def test_perturbations_that_are_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        Perturbation(**arguments)


def test_trained_models_become_members(make_model, fields):
    starts = fields["time"].values[[10, 20]]
    one, two = (forecast(make_model(seed=seed), fields, starts) for seed in (0, 1))
    pair = combine_members([one, two])
    assert pair["t2m"].dims == ("init_time", "realization", "lead_time", "latitude", "longitude")
    assert pair["valid_time"].dims == ("init_time", "lead_time")
    for number, member in enumerate((one, two)):
        xr.testing.assert_equal(pair.sel(realization=number, drop=True), member)
    assert pair.attrs["model"] == "small, small"
    assert pair.attrs["model_identity"] == f"{one.attrs['model_identity']}, {two.attrs['model_identity']}"
    three = combine_members([one, pair])
    assert three["realization"].values.tolist() == [0, 1, 2]
    xr.testing.assert_equal(three.sel(realization=2, drop=True), two)


def test_members_must_be_alike(make_model, fields):
    starts = fields["time"].values[[10, 20]]
    one = forecast(make_model(), fields, starts)
    with pytest.raises(ValueError, match="at least one member, got none"):
        combine_members([])
    with pytest.raises(ValueError, match=r"same variables, \['t2m'\], forecast 1 has \['skt'\]"):
        combine_members([one, one.rename(t2m="skt")])
    with pytest.raises(ValueError, match=r"same init_time, 2 from .*, forecast 1 has 1 from"):
        combine_members([one, one.isel(init_time=[0])])
    with pytest.raises(ValueError, match="same lead_time"):
        combine_members([one, one.isel(lead_time=[0])])
    with pytest.raises(ValueError, match="same longitude"):
        combine_members([one, one.assign_coords(longitude=one["longitude"] + 1)])
