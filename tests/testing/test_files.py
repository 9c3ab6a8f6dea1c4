"""The files of the synthetic temperature, read by the libraries of their formats and by CDO."""

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import eccodes
import numpy as np
import pytest
import xarray as xr

from climapred.grid import Grid
from climapred.testing import synthetic_temperature, write_era5_grib, write_grib, write_ncep

UK = Grid.regular(0.5, region=(50, 58, -10, 2))


def test_ncep_files_hold_the_fields_to_half_a_hundredth(tmp_path):
    fields = synthetic_temperature(start="2001-12-30", periods=16).fields
    paths = write_ncep(fields, tmp_path)
    assert [path.name for path in paths] == ["air.sig995.2001.nc", "air.sig995.2002.nc"]
    assert sorted(tmp_path.iterdir()) == paths

    with xr.open_dataset(paths[0], decode_cf=False) as raw:
        assert raw["air"].dims == ("time", "lat", "lon")
        assert raw.encoding["unlimited_dims"] == {"time"}
        assert raw["air"].dtype == np.int16
        assert raw["air"].attrs["units"] == "degK"
        assert raw["air"].attrs["missing_value"] == 32766
        assert raw["time"].dtype == np.float64
        assert raw["time"].attrs["units"] == "hours since 1800-01-01 00:00:0.0"
        assert raw["lat"].values.tolist() == sorted(fields["latitude"].values.tolist(), reverse=True)
        assert raw["lon"].dtype == raw["lat"].dtype == np.float32

    parts = [xr.load_dataset(path) for path in paths]
    air = xr.concat([part["air"] for part in parts], dim="time").sortby("lat")
    assert (air["time"].values == fields["time"].values).all()
    # half of 0.01 K, and the rounding of float32 near 512 K (3e-5)
    np.testing.assert_allclose(air.values, fields["t2m"].values, rtol=0, atol=0.005 + 6e-5)


def test_ncep_longitudes_run_from_0_to_360(tmp_path):
    fields = synthetic_temperature(UK, periods=3, links=()).fields
    (path,) = write_ncep(fields, tmp_path)
    air = xr.load_dataset(path)["air"]
    assert (np.diff(air["lon"]) > 0).all()
    assert air["lon"].min() >= 0
    assert air["lon"].max() < 360
    for longitude in (-10.0, -0.5, 0.0, 2.0):
        expected = fields["t2m"].sel(longitude=longitude).values
        np.testing.assert_allclose(air.sel(lon=longitude % 360).sortby("lat"), expected, atol=0.006)


def messages(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        while (message := eccodes.codes_grib_new_from_file(file)) is not None:
            yield message
            eccodes.codes_release(message)


@pytest.mark.parametrize(
    ("grid", "west", "east"), [(None, -180.0, -62.5), (UK, -10.0, 2.0), (Grid.regular(10), 0.0, 350.0)]
)
def test_grib_messages_hold_the_fields_to_their_packing_error(tmp_path, grid, west, east):
    fields = synthetic_temperature(grid, start="2019-02-28T12", periods=5, links=()).fields
    path = write_era5_grib(fields, tmp_path / "t2m.grib")
    assert list(tmp_path.iterdir()) == [path]
    expected = fields["t2m"].sortby("latitude", ascending=False)
    with closing(messages(path)) as found:
        for message, field in zip(found, expected, strict=True):
            clock = f"{eccodes.codes_get(message, 'dataDate')} {eccodes.codes_get(message, 'dataTime'):04d}"
            assert clock == str(field["time"].dt.strftime("%Y%m%d %H%M").item())
            values = eccodes.codes_get_values(message).reshape(field.shape)
            error = eccodes.codes_get(message, "packingError")
            assert error < 0.002
            np.testing.assert_allclose(values, field.values, rtol=0, atol=error + 2e-5)
            ends = [eccodes.codes_get(message, f"longitudeOf{end}GridPointInDegrees") for end in ("First", "Last")]
            assert ends == [west, east]


def test_grib_keys_are_those_of_era5(tmp_path):
    path = write_era5_grib(synthetic_temperature(periods=1).fields, tmp_path / "t2m.grib")
    era5 = {"edition": 1, "centre": "ecmf", "shortName": "2t", "marsClass": "ea", "marsType": "an", "stepRange": "0"}
    era5 |= {"typeOfLevel": "surface", "gridType": "regular_ll", "bitsPerValue": 16, "cfVarName": "t2m", "paramId": 167}
    with closing(messages(path)) as found:
        message = next(found)
        assert {key: eccodes.codes_get(message, key, type(value)) for key, value in era5.items()} == era5


def cdo(*arguments: str | Path) -> str:
    command = ["cdo", "-s", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_cdo_reads_both_formats_alike(tmp_path):
    sample = synthetic_temperature(start="2001-12-30T18", periods=4)
    grib = write_era5_grib(sample.fields, tmp_path / "t2m.grib")
    (ncep,) = write_ncep(sample.fields, tmp_path)
    times = ["2001-12-30T18:00:00", *(f"2001-12-31T{hour:02d}:00:00" for hour in (0, 6, 12))]
    for path in (grib, ncep):
        assert cdo("showtimestamp", path).split() == times
        means = [float(word) for word in cdo("-outputf,%.6f,1", "-fldmean", path).split()]
        weighted = sample.fields["t2m"].weighted(np.cos(np.radians(sample.fields["latitude"])))
        np.testing.assert_allclose(means, weighted.mean(("latitude", "longitude")), atol=0.01)
    assert "77.5 to 20 by -2.5" in cdo("sinfon", grib)


def test_messages_of_any_kind_hold_their_keys_and_values(tmp_path):
    values = np.linspace(200, 300, 496)
    ccsds = {"shortName": "2t", "bitsPerValue": 16, "values": values, "packingType": "grid_ccsds"}
    path = write_grib(tmp_path / "a.grib", ccsds, {"dataDate": 20200229}, sample="regular_ll_sfc_grib2")
    with closing(messages(path)) as found:
        first = next(found)
        assert eccodes.codes_get(first, "packingType") == "grid_ccsds"
        assert eccodes.codes_get(first, "shortName") == "2t"
        np.testing.assert_allclose(eccodes.codes_get_values(first), values, atol=0.002)
        second = next(found)
        assert eccodes.codes_get(second, "dataDate") == 20200229
        np.testing.assert_allclose(eccodes.codes_get_values(second), np.arange(1, 497), atol=0.01)
        assert next(found, None) is None
    with pytest.raises(eccodes.KeyValueNotFoundError):
        write_grib(tmp_path / "b.grib", {"noSuchKey": 1})
    assert list(tmp_path.iterdir()) == [path]


def test_writers_refuse_what_their_format_cannot_hold(tmp_path):
    fields = synthetic_temperature(UK, periods=2, links=()).fields
    gaps = fields.where(fields["longitude"] != 0)
    with pytest.raises(ValueError, match=r"no gaps and lie in 185\.16 to 840\.46 K .* with 34 gaps"):
        write_ncep(gaps, tmp_path)
    with pytest.raises(ValueError, match="no gaps, got 34"):
        write_era5_grib(gaps, tmp_path / "t2m.grib")
    uneven = synthetic_temperature(Grid.gaussian(4), periods=1, links=()).fields
    with pytest.raises(ValueError, match="latitude must be evenly spaced"):
        write_era5_grib(uneven, tmp_path / "t2m.grib")
    assert list(tmp_path.iterdir()) == []
