"""GRIB: lazy cubes of messages that decode only the messages they need.

Fields are decoded straight from their byte ranges into the block that is wanted, nothing is written next to the data, and
nothing is skipped: what does not fit into a cube is an error that lists it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any

import dask.array as da
import eccodes
import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.data.messages import Damaged, Message, MessageGrid, message_handle, message_table
from climapred.data.packing import unpack
from climapred.variables import canonical_name, select_names

__all__ = ["GRID_KINDS", "SELECTABLE", "open_grib"]

GRID_KINDS = ("regular_ll", "regular_gg", "reduced_gg")

# What messages can be selected by, and how the message tells it.
SELECTABLE: dict[str, Callable[[Message], Hashable]] = {
    "level_type": lambda message: message.header.level_type,
    "level": lambda message: message.header.level,
    "member": lambda message: message.header.member,
    "step": lambda message: message.step,
    "step_type": lambda message: message.header.step_type,
    "data_type": lambda message: message.header.data_type,
    "expver": lambda message: message.header.expver,
}

# What messages lie along: fields by when they hold, forecasts by when they began and how far they reach.
_FIELD_AXES: dict[str, Callable[[Message], Any]] = {"time": lambda message: message.time}
_FORECAST_AXES: dict[str, Callable[[Message], Any]] = {
    "init_time": lambda message: message.start,
    "lead_time": lambda message: message.time - message.start,
}
_FURTHER_AXES: dict[str, Callable[[Message], Any]] = {
    "number": lambda message: message.header.member,
    "level": lambda message: message.header.level,
}

Place = tuple[Any, ...]

_FINAL, _PRELIMINARY = "0001", "0005"  # expver of ERA5 and of ERA5T, which ERA5 replaces after three months
_LEAST_BYTES, _MOST_BYTES, _BLOCKS = 4 * 2**20, 32 * 2**20, 2048
_LISTED = 10
_MISSING = -1e38  # what eccodes writes at masked points: a float32, but no measured value


def open_grib(
    paths: Sequence[str | Path],
    variables: Sequence[str] | None = None,
    *,
    select: Mapping[str, Any] | None = None,
    damaged: Damaged = "error",
    block: int | None = None,
    forecasts: bool = False,
) -> xr.Dataset:
    """Return the fields of GRIB files as lazy cubes, in the files' units and scanning order.

    Messages of one shortName, from all files together, make one variable with dims
    (time[, number][, level], latitude, longitude); `time` is valid time; a single member or level becomes a scalar coordinate.
    Fields on a reduced Gaussian grid stay points, dims (time[, number][, level], values), with latitude and longitude along
    `values`, whose attributes `gridType`, `N` and `pl` tell the grid. Variables carry climapred's name where it knows one,
    otherwise the shortName. Values are float32, NaN where the bitmap masks them.

    Where a field comes as ERA5 and as the preliminary ERA5T (expver 1 and 5), ERA5 is taken; where both are in a file, the
    coordinate `expver` along time says which time is which.

    Args:
        paths: the files.
        variables: shortNames, canonical names or aliases; None for all.
        select: the messages to take, such as {"level_type": "isobaricInhPa", "level": [500, 850]}; the keys are those of
            SELECTABLE, step is in hours.
        damaged: "skip" leaves out damaged messages, with a warning.
        block: times in a dask block; None chooses blocks of about 4 MiB, of up to 32 MiB in long series. A block that matches
            what is read at once, such as a shard of a store, is fastest. A block holds one member and one level.
        forecasts: keep starts and leads apart: dims (init_time, lead_time[, number][, level], latitude, longitude), with
            the 2-D coordinate valid_time, and blocks of one start. Each start must have the same leads.

    Raises:
        ValueError: if a variable is absent; is on a grid of another kind; mixes grids, kinds of level, kinds of step or units;
            has duplicate messages or lacks some; or does not share times, members, levels and grid with the others.
    """
    where = f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    messages = [message for path in paths for message in message_table(path, damaged=damaged)]
    groups: dict[str, list[Message]] = {}
    for message in _selected(messages, select or {}, where):
        groups.setdefault(message.header.name, []).append(message)
    cubes: dict[str, xr.DataArray] = {}
    complaints: dict[str, str] = {}
    for name in select_names(groups, variables, where):
        try:
            cubes[name] = _cube(groups[name], where, block, _FORECAST_AXES if forecasts else _FIELD_AXES)
        except ValueError as error:
            complaints[name] = str(error)
    together = _sets_on_common_axes(cubes)
    if complaints or len(together) > 1:
        raise ValueError(_summary(complaints, together, cubes, where))
    return xr.merge(
        [cube.to_dataset(name=canonical_name(name)) for name, cube in cubes.items()],
        compat="minimal",  # scalar levels that differ between variables (2 m, 10 m) stay out
        join="exact",
        combine_attrs="drop_conflicts",
    )


def _selected(messages: list[Message], select: Mapping[str, Any], where: str) -> list[Message]:
    for key, wanted in select.items():
        if key not in SELECTABLE:
            raise ValueError(
                f"select={{{key!r}: ...}} is not possible; messages are selected by {', '.join(SELECTABLE)}"
            )
        values = set(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else {wanted}
        present = Counter(map(SELECTABLE[key], messages))
        if not values & set(present):
            raise ValueError(f"no message of {where} has {key} {wanted!r}; there are {_counts(present)}")
        messages = [message for message in messages if SELECTABLE[key](message) in values]
    return messages


def _counts(found: Mapping[Any, int]) -> str:
    listed = [f"{value} in {count} messages" for value, count in list(found.items())[:_LISTED]]
    return "; ".join(listed) + (f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else "")


def _sets_on_common_axes(cubes: Mapping[str, xr.DataArray]) -> list[list[str]]:
    """Return the names of variables that share all axes, set by set."""
    sets: list[list[str]] = []
    for name, cube in cubes.items():
        for same in sets:
            if _differing(cubes[same[0]], cube) == []:
                same.append(name)
                break
        else:
            sets.append([name])
    return sets


def _differing(one: xr.DataArray, other: xr.DataArray) -> list[str]:
    """Return the dimensions in which two cubes differ."""
    axes = {str(dim): (one.indexes.get(dim), other.indexes.get(dim)) for dim in (*one.dims, *other.dims)}
    differing = [dim for dim, (a, b) in axes.items() if a is None or b is None or not a.equals(b)]
    if not differing and "values" in axes and one["values"].attrs != other["values"].attrs:
        return ["values"]
    return differing


def _summary(
    complaints: dict[str, str], together: list[list[str]], cubes: Mapping[str, xr.DataArray], where: str
) -> str:
    """Return an error text that names every variable: what hinders it, or what it can be opened with."""
    if len(complaints) == 1 and not together:
        return next(iter(complaints.values()))
    lines = [f"the variables of {where} do not make one dataset; nothing is left out silently:"]
    for names in together:
        apart = _differing(cubes[together[0][0]], cubes[names[0]])
        differs = f", differs from {together[0][0]!r} in {', '.join(apart)}" if apart else ""
        sizes = ", ".join(f"{dim} {size}" for dim, size in cubes[names[0]].sizes.items())
        lines.append(f"- {', '.join(map(repr, names))} ({sizes}){differs}: open with variables={names}")
    return "\n".join(lines + [f"- {complaint}" for complaint in complaints.values()])


def _cube(
    messages: list[Message], where: str, block: int | None, leading: Mapping[str, Callable[[Message], Any]]
) -> xr.DataArray:
    """Return the messages of one variable as an array (*leading[, number][, level], latitude, longitude)."""
    _check_alike(messages, where)
    getters = {**leading, **_FURTHER_AXES}
    axes = {dim: sorted({get(message) for message in messages}) for dim, get in getters.items()}
    placed = _by_place(messages, list(getters.values()), list(product(*axes.values())), where)
    outer = [dim for dim, values in axes.items() if dim in leading or len(values) > 1]
    numbers = {path: number for number, path in enumerate(dict.fromkeys(message.path for message in placed))}
    places = np.array([(numbers[m.path], m.offset, m.length) for m in placed], np.int64)
    first = placed[0]
    shape = tuple(len(axes[dim]) for dim in outer)
    lazy = _Fields(tuple(map(_File.of, numbers)), places.reshape(*shape, 3), first.header.grid)
    along = list(leading)[-1]
    steps = block or _block(len(axes[along]), 4 * int(np.prod(first.header.grid.shape)))
    chunks = (*(min(steps, len(axes[dim])) if dim == along else 1 for dim in outer), *first.header.grid.shape)
    horizontal = _horizontal(first)
    return xr.DataArray(
        da.from_array(lazy, chunks=chunks, fancy=False, asarray=False, meta=np.empty((0,) * lazy.ndim, np.float32)),
        dims=(*outer, *(("values",) if "values" in horizontal else ("latitude", "longitude"))),
        coords={
            **_times(axes),
            **{dim: (dim, axes[dim]) if dim in outer else axes[dim][0] for dim in _FURTHER_AXES},
            **horizontal,
            **(_versions(placed, len(axes["time"])) if "time" in axes else {}),
        },
        name=first.header.name,
        attrs={
            "units": first.header.units,
            "long_name": first.header.long_name,
            "GRIB_shortName": first.header.name,
            "GRIB_typeOfLevel": first.header.level_type,
        },
    )


def _times(axes: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Return the valid times, or starts, leads and the valid times of both."""
    if "time" in axes:
        return {"time": np.array(axes["time"], "datetime64[ns]")}
    starts, leads = np.array(axes["init_time"], "datetime64[ns]"), np.array(axes["lead_time"], "timedelta64[ns]")
    valid = (("init_time", "lead_time"), starts[:, None] + leads)
    return {"init_time": starts, "lead_time": leads, "valid_time": valid}


