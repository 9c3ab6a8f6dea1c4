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
import psutil
import pytest
import xarray as xr

from climapred.data.grib import _block, open_grib
from climapred.data.messages import MessageGrid, message_table
from climapred.testing import write_grib
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
    assert dataset.attrs == {}
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
def test_damaged_message_is_an_error_and_the_good_ones_are_read_on_request():
    path = DATA / "grib/era5-levels-corrupted.grib"
    with pytest.raises(
        ValueError, match=r"levels-corrupted.grib is truncated or damaged at byte 0 .*; 1 good messages are in it"
    ):
        open_grib([path])
    with pytest.warns(UserWarning, match="1 good messages are in it and are read; the damaged ones are skipped"):
        dataset = open_grib([path], damaged="skip")
    handle = eccodes.codes_new_from_message(path.read_bytes()[22068:])
    np.testing.assert_array_equal(dataset.t.values.ravel(), eccodes.codes_get_values(handle).astype(np.float32))
    eccodes.codes_release(handle)


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
    path = write_grib(tmp_path / "one.grib", keys, sample="regular_ll_sfc_grib2")
    for handle in each_message(path):
        assert_same_points(open_grib([path])["t"].isel(time=0), points_of(handle))


def test_several_files_make_one_series_in_order_of_time(tmp_path):
    late = write_grib(tmp_path / "a.grib", *(two_metre(h, values=np.full(496, 280.0 + h)) for h in (12, 18)))
    early = write_grib(tmp_path / "b.grib", *(two_metre(h, values=np.full(496, 280.0 + h)) for h in (6, 0)))
    dataset = open_grib([late, early], variables=["2m_temperature"])
    np.testing.assert_array_equal(dataset.t2m[:, 0, 0], [280, 286, 292, 298])
    assert dataset.time.values[0] == np.datetime64("2020-01-31T00:00")


def test_time_is_valid_time(tmp_path):
    path = write_grib(tmp_path / "fc.grib", two_metre(18, stepRange="12"))
    assert open_grib([path]).time.values == [np.datetime64("2020-02-01T06:00")]


def test_masked_points_are_nan_and_the_default_mark_is_a_value(tmp_path):
    values = np.full(496, 9999.0)  # eccodes' default missingValue, here a measured value
    values[7] = -1e30
    path = write_grib(tmp_path / "m.grib", two_metre(0, bitmapPresent=1, missingValue=-1e30, values=values))
    field = open_grib([path]).t2m.values.ravel()
    assert np.flatnonzero(np.isnan(field)).tolist() == [7]
    assert (np.delete(field, 7) == 9999).all()


def test_blocks_hold_several_times_and_equal_each_other(tmp_path):
    path = write_grib(tmp_path / "s.grib", *(two_metre(h, values=np.arange(496.0) + h) for h in range(7)))
    whole = open_grib([path]).t2m
    assert whole.data.chunks == ((7,), (31,), (16,))
    split = open_grib([path], block=3).t2m
    assert split.data.chunks == ((3, 3, 1), (31,), (16,))
    np.testing.assert_array_equal(split, whole)
    for key in ((slice(2, 6), 3, slice(1, 9, 2)), (5,), (slice(None, None, -2), slice(4, 2, -1))):
        np.testing.assert_array_equal(split[key], whole.values[key])


# a field of 0.25 degrees has 4.15 MB; a year of them should not make 8784 blocks, and no block should be large
@pytest.mark.parametrize(
    ("times", "field_bytes", "steps"),
    [
        (744, 4_152_960, 1),
        (8784, 4_152_960, 5),
        (350_000, 4_152_960, 8),
        (744, 6468, 648),
        (10, 6468, 10),
        (1, 2**30, 1),
    ],
)
def test_blocks_are_small_and_not_too_many(times, field_bytes, steps):
    assert _block(times, field_bytes) == steps


