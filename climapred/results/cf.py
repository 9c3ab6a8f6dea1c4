"""Forecasts and learned correlations as CF-1.11 NetCDF: to_cf, from_cf, write_netcdf, check_cf.

In memory a forecast has dims (init_time, lead_time, latitude, longitude); in a file it has the dims that the
CF standard names prescribe, forecast_reference_time and forecast_period, and its valid times in a 2-D
auxiliary coordinate ``time``. Times of reanalyses and of the models trained on them have days of 86400
seconds; the files say so with ``units_metadata = "leap_seconds: none"``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.grid import Grid
from climapred.results.correlations import adjacency_dataset
from climapred.variables import VARIABLES

_TO_FILE = {"init_time": "forecast_reference_time", "lead_time": "forecast_period", "valid_time": "time"}

_CHUNK_BYTES = 4 * 2**20


def to_cf(
    forecast: xr.Dataset,
    *,
    source: str,
    title: str = "Gridded weather forecast",
    references: str = "",
    history: str | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Return a forecast as CF-1.11 describes it, ready for ``write_netcdf``; data stay lazy.

    Args:
        forecast: dims (init_time, lead_time, latitude, longitude) with the 2-D coordinate ``valid_time``. A
            variable that climapred does not know must carry ``units``.
        source: what made the forecast: the model, its version, the data it was trained on.
        title: one line on what the file holds.
        references: publications, or where the model is described.
        history: one line per step; None for a line with the present time.
        attributes: further global attributes, such as institution or the identity of the model.

    Returns:
        Dims (forecast_reference_time, forecast_period, latitude, longitude), kept for a single initial time
        too; ``time``, bounds of latitude and longitude, and the attributes of each variable. Periods are in
        hours.

    Raises:
        ValueError: if a dimension or the units of a variable are missing, or if times are not whole seconds.
    """
    if missing := {*_TO_FILE, "latitude", "longitude"} - set(forecast.variables):
        raise ValueError(f"forecast must have the coordinates {sorted(missing)}, got {list(forecast.coords)}")
    dataset = forecast.transpose("init_time", "lead_time", "latitude", "longitude")
    dataset = dataset.drop_attrs().rename(_TO_FILE)
    for name, field in dataset.items():
        field.attrs = _variable_attributes(forecast[name])
    dataset = dataset.assign_coords(_time_coordinates(dataset)).assign(_bounds(Grid.of(forecast)))
    # Forecasts can be appended to an unlimited dimension; a fixed one the checker would take for the T axis, out
    # of order.
    dataset.encoding = {"unlimited_dims": {"forecast_reference_time"}}
    return dataset.assign_attrs(_global_attributes(title, source, references, history, attributes))


def _variable_attributes(field: xr.DataArray) -> dict[str, str]:
    known = VARIABLES.get(str(field.name))
    if known is not None:
        names = ("standard_name", "long_name", "units", "cell_methods")
        attributes = {name: getattr(known, name) for name in names}
    elif "units" in field.attrs:
        attributes = {"long_name": str(field.name), **field.attrs}
    else:
        raise ValueError(f"variable {field.name!r} has no units; set them, or use one of {list(VARIABLES)}")
    if attributes["units"] == "K":
        attributes.setdefault("units_metadata", "temperature: on_scale")
    return attributes


def _time_coordinates(dataset: xr.Dataset) -> dict[str, xr.Variable]:
    """Return the three time coordinates; instants in the longest unit that counts them all in integers."""
    long_names = {
        "forecast_reference_time": "time of the last frame that the forecast may see",
        "time": "valid time",
    }
    coordinates = {}
    for name, long_name in long_names.items():
        metadata = "leap_seconds: none"
        attributes = {"standard_name": name, "long_name": long_name, "units_metadata": metadata}
        values = dataset[name].values
        encoding = {"units": f"{_unit(values)} since 1970-01-01", "calendar": "standard", "dtype": "int64"}
        coordinates[name] = xr.Variable(dataset[name].dims, values, attributes, encoding)
    hours = dataset["forecast_period"].values / np.timedelta64(1, "h")
    attributes = {"standard_name": "forecast_period", "long_name": "time since the last frame seen"}
    coordinates["forecast_period"] = xr.Variable("forecast_period", hours, {**attributes, "units": "hours"})
    return coordinates


