import os
import pickle
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import dask
import eccodes
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from climapred.data import grib
from climapred.data.grib import message_table, open_grib
from climapred.variables import canonical_name

DATA = Path(os.environ.get("CLIMAPRED_DATA", Path(__file__).parents[2] / "../shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared data missing")
needs_cdo = pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo missing")

REAL = [
    "era5-2mt-2019-03-uk.grib",
    "grib/era5-levels-members.grib",
    "grib/era5-single-level-scalar-time.grib",
    "grib/fields_with_missing_values.grib",
    "grib/multi_param_on_multi_dims.grib",
    "grib/regular_gg_sfc.grib",
    "grib/regular_ll_sfc.grib",
    "grib/scanning_mode_64.grib",
    "grib/t_analysis_and_fc_0.grib",
]


def write_messages(path: Path, *messages: dict, sample: str = "regular_ll_sfc_grib1") -> Path:
    """Write one message for each dict of eccodes keys; `values` is set last."""
    with path.open("wb") as file:
        for keys in messages:
            handle = eccodes.codes_grib_new_from_samples(sample)
            values = keys.get("values", np.arange(1.0, 497.0))
            for key, value in keys.items():
                if key != "values":
                    eccodes.codes_set(handle, key, value)
            eccodes.codes_set_values(handle, values)
            eccodes.codes_write(handle, file)
            eccodes.codes_release(handle)
    return path


def two_metre(hour: int, **keys) -> dict:
    return {"shortName": "2t", "dataDate": 20200131, "dataTime": 100 * hour, **keys}


def pressure_level(level: int, hour: int) -> dict:
    return {"shortName": "t", "typeOfLevel": "isobaricInhPa", "level": level, "dataTime": 100 * hour}


def each_message(path: Path):
    """Yield the handle of each message, with missing values marked as -1e30."""
    with path.open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            eccodes.codes_set(handle, "missingValue", -1e30)
            yield handle
            eccodes.codes_release(handle)


def points_of(handle: int) -> dict[tuple[float, float], float]:
    """Return {(latitude, longitude): value} by eccodes' own iterator over points."""
    return {(point["lat"], point["lon"]): point["value"] for point in eccodes.codes_grib_get_data(handle)}


def assert_same_points(field: xr.DataArray, points: dict[tuple[float, float], float]):
    latitude, longitude = np.meshgrid(field.latitude, field.longitude, indexing="ij")
    theirs = np.array(sorted((round(lat, 4), round(lon % 360, 4), v) for (lat, lon), v in points.items()))
    mine = np.stack([latitude.ravel().round(4), (longitude.ravel() % 360).round(4), field.values.ravel()], axis=1)
    mine = mine[np.lexsort((mine[:, 1], mine[:, 0]))]
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(mine[:, :2], theirs[:, :2], atol=2e-4)
    expected = np.where(theirs[:, 2] == -1e30, np.nan, theirs[:, 2])
    np.testing.assert_array_equal(mine[:, 2].astype(np.float32), expected.astype(np.float32))


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_real_fields_equal_a_plain_loop_over_messages(name):
    dataset = open_grib([DATA / name]).load()
    for number, handle in enumerate(each_message(DATA / name)):
        names = ("shortName", "validityDate", "validityTime", "number", "level")
        keys = {n: eccodes.codes_get(handle, n) for n in names if eccodes.codes_is_defined(handle, n)}
        time = pd.Timestamp(str(keys["validityDate"])) + pd.Timedelta(hours=keys["validityTime"] // 100)
        field = dataset[canonical_name(keys["shortName"])].sel(time=time)
        field = field.sel({dim: keys[dim] for dim in ("number", "level") if dim in field.dims})
        values = eccodes.codes_get_values(handle)
        expected = np.where(values == -1e30, np.nan, values).astype(np.float32)
        np.testing.assert_array_equal(field.values.ravel(), expected)
        if number < 2:
            assert_same_points(field, points_of(handle))
    size = sum(variable.size for variable in dataset.values())
    assert size == (number + 1) * dataset.sizes["latitude"] * dataset.sizes["longitude"]


@needs_data
@needs_cdo
@pytest.mark.parametrize("name", ["era5-2mt-2019-03-uk.grib", "grib/fields_with_missing_values.grib"])
def test_real_fields_equal_cdo(name, tmp_path):
    subprocess.run(["cdo", "-s", "-f", "nc", "-b", "F64", "copy", DATA / name, tmp_path / "cdo.nc"], check=True)
    with xr.open_dataset(tmp_path / "cdo.nc") as theirs:
        expected = theirs[next(iter(theirs.data_vars))].squeeze().load()
    mine = open_grib([DATA / name]).t2m.load()
    np.testing.assert_array_equal(mine.time, expected.time.astype("datetime64[ns]"))
    np.testing.assert_allclose(mine.latitude, expected.lat, atol=1e-6)
    np.testing.assert_allclose(mine.longitude, expected.lon, atol=1e-6)
    np.testing.assert_array_equal(mine, expected.astype(np.float32))


@needs_data
def test_era5_month_of_the_united_kingdom():
    dataset = open_grib([DATA / "era5-2mt-2019-03-uk.grib"])
    assert dataset.t2m.dims == ("time", "latitude", "longitude")
    assert dataset.t2m.shape == (744, 33, 49)
    assert dataset.t2m.dtype == np.float32
    assert dataset.t2m.attrs == {
        "units": "K",
        "long_name": "2 metre temperature",
        "GRIB_shortName": "2t",
        "GRIB_typeOfLevel": "surface",
    }
    np.testing.assert_array_equal(np.diff(dataset.time), np.timedelta64(1, "h"))
    np.testing.assert_array_equal(dataset.latitude, np.linspace(58, 50, 33))
    np.testing.assert_array_equal(dataset.longitude, np.linspace(-10, 2, 49))


@needs_data
def test_members_and_levels_become_dimensions():
    dataset = open_grib([DATA / "grib/era5-levels-members.grib"], ["t"])
    assert list(dataset.data_vars) == ["t"]
    assert dataset.t.dims == ("time", "number", "level", "latitude", "longitude")
    assert dataset.t.shape == (4, 10, 2, 61, 120)
    np.testing.assert_array_equal(dataset.level, [500, 850])


@needs_data
def test_gaussian_coordinates_are_those_of_eccodes_and_of_the_legendre_roots():
    dataset = open_grib([DATA / "grib/regular_gg_sfc.grib"])
    roots = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(96)[0]))[::-1]
    np.testing.assert_allclose(dataset.latitude, roots, atol=1e-6)
    np.testing.assert_allclose(dataset.longitude, np.arange(192) * 360 / 192, atol=1e-6)