def _block(times: int, field_bytes: int) -> int:
    """Return how many times a block holds: few, so that one time is read cheaply, but no more blocks than dask likes."""
    return min(times, max(1, _LEAST_BYTES // field_bytes, min(-(-times // _BLOCKS), _MOST_BYTES // field_bytes)))


def _versions(placed: list[Message], times: int) -> dict[str, Any]:
    """Return the coordinate `expver` along time, as CDS names it, where a series mixes ERA5 and ERA5T."""
    expver = [message.header.expver for message in placed[:: len(placed) // times]]
    return {"expver": ("time", expver)} if len(set(expver)) > 1 else {}


def _check_alike(messages: list[Message], where: str) -> None:
    header, path = messages[0].header, messages[0].path
    if header.grid.kind not in GRID_KINDS:
        raise ValueError(
            f"{header.name!r} of {path} is on a grid of type {header.grid.kind!r}; climapred reads {', '.join(GRID_KINDS)}; "
            "regrid it first, e.g. with `cdo -R remapbil,GRID`"
        )
    if header.grid.alternating:  # eccodes' points and CDO ignore it, cfgrib does not
        raise ValueError(
            f"{header.name!r} of {path} has rows in alternating directions (alternativeRowScanning), "
            "on which GRIB readers disagree; write it anew with one direction first"
        )
    for attribute in ("grid", "level_type", "step_type", "units"):
        found = Counter(getattr(message.header, attribute) for message in messages)
        if len(found) > 1:
            way = (
                f"select={{{attribute!r}: {next(iter(found))!r}}}"
                if attribute in SELECTABLE
                else "`grib_copy -w KEY=... IN OUT`"
            )
            raise ValueError(
                f"{header.name!r} of {where} mixes several kinds of {attribute.replace('_', ' ')}: {_counts(found)}. "
                f"Select one first, e.g. with {way}"
            )


def _by_place(
    messages: list[Message], getters: Sequence[Callable[[Message], Any]], places: list[Place], where: str
) -> list[Message]:
    """Return the message of each place, such as (time, member, level), in the order of the places."""
    found: dict[Place, Message] = {}
    repeated: list[str] = []
    for message in messages:
        place = tuple(get(message) for get in getters)
        other = found.setdefault(place, message)
        versions = {message.header.expver, other.header.expver}
        if versions == {_FINAL, _PRELIMINARY}:
            found[place] = message if message.header.expver == _FINAL else other
        elif other is not message:
            repeated.append(f"{_say(place)} ({_place(other)} and {_place(message)})")
    missing = [place for place in places if place not in found]
    name = repr(messages[0].header.name)
    if repeated:
        raise ValueError(
            f"{name} of {where} has two messages for {len(repeated)} of {len(places)} places: {_first(repeated)}; "
            "keep one, e.g. with select={'data_type': 'an'} or select={'step': ...}; forecasts=True keeps starts apart"
        )
    if missing:
        raise ValueError(
            f"{name} of {where} lacks {len(missing)} of {len(places)} messages: {_first([*map(_say, missing)])}"
            + _way_out(missing, places)
        )
    return [found[place] for place in places]


def _way_out(missing: list[Place], places: list[Place]) -> str:
    """Return the steps that all starts of forecasts have; nothing for fields, or where there are none."""
    if len(places[0]) == len(_FURTHER_AXES) + 1:
        return ""
    lacked = {place[1] for place in missing}
    common = [lead / np.timedelta64(1, "h") for lead in sorted({place[1] for place in places} - lacked)]
    text = ", ".join(f"{hours:g}" for hours in common[:_LISTED]) + (", ..." if len(common) > _LISTED else "")
    return f"; all starts have the steps that select={{'step': [{text}]}} takes" if common else ""


def _first(listed: list[str]) -> str:
    more = len(listed) - _LISTED
    return "; ".join(listed[:_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _say(place: Place) -> str:
    *when, member, level = place
    start = np.datetime_as_string(when[0], unit="m")
    told = f"time {start}" if len(when) == 1 else f"start {start}, lead {when[1] / np.timedelta64(1, 'h'):g} h"
    return f"{told}, member {member}, level {level:g}"


def _place(message: Message) -> str:
    return f"{message.header.origin!r} at byte {message.offset} of {message.path}"


def _horizontal(message: Message) -> dict[str, Any]:
    """Return the coordinates of the points, in scanning order, degrees."""
    grid = message.header.grid
    latitude = {"standard_name": "latitude", "units": "degrees_north"}
    longitude = {"standard_name": "longitude", "units": "degrees_east"}
    if grid.kind != "reduced_gg":
        return {
            "latitude": ("latitude", _read_latitude(message), latitude),
            "longitude": ("longitude", grid.longitude(), longitude),
        }
    points = [_read_points(message, key) for key in ("latitudes", "longitudes")]
    if points[0].size != grid.shape[0]:
        raise ValueError(
            f"{message.header.name!r} of {message.path} is on a part of a reduced Gaussian grid: {points[0].size} of "
            f"{grid.shape[0]} points; climapred reads whole ones; regrid it first, e.g. with `cdo -R remapbil,GRID`"
        )
    rows = {"gridType": grid.kind, "N": grid.number, "pl": list(grid.row_lengths)}
    return {
        "values": ("values", np.arange(points[0].size), rows),
        "latitude": ("values", points[0], latitude),
        "longitude": ("values", points[1], longitude),
    }


def _read_latitude(message: Message) -> npt.NDArray[np.float64]:
    """Return the latitudes of rows; of a Gaussian grid those that eccodes computes."""
    grid = message.header.grid
    first, last = grid.latitudes
    if grid.kind == "regular_ll":
        return np.round(np.linspace(first, last, grid.rows), 6)
    latitude = np.sort(_read_points(message, "distinctLatitudes"))
    return latitude[::-1] if first > last else latitude


def _read_points(message: Message, key: str) -> npt.NDArray[np.float64]:
    with message.path.open("rb") as file:
        file.seek(message.offset)
        content = file.read(message.length)
    with message_handle(content, message.path, message.offset) as handle:
        return np.round(eccodes.codes_get_array(handle, key, ktype=float), 6)


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was when it was opened."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> _File:
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)

    def open(self) -> IO[bytes]:
        """Open it again, and refuse it if it has changed."""
        file = self.path.open("rb")
        stat = os.fstat(file.fileno())
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.mtime_ns):
            file.close()
            raise ValueError(
                f"{self.path} has changed since it was opened: it had {self.size} bytes, now {stat.st_size}"
            )
        return file


@dataclass(frozen=True, eq=False)
class _Fields:
    """Messages as an array (..., rows, columns) or (..., points) that decodes what is indexed.

    It opens its files anew each time, so that threads and processes share nothing.

    Attributes:
        files: where they lie.
        places: number of the file, offset and length of each message, shape (..., 3).
        grid: where their values lie.
    """

    files: tuple[_File, ...]
    places: npt.NDArray[np.int64]
    grid: MessageGrid

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.places.shape[:-1], *self.grid.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        return np.dtype(np.float32)

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[np.float32]:
        """Return the fields at ``key``, one index for each dimension."""
        outer = self.places.ndim - 1
        places = self.places[key[:outer]]
        fields = np.empty((*places.shape[:-1], *self.grid.shape), np.float32)
        for number in np.unique(places[..., 0]):
            with self.files[number].open() as file:
                for index in zip(*np.nonzero(places[..., 0] == number), strict=True):
                    _, offset, length = places[index].tolist()
                    file.seek(offset)
                    self._decode(file.read(length), fields[index], file.name, offset)
        return fields[(..., *key[outer:])]

    def _decode(self, content: bytes, field: npt.NDArray[np.float32], path: str, offset: int) -> None:
        """Write the values of a message into ``field``."""
        rows = field.T if self.grid.by_column else field  # in scanning order
        is_whole = content[:4] == b"GRIB" and content[-4:] == b"7777"
        if is_whole and rows.flags.c_contiguous and unpack(content, rows.reshape(-1)):
            return
        with message_handle(content, path, offset) as handle:
            eccodes.codes_set_double(handle, "missingValue", _MISSING)
            values = eccodes.codes_get_array(handle, "values", ktype=float).reshape(rows.shape)
            rows[...] = values
            if eccodes.codes_get_long(handle, "bitmapPresent"):
                rows[values == _MISSING] = np.nan
