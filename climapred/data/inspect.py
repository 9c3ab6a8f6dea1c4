"""What is in the files, and what harmonise will do about it.

Nothing is refused here: what harmonise would refuse is a finding like any other. Headers and coordinates are read, and the
fields of a few times for the share of missing values and the range; all fields on request.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.data.axes import LATITUDE, LONGITUDE, TIME, Axis, find_axis, is_cftime
from climapred.data.harmonise import Finding, translate
from climapred.data.inspection import Gap, GridFacts, Inspection, TimeFacts, VariableFacts
from climapred.data.messages import Damaged, Message, message_table
from climapred.data.netcdf import open_netcdf
from climapred.data.remote import RemoteFile
from climapred.data.sources import Location, Source, expand_paths, open_source
from climapred.data.times import Calendar, Duplicates
from climapred.grid import Grid
from climapred.reduced import ReducedGrid
from climapred.variables import VARIABLES, canonical_name, fitting_units, unit_fits

SAMPLED = 5  # times of which the fields are read by default


def inspect_source(
    paths: Source,
    variables: Sequence[str] | None = None,
    *,
    select: Mapping[str, Any] | None = None,
    damaged: Damaged = "error",
    duplicates: Duplicates = "refuse",
    calendar: Calendar = "refuse",
    every_time: bool = False,
) -> Inspection:
    """Return what is in the files, and for each peculiarity what harmonise will do about it.

    What cannot be opened together is opened one by one: each GRIB variable, or the first file.

    Args:
        paths, variables, select, damaged: as for ``open_source``.
        duplicates, calendar: as for ``harmonise``.
        every_time: read all fields, not those of a few times, for the share of missing values and the range.

    Raises:
        FileNotFoundError: if nothing matches.
        OSError: if a server cannot be reached or refuses.
        ValueError: if nothing can be read: a file is empty, cut or of unknown kind.
    """
    files = expand_paths(paths)
    places = [_locate(file) for file in files]
    messages = _messages(places)
    findings: list[Finding] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            parts = [open_source(files, variables=variables, select=select, damaged=damaged)]
        except ValueError as error:
            parts, variables = _readable(files, messages, select), None
            if not parts:
                raise
            findings.append(Finding("files", str(error), "refused"))
    if not findings:
        findings += [Finding("files", str(warning.message), "warned of") for warning in told]
    translations = [translate(part, variables, duplicates=duplicates, calendar=calendar) for part in parts]
    packings = _packings(places[0]) if not messages else {}
    looked = [
        _look(part[name], translation.axes, _stored(str(name), messages, packings), every_time)
        for part, translation in zip(parts, translations, strict=True)
        for name in part.data_vars
    ]
    times = _time_facts(parts[0])
    alone = (
        {"variables"} if findings and findings[0].refused else set()
    )  # one that climapred does not know refuses nothing
    findings += [found for translation in translations for found in translation.findings if found.subject not in alone]
    findings += [*_about_messages(messages, [facts for facts, _ in looked], bool(select)), *_about_times(times)]
    findings += [finding for facts, error in looked for finding in _about_values(facts, error)]
    return Inspection(
        tuple(map(str, files)),
        tuple(facts for facts, _ in looked),
        _grid_facts(parts[0], translations[0].axes),
        times,
        tuple(dict.fromkeys(findings)),
    )


def _locate(file: Location) -> Path | None:
    """Return where a file lies on this machine; None for a Zarr store behind a URL."""
    if isinstance(file, RemoteFile):
        return None if file.is_zarr() else file.local_copy()
    return file


def _messages(places: Sequence[Path | None]) -> dict[str, list[Message]]:
    """Return the good GRIB messages of all files by climapred's name of their variable; none for other files."""
    named: dict[str, list[Message]] = {}
    for place in filter(_is_grib, places):
        with warnings.catch_warnings(), suppress(ValueError):  # damage is told by open_source
            warnings.simplefilter("ignore")
            for message in message_table(str(place), damaged="skip"):
                named.setdefault(canonical_name(message.header.name), []).append(message)
    return named