def _unit(times: npt.NDArray[np.datetime64]) -> str:
    since = times - np.datetime64("1970-01-01", "ns")
    units = {
        "hours": np.timedelta64(1, "h"),
        "minutes": np.timedelta64(1, "m"),
        "seconds": np.timedelta64(1, "s"),
    }
    for name, unit in units.items():
        if not (since % unit).astype(np.int64).any():
            return name
    raise ValueError(f"times must be whole seconds, got {times.flat[0]}...; round them first")


def _bounds(grid: Grid) -> dict[str, xr.Variable]:
    """Return latitude and longitude with their cell edges as CF bounds, shape (N, 2)."""
    variables = {}
    for name, (dim, centres, attributes) in grid.coordinates().items():
        edges = getattr(grid, f"{name}_bounds")
        variables[name] = xr.Variable(dim, centres, {**attributes, "bounds": f"{name}_bounds"})
        variables[f"{name}_bounds"] = xr.Variable((dim, "bounds"), np.stack([edges[:-1], edges[1:]], axis=1))
    return variables


def _global_attributes(
    title: str, source: str, references: str, history: str | None, attributes: Mapping[str, Any] | None
) -> dict[str, Any]:
    if history is None:
        history = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} written by climapred"
    known = {"Conventions": "CF-1.11", "title": title, "source": source, "history": history}
    return known | ({"references": references} if references else {}) | dict(attributes or {})


def from_cf(dataset: xr.Dataset) -> xr.Dataset:
    """Return the in-memory form of a forecast that ``to_cf`` made, written and opened again or not.

    Returns:
        Dims (init_time, lead_time, latitude, longitude), coordinates init_time, lead_time (timedelta64) and
        the 2-D valid_time; values and times are exactly those of the forecast.

    Raises:
        ValueError: if the dataset is not laid out so, or if its periods are not in hours.
    """
    if missing := {*_TO_FILE.values(), "latitude", "longitude"} - set(dataset.variables):
        found = list(dataset.variables)
        raise ValueError(f"a CF forecast must hold {sorted(missing)}, got {found}; was it made by to_cf()?")
    init = dataset["forecast_reference_time"].values.astype("datetime64[ns]")
    lead = _leads(dataset["forecast_period"])
    fields = dataset.drop_vars(["latitude_bounds", "longitude_bounds"], errors="ignore").drop_encoding()
    fields = fields.rename({name: memory for memory, name in _TO_FILE.items()})
    for name in ("latitude", "longitude"):
        fields[name].attrs.pop("bounds", None)
    return fields.assign_coords(
        init_time=("init_time", init),
        lead_time=("lead_time", lead),
        valid_time=(("init_time", "lead_time"), init[:, None] + lead),
    )


def _leads(period: xr.DataArray) -> npt.NDArray[np.timedelta64]:
    """Return forecast periods as timedelta64, decoded by xarray or not; hours are exact to the second."""
    if period.dtype.kind == "m":
        return period.values.astype("timedelta64[ns]")
    if period.attrs.get("units") != "hours":
        raise ValueError(f"forecast_period must be in hours, got units {period.attrs.get('units')!r}")
    return np.round(period.values * 3600).astype("timedelta64[s]").astype("timedelta64[ns]")