def test_a_subset_reads_and_decodes_only_its_messages(tmp_path):
    """Pain 10: counted by the system's own counter of bytes read, and by destroying all other messages."""
    grid = {"Ni": 360, "Nj": 181, "values": np.arange(360.0 * 181)}
    levels = (500, 700, 850)
    path = write_grib(tmp_path / "s.grib", *({**pressure_level(v, h), **grid} for h in range(8) for v in levels))
    field = open_grib([path], block=1)["t"]
    message = message_table(path)[13]  # hour 4, 700 hPa
    before = psutil.Process().io_counters().read_chars
    one = field.sel(level=700).isel(time=4).compute(scheduler="synchronous")
    assert message.length <= psutil.Process().io_counters().read_chars - before < 1.5 * message.length + 2 * 8192
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[: message.offset] = bytes(message.offset)
    content[message.offset + message.length :] = bytes(len(content) - message.offset - message.length)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = field.sel(level=700).isel(time=4).compute(scheduler="synchronous")
    np.testing.assert_array_equal(one.values.ravel(), np.arange(360.0 * 181))
    np.testing.assert_array_equal(again, one)
    with pytest.raises(ValueError, match=r"s.grib: the message at byte \d+ cannot be decoded"):
        field.sel(level=850).isel(time=4).compute(scheduler="synchronous")


def test_opening_decodes_nothing(tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    path = write_grib(tmp_path / "s.grib", two_metre(0), two_metre(6))
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


def test_file_cut_after_opening_is_an_error(tmp_path):
    path = write_grib(tmp_path / "s.grib", two_metre(0), two_metre(6))
    dataset = open_grib([path])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"s.grib has changed since it was opened: it had \d+ bytes, now \d+"):
        dataset.t2m.load(scheduler="sync")


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (
            [two_metre(0), two_metre(0, dataType="fc")],
            r"'2t' .* has two messages for 1 of 1 places: time 2020-01-31T00:00, .*'an 0.*'fc 0",
        ),
        (
            [pressure_level(500, 0), pressure_level(850, 0), pressure_level(500, 6)],
            r"'t' of .* lacks 1 of 4 messages: time .*T06:00, member 0, level 850$",
        ),
        (
            [two_metre(0), two_metre(6, typeOfLevel="heightAboveGround", level=2)],
            r"kinds of level type: surface in 1",
        ),
        ([two_metre(0), two_metre(6, longitudeOfLastGridPointInDegrees=40)], r"mixes several kinds of grid"),
        ([two_metre(0), {"shortName": "skt", "dataDate": 20200201}], r"'skt' .*, differs from '2t' in time: open with"),
    ],
)
def test_what_makes_no_cube_is_an_error(tmp_path, messages, complaint):
    path = write_grib(tmp_path / "bad.grib", *messages)
    with pytest.raises(ValueError, match=complaint):
        open_grib([path])


def test_other_variables_do_not_hinder_the_one_asked_for(tmp_path):
    path = write_grib(tmp_path / "s.grib", two_metre(0), two_metre(6), {"shortName": "skt"}, {"shortName": "skt"})
    assert list(open_grib([path], ["t2m"]).data_vars) == ["t2m"]
    with pytest.raises(ValueError, match=r"variable 'msl' cannot be taken from .*s.grib, which has only: 2t, skt"):
        open_grib([path], ["msl"])


def test_every_variable_that_is_not_taken_is_named_with_its_reason(tmp_path):
    surface = [two_metre(h, shortName=name) for name in ("2t", "skt") for h in (0, 6)]
    levels = [pressure_level(500, 0), pressure_level(850, 0), pressure_level(500, 6)]
    path = write_grib(tmp_path / "s.grib", *surface, *levels, {"shortName": "msl", "dataDate": 20200131})
    with pytest.raises(ValueError, match="do not make one dataset; nothing is left out silently") as error:
        open_grib([path])
    lines = str(error.value).splitlines()[1:]
    assert lines[0].startswith("- '2t', 'skt' (time 2, latitude 31, longitude 16): open with variables=['2t', 'skt']")
    assert lines[1].startswith("- 'msl' (time 1, latitude 31, longitude 16), differs from '2t' in time: open with")
    assert lines[2].startswith("- 't' of ")
    assert "lacks 1 of 4 messages" in lines[2]
    assert list(open_grib([path], ["t2m", "skt"]).data_vars) == ["t2m", "skt"]


