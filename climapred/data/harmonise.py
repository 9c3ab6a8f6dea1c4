"""Any opened source -> canonical dims, names, units and order, without reading a field.

What is known about files stands in two tables: COORDINATES in climapred.data.axes and VARIABLES in
climapred.variables. Everything else is one generic translation, which also tells what it found: each finding is
something that a file does differently, with what is done about it. Only coordinates are read; the fields stay as
lazy as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

import numpy as np
import xarray as xr

from climapred.data.axes import (
    COORDINATES,
    Axis,
    Change,
    horizontal_axes,
    read_latitude,
    read_longitude,
    read_points,
)
from climapred.data.times import Calendar, Duplicates, read_time, version_label, version_ranks
from climapred.variables import VARIABLES, Variable, canonical_name, convert_units, find_variable, select_names

T = TypeVar("T")

_KEPT_ATTRS = ("title", "institution", "source", "history", "references", "comment")
_SELECTING = {
    "level": ", or of GRIB open_source(..., select={'level': ...})",
    "number": ", or of GRIB open_source(..., select={'member': ...})",
}
_PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value")


@dataclass(frozen=True)
class Finding:
    """Something that a file does differently from the data model, and what harmonise does about it.

    Attributes:
        subject: the axis or variable.
        found: what is there; for a refusal the whole reason, with the way out.
        action: "sorted to ascend", "converted to K", ..., "refused".
    """

    subject: str
    found: str
    action: str

    @property
    def refused(self) -> bool:
        """Harmonise raises this as an error."""
        return self.action == "refused"


@dataclass(frozen=True)
class Translation:
    """What harmonise makes of a dataset: the fields, or None where a finding is a refusal; the axes that could be read."""

    fields: xr.Dataset | None
    axes: Mapping[str, Axis]
    findings: tuple[Finding, ...]


def harmonise(
    dataset: xr.Dataset,
    variables: Sequence[str] | None = None,
    *,
    duplicates: Duplicates = "refuse",
    calendar: Calendar = "refuse",
) -> xr.Dataset:
    """Return the known variables of ``dataset`` in climapred's data model, lazily.

    Dims are ("time", "latitude", "longitude"): `time` is the valid time, datetime64[ns], unique and
    increasing; latitude ascends; longitude ascends and is contiguous, in [0, 360) unless the region crosses
    Greenwich: 350 to 2 becomes -10 to 2, a globe from -180 to 179 becomes 0 to 359. A region that fits into
    neither circle stays contiguous: from 100 E eastwards to 10 E becomes 100 to 370. A repeated cyclic column
    (0 and 360) is dropped. Coordinates lose the noise of float32, and where they are nearly uniform they
    become exactly so; times lose the noise of fractional units below a millisecond. Names, units and attributes are
    those of climapred.variables, with the file's own `cell_methods`; data types stay.

    Missing times stay missing: nothing is filled in. Where ERA5 comes in two versions (`expver`), as a dimension or as
    the same time twice, final data (1) count before preliminary ones (5, ERA5T); they are never added.

    A reduced Gaussian grid keeps its points: dims are ("time", "values"), with `latitude` and `longitude` along `values`
    and the grid in the attributes of that, for ``regrid`` to take.

    Fields in dask arrays, as open_source returns them, are not read. ``inspect_source`` tells what this would do.

    Args:
        dataset: what open_source returns, or any dataset with rectilinear coordinates.
        variables: names, as the file spells them or canonical; None for every variable that climapred knows.
        duplicates: what to do where a time is there more than once: refuse, or take the first or the last field in
            the order of the files.
        calendar: what to do with calendars whose dates are not all real ones (360_day, noleap, ...): refuse, or keep
            them as cftime dates, for work in xarray; ``build_store`` takes real dates only.

    Raises:
        ValueError: if a variable is missing, unknown, still packed or without units; a dimension other than the three
            has more than one element; times repeat or follow a calendar that is not ours; coordinates are
            missing, repeated, curvilinear or off the sphere. Every reason has a line.
    """
    translation = translate(dataset, variables, duplicates=duplicates, calendar=calendar)
    if translation.fields is None:
        raise ValueError("\n".join(finding.found for finding in translation.findings if finding.refused))
    return translation.fields


def translate(
    dataset: xr.Dataset,
    variables: Sequence[str] | None = None,
    *,
    duplicates: Duplicates = "refuse",
    calendar: Calendar = "refuse",
) -> Translation:
    """Return what ``harmonise`` makes of a dataset, and all that it found; a refusal is a finding, not an error."""
    for name, given, choice in (("duplicates", duplicates, Duplicates), ("calendar", calendar, Calendar)):
        if given not in get_args(choice):
            raise ValueError(f"{name} must be one of {', '.join(get_args(choice))}, got {given!r}")
    findings: list[Finding] = []
    chosen = _attempt(findings, "variables", _choose_variables, dataset, variables) or {}
    axes = _translate_axes(findings, dataset, duplicates, calendar)
    fields = {}
    for name, variable in chosen.items():
        field = _translate_field(findings, dataset[name], variable, axes)
        if field is not None:
            fields[variable.name] = field
    if variables is None:
        left = [str(name) for name in dataset.data_vars if name not in chosen]
        findings += [Finding(name, "unknown to climapred", "left out") for name in left]
    refused = any(finding.refused for finding in findings)
    return Translation(None if refused else _assembled(dataset, fields, axes), axes, tuple(findings))


def _translate_axes(
    findings: list[Finding], dataset: xr.Dataset, duplicates: Duplicates, calendar: Calendar
) -> dict[str, Axis]:
    """Return the axes that are not refused."""
    axes = {"time": _attempt(findings, "time", read_time, dataset, duplicates, calendar)}
    if points := _attempt(findings, "grid", read_points, dataset):
        axes |= points
    elif horizontal := _attempt(findings, "grid", horizontal_axes, dataset):
        axes["latitude"] = _attempt(findings, "latitude", read_latitude, horizontal[0])
        axes["longitude"] = _attempt(findings, "longitude", read_longitude, horizontal[1])
    read = {name: axis for name, axis in axes.items() if axis is not None}
    for name, axis in read.items():
        findings += [Finding("grid" if name == "values" else name, *change) for change in axis.changes]
    return read


def _translate_field(
    findings: list[Finding], array: xr.DataArray, variable: Variable, axes: dict[str, Axis]
) -> xr.DataArray | None:
    name = str(array.name)
    converted = _attempt(findings, name, _converted, array, variable)
    if converted is None:
        return None
    field, changes = converted
    findings += [Finding(name, *change) for change in changes]
    if not {c.name for c in COORDINATES} <= set(axes):  # one is refused, and the dimensions mean nothing
        return None
    shaped = _attempt(findings, name, _shaped, field, axes)
    if shaped is None:
        return None
    field, changes = shaped
    findings += [Finding(name, *change) for change in changes]
    return field


def _attempt(findings: list[Finding], subject: str, step: Callable[..., T], *arguments: object) -> T | None:
    """Return the result of a step; where it refuses, that is a finding, and the result None."""
    try:
        return step(*arguments)
    except ValueError as error:
        findings.append(Finding(subject, str(error), "refused"))
        return None


def _assembled(dataset: xr.Dataset, fields: dict[str, xr.DataArray], axes: dict[str, Axis]) -> xr.Dataset:
    result = xr.Dataset(fields, attrs={key: dataset.attrs[key] for key in _KEPT_ATTRS if key in dataset.attrs})
    coordinates = {}
    for c in COORDINATES:
        coordinates[c.name] = (c.name if c.name in result.dims else "values", axes[c.name].values, dict(c.attrs))
    if "values" in axes:
        coordinates["values"] = ("values", axes["values"].values, dict(dataset["values"].attrs))
    orders = {name: axis.order for name, axis in axes.items() if name in result.dims}
    return result.isel(orders).assign_coords(coordinates).drop_encoding()


def _choose_variables(dataset: xr.Dataset, variables: Sequence[str] | str | None) -> dict[str, Variable]:
    """Return {name in the file: Variable}."""
    names = select_names(map(str, dataset.data_vars), variables, "the dataset")
    known = {name: find_variable(name) for name in names if canonical_name(name) in VARIABLES}
    unknown = [name for name in names if name not in known]
    if not known or (unknown and variables is not None):
        raise ValueError(
            f"climapred knows no units or standard name for {', '.join(unknown) or 'any variable'}; it knows "
            f"{', '.join(VARIABLES)}; the dataset has {', '.join(map(str, dataset.data_vars)) or 'none'}; "
            "rename one with dataset.rename"
        )
    by_canonical: dict[str, str] = {}
    for name, variable in known.items():
        if other := by_canonical.get(variable.name):
            raise ValueError(f"{other!r} and {name!r} are both {variable.name!r}; name one of them in variables=")
        by_canonical[variable.name] = name
    return known


def _converted(array: xr.DataArray, variable: Variable) -> tuple[xr.DataArray, list[Change]]:
    """Return one variable in canonical units and attributes, and what was done to it."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{array.name!r} must hold numbers, got {array.dtype}")
    if packing := [key for key in _PACKING if key in array.attrs]:
        raise ValueError(
            f"{array.name!r} is still packed: {', '.join(packing)} among its attributes; open the file with open_source, "
            "or decode it first: xr.decode_cf(dataset)"
        )
    if "units" not in array.attrs:
        raise ValueError(
            f"{array.name!r} has no units; where they are known to be {variable.units!r}, say so: "
            f"dataset[{array.name!r}].attrs['units'] = {variable.units!r}"
        )
    units = str(array.attrs["units"])
    try:
        field = convert_units(array, units, variable.units)
    except ValueError as error:
        raise ValueError(f"{array.name!r}: {error}") from error
    changes = (
        [(f"is {variable.long_name.lower()}", f"renamed to {variable.name}")] if array.name != variable.name else []
    )
    if units != variable.units:
        same = field is array
        changes.append((f"units {units!r}", f"called {variable.units}" if same else f"converted to {variable.units}"))
    attrs = {"standard_name": variable.standard_name, "long_name": variable.long_name, "units": variable.units}
    if "cell_methods" in array.attrs:
        attrs["cell_methods"] = array.attrs["cell_methods"]
    return field.drop_attrs().assign_attrs(attrs), changes