@needs_data
def test_damaged_message_is_an_error_with_its_place():
    with pytest.raises(ValueError, match=r"levels-corrupted.grib .* damaged at byte 0 .*; 0 good messages"):
        open_grib([DATA / "grib/era5-levels-corrupted.grib"])


# values are 0, 1, 2, ... in scanning order; the point iterator says where each one lies
@pytest.mark.parametrize(("west", "north", "by_column"), list(product([0, 1], repeat=3)))
def test_scanning_modes_equal_eccodes_point_iterator(tmp_path, west, north, by_column):
    rows, columns = 5, 8
    ends = {True: (10.0, 30.0), False: (30.0, 10.0)}[bool(north)]
    sides = {True: (17.5, 0.0), False: (0.0, 17.5)}[bool(west)]
    keys = {
        "Ni": columns,
        "Nj": rows,
        "latitudeOfFirstGridPointInDegrees": ends[0],
        "latitudeOfLastGridPointInDegrees": ends[1],
        "longitudeOfFirstGridPointInDegrees": sides[0],
        "longitudeOfLastGridPointInDegrees": sides[1],
        "iDirectionIncrementInDegrees": 2.5,
        "jDirectionIncrementInDegrees": 5.0,
        "iScansNegatively": west,
        "jScansPositively": north,
        "jPointsAreConsecutive": by_column,
        "values": np.arange(float(rows * columns)),
    }
    path = write_messages(tmp_path / "one.grib", keys, sample="regular_ll_sfc_grib2")
    for handle in each_message(path):
        assert_same_points(open_grib([path])["t"].isel(time=0), points_of(handle))