def test_long_lists_are_cut_short_and_counted(tmp_path):
    path = write_grib(tmp_path / "s.grib", *(two_metre(h) for h in range(12)), *(two_metre(h) for h in range(12)))
    with pytest.raises(ValueError, match=r"two messages for 12 of 12 places: .*T09:00.*; and 2 more; keep one"):
        open_grib([path])


def test_messages_are_selected_where_a_file_mixes_kinds(tmp_path):
    """Pain 11: temperature on pressure levels and at the surface, analyses and forecasts, in one file."""
    levels = [pressure_level(level, hour) for level in (500, 850) for hour in (0, 6)]
    surface = [{"shortName": "t", "typeOfLevel": "surface", "level": 0, "dataTime": 0}]
    forecast = [{**pressure_level(500, 0), "dataType": "fc", "stepRange": 6}]
    path = write_grib(tmp_path / "s.grib", *levels, *surface, *forecast)
    with pytest.raises(
        ValueError, match=r"mixes several kinds of level type: isobaricInhPa in 5 .* select={'level_type': 'iso"
    ):
        open_grib([path])
    dataset = open_grib([path], select={"level_type": "isobaricInhPa", "data_type": "an"})
    assert dict(dataset["t"].sizes) == {"time": 2, "level": 2, "latitude": 31, "longitude": 16}
    assert open_grib([path], select={"level_type": "surface"})["t"].shape == (1, 31, 16)
    assert open_grib([path], select={"step": 6}).time.values == [np.datetime64("2007-03-23T06:00")]
    assert open_grib([path], select={"level": [850.0, 500], "data_type": "an"})["t"].shape == (2, 2, 31, 16)
    with pytest.raises(
        ValueError, match=r"no message of .*s.grib has level 300; there are 500.0 in 3 messages; 850.0 in 2"
    ):
        open_grib([path], select={"level": 300})
    with pytest.raises(
        ValueError, match=r"select={'height': ...} is not possible; messages are selected by level_type, "
    ):
        open_grib([path], select={"height": 300})


def test_final_data_come_before_preliminary_ones(tmp_path):
    def message(hour, version, value):
        local = {"setLocalDefinition": 1, "localDefinitionNumber": 1, "expver": version}
        return {**two_metre(hour), **local, "values": np.full(496, value)}

    path = write_grib(tmp_path / "s.grib", message(0, "0005", 1.0), message(0, "0001", 2.0), message(6, "0005", 3.0))
    dataset = open_grib([path])
    assert dataset.t2m[:, 0, 0].values.tolist() == [2, 3]
    assert dataset.expver.values.tolist() == ["0001", "0005"]
    assert "expver" not in open_grib([path], select={"expver": "0005"}).coords


@pytest.mark.parametrize("kind", ["reduced_gg_pl_48", "reduced_gg_pl_32"])
def test_reduced_gaussian_grids_stay_points(tmp_path, kind):
    values = np.random.default_rng(0).normal(280, 5, {"reduced_gg_pl_48": 13280, "reduced_gg_pl_32": 6114}[kind])
    sample = f"{kind}_grib2"
    path = write_grib(
        tmp_path / "r.grib",
        *({"shortName": "2t", "dataTime": 600 * n, "values": values + n} for n in (0, 1)),
        sample=sample,
    )
    field = open_grib([path]).t2m
    assert field.dims == ("time", "values")
    for time, handle in zip(field, each_message(path), strict=True):
        points = eccodes.codes_grib_get_data(handle)
        for name, key in (("latitude", "lat"), ("longitude", "lon")):
            np.testing.assert_allclose(field[name], [point[key] for point in points], atol=1e-6)
        np.testing.assert_array_equal(time, np.array([point["value"] for point in points], np.float32))
    grid = field["values"].attrs
    number = int(kind[-2:])
    assert (grid["gridType"], grid["N"], len(grid["pl"])) == ("reduced_gg", number, 2 * number)
    starts = np.cumsum([0, *grid["pl"]])[:-1]
    np.testing.assert_array_equal(field.longitude[starts], 0)
    roots = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(2 * number)[0]))[::-1]
    np.testing.assert_allclose(field.latitude, np.repeat(roots, grid["pl"]), atol=1e-6)


