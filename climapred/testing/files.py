"""Fields in files as reanalyses deliver them: NCEP/NCAR as packed NetCDF, ERA5 as GRIB; and GRIB messages of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from climapred.grid import Grid
from climapred.whole import replacing

_NCEP_OFFSET, _NCEP_SCALE, _NCEP_MISSING = 512.81, 0.01, 32766


def write_ncep(fields: xr.Dataset, folder: str | Path) -> list[Path]:
    """Write ``t2m`` as NCEP/NCAR reanalysis files ``air.sig995.YEAR.nc``, one a year; return the paths.

    NetCDF-4 classic: ``air(time, lat, lon)`` in degK, int16 in steps of 0.01, north to south, longitudes
    ascending in [0, 360) (a box over Greenwich is torn apart, as it would be there), hours since 1800 in
    double precision.

    Raises:
        ValueError: if a temperature is missing or outside what the packing holds.
    """
    t2m = fields["t2m"].transpose("time", "latitude", "longitude")
    t2m = t2m.assign_coords(longitude=t2m["longitude"] % 360).sortby("longitude").sortby("latitude", ascending=False)
    low, high = (_NCEP_OFFSET + _NCEP_SCALE * sign * (_NCEP_MISSING - 1) for sign in (-1, 1))
    if not ((t2m >= low) & (t2m <= high)).all():
        extremes = f"{float(t2m.min()):g} to {float(t2m.max()):g} with {int(t2m.isnull().sum())} gaps"
        raise ValueError(f"t2m must have no gaps and lie in {low:.2f} to {high:.2f} K for this packing, got {extremes}")
    paths = []
    for year, part in t2m.groupby("time.year"):
        paths.append(Path(folder) / f"air.sig995.{year}.nc")
        with replacing(paths[-1]) as temporary, netCDF4.Dataset(temporary, "w", format="NETCDF4_CLASSIC") as file:
            _fill_ncep(file, part)
    return paths


def _fill_ncep(file: netCDF4.Dataset, t2m: xr.DataArray) -> None:
    file.Conventions = "COARDS"
    file.title = "Synthetic look-alike of the 4x daily NMC reanalysis, made by climapred.testing"
    hours = (t2m["time"].values - np.datetime64("1800-01-01", "s")) / np.timedelta64(1, "h")
    for name, long_name, axis, units, kind, values in (
        ("time", "Time", "T", "hours since 1800-01-01 00:00:0.0", "f8", hours),
        ("lat", "Latitude", "Y", "degrees_north", "f4", t2m["latitude"].values),
        ("lon", "Longitude", "X", "degrees_east", "f4", t2m["longitude"].values),
    ):
        file.createDimension(name, None if name == "time" else values.size)
        coordinate = file.createVariable(name, kind, (name,))
        coordinate.setncatts({"units": units, "long_name": long_name, "standard_name": long_name.lower(), "axis": axis})
        coordinate[:] = values
        coordinate.actual_range = values[[0, -1]].astype(kind)
    air = file.createVariable("air", "i2", ("time", "lat", "lon"), fill_value=_NCEP_MISSING, zlib=True, complevel=1)
    air.set_auto_maskandscale(False)
    air[:] = np.rint((t2m.values.astype(np.float64) - _NCEP_OFFSET) / _NCEP_SCALE).astype(np.int16)
    packing = {"add_offset": np.float32(_NCEP_OFFSET), "scale_factor": np.float32(_NCEP_SCALE)}
    names = {"long_name": "4xDaily Air temperature at sigma level 995", "units": "degK", "var_desc": "Air temperature"}
    grib = {"GRIB_id": np.int16(11), "GRIB_name": "TMP", "precision": np.int16(2)}
    origin = {"dataset": "NMC Reanalysis", "level_desc": "Surface", "statistic": "Individual Obs"}
    air.setncatts({**names, **packing, "missing_value": np.int16(_NCEP_MISSING), **grib, **origin})


def write_era5_grib(fields: xr.Dataset, path: str | Path) -> Path:
    """Write ``t2m`` as ERA5 is delivered: GRIB edition 1, one message a time; return the path.

    Each message: parameter 2t of class ea, 16 bits a value, north to south. A box that starts at 180 degrees
    or further east has negative longitudes (180 to 297.5 becomes -180 to -62.5).

    Raises:
        ValueError: if the grid is not regular or a value is missing.
    """
    import eccodes  # loaded where used: only this writer needs it

    path = Path(path)
    t2m = fields["t2m"].transpose("time", "latitude", "longitude").sortby("latitude", ascending=False)
    if not np.isfinite(t2m.values).all():
        raise ValueError(f"t2m must have no gaps, got {int(t2m.isnull().sum())}: these messages have no bitmap")
    keys = _grib_keys(Grid.of(fields))
    message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib1")
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            eccodes.codes_set_key_vals(message, keys)
            for clock, values in zip(t2m["time"].dt.strftime("%Y%m%d %H%M").values, t2m.values, strict=True):
                date, time = clock.split()
                eccodes.codes_set_key_vals(message, f"dataDate={date},dataTime={int(time)}")
                eccodes.codes_set_values(message, values.ravel().astype(np.float64))
                eccodes.codes_write(message, file)
    finally:
        eccodes.codes_release(message)
    return path


def write_grib(path: str | Path, *messages: Mapping[str, Any], sample: str = "regular_ll_sfc_grib1") -> Path:
    """Write one GRIB message for each mapping of eccodes keys; return the path.

    The keys change a sample message of eccodes, in their order; ``values`` come next, in scanning order, and ``packingType``
    last: it repacks them. Without ``values`` they are 1, 2, 3, ... The edition is that of the sample.
    """
    import eccodes  # loaded where used: see write_era5_grib

    path = Path(path)
    with replacing(path) as temporary, temporary.open("wb") as file:
        for keys in messages:
            message = eccodes.codes_grib_new_from_samples(sample)
            try:
                for key, value in keys.items():
                    if key not in ("values", "packingType"):
                        eccodes.codes_set(message, key, value)
                count = eccodes.codes_get_long(message, "numberOfDataPoints")
                values = np.asarray(keys.get("values", np.arange(1.0, count + 1)), np.float64)
                eccodes.codes_set_values(message, values.ravel())
                if "packingType" in keys:
                    eccodes.codes_set(message, "packingType", keys["packingType"])
                eccodes.codes_write(message, file)
            finally:
                eccodes.codes_release(message)
    return path


def _grib_keys(grid: Grid) -> str:
    """Return the keys that all messages share; edition 1 counts angles in thousandths of a degree."""
    latitude, longitude = (np.rint(axis * 1000).astype(int) for axis in (grid.latitude, grid.longitude))
    for name, axis in (("latitude", latitude), ("longitude", longitude)):
        if np.ptp(np.diff(axis)):
            raise ValueError(f"{name} must be evenly spaced in steps of 0.001 degrees for GRIB, got {grid!r}")
    if longitude[0] >= 180_000:
        longitude -= 360_000
    origin = "centre=ecmf,generatingProcessIdentifier=145,table2Version=128,indicatorOfParameter=167"
    mars = "setLocalDefinition=1,localDefinitionNumber=1,marsClass=ea,marsType=an,marsStream=oper"
    shape = f"Ni={longitude.size},Nj={latitude.size},jScansPositively=0,ijDirectionIncrementGiven=1"
    step = f"iDirectionIncrement={longitude[1] - longitude[0]},jDirectionIncrement={latitude[1] - latitude[0]}"
    first = f"latitudeOfFirstGridPoint={latitude[-1]},longitudeOfFirstGridPoint={longitude[0]}"
    last = f"latitudeOfLastGridPoint={latitude[0]},longitudeOfLastGridPoint={longitude[-1]}"
    return ",".join((origin, mars, "experimentVersionNumber=0001", shape, step, first, last, "bitsPerValue=16"))