def test_several_files_make_one_series_in_order_of_time(tmp_path):
    late = write_messages(tmp_path / "a.grib", *(two_metre(h, values=np.full(496, 280.0 + h)) for h in (12, 18)))
    early = write_messages(tmp_path / "b.grib", *(two_metre(h, values=np.full(496, 280.0 + h)) for h in (6, 0)))
    dataset = open_grib([late, early], variables=["2m_temperature"])
    np.testing.assert_array_equal(dataset.t2m[:, 0, 0], [280, 286, 292, 298])
    assert dataset.time.values[0] == np.datetime64("2020-01-31T00:00")


def test_time_is_valid_time(tmp_path):
    path = write_messages(tmp_path / "fc.grib", two_metre(18, stepRange="12"))
    assert open_grib([path]).time.values == [np.datetime64("2020-02-01T06:00")]


def test_masked_points_are_nan_and_the_default_mark_is_a_value(tmp_path):
    values = np.full(496, 9999.0)  # eccodes' default missingValue, here a measured value
    values[7] = -1e30
    path = write_messages(tmp_path / "m.grib", two_metre(0, bitmapPresent=1, missingValue=-1e30, values=values))
    field = open_grib([path]).t2m.values.ravel()
    assert np.flatnonzero(np.isnan(field)).tolist() == [7]
    assert (np.delete(field, 7) == 9999).all()


def test_blocks_hold_several_times_and_equal_each_other(tmp_path, monkeypatch):
    path = write_messages(tmp_path / "s.grib", *(two_metre(h, values=np.arange(496.0) + h) for h in range(7)))
    whole = open_grib([path]).t2m
    assert whole.data.chunks == ((7,), (31,), (16,))
    monkeypatch.setattr(grib, "BLOCK_BYTES", 3 * 496 * 4)
    split = open_grib([path]).t2m
    assert split.data.chunks == ((3, 3, 1), (31,), (16,))
    np.testing.assert_array_equal(split, whole)
    for key in ((slice(2, 6), 3, slice(1, 9, 2)), (5,), (slice(None, None, -2), slice(4, 2, -1))):
        np.testing.assert_array_equal(split[key], whole.values[key])


def test_opening_decodes_nothing(tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    path = write_messages(tmp_path / "s.grib", two_metre(0), two_metre(6))
    with dask.config.set(scheduler=refuse):
        dataset = open_grib([path])
        with pytest.raises(AssertionError, match="computed"):
            dataset.t2m.compute()


@needs_data
def test_threads_and_pickles_give_the_same_fields():
    field = open_grib([DATA / "grib/era5-levels-members.grib"]).z
    again = pickle.loads(pickle.dumps(field))
    expected = field.values
    with ThreadPoolExecutor(8) as pool:
        members = list(pool.map(lambda i: (again if i % 2 else field).isel(number=i).values, range(10)))
    np.testing.assert_array_equal(np.stack(members, axis=1), expected)


def test_message_table_says_what_is_where(tmp_path):
    path = write_messages(tmp_path / "s.grib", two_metre(0), two_metre(6, typeOfLevel="surface"))
    first, second = message_table(path)
    assert (first.offset, second.offset) == (0, first.length)
    assert second.offset + second.length == path.stat().st_size
    assert (first.name, first.units, first.member, first.level) == ("2t", "K", 0, 0)
    assert second.time == np.datetime64("2020-01-31T06:00")
    assert (first.grid.rows, first.grid.columns, first.grid.kind) == (31, 16, "regular_ll")
    assert first.grid == second.grid


@pytest.mark.parametrize("cut", [1, 4, 100, 900])
def test_truncated_file_is_an_error_with_its_place(tmp_path, cut):
    path = write_messages(tmp_path / "s.grib", two_metre(0), two_metre(6))
    length = message_table(path)[0].length
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=rf"s.grib is truncated or damaged at byte {length} .*; 1 good messages"):
        message_table(path)


def test_message_without_its_beginning_is_not_skipped(tmp_path):
    path = write_messages(tmp_path / "s.grib", two_metre(0), two_metre(6), two_metre(12))
    content = bytearray(path.read_bytes())
    length = len(content) // 3
    content[length : length + 4] = b"XXXX"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged at byte {length} .*; 1 good messages"):
        message_table(path)