def _is_grib(place: Path | None) -> bool:
    if place is None or not place.is_file():
        return False
    with place.open("rb") as stream:
        return stream.read(4) == b"GRIB"


def _readable(
    files: Sequence[Location], messages: dict[str, list[Message]], select: Mapping[str, Any] | None
) -> list[xr.Dataset]:
    """Return what can be opened of files that cannot be opened together."""
    parts = []
    for name in messages:
        with suppress(ValueError):  # told already, for all variables together
            parts.append(open_source(files, variables=[name], select=select, damaged="skip"))
    if not messages and len(files) > 1:
        with suppress(ValueError):
            parts.append(open_source(files[0]))
    return parts


def _packings(place: Path | None) -> dict[str, str]:
    """Return how a NetCDF file or Zarr store keeps each variable."""
    if place is None:
        return {}
    with warnings.catch_warnings():  # told already
        warnings.simplefilter("ignore")
        with open_netcdf(place) if place.is_file() else xr.open_zarr(place, chunks=None, consolidated=False) as dataset:
            return {str(name): _packing(variable) for name, variable in dataset.data_vars.items()}


def _packing(variable: xr.DataArray) -> str:
    kept = variable.encoding
    scales = [f"{key} {kept[key]:g}" for key in ("scale_factor", "add_offset") if key in kept]
    holes = dict.fromkeys(
        f"{kept[key]:g} means missing" for key in ("_FillValue", "missing_value") if _is_number(kept.get(key))
    )
    told = [str(kept.get("dtype", variable.dtype)), *scales, *(hole for hole in holes if not hole.startswith("nan"))]
    return "stored as " + " ".join(told[:1]) + (f" ({', '.join(told[1:])})" if told[1:] else "")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number))


def _stored(name: str, messages: dict[str, list[Message]], packings: dict[str, str]) -> str:
    """Return how a variable is kept: kinds of GRIB messages, or the packing of NetCDF and Zarr."""
    if name not in messages:
        return packings.get(name, "")
    headers = [message.header for message in messages[name]]
    kinds = Counter(f"{header.level_type} {header.level:g}, {header.origin}" for header in headers)
    listed = [f"{kind} ({count})" for kind, count in kinds.most_common(3)]
    return f"{_count(len(headers), 'GRIB message')}: {'; '.join(listed)}" + ("; ..." if len(kinds) > 3 else "")


def _look(
    array: xr.DataArray, axes: Mapping[str, Axis], stored: str, every_time: bool
) -> tuple[VariableFacts, str | None]:
    """Return the facts of a variable, and the error that reading it gave."""
    time = axes["time"].dim if "time" in axes else None
    facts = VariableFacts(
        name=str(array.name),
        canonical=name if (name := canonical_name(str(array.name))) in VARIABLES else None,
        units=str(array.attrs["units"]) if "units" in array.attrs else None,
        sizes={str(dim): size for dim, size in array.sizes.items()},
        dtype=str(array.dtype),
        stored=stored,
        times=array.sizes.get(time or "", 1),
    )
    if array.dtype.kind not in "fiu" or not array.size:
        return facts, None
    missing = size = count = 0
    lowest, highest = np.float64(np.nan), np.float64(np.nan)
    try:
        for block in _blocks(array, time, axes, every_time):
            values = np.asarray(block.values)
            missing, size = missing + int(np.isnan(values).sum()), size + values.size
            lowest = np.fmin(lowest, np.fmin.reduce(values, axis=None))
            highest = np.fmax(highest, np.fmax.reduce(values, axis=None))
            count += block.sizes.get(time or "", 1)
    except (OSError, RuntimeError, ValueError) as error:  # the NetCDF library says "HDF error"
        return facts, f"cannot be read: {error}"
    facts = replace(facts, times_read=count, missing=missing / size)
    return facts if missing == size else replace(facts, minimum=float(lowest), maximum=float(highest)), None