def _shaped(array: xr.DataArray, axes: dict[str, Axis]) -> tuple[xr.DataArray, list[Change]]:
    """Return one variable with dims (time, latitude, longitude) or (time, values), unsorted, without coordinates."""
    horizontal = ("values",) if "values" in axes else ("latitude", "longitude")
    dims = {axes[name].dim: name for name in ("time", *horizontal) if axes[name].dim is not None}
    array, changes = _final_first(array)
    singles = [str(dim) for dim, size in array.sizes.items() if size == 1 and dim not in dims]
    changes += [(f"dimension {dim!r} of size 1{_labels(array, dim)}", "dropped") for dim in singles]
    array = array.squeeze(singles, drop=True)
    for dim in map(str, array.dims):
        if dim not in dims:
            raise ValueError(
                f"{array.name!r} has the extra dimension {dim!r} of size {array.sizes[dim]}{_labels(array, dim)}; "
                f"select one element first: dataset.isel({dim}=0)" + _SELECTING.get(dim, "")
            )
    absent = (
        set(dims.values())
        - {dims[str(dim)] for dim in array.dims}
        - ({"time"} if axes["time"].values.size == 1 else set())
    )
    if absent:
        raise ValueError(f"{array.name!r} must have the dimensions {list(dims)}, got {array.dims}")
    field = array.drop_vars(list(array.coords)).rename({dim: dims[str(dim)] for dim in array.dims})
    if "time" not in field.dims:
        field = field.expand_dims("time")
    return field.transpose("time", *horizontal), changes


def _final_first(array: xr.DataArray) -> tuple[xr.DataArray, list[Change]]:
    """Return the array without a dimension of ERA5's versions: final data, and preliminary ones where they lack."""
    dim = next((str(dim) for dim in array.dims if str(dim).lower() == "expver"), None)
    labels = [version_label(value) for value in array[dim].values] if dim in array.coords else []
    ranks = version_ranks(labels)
    if dim is None or ranks is None or len(labels) == 1 or len(set(ranks)) < len(ranks):
        return array, []
    final, preliminary = (array.isel({dim: int(number)}, drop=True) for number in np.argsort(ranks))
    found = f"expver {' and '.join(labels)} side by side, along a dimension"
    return final.fillna(preliminary), [(found, "combined: final data (1) before ERA5T (5), point by point")]


def _labels(array: xr.DataArray, dim: str) -> str:
    if dim not in array.coords:
        return ""
    values = array[dim].values[:4].tolist()
    return f", {values}" + ("..." if array.sizes[dim] > 1 else "")
