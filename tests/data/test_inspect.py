"""What inspect_source tells, against files whose peculiarities are known because they were put in."""

import json
import os
import warnings
from pathlib import Path

import eccodes
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from climapred.data.harmonise import harmonise
from climapred.data.inspect import SAMPLED, _step_and_gaps, inspect_source
from climapred.data.sources import open_source
from climapred.grid import Grid
from climapred.testing import synthetic_temperature, write_era5_grib, write_grib, write_ncep

DATA = Path(os.environ.get("CLIMAPRED_DATA", Path(__file__).parents[2] / "../shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared data missing")


def make_source(times=None, **attrs) -> xr.Dataset:
    """Temperatures of 270 K and a little more, on 4 x 6 points."""
    times = pd.date_range("2020-01-01", periods=8, freq="6h") if times is None else times
    values = 270 + np.arange(len(times) * 24, dtype="f4").reshape(-1, 4, 6) / 100
    return xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), values, {"units": "K"} | attrs)},
        {"time": times, "latitude": [30.0, 40, 50, 60], "longitude": np.arange(0.0, 60, 10)},
    )


def write(source: xr.Dataset, path: Path, **encoding) -> Path:
    source.to_netcdf(path, encoding={"t2m": encoding} if encoding else None)
    return path


def told(inspection) -> list[tuple[str, str, str]]:
    return [(finding.subject, finding.found, finding.action) for finding in inspection.findings]


def test_files_of_ncep(tmp_path):
    paths = write_ncep(synthetic_temperature(start="2001-12-01", periods=200).fields, tmp_path)
    inspection = inspect_source(tmp_path / "air.*.nc")
    assert inspection.files == tuple(map(str, paths))
    assert not inspection.refused
    (air,) = inspection.variables
    assert (air.name, air.canonical, air.units, air.dtype) == ("air", "air", "degK", "float32")
    assert air.stored == "stored as int16 (scale_factor 0.01, add_offset 512.81, 32766 means missing)"
    assert list(air.sizes) == ["time", "lat", "lon"]
    assert (air.times, air.times_read, air.missing) == (200, SAMPLED, 0)
    assert inspection.grid.latitude == "descends"
    assert (inspection.times.count, inspection.times.step, inspection.times.gaps) == (200, "6 hours", ())
    assert ("latitude", "called 'lat'", "renamed to latitude") in told(inspection)
    assert ("air", "units 'degK'", "called K") in told(inspection)


def test_ranges_and_shares_are_those_of_plain_xarray(tmp_path):
    source = make_source()
    source["t2m"] = source.t2m.where(source.longitude > 10)
    source["t2m"][3, 1, 1:4] = [np.nan, 300, np.nan]
    path = write(source, tmp_path / "a.nc")
    (sample,), (whole,) = inspect_source(path).variables, inspect_source(path, every_time=True).variables
    assert (whole.times_read, sample.times_read) == (8, 5)
    assert whole.missing == pytest.approx(source.t2m.isnull().mean())
    assert (whole.minimum, whole.maximum) == (float(source.t2m.min()), 300)
    read = source.t2m.isel(time=[0, 2, 4, 5, 7])
    assert sample.missing == pytest.approx(read.isnull().mean())
    assert (sample.minimum, sample.maximum) == (float(read.min()), float(read.max()))
    findings = told(inspect_source(path, every_time=True))
    assert ("t2m", "33.9 % of the values missing at 8 of 8 times", "kept as missing") in findings  # 65 of 192


def test_only_missing_values(tmp_path):
    source = make_source()
    path = write(source.assign(t2m=source.t2m * np.nan), tmp_path / "a.nc")
    (facts,) = inspect_source(path).variables
    assert (facts.missing, facts.minimum, facts.maximum) == (1, None, None)


def test_infinite_values_are_told_and_make_valid_json(tmp_path):
    source = make_source()
    source["t2m"][0, 0, 0] = np.inf
    inspection = inspect_source(write(source, tmp_path / "a.nc"))
    assert "values from 270.01 to inf: this is weather in no known units" in inspection.findings[0].found
    plain = json.loads(json.dumps(inspection.as_dict(), allow_nan=False))
    assert plain["variables"][0]["maximum"] == "inf"