def adjacency_to_cf(
    weights: npt.NDArray[np.floating],
    grid: Grid,
    *,
    source: str,
    title: str = "Learned correlations between grid points",
    long_name: str | None = None,
    history: str | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Return learned weights between grid points as CF-1.11: ``weight``, dims (node_target, node_source).

    Args:
        weights: shape (N, N) with N = H * W; row = target, column = source; nodes run along longitude first,
            so that ``weights.reshape(H, W, H, W)`` has both grids.
        grid: the grid of the nodes; their places are the auxiliary coordinates target_latitude,
            target_longitude, source_latitude and source_longitude (CF forbids repeated dims).
        source: the model that learned the weights.
        title: one line on what the file holds.
        long_name: what a weight means and which way it points; None for what ``adjacency_dataset`` says.
        history: one line per step; None for a line with the present time.
        attributes: further global attributes.

    Raises:
        ValueError: if a weight is not finite, or if the shape is not (N, N).
    """
    dataset = adjacency_dataset(weights, grid)
    if long_name is not None:
        dataset["weight"].attrs["long_name"] = long_name
    return dataset.assign_attrs(_global_attributes(title, source, "", history, attributes))


def write_netcdf(dataset: xr.Dataset, path: str | os.PathLike[str], *, complevel: int = 1) -> Path:
    """Write a dataset to a NetCDF-4 file that appears whole or not at all, and return its path.

    The data go to a temporary file in the same folder, reach the disk, and take their name last. Numeric data
    are shuffled and compressed in chunks of whole fields (about 4 MB); only floating-point data get a
    ``_FillValue``, NaN.

    Args:
        dataset: in memory or lazy (dask); a lazy one is computed chunk by chunk.
        path: the file; its folder exists, and an older file of this name is replaced.
        complevel: 0 (none) to 9 of zlib.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist, create it first")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    encoding = {str(name): _encoding(dataset, str(name), complevel) for name in dataset.variables}
    try:
        dataset.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", encoding=encoding)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _encoding(dataset: xr.Dataset, name: str, complevel: int) -> dict[str, Any]:
    """Return how to store one variable; packing and chunks of the file that it came from are forgotten."""
    variable = dataset[name].variable
    encoding: dict[str, Any] = {"_FillValue": None}
    if variable.dtype.kind in "mM":
        kept = ("units", "calendar", "dtype")
        encoding |= {key: variable.encoding[key] for key in kept if key in variable.encoding}
    is_data = name in dataset.data_vars and not name.endswith("_bounds")
    if is_data and variable.ndim and variable.dtype.kind in "fiu":
        encoding |= {"zlib": complevel > 0, "complevel": complevel, "shuffle": True}
        if variable.dtype.kind == "f":
            encoding["_FillValue"] = variable.dtype.type(np.nan)
    if "zlib" in encoding or set(variable.dims) & set(dataset.encoding.get("unlimited_dims", ())):
        encoding["chunksizes"] = _chunk_shape(variable.shape, variable.dtype.itemsize)
    return encoding


def _chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return a chunk of at most 4 MB that is whole in as many of the last dimensions as fit.

    >>> _chunk_shape((1449, 6, 25, 53), 4)
    (131, 6, 25, 53)
    """
    room, chunk = _CHUNK_BYTES // itemsize, []
    for size in reversed(shape):
        chunk.append(max(1, min(size, room)))
        room //= chunk[-1]
    return tuple(reversed(chunk))


def check_cf(path: str | os.PathLike[str]) -> list[str]:
    """Return what the IOOS compliance checker finds at any priority against CF-1.11; empty for a clean file.

    The checker runs in a process of its own: it prints, it warns, and it imports pyproj, which crashes the
    interpreter where eccodes was imported before (seen with the wheels of pyproj 3.7.2 and eccodes 2.50). Needs
    no network: standard names are looked up in the table that the checker carries.

    Raises:
        ModuleNotFoundError: if compliance-checker is not installed.
        OSError: if the file is missing or not NetCDF.
    """
    if importlib.util.find_spec("compliance_checker") is None:
        raise ModuleNotFoundError(
            "check_cf() needs compliance-checker; install the extra: pip install 'climapred[dev]'"
        )
    netCDF4.Dataset(path).close()
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "climapred.results.cf", os.fspath(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise RuntimeError(f"the compliance checker failed on {path}:\n{child.stderr}")
    messages: list[str] = json.loads(child.stdout)
    return messages


def _run_checker(path: str) -> list[str]:
    from compliance_checker.cf.cf_1_11 import CF1_11Check
    from compliance_checker.suite import CheckSuite

    class OfflineCheck(CF1_11Check):
        # The original downloads the table that the file's standard_name_vocabulary names.
        def _find_cf_standard_name_table(self, ds: netCDF4.Dataset) -> bool:
            return False

    class FlatSuite(CheckSuite):
        checkers = {"cf:1.11": OfflineCheck}  # noqa: RUF012

        # The original sums by section, which puts remarks on what passed among the failures.
        def scores(self, raw_scores: list[Any]) -> list[Any]:
            return raw_scores

    with netCDF4.Dataset(path) as file:
        ((results, errors),) = FlatSuite().run_all(file, ["cf:1.11"]).values()
    failures = [
        f"{result.name}: {text}"
        for result in results
        if not _passed(result.value)
        for text in result.msgs or ["not met"]
    ]
    return failures + [f"{check}: the checker itself failed, {error!r}" for check, (error, _) in errors.items()]


def _passed(value: tuple[int, int] | bool | None) -> bool:
    """Whether a result is a full score (points, out of), a success, or a check that did not apply."""
    return value[0] == value[1] if isinstance(value, tuple) else value is not False


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = _run_checker(sys.argv[1])
    print(json.dumps(found))