def _blocks(
    array: xr.DataArray, time: str | None, axes: Mapping[str, Axis], every_time: bool
) -> Iterator[xr.DataArray]:
    """Yield what is to be read: all blocks of the files, or the first level and member at a few times."""
    count = array.sizes.get(time or "", 1)
    if every_time:
        ends = np.cumsum([0, *array.chunksizes.get(time or "", (count,))]).tolist()
        spans = [slice(*span) for span in pairwise(ends)]
    else:
        horizontal = {axis.dim for name, axis in axes.items() if name != "time"} or {*map(str, array.dims[-2:])}
        array = array.isel({dim: 0 for dim in array.dims if dim != time and dim not in horizontal})
        positions = np.unique(np.linspace(0, count - 1, SAMPLED).round().astype(int)).tolist()
        spans = [slice(position, position + 1) for position in positions]
    with dask.config.set(scheduler="synchronous"):
        for span in spans:
            yield array.isel({time: span}) if time in array.dims else array


def _grid_facts(dataset: xr.Dataset, axes: Mapping[str, Axis]) -> GridFacts | None:
    if not {"latitude", "longitude"} <= set(axes):
        return None
    latitude, longitude = axes["latitude"].values, axes["longitude"].values
    raw_latitude, raw_longitude = (
        dataset[find_axis(dataset, coordinate)].values.astype(np.float64) for coordinate in (LATITUDE, LONGITUDE)
    )
    south, north, west, east = latitude.min(), latitude.max(), longitude.min(), longitude.max()
    region = (float(south), float(north), float(west), float(east))
    steps = np.diff(raw_latitude)
    around = (float(raw_longitude.min()), float(raw_longitude.max()))
    if "values" in axes:
        way = "descends" if (steps <= 0).all() else "ascends"
        return GridFacts(repr(ReducedGrid.of(dataset)), latitude.shape, (None, None), region, way, around, True)
    way = "ascends" if (steps > 0).all() else "descends" if (steps < 0).all() else "is unsorted"
    spacing = (_spacing(latitude), _spacing(longitude))
    periodic = longitude.size > 1 and 360 - (east - west) < 1.5 * np.median(np.diff(longitude))
    return GridFacts(
        _kind(latitude, spacing), (latitude.size, longitude.size), spacing, region, way, around, bool(periodic)
    )


def _spacing(values: npt.NDArray[np.float64]) -> float | None:
    steps = np.diff(values)
    return round(float(steps.mean()), 6) if steps.size and np.ptp(steps) < 1e-6 else None


def _kind(latitude: npt.NDArray[np.float64], spacing: tuple[float | None, float | None]) -> str:
    if None not in spacing:
        return "regular"
    number, odd = divmod(latitude.size, 2)
    gaussian = spacing[0] is None and not odd and np.abs(Grid.gaussian(number).latitude - latitude).max() < 2e-3
    return f"Gaussian F{number}" if gaussian else "uneven"


def _time_facts(dataset: xr.Dataset) -> TimeFacts | None:
    """Return when the values are valid; None where there is no one series of dates, which translate tells."""
    try:
        name = find_axis(dataset, TIME)
    except ValueError:
        return None
    raw = dataset[name]
    if raw.ndim > 1:
        raw = raw.squeeze()
    values = np.atleast_1d(raw.values)
    values = values[~pd.isnull(values)]
    if raw.ndim > 1 or not values.size or not (raw.dtype.kind == "M" or is_cftime(values)):
        return None
    distinct, place = np.unique(values, return_inverse=True)
    index = pd.DatetimeIndex(distinct) if raw.dtype.kind == "M" else xr.CFTimeIndex(distinct)
    step, gaps = _step_and_gaps(index)
    return TimeFacts(
        name=name,
        first=_say(index[0]),
        last=_say(index[-1]),
        count=values.size,
        step=step,
        calendar="standard" if raw.dtype.kind == "M" else raw.dt.calendar,
        gaps=gaps,
        repeated=values.size - distinct.size,
        ordered=bool((np.diff(place) >= 0).all()),
    )


def _say(time: Any) -> str:
    return str(time.strftime("%Y-%m-%dT%H:%M"))