# all times, those taken away, the step, and (after, before, missing) of each gap
STEPS = {
    "hours": (pd.date_range("2020-01-01", periods=9, freq="h"), [3, 4, 7], "1 hour", [(2, 5, 2), (6, 8, 1)]),
    "days": (pd.date_range("2020-02-27", periods=6), [4], "1 day", [(3, 5, 1)]),
    "half hours": (pd.date_range("2020-01-01", periods=4, freq="30min"), [], "30 minutes", []),
    "months": (pd.date_range("2019-11-01", periods=8, freq="MS"), [4, 5], "1 month", [(3, 6, 2)]),
    "ends of months": (pd.date_range("2019-11-01", periods=8, freq="ME"), [], "1 month", []),
    "years": (pd.date_range("1999-07-01", periods=5, freq="12MS"), [3], "12 months", [(2, 4, 1)]),
    "five days": (pd.date_range("2020-01-01", periods=9, freq="5D"), [], "5 days", []),
    "no step": (pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-05", "2020-01-13"]), [], "irregular", []),
    "thirty-day months": (
        xr.date_range("2020-01-30", periods=5, freq="D", calendar="360_day", use_cftime=True),
        [3],
        "1 day",
        [(2, 4, 1)],
    ),
    "thirty days": (
        xr.date_range("2020-01-16", periods=5, freq="30D", calendar="noleap", use_cftime=True),
        [],
        "30 days",
        [],
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps_and_gaps(case, tmp_path):
    """Pain 19: what is missing is found from the times alone, and told."""
    every, removed, step, gaps = STEPS[case]
    inspection = inspect_source(write(make_source(every.delete(removed)), tmp_path / "a.nc"), calendar="keep")
    found = inspection.times
    assert not inspection.refused
    assert (found.count, found.step) == (len(every) - len(removed), step)
    position = {time.strftime("%Y-%m-%dT%H:%M"): number for number, time in enumerate(every)}
    assert [(position[gap.after], position[gap.before], gap.missing) for gap in found.gaps] == gaps
    about = [text for _, text, action in told(inspection) if action.startswith("kept as gaps")]
    assert [text.split(",")[0] for text in about] == (
        [f"{len(removed)} time{'s' * (len(removed) > 1)} missing in {len(gaps)} gap{'s' * (len(gaps) > 1)}"]
        if gaps
        else []
    )


@given(st.sets(st.integers(1, 58), max_size=25), st.sampled_from([1, 6, 24]))
def test_lacking_times_are_counted(removed, hours):
    """Some times of a regular series are taken away, not the first or last: as many are found missing."""
    every = pd.date_range("2020-02-20", periods=60, freq=f"{hours}h")
    step, gaps = _step_and_gaps(every.delete(sorted(removed)))
    if step != {1: "1 hour", 6: "6 hours", 24: "1 day"}[hours]:  # so many removed that another step is more frequent
        return
    assert sum(gap.missing for gap in gaps) == len(removed)


# what is done to a file -> what is told, and whether harmonise refuses
QUIRKS = {
    "nothing": (lambda ds: ds, [], False),
    "descending": (
        lambda ds: ds.isel(latitude=slice(None, None, -1)),
        [("latitude", "descends from 60 to 30", "sorted to ascend")],
        False,
    ),
    "over the date line": (
        lambda ds: ds.assign_coords(longitude=[160.0, 170, 180, -170, -160, -150]),
        [("longitude", "runs from -170 to 180", "moved to 160 to 210")],
        False,
    ),
    "over Greenwich": (
        lambda ds: ds.assign_coords(longitude=[0.0, 10, 20, 330, 340, 350]),
        [("longitude", "runs from 0 to 350", "moved to -30 to 20")],
        False,
    ),
    "unsorted": (
        lambda ds: ds.isel(time=[3, 1, 2, 0]),
        [("time", "times are out of order", "sorted, with their fields")],
        False,
    ),
    "repeated": (
        lambda ds: ds.isel(time=[0, 1, 1, 2]),
        [
            (
                "time",
                "1 of 4 times in 'time' are repeated: 2020-01-01T06:00...; choose files that do not overlap, or say which "
                "field counts: duplicates='first' or 'last'",
                "refused",
            )
        ],
        True,
    ),
    "Celsius": (
        lambda ds: ds.assign(t2m=(ds.t2m - 273.15).assign_attrs(units="degC")),
        [("t2m", "units 'degC'", "converted to K")],
        False,
    ),
    "Celsius called K": (
        lambda ds: ds.assign(t2m=(ds.t2m - 270).assign_attrs(units="K")),
        [
            (
                "t2m",
                "units 'K', and values from 0 to 1.91: this would be weather in degC or degF",
                "not corrected: set the attribute `units` where the file is wrong",
            )
        ],
        False,
    ),
    "no units": (
        lambda ds: ds.assign(t2m=ds.t2m.drop_attrs()),
        [
            (
                "t2m",
                "'t2m' has no units; where they are known to be 'K', say so: dataset['t2m'].attrs['units'] = 'K'",
                "refused",
            ),
            (
                "t2m",
                "no units, and values from 270 to 271.91: this would be weather in K",
                "not corrected: set the attribute `units` where the file is wrong",
            ),
        ],
        True,
    ),
    "new CDS names": (
        lambda ds: ds.rename(time="valid_time").assign_coords(
            number=0, expver=("valid_time", ["0001"] * 6 + ["0005"] * 2)
        ),
        [
            ("time", "called 'valid_time'", "renamed to time"),
            ("time", "expver mixed: 1 (final) at 6, 5 (preliminary, ERA5T) at 2 of 8 times", "kept, both"),
        ],
        False,
    ),
    "old CDS mixture": (
        lambda ds: xr.concat([ds, ds], pd.Index([1, 5], name="expver")),
        [
            (
                "t2m",
                "expver 1 and 5 side by side, along a dimension",
                "combined: final data (1) before ERA5T (5), point by point",
            )
        ],
        False,
    ),
    "one level, one member": (
        lambda ds: ds.expand_dims(level=[500.0], number=[3]),
        [
            ("t2m", "dimension 'level' of size 1, [500.0]", "dropped"),
            ("t2m", "dimension 'number' of size 1, [3]", "dropped"),
        ],
        False,
    ),
    "360-day calendar": (
        lambda ds: ds.assign_coords(time=xr.date_range("2020-01-01", periods=8, calendar="360_day", use_cftime=True)),
        [
            (
                "time",
                "'time' follows the calendar '360_day', whose dates are not all real ones; convert the file first, e.g. with "
                "dataset.convert_calendar('standard', align_on='date'), or keep its dates: calendar='keep'",
                "refused",
            )
        ],
        True,
    ),
    "something else": (
        lambda ds: ds.assign(t2m_uncertainty=ds.t2m),
        [("t2m_uncertainty", "unknown to climapred", "left out")],
        False,
    ),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_each_quirk_is_told_with_what_is_done_about_it(quirk, tmp_path):
    """Pains 12, 13, 16, 17: what other tools trip over is a line of the report."""
    spoil, findings, refused = QUIRKS[quirk]
    inspection = inspect_source(write(spoil(make_source()), tmp_path / "a.nc"))
    assert told(inspection) == findings
    assert inspection.refused == refused
    assert str(inspection).splitlines()[-1].startswith("refused" if refused else "harmonise takes this")


def why_refused(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # xarray's, about the year 1
        try:
            harmonise(open_source(path))
        except ValueError as error:
            return str(error)
    return ""


# files of all kinds, most of them refused; what is said of them must agree with what harmonise does
STRANGE = {
    **{name: spoil for name, (spoil, _, _) in QUIRKS.items()},
    "no coordinates": lambda ds: ds.drop_vars(["time", "latitude", "longitude"]),
    "one point": lambda ds: ds.isel(latitude=0, longitude=0),
    "one column": lambda ds: ds.isel(longitude=[2]),
    "one time": lambda ds: ds.isel(time=0),
    "one time of its own dimension": lambda ds: ds.isel(time=[0]),
    "no field": lambda ds: ds.drop_vars("t2m"),
    "nothing known": lambda ds: ds.rename(t2m="zeta"),
    "text": lambda ds: ds.assign(note=("time", list("abcdefgh"))),
    "whole numbers": lambda ds: ds.assign(t2m=ds.t2m.astype("i4")),
    "one number": lambda ds: ds.assign(radius=6371.0),
    "curvilinear": lambda ds: (
        ds.rename(latitude="y", longitude="x")
        .drop_vars(["x", "y"])
        .assign_coords(lat=(("y", "x"), np.ones((4, 6))), lon=(("y", "x"), np.ones((4, 6))))
    ),
    "points": lambda ds: ds.stack(cell=("latitude", "longitude")).reset_index("cell"),
    "forecasts": lambda ds: xr.concat([ds, ds], pd.Index([6, 12], name="step")).assign_coords(
        valid_time=(("time", "step"), np.stack([ds.time.values] * 2, 1))
    ),
    "off the sphere": lambda ds: ds.assign_coords(latitude=[0.0, 100, 200, 300]),
    "unknown units": lambda ds: ds.assign(t2m=ds.t2m.assign_attrs(units="furlong")),
    "year 1": lambda ds: ds.assign_coords(time=np.arange("0001-01", "0001-09", dtype="M8[M]").astype("M8[s]")),
    "times are numbers": lambda ds: ds.assign_coords(time=np.arange(8)),
}


@pytest.mark.parametrize("case", STRANGE)
def test_it_refuses_what_harmonise_refuses_and_never_raises(case, tmp_path):
    path = write(STRANGE[case](make_source()), tmp_path / "a.nc")
    inspection = inspect_source(path)
    reasons = "\n".join(finding.found for finding in inspection.findings if finding.refused)
    assert reasons == why_refused(path)
    assert inspection.refused == bool(reasons)
    assert json.loads(json.dumps(inspection.as_dict(), allow_nan=False))["refused"] == inspection.refused


def test_choices_are_those_of_harmonise(tmp_path):
    path = write(make_source().isel(time=[0, 1, 1, 2]), tmp_path / "a.nc")
    inspection = inspect_source(path, duplicates="last")
    assert not inspection.refused
    assert ("1 of 4 times in 'time' are repeated: 2020-01-01T06:00...", "dropped all but the last of each, in the order "
            "of the files") in [(found, action) for _, found, action in told(inspection)]  # fmt: skip
    assert inspection.times.repeated == 1


def test_a_zarr_store(tmp_path):
    make_source().isel(latitude=slice(None, None, -1)).to_zarr(tmp_path / "a.zarr", consolidated=False)
    inspection = inspect_source(tmp_path / "a.zarr")
    assert told(inspection) == [("latitude", "descends from 60 to 30", "sorted to ascend")]
    assert inspection.variables[0].stored == "stored as float32"


def test_files_that_do_not_fit_each_other(tmp_path):
    """The first is looked at, and the reason is told."""
    write(make_source(), tmp_path / "1.nc")
    write(make_source().isel(longitude=slice(3)), tmp_path / "2.nc")
    inspection = inspect_source(tmp_path / "*.nc")
    assert inspection.refused
    assert inspection.grid.shape == (4, 6)
    assert len(inspection.findings) == 1
    assert f"{tmp_path / '2.nc'} does not fit {tmp_path / '1.nc'}: 'longitude' is" in inspection.findings[0].found


def test_fields_that_cannot_be_read_are_refused(tmp_path):
    path = write_ncep(synthetic_temperature(periods=400).fields, tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[-20000:-10000] = bytes(10000)
    path.write_bytes(content)
    inspection = inspect_source(path, every_time=True)
    assert inspection.refused
    assert [finding.found.split(":")[0] for finding in inspection.findings if finding.refused] == ["cannot be read"]


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file matches"):
        inspect_source(tmp_path / "a.nc")
    (tmp_path / "a.nc").write_text("temperature")
    with pytest.raises(ValueError, match=r"a\.nc is neither GRIB, NetCDF nor Zarr"):
        inspect_source(tmp_path / "a.nc")


def test_grib_with_variables_that_differ(tmp_path):
    """Each is looked at by itself, and the way out works."""
    path = write_grib(
        tmp_path / "a.grib",
        {"shortName": "2t", "dataTime": 0, "values": np.full(496, 280.0)},
        {"shortName": "2t", "dataTime": 600, "values": np.full(496, 280.0)},
        {"shortName": "10u", "dataTime": 0},
    )
    inspection = inspect_source(path)
    assert inspection.refused
    assert [(facts.name, facts.times) for facts in inspection.variables] == [("t2m", 2), ("u10", 1)]
    assert "'2t' (time 2" in inspection.findings[0].found
    assert [finding.subject for finding in inspection.findings if finding.refused] == ["files"]
    alone = inspect_source(path, ["t2m"])
    assert not alone.refused
    assert ("u10", "1 message", "left out") in told(alone)


def test_grib_of_final_and_preliminary_data(tmp_path):
    """Pain 12: months that overlap."""
    keys = {"marsClass": "ea", "shortName": "2t", "values": np.full(496, 280.0)}
    keys = {"setLocalDefinition": 1, "localDefinitionNumber": 1, **keys}
    path = write_grib(
        tmp_path / "a.grib",
        *({**keys, "dataTime": hour, "expver": expver} for hour, expver in ((0, "0001"), (600, "0001"), (600, "0005"))),
    )
    inspection = inspect_source(path)
    assert not inspection.refused
    assert inspection.times.count == 2
    assert ("t2m", "of 3 messages, 1 is ERA5T (expver 5), and ERA5 (expver 1) is there, too", "left out") in told(
        inspection
    )


def test_grib_that_is_damaged(tmp_path):
    fields = synthetic_temperature(periods=4).fields
    path = write_era5_grib(fields, tmp_path / "a.grib")
    path.write_bytes(path.read_bytes()[:-100])
    inspection = inspect_source(path)
    assert inspection.refused
    assert inspection.times.count == 3
    assert "damaged" in inspection.findings[0].found
    skipped = inspect_source(path, damaged="skip")
    assert not skipped.refused
    assert skipped.findings[0].action == "warned of"


def test_reduced_gaussian_points(tmp_path):
    path = write_grib(
        tmp_path / "a.grib", {"shortName": "2t", "values": np.full(6114, 280.0)}, sample="reduced_gg_pl_32_grib2"
    )
    inspection = inspect_source(path)
    assert not inspection.refused
    assert inspection.grid.shape == (6114,)
    assert inspection.grid.periodic
    (finding,) = inspection.findings
    assert finding.action == "kept as points, dims (time, values); regrid() takes them"
    fields = harmonise(open_source(path))
    assert fields.t2m.dims == ("time", "values")
    with path.open("rb") as file:
        handle = eccodes.codes_grib_new_from_file(file)
        latitude, longitude = (eccodes.codes_get_array(handle, key) for key in ("latitudes", "longitudes"))
        eccodes.codes_release(handle)
    np.testing.assert_allclose(fields.latitude, latitude, atol=1e-5)
    np.testing.assert_allclose(fields.longitude, longitude, atol=1e-5)


@pytest.mark.parametrize(("number", "kind"), [(None, "regular"), (16, "Gaussian F16")])
def test_grids(tmp_path, number, kind):
    grid = Grid.gaussian(number) if number else Grid.regular(10)
    source = xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), np.full((1, *grid.shape), 280.0), {"units": "K"})},
        {
            "time": [np.datetime64("2020-01-01", "ns")],
            "latitude": grid.latitude.astype("f4"),
            "longitude": grid.longitude,
        },
    )
    found = inspect_source(write(source, tmp_path / "a.nc")).grid
    assert (found.kind, found.shape, found.periodic) == (kind, grid.shape, True)
    assert found.spacing == ((None, 360 / (4 * number)) if number else (10, 10))


def test_uneven_rows_are_no_gaussian_grid(tmp_path):
    source = make_source().assign_coords(latitude=[30.0, 40, 55, 60])
    assert inspect_source(write(source, tmp_path / "a.nc")).grid.kind == "uneven"


def test_the_report_reads_well(tmp_path):
    source = make_source().rename(latitude="lat").isel(lat=slice(None, None, -1), time=[0, 1, 2, 5, 6, 7])
    path = write(source, tmp_path / "a.nc")
    assert str(inspect_source(path)).splitlines() == [
        str(path),
        "  t2m: time 6 x lat 4 x longitude 6, K, float32, stored as float32, 270 to 271.91 (5 of 6 times read)",
        "  grid: regular, 4 x 6 points every 10 degrees, latitude 30 to 60, longitude 0 to 50; in the file latitude descends, "
        "longitude lies in 0 to 50",
        "  time: 6 from 2020-01-01T00:00 to 2020-01-02T18:00, every 6 hours, 2 missing, standard calendar",
        "what harmonise does about it:",
        "  latitude: called 'lat' -> renamed to latitude",
        "  latitude: descends from 60 to 30 -> sorted to ascend",
        "  time: 2 times missing in 1 gap, the first from 2020-01-01T12:00 to 2020-01-02T06:00 -> kept as gaps: nothing is "
        "filled in, and training windows leave them out",
        "harmonise takes this",
    ]


REFUSED = {"era5-levels-corrupted", "era5-levels-members", "multi_param_on_multi_dims"}


@needs_data
@pytest.mark.parametrize("path", sorted(DATA.glob("**/*.grib")) + sorted(DATA.glob("*.nc")), ids=lambda path: path.stem)
def test_shared_files(path):
    inspection = inspect_source(path)
    assert inspection.refused == (path.stem in REFUSED)
    assert inspection.grid is not None
    assert inspection.variables[0].missing == pytest.approx(0.662 if "missing" in path.stem else 0, abs=1e-3)