def test_other_grids_are_refused_by_name(tmp_path):
    path = write_grib(tmp_path / "x.grib", {"gridType": "rotated_ll"}, sample="regular_ll_sfc_grib2")
    with pytest.raises(
        ValueError, match=r"x.grib is on a grid of type 'rotated_ll'; climapred reads regular_ll, regular_gg, red"
    ):
        open_grib([path])


PACKINGS = [("grid_simple", bits) for bits in (0, 8, 11, 16, 24, 32)] + [
    ("grid_ccsds", 16),
    ("grid_ccsds", 24),
    ("grid_second_order", 12),
]


@pytest.mark.parametrize("sample", ["regular_ll_sfc_grib1", "regular_ll_sfc_grib2"])
@pytest.mark.parametrize(("packing", "bits"), PACKINGS)
@pytest.mark.parametrize("bitmap", [False, True])
def test_packings_equal_eccodes_to_the_last_bit(tmp_path, sample, packing, bits, bitmap):
    if packing == "grid_ccsds" and sample.endswith("1"):
        packing = "grid_simple"  # edition 1 has none
    random = np.random.default_rng(bits)
    messages = []
    for decimal, (mean, spread) in product((-2, 0, 3), ((280, 20), (-1e-4, 1e-5), (0, 0))):
        values = random.normal(mean, spread, 496)
        if bitmap:
            values[::7] = -1e30
        keys = {
            "shortName": "2t",
            "dataDate": 20200101 + len(messages),
            "bitsPerValue": bits,
            "decimalScaleFactor": decimal,
        }
        mask = {"bitmapPresent": 1, "missingValue": -1e30} if bitmap else {}
        messages.append(
            {**keys, **mask, "values": values, **({"packingType": packing} if packing != "grid_simple" else {})}
        )
    path = write_grib(tmp_path / "s.grib", *messages, sample=sample)
    for field, handle in zip(open_grib([path]).t2m, each_message(path), strict=True):
        values = eccodes.codes_get_values(handle)
        expected = np.where(values == -1e30, np.nan, values).astype(np.float32)
        np.testing.assert_array_equal(field.values.ravel(), expected)


def test_nothing_is_written_next_to_the_data(tmp_path):
    """Pain 9: a folder that can only be read is enough."""
    folder = tmp_path / "archive"
    folder.mkdir()
    path = write_grib(folder / "s.grib", two_metre(0), two_metre(6))
    folder.chmod(0o555)
    open_grib([path]).t2m.load()
    assert os.listdir(folder) == ["s.grib"]
    folder.chmod(0o755)


def test_full_circle_has_exact_steps_where_the_header_rounds():
    grid = MessageGrid("regular_gg", 640, 1280, (89.785, -89.785), (0.0, 359.719), False, False)
    np.testing.assert_allclose(grid.longitude(), np.arange(1280) * 0.28125, atol=1e-6)
    region = MessageGrid("regular_ll", 2, 5, (10.0, 9.0), (350.0, 351.0), False, False)
    np.testing.assert_array_equal(region.longitude(), [350, 350.25, 350.5, 350.75, 351])


# --- forecasts: starts and leads apart ---


