"""Forecasts and learned correlations as CF-1.11 describes them: to_cf, from_cf; and WeatherBench's names.

In memory a forecast has dims (init_time[, realization], lead_time, latitude, longitude); in a file one of two layouts,
each clean to a strict checker:

    "starts"  dims (forecast_reference_time[, realization], forecast_period, latitude, longitude), the dims that the CF
              standard names prescribe, valid times in the 2-D auxiliary coordinate ``time``: any number of start times.
              CDO has no forecasts with two time axes: it takes start times for times and periods for levels, warns that
              it cannot assign ``time``, and refuses members (a fifth dimension).
    "valid"   dims (time[, realization], latitude, longitude), valid times as the time axis; one start time, the scalar
              coordinate ``forecast_reference_time``. This is what CDO, ncview and Panoply read best: right times in every
              operator, the start as reference time, members as levels. (CDO warns that it cannot assign the two
              coordinates of the start, which CF wants.)

Times of reanalyses and of the models trained on them have days of 86400 seconds; the files say so with
``units_metadata = "leap_seconds: none"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.grid import Grid
from climapred.results.cf_check import check_cf
from climapred.results.cf_write import pack, whole_unit, write_dataset, write_netcdf, write_zarr
from climapred.results.links.adjacency import adjacency_dataset, grid_of
from climapred.variables import VARIABLES, canonical_name

__all__ = [
    "adjacency_to_cf",
    "check_cf",
    "from_cf",
    "from_weatherbench",
    "pack",
    "scores_to_cf",
    "to_cf",
    "to_weatherbench",
    "write_dataset",
    "write_netcdf",
    "write_zarr",
]

Layout = Literal["starts", "valid"]

_DIMS = ("init_time", "realization", "lead_time", "latitude", "longitude")
_TO_FILE = {"init_time": "forecast_reference_time", "lead_time": "forecast_period", "valid_time": "time"}
_MEMBER = {"standard_name": "realization", "long_name": "member of the ensemble", "units": "1"}
_TO_WEATHERBENCH = {"init_time": "time", "lead_time": "prediction_timedelta", "realization": "number"}
_WEATHERBENCH_NAMES = {
    "t2m": "2m_temperature",
    "d2m": "2m_dewpoint_temperature",
    "skt": "skin_temperature",
    "sst": "sea_surface_temperature",
    "t": "temperature",
    "u10": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "msl": "mean_sea_level_pressure",
    "sp": "surface_pressure",
    "z": "geopotential",
    "q": "specific_humidity",
}


def to_cf(
    forecast: xr.Dataset,
    *,
    source: str,
    title: str = "Gridded weather forecast",
    references: str = "",
    history: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    layout: Layout = "starts",
) -> xr.Dataset:
    """Return a forecast as CF-1.11 describes it, ready for ``write_netcdf``; data stay lazy.

    Args:
        forecast: dims (init_time[, realization], lead_time, latitude, longitude) in any order, with the 2-D
            coordinate ``valid_time``. A variable that climapred does not know must carry ``units``.
        source: what made the forecast: the model, its version, the data it was trained on.
        title: one line on what the file holds.
        references: publications, or where the model is described.
        history: one line per step; None for a line with the present time.
        attributes: further global attributes, such as institution or the identity of the model.
        layout: "starts" for any number of start times, "valid" for one; the module says what they are for.

    Returns:
        The dims of the layout; ``time``, bounds of latitude and longitude, and the attributes of each variable.
        Periods are in hours, members numbered from 0 where they have no numbers.

    Raises:
        ValueError: if a dimension or the units of a variable are missing, if times are not whole seconds, or if the
            layout is unknown or holds a single start time and got several.
    """
    if missing := {*_TO_FILE, "latitude", "longitude"} - set(forecast.variables):
        raise ValueError(f"forecast must have the coordinates {sorted(missing)}, got {list(forecast.coords)}")
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}")
    dataset = forecast.transpose(*_DIMS, missing_dims="ignore").drop_attrs().rename(_TO_FILE)
    for name, field in dataset.items():
        field.attrs = _variable_attributes(forecast[name])
    dataset = dataset.assign_coords(_time_coordinates(dataset)).assign(_bounds(Grid.of(forecast)))
    if "realization" in dataset.dims:
        members = dataset["realization"].values.astype(np.int32)  # 0, 1, ... where there are no numbers
        dataset = dataset.assign_coords(realization=("realization", members, _MEMBER))
    # Forecasts can be appended to an unlimited dimension; a fixed one the checker would take for the T axis, out
    # of order.
    unlimited = {"starts": "forecast_reference_time", "valid": "time"}[layout]
    if layout == "valid":
        dataset = _along_valid_time(dataset)
    dataset.encoding = {"unlimited_dims": {unlimited}}
    return dataset.assign_attrs(_global_attributes(title, source, references, history, attributes))


def _along_valid_time(dataset: xr.Dataset) -> xr.Dataset:
    count = dataset.sizes["forecast_reference_time"]
    if count != 1:
        raise ValueError(
            f"the layout 'valid' holds one start time, got {count}; write a file for each, or use layout='starts'"
        )
    dataset = dataset.isel(forecast_reference_time=0).swap_dims(forecast_period="time")
    return dataset.transpose("time", "realization", ..., missing_dims="ignore")


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
        encoding = {"units": f"{whole_unit(values)} since 1970-01-01", "calendar": "standard", "dtype": "int64"}
        coordinates[name] = xr.Variable(dataset[name].dims, values, attributes, encoding)
    hours = dataset["forecast_period"].values / np.timedelta64(1, "h")
    attributes = {"standard_name": "forecast_period", "long_name": "time since the last frame seen"}
    coordinates["forecast_period"] = xr.Variable("forecast_period", hours, {**attributes, "units": "hours"})
    return coordinates


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


def scores_to_cf(
    scores: xr.Dataset,
    *,
    source: str,
    title: str = "Scores of forecasts",
    references: str = "",
    history: str | None = None,
) -> xr.Dataset:
    """Return scores, or maps of skill, with the attributes that CF-1.11 asks for; dims, names and values stay.

    Errors in kelvin say that they are differences of temperatures. Names of models become characters in a NetCDF file
    (``write_netcdf``): CF has no coordinate variables of text, and labels of two dimensions are none.

    Args:
        scores: of ``evaluate``, ``season_scores``, ``region_scores`` or ``skill_of_cells``.
        source, title, references, history: as for ``to_cf``.
    """
    dataset, about = scores.copy(), _global_attributes(title, source, references, history, scores.attrs)
    names = {
        "model": {"long_name": "name of the model"},
        "lead_time": {"standard_name": "forecast_period", "long_name": "time since the last frame seen"},
        "latitude": {"standard_name": "latitude", "units": "degrees_north"},
        "longitude": {"standard_name": "longitude", "units": "degrees_east"},
    }
    for name in set(names) & set(dataset.coords):
        dataset[name].attrs = {"long_name": name, **names[name]}
    for score in dataset.values():
        if score.attrs.get("units") == "K":
            score.attrs["units_metadata"] = "temperature: difference"
    return dataset.assign_attrs(about)


def from_cf(dataset: xr.Dataset) -> xr.Dataset:
    """Return the in-memory form of a forecast that ``to_cf`` made, in either layout, written and opened again or not.

    Returns:
        Dims (init_time[, realization], lead_time, latitude, longitude), coordinates init_time, lead_time (timedelta64)
        and the 2-D valid_time; values and times are exactly those of the forecast, or of the forecast as it was packed.

    Raises:
        ValueError: if the dataset is not laid out so, or if its periods are not in hours.
    """
    if missing := {*_TO_FILE.values(), "latitude", "longitude"} - set(dataset.variables):
        found = list(dataset.variables)
        raise ValueError(f"a CF forecast must hold {sorted(missing)}, got {found}; was it made by to_cf()?")
    fields = dataset.drop_vars(["latitude_bounds", "longitude_bounds"], errors="ignore")
    packed = [name for name, field in fields.items() if "scale_factor" in field.encoding]
    # Packed values are float32 numbers, but Zarr does not keep the type of the scale that says so.
    fields = fields.assign({name: fields[name].astype(np.float32) for name in packed}).drop_encoding()
    if fields["time"].dims == ("time",):
        fields = fields.swap_dims(time="forecast_period")
    fields = fields.drop_vars("time")
    if "forecast_reference_time" not in fields.dims:
        fields = fields.expand_dims("forecast_reference_time")
    init = fields["forecast_reference_time"].values.astype("datetime64[ns]")
    lead = _leads(fields["forecast_period"])
    fields = fields.rename({name: memory for memory, name in _TO_FILE.items() if name != "time"})
    for name in ("latitude", "longitude"):
        fields[name].attrs.pop("bounds", None)
    return fields.transpose(*_DIMS, missing_dims="ignore").assign_coords(
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


def to_weatherbench(forecast: xr.Dataset) -> xr.Dataset:
    """Return a forecast with the names of WeatherBench 2: dims (time, prediction_timedelta, latitude, longitude).

    ``time`` is the start of the forecast, members run along ``number`` and variables have their long names
    (``2m_temperature``); one that WeatherBench does not have keeps its own. Values stay, and ``from_weatherbench``
    gives the forecast back.

    Args:
        forecast: in memory, or CF in either layout.
    """
    fields = from_cf(forecast) if "forecast_reference_time" in forecast.variables else forecast
    names = {str(name): _WEATHERBENCH_NAMES.get(str(name), str(name)) for name in fields.data_vars}
    present = {name: new for name, new in _TO_WEATHERBENCH.items() if name in fields.dims}
    order = (present.get(dim, dim) for dim in _DIMS if dim in fields.dims)
    return fields.drop_vars("valid_time").rename({**names, **present}).transpose(*order)


def from_weatherbench(dataset: xr.Dataset) -> xr.Dataset:
    """Return the in-memory form of a forecast with the names of WeatherBench 2, such as its own Zarr stores.

    Returns:
        Dims (init_time[, realization], lead_time, latitude, longitude), canonical names where climapred knows the
        variable, the 2-D coordinate valid_time; other dims, such as level, stay.

    Raises:
        ValueError: if ``time`` or ``prediction_timedelta`` is missing, or is not decoded.
    """
    for name, kind in (("time", "M"), ("prediction_timedelta", "m")):
        if name not in dataset.dims or name not in dataset.coords or dataset[name].dtype.kind != kind:
            wanted = {"M": "datetime64", "m": "timedelta64 (xarray: decode_timedelta=True)"}[kind]
            raise ValueError(
                f"a forecast of WeatherBench must have the dimension {name!r} with values of type {wanted}, got the "
                f"coordinates { {key: str(value.dtype) for key, value in dataset.coords.items()} }"
            )
    names = {str(name): canonical_name(str(name)) for name in dataset.data_vars}
    dims = {name: memory for memory, name in _TO_WEATHERBENCH.items() if name in dataset.dims}
    fields = dataset.rename({**names, **dims}).transpose(*_DIMS, ..., missing_dims="ignore")
    init, lead = fields["init_time"].values, fields["lead_time"].values
    return fields.assign_coords(valid_time=(("init_time", "lead_time"), init[:, None] + lead))


def adjacency_to_cf(
    weights: npt.NDArray[np.floating] | xr.Dataset,
    grid: Grid | None = None,
    *,
    source: str,
    title: str = "Learned correlations between grid points",
    long_name: str | None = None,
    history: str | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Return learned weights between grid points as CF-1.11, in a layout of ``climapred.results.links.adjacency``.

    Args:
        weights: shape (N, N) with N = H * W; row = target, column = source; nodes run along longitude first,
            so that ``weights.reshape(H, W, H, W)`` has both grids. Or an adjacency in either layout, such as
            ``top_links`` makes of a large one.
        grid: the grid of the nodes of an array; their places are the auxiliary coordinates target_latitude,
            target_longitude, source_latitude and source_longitude (CF forbids repeated dims).
        source: the model that learned the weights.
        title: one line on what the file holds.
        long_name: what a weight means and which way it points; None for what ``adjacency_dataset`` says.
        history: one line per step; None for a line with the present time.
        attributes: further global attributes.

    Raises:
        ValueError: if a weight is not finite, if the shape is not (N, N), or the Dataset is in no layout.
    """
    if isinstance(weights, xr.Dataset):
        grid_of(weights)
        dataset = weights.copy()
    elif grid is None:
        raise ValueError("an array of weights needs the grid of its nodes")
    else:
        dataset = adjacency_dataset(weights, grid)
    if long_name is not None:
        dataset["weight"].attrs["long_name"] = long_name
    return dataset.assign_attrs(_global_attributes(title, source, "", history, attributes))