def test_zero_padding_between_messages_is_allowed(tmp_path):
    path = write_messages(tmp_path / "s.grib", two_metre(0))
    path.write_bytes(b"\r\n" + path.read_bytes() + bytes(20) + path.read_bytes() + bytes(7))
    assert [message.offset for message in message_table(path)] == [2, 22 + message_table(path)[0].length]


def test_file_cut_after_opening_is_an_error(tmp_path):
    path = write_messages(tmp_path / "s.grib", two_metre(0), two_metre(6))
    dataset = open_grib([path])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"s.grib: the message at byte \d+ cannot be decoded"):
        dataset.t2m.load(scheduler="sync")


def test_several_fields_in_one_message_are_refused(tmp_path):
    path = write_messages(tmp_path / "one.grib", {}, sample="regular_ll_sfc_grib2")
    content = path.read_bytes()
    sections, position = {}, 16
    while content[position : position + 4] != b"7777":
        size = int.from_bytes(content[position : position + 4], "big")
        sections[content[position + 4]] = content[position : position + size]
        position += size
    second = b"".join(sections[number] for number in (4, 5, 6, 7))
    total = (len(content) + len(second)).to_bytes(8, "big")
    path.write_bytes(content[:8] + total + content[16:-4] + second + b"7777")
    with pytest.raises(ValueError, match=r"one.grib packs 2 fields into the message at byte 0; .*grib_copy"):
        message_table(path)


@pytest.mark.parametrize("content", [b"", b"no GRIB here"])
def test_file_without_messages_is_an_error(tmp_path, content):
    (tmp_path / "x.grib").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.grib (is empty|holds no GRIB message|is truncated)"):
        message_table(tmp_path / "x.grib")


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (
            [two_metre(0), two_metre(0, dataType="fc")],
            r"two messages for time 2020-01-31T00:00, .*'an 0.*'fc 0",
        ),
        (
            [pressure_level(500, 0), pressure_level(850, 0), pressure_level(500, 6)],
            r"'t' of .* lacks 1 of 4 messages, the first for time .*T06:00, member 0, level 850",
        ),
        (
            [two_metre(0), two_metre(6, typeOfLevel="heightAboveGround", level=2)],
            r"kinds of level type: surface in 1",
        ),
        ([two_metre(0), two_metre(6, longitudeOfLastGridPointInDegrees=40)], r"mixes several kinds of grid"),
        ([two_metre(0), {"shortName": "skt", "dataDate": 20200201}], r"'2t' .* and 'skt' .* differ in time"),
    ],
)
def test_what_makes_no_cube_is_an_error(tmp_path, messages, complaint):
    path = write_messages(tmp_path / "bad.grib", *messages)
    with pytest.raises(ValueError, match=complaint):
        open_grib([path])


def test_other_variables_do_not_hinder_the_one_asked_for(tmp_path):
    path = write_messages(tmp_path / "s.grib", two_metre(0), two_metre(6), {"shortName": "skt"}, {"shortName": "skt"})
    assert list(open_grib([path], ["t2m"]).data_vars) == ["t2m"]
    with pytest.raises(ValueError, match=r"variable 'msl' cannot be taken from .*s.grib, which has only: 2t, skt"):
        open_grib([path], ["msl"])


def test_reduced_grids_are_refused_by_name(tmp_path):
    path = tmp_path / "reduced.grib"
    handle = eccodes.codes_grib_new_from_samples("reduced_gg_pl_48_grib2")
    with path.open("wb") as file:
        eccodes.codes_write(handle, file)
    eccodes.codes_release(handle)
    with pytest.raises(ValueError, match=r"reduced.grib is on a grid of type 'reduced_gg'; climapred reads regular_ll"):
        open_grib([path])


def test_full_circle_has_exact_steps_where_the_header_rounds():
    grid = grib.MessageGrid("regular_gg", 640, 1280, (89.785, -89.785), (0.0, 359.719), False, False)
    np.testing.assert_allclose(grid.longitude(), np.arange(1280) * 0.28125, atol=1e-6)
    region = grib.MessageGrid("regular_ll", 2, 5, (10.0, 9.0), (350.0, 351.0), False, False)
    np.testing.assert_array_equal(region.longitude(), [350, 350.25, 350.5, 350.75, 351])