def _step_and_gaps(index: Any) -> tuple[str, tuple[Gap, ...]]:
    """Return the most frequent step of an index of dates, and where more than one step lies between two.

    Steps of four weeks and more count in months, where these fit.
    """
    if len(index) < 2:
        return "one time", ()
    seconds = np.round((index[1:] - index[:-1]).total_seconds(), 3)
    months = np.diff(index.year * 12 + index.month)
    same = np.ptp(seconds) == 0 and np.ptp(index.day) > 0  # 30 days, five times, are no months
    monthly = not same and seconds.min() >= 28 * 86400 and np.abs(seconds / (30.44 * 86400) - months).max() < 0.2
    steps = months if monthly else seconds
    values, counts = np.unique(steps, return_counts=True)
    if counts.max() < steps.size / 2:
        return "irregular", ()
    step = float(values[counts.argmax()])
    wide = np.flatnonzero(steps > 1.5 * step).tolist()
    gaps = tuple(Gap(_say(index[i]), _say(index[i + 1]), math.ceil(steps[i] / step - 0.01) - 1) for i in wide)
    return _say_step(step, "month" if monthly else "second"), gaps


def _say_step(step: float, unit: str) -> str:
    """Return a step in the largest unit that it is a whole number of.

    >>> _say_step(21600, "second"), _say_step(86400, "second"), _say_step(12, "month")
    ('6 hours', '1 day', '12 months')
    """
    longer = (("day", 86400), ("hour", 3600), ("minute", 60)) if unit == "second" else ()
    unit, length = next(((unit, length) for unit, length in longer if step % length == 0), (unit, 1))
    return _count(step / length, unit)


def _count(number: float, thing: str) -> str:
    return f"{number:.15g} {thing}" + ("s" if number != 1 else "")


def _about_messages(
    messages: dict[str, list[Message]], variables: Sequence[VariableFacts], selected: bool
) -> Iterator[Finding]:
    """Tell the GRIB messages that are not taken."""
    taken = {facts.name: facts for facts in variables}
    for name, found in messages.items():
        if name not in taken:
            yield Finding(name, _count(len(found), "message"), "left out")
            continue
        fields = math.prod(size for dim, size in taken[name].sizes.items() if dim in ("time", "number", "level"))
        if more := len(found) - fields:
            why = "not selected" if selected else "ERA5T (expver 5), and ERA5 (expver 1) is there, too"
            yield Finding(
                name, f"of {_count(len(found), 'message')}, {more} {'is' if more == 1 else 'are'} {why}", "left out"
            )


def _about_times(times: TimeFacts | None) -> Iterator[Finding]:
    if times and times.gaps:
        first = times.gaps[0]
        many = f"{_count(times.lacking, 'time')} missing in {_count(len(times.gaps), 'gap')}"
        found = f"{many}, the first from {first.after} to {first.before}"
        yield Finding("time", found, "kept as gaps: nothing is filled in, and training windows leave them out")
    if times and times.step == "irregular":
        yield Finding("time", "most steps differ", "kept; training windows need even steps")


def _about_values(facts: VariableFacts, error: str | None) -> Iterator[Finding]:
    if error is not None:
        yield Finding(facts.name, error, "refused")
    if facts.missing:
        found = f"{100 * facts.missing:.3g} % of the values missing at {facts.times_read} of {facts.times} times"
        yield Finding(facts.name, found, "kept as missing")
    if facts.canonical is None or facts.minimum is None or facts.maximum is None:
        return
    variable = VARIABLES[facts.canonical]
    if facts.units is None or not unit_fits(variable, facts.units, facts.minimum, facts.maximum):
        fitting = fitting_units(variable, facts.minimum, facts.maximum)
        stated = "no units" if facts.units is None else f"units {facts.units!r}"
        way = f"this would be weather in {' or '.join(fitting)}" if fitting else "this is weather in no known units"
        found = f"{stated}, and values from {facts.minimum:g} to {facts.maximum:g}: {way}"
        yield Finding(facts.name, found, "not corrected: set the attribute `units` where the file is wrong")