def forecast_message(start: str, lead: int, edition: int, **keys) -> dict:
    """A 2 m temperature as NCEP's GFS has it: steps in hours from a reference time; values tell start and lead."""
    date, hour = start.split("T")
    level = {"typeOfLevel": "heightAboveGround", "level": 2} if edition == 2 else {}
    when = {"dataDate": int(date.replace("-", "")), "dataTime": 100 * int(hour), "indicatorOfUnitOfTimeRange": 1}
    values = 250 + int(date[-2:]) + int(hour) / 24 + lead / 100 + np.linspace(0, 1, 496)
    return {
        "centre": "kwbc",
        "shortName": "2t",
        **level,
        **when,
        "step": lead,
        "bitsPerValue": 24,
        "values": values,
        **keys,
    }


RUNS = ("2014-01-01T00", "2014-01-01T12", "2014-01-02T00")


@pytest.mark.parametrize("edition", [1, 2])
def test_forecasts_lie_along_starts_and_leads_like_a_plain_loop_over_messages(tmp_path, edition):
    """Valid times of the starts overlap: as fields, two messages would claim one place."""
    sample = f"regular_ll_sfc_grib{edition}"
    files = [
        write_grib(
            tmp_path / f"{i}.grib", *(forecast_message(run, lead, edition) for lead in (12, 0, 6)), sample=sample
        )
        for i, run in enumerate(reversed(RUNS))
    ]
    dataset = open_grib(files, forecasts=True)
    field = dataset["t2m"]
    assert field.dims == ("init_time", "lead_time", "latitude", "longitude")
    assert field.data.chunks[:2] == ((1, 1, 1), (3,))
    assert [str(start)[:13] for start in field["init_time"].values] == list(RUNS)
    assert (field["lead_time"].values / np.timedelta64(1, "h")).tolist() == [0, 6, 12]
    np.testing.assert_array_equal(dataset["valid_time"], field["init_time"].values[:, None] + field["lead_time"].values)
    count = 0
    for path in files:
        for handle in each_message(path):
            date, clock, step = (eccodes.codes_get(handle, key) for key in ("dataDate", "dataTime", "step"))
            start = pd.Timestamp(str(date)) + pd.Timedelta(hours=clock // 100)
            found = field.sel(init_time=start, lead_time=pd.Timedelta(hours=step))
            np.testing.assert_array_equal(found.values.ravel(), eccodes.codes_get_values(handle).astype(np.float32))
            count += 1
    assert count == 9
    with pytest.raises(ValueError, match=r"has two messages for 2 of 7 places: time 2014-01-0.*; forecasts=True keeps"):
        open_grib(files)


def test_members_of_forecasts_stay_apart_and_blocks_hold_leads(tmp_path):
    keys = {"setLocalDefinition": 1, "localDefinitionNumber": 1}
    messages = [
        forecast_message(run, lead, 1, **keys, marsType="pf", marsStream="enfo", perturbationNumber=n, centre="ecmf")
        for run, lead, n in product(RUNS, (6, 12, 18), (1, 2))
    ]
    field = open_grib([write_grib(tmp_path / "e.grib", *messages)], forecasts=True, block=2)["t2m"]
    assert field.dims == ("init_time", "lead_time", "number", "latitude", "longitude")
    assert field.data.chunks[:3] == ((1, 1, 1), (2, 1), (1, 1))
    assert float(field[2, 1, 0, 0, 0]) == pytest.approx(250 + 2 + 0.12, abs=1e-4)


def test_a_start_without_a_lead_is_named_with_the_steps_that_all_have(tmp_path):
    messages = [forecast_message(run, lead, 1) for run in RUNS for lead in (6, 12, 18) if (run, lead) != (RUNS[1], 18)]
    path = write_grib(tmp_path / "s.grib", *messages)
    with pytest.raises(
        ValueError,
        match=r"lacks 1 of 9 messages: start 2014-01-01T12:00, lead 18 h, member 0, level 2; all starts have the steps "
        r"that select=\{'step': \[6, 12\]\} takes",
    ):
        open_grib([path], forecasts=True)
    assert open_grib([path], forecasts=True, select={"step": [6, 12]})["t2m"].shape[:2] == (3, 2)
