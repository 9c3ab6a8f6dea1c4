"""GRIB: a table of messages, and lazy cubes that decode only the messages they need.

One scan of the headers gives the table; fields are decoded straight from their byte ranges. Nothing is
written next to the data, and nothing is skipped: what does not fit into a cube is an error. This module alone
uses eccodes.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any

import dask.array as da
import eccodes
import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.variables import canonical_name, select_names

BLOCK_BYTES = 64 * 2**20
GRID_KINDS = ("regular_ll", "regular_gg")

_ORIGIN = ("dataType", "stepRange", "expver")
_CORNERS = (
    "latitudeOfFirstGridPoint",
    "longitudeOfFirstGridPoint",
    "latitudeOfLastGridPoint",
    "longitudeOfLastGridPoint",
)
_MISSING = -1e100  # what eccodes writes at masked points; no packed value reaches it


@dataclass(frozen=True, slots=True)
class MessageGrid:
    """Where the values of a message lie, as its header says it.

    Attributes:
        kind: eccodes' gridType.
        rows, columns: number of latitudes and longitudes.
        latitudes, longitudes: of the first and last point scanned, degrees.
        by_column: consecutive values run along a meridian, not along a parallel.
        alternating: every other row runs backwards; refused, for eccodes' points and CDO ignore it here, and
            cfgrib does not.
    """

    kind: str
    rows: int
    columns: int
    latitudes: tuple[float, float]
    longitudes: tuple[float, float]
    by_column: bool
    alternating: bool

    def arrange(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return values in scanning order as a field (rows, columns), first point scanned at [0, 0]."""
        if self.by_column:
            return values.reshape(self.columns, self.rows).T
        return values.reshape(self.rows, self.columns)

    def longitude(self) -> npt.NDArray[np.float64]:
        """Return the longitudes in scanning order; a full circle has exact steps where the header rounds."""
        first, last = self.longitudes
        step = (last - first) / max(self.columns - 1, 1)
        if abs(abs(step) * self.columns - 360) < 2e-3 * max(abs(step), 1):
            step = np.copysign(360 / self.columns, step)
        return np.round(first + step * np.arange(self.columns), 6)


@dataclass(frozen=True, slots=True)
class Message:
    """One GRIB message: where it lies in its file, and what it is.

    Attributes:
        path, offset, length: the bytes of the message.
        name, long_name, units: eccodes' shortName, name and units.
        level_type, level: eccodes' typeOfLevel and level.
        member: number of the ensemble member; 0 where the message has none.
        time: valid time; the end of the interval for means and sums.
        step_type: "instant", "accum", "avg", ...
        origin: data type, step and version, such as "an 0 0001" or "fc 6 0005"; tells duplicates apart.
        grid: where the values lie.
    """

    path: Path
    offset: int
    length: int
    name: str
    long_name: str
    units: str
    level_type: str
    level: float
    member: int
    time: np.datetime64
    step_type: str
    origin: str
    grid: MessageGrid


def message_table(path: str | Path) -> list[Message]:
    """Return all messages of a file, in its order, from one scan of the headers.

    Raises:
        ValueError: if the file is empty, holds no GRIB message, or a message is truncated, damaged or holds
            several fields; the message names the file and the offset and tells how many good messages come
            before.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; a GRIB file was wanted")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        messages = list(_scan(path, file, content))
    if not messages:
        raise ValueError(f"{path} holds no GRIB message")
    return messages


def _scan(path: Path, file: IO[bytes], content: mmap.mmap) -> Iterator[Message]:
    end = count = 0
    while True:
        start = content.find(b"GRIB", end)
        try:
            message = _next_message(path, file)
        except eccodes.CodesInternalError as error:
            raise ValueError(_damage(path, start, count, str(error))) from error
        if message is None and start < 0:
            return
        if message is None or content.find(b"7777", end, message.offset) >= 0:
            raise ValueError(_damage(path, end, count, "bytes that begin or end a message, and no message"))
        if (fields := _count_fields(content, message)) > 1:
            raise ValueError(
                f"{path} packs {fields} fields into the message at byte {message.offset}; "
                "split it first with `grib_copy IN OUT`, which writes one message per field"
            )
        yield message
        end, count = message.offset + message.length, count + 1


def _damage(path: Path, offset: int, count: int, what: str) -> str:
    return f"{path} is truncated or damaged at byte {offset} ({what}); {count} good messages come before"


def _count_fields(content: mmap.mmap, message: Message) -> int:
    """Return the number of fields in a message (data sections of GRIB 2); eccodes decodes only the first."""
    end = message.offset + message.length - len(b"7777")
    if content[message.offset + 7] != 2:
        return 1
    position, fields = message.offset + 16, 0
    while position < end:
        fields += content[position + 4] == 7
        position += int.from_bytes(content[position : position + 4], "big") or end
    return fields


def _next_message(path: Path, file: IO[bytes]) -> Message | None:
    handle = eccodes.codes_grib_new_from_file(file)
    if handle is None:
        return None
    try:
        origin = [key for key in _ORIGIN if eccodes.codes_is_defined(handle, key)]
        has_member = eccodes.codes_is_defined(handle, "number")
        return Message(
            path=path,
            offset=int(eccodes.codes_get_message_offset(handle)),
            length=eccodes.codes_get_message_size(handle),
            name=eccodes.codes_get_string(handle, "shortName"),
            long_name=eccodes.codes_get_string(handle, "name"),
            units=eccodes.codes_get_string(handle, "units"),
            level_type=eccodes.codes_get_string(handle, "typeOfLevel"),
            level=eccodes.codes_get_double(handle, "level"),
            member=eccodes.codes_get_long(handle, "number") if has_member else 0,
            time=_valid_time(handle),
            step_type=eccodes.codes_get_string(handle, "stepType"),
            origin=" ".join(eccodes.codes_get_string(handle, key) for key in origin),
            grid=_read_grid(handle),
        )
    finally:
        eccodes.codes_release(handle)


def _valid_time(handle: int) -> np.datetime64:
    date, clock = (eccodes.codes_get_long(handle, key) for key in ("validityDate", "validityTime"))
    day = f"{date // 10000:04d}-{date // 100 % 100:02d}-{date % 100:02d}"
    return np.datetime64(f"{day}T{clock // 100:02d}:{clock % 100:02d}", "ns")


def _read_grid(handle: int) -> MessageGrid:
    kind = eccodes.codes_get_string(handle, "gridType")
    if kind not in GRID_KINDS:
        return MessageGrid(kind, 0, 0, (0.0, 0.0), (0.0, 0.0), False, False)
    rows, columns, westward, by_column, alternating = (
        eccodes.codes_get_long(handle, key)
        for key in ("Nj", "Ni", "iScansNegatively", "jPointsAreConsecutive", "alternativeRowScanning")
    )
    north, west, south, east = (eccodes.codes_get_double(handle, f"{key}InDegrees") for key in _CORNERS)
    if westward and east > west:
        east -= 360
    if not westward and east < west:
        east += 360
    return MessageGrid(kind, rows, columns, (north, south), (west, east), bool(by_column), bool(alternating))


def open_grib(paths: Sequence[str | Path], variables: Sequence[str] | None = None) -> xr.Dataset:
    """Return the fields of GRIB files as lazy cubes, in the files' units and scanning order.

    Messages of one shortName, from all files together, make one variable with dims
    (time[, number][, level], latitude, longitude); `time` is valid time; a single member or level becomes a
    scalar coordinate. Variables carry climapred's name where it knows one, otherwise the shortName. Values
    are float32, NaN where the bitmap masks them, in dask blocks of several times and at most 64 MiB (a single
    time may be more).

    Args:
        paths: the files.
        variables: shortNames, canonical names or aliases; None for all.

    Raises:
        ValueError: if a variable is absent; is on a grid other than regular_ll and regular_gg; mixes grids,
            kinds of level, kinds of step or units; has duplicate messages or lacks some; or does not share
            times, members, levels and grid with the others.
    """
    where = f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    groups: dict[str, list[Message]] = {}
    for path in paths:
        for message in message_table(path):
            groups.setdefault(message.name, []).append(message)
    cubes = {name: _cube(groups[name], where) for name in select_names(groups, variables, where)}
    axes = {name: {str(dim): index for dim, index in cube.indexes.items()} for name, cube in cubes.items()}
    first = next(iter(axes))
    for name in axes:
        differing = [
            dim
            for dim in {**axes[first], **axes[name]}
            if dim not in axes[first] or dim not in axes[name] or not axes[first][dim].equals(axes[name][dim])
        ]
        if differing:
            raise ValueError(
                f"{first!r} {dict(cubes[first].sizes)} and {name!r} {dict(cubes[name].sizes)} differ "
                f"in {', '.join(differing)}, so they cannot share a dataset; open one: variables=[{name!r}]"
            )
    return xr.merge(
        [cube.rename(canonical_name(name)) for name, cube in cubes.items()],
        compat="minimal",  # scalar levels that differ between variables (2 m, 10 m) stay out
        join="exact",
        combine_attrs="drop_conflicts",
    )


def _cube(messages: list[Message], where: str) -> xr.DataArray:
    """Return the messages of one variable as an array (time[, number][, level], latitude, longitude)."""
    first = messages[0]
    _check_alike(messages, where)
    times = sorted({message.time for message in messages})
    members = sorted({message.member for message in messages})
    levels = sorted({message.level for message in messages})
    placed = _by_place(messages, list(product(times, members, levels)), where)
    several = {dim: axis for dim, axis in (("number", members), ("level", levels)) if len(axis) > 1}
    shape = [len(times), *map(len, several.values())]
    files = tuple(dict.fromkeys(str(message.path) for message in messages))
    numbers = {file: number for number, file in enumerate(files)}
    places = np.array([(numbers[str(m.path)], m.offset, m.length) for m in placed], np.int64)
    lazy = _Fields(files, places.reshape(*shape, 3), first.grid)
    steps = max(1, BLOCK_BYTES // (4 * first.grid.rows * first.grid.columns * (len(placed) // len(times))))
    chunks = (min(steps, len(times)), *lazy.shape[1:])
    return xr.DataArray(
        da.from_array(lazy, chunks=chunks, fancy=False, asarray=False, meta=np.empty((0,) * lazy.ndim, np.float32)),
        dims=("time", *several, "latitude", "longitude"),
        coords={
            "time": np.array(times),
            "number": ("number", members) if "number" in several else members[0],
            "level": ("level", levels) if "level" in several else levels[0],
            "latitude": (
                "latitude",
                _read_latitude(first),
                {"standard_name": "latitude", "units": "degrees_north"},
            ),
            "longitude": (
                "longitude",
                first.grid.longitude(),
                {"standard_name": "longitude", "units": "degrees_east"},
            ),
        },
        name=first.name,
        attrs={
            "units": first.units,
            "long_name": first.long_name,
            "GRIB_shortName": first.name,
            "GRIB_typeOfLevel": first.level_type,
        },
    )


def _check_alike(messages: list[Message], where: str) -> None:
    first = messages[0]
    if first.grid.kind not in GRID_KINDS:
        raise ValueError(
            f"{first.name!r} of {first.path} is on a grid of type {first.grid.kind!r}; climapred reads "
            f"{' and '.join(GRID_KINDS)}; regrid it first, e.g. with `cdo -R remapbil,GRID`"
        )
    if first.grid.alternating:
        raise ValueError(
            f"{first.name!r} of {first.path} has rows in alternating directions (alternativeRowScanning), "
            "on which GRIB readers disagree; write it anew with one direction first"
        )
    for attribute in ("grid", "level_type", "step_type", "units"):
        found = Counter(getattr(message, attribute) for message in messages)
        if len(found) > 1:
            raise ValueError(
                f"{first.name!r} of {where} mixes several kinds of {attribute.replace('_', ' ')}: "
                + "; ".join(f"{value} in {count} messages" for value, count in found.items())
                + ". Select one first, e.g. with `grib_copy -w typeOfLevel=... IN OUT`"
            )


def _by_place(messages: list[Message], places: list[tuple[np.datetime64, int, float]], where: str) -> list[Message]:
    """Return the message of each place (time, member, level), in the order of the places."""
    found: dict[tuple[np.datetime64, int, float], Message] = {}
    for message in messages:
        place = (message.time, message.member, message.level)
        if other := found.get(place):
            raise ValueError(
                f"{message.name!r} of {where} has two messages for {_say(place)}: "
                f"{other.origin!r} at byte {other.offset} of {other.path} and "
                f"{message.origin!r} at byte {message.offset} of {message.path} (data type, step, version); "
                "keep one, e.g. with `grib_copy -w dataType=an IN OUT`"
            )
        found[place] = message
    missing = [place for place in places if place not in found]
    if missing:
        raise ValueError(
            f"{messages[0].name!r} of {where} lacks {len(missing)} of {len(places)} messages, the first for "
            + "; ".join(map(_say, missing[:3]))
        )
    return [found[place] for place in places]


def _say(place: tuple[np.datetime64, int, float]) -> str:
    time, member, level = place
    return f"time {np.datetime_as_string(time, unit='m')}, member {member}, level {level:g}"


def _read_latitude(message: Message) -> npt.NDArray[np.float64]:
    """Return the latitudes in scanning order, degrees; of a Gaussian grid those that eccodes computes."""
    first, last = message.grid.latitudes
    if message.grid.kind == "regular_ll":
        return np.round(np.linspace(first, last, message.grid.rows), 6)
    with (
        message.path.open("rb") as file,
        _decoding(file, message.path, message.offset, message.length) as handle,
    ):
        latitude = np.sort(eccodes.codes_get_array(handle, "distinctLatitudes", ktype=float))
    return np.round(latitude[::-1] if first > last else latitude, 6)


@dataclass(frozen=True, eq=False)
class _Fields:
    """Messages as an array (..., rows, columns) that decodes what is indexed.

    It opens its files anew each time, so that threads and processes share nothing.

    Attributes:
        files: the paths.
        places: number of the file, offset and length of each message, shape (..., 3).
        grid: where their values lie.
    """

    files: tuple[str, ...]
    places: npt.NDArray[np.int64]
    grid: MessageGrid

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.places.shape[:-1], self.grid.rows, self.grid.columns)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        return np.dtype(np.float32)

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[np.float32]:
        """Return the fields at ``key``, one index for each dimension."""
        places = self.places[key[:-2]]
        fields = np.empty((*places.shape[:-1], *self.shape[-2:]), np.float32)
        for number in np.unique(places[..., 0]):
            path = self.files[number]
            with open(path, "rb") as file:
                for index in zip(*np.nonzero(places[..., 0] == number), strict=True):
                    _, offset, length = places[index].tolist()
                    with _decoding(file, path, offset, length) as handle:
                        fields[index] = self._decode(handle)
        return fields[(..., *key[-2:])]

    def _decode(self, handle: int) -> npt.NDArray[np.float64]:
        eccodes.codes_set_double(handle, "missingValue", _MISSING)
        values = eccodes.codes_get_array(handle, "values", ktype=float)
        return self.grid.arrange(np.where(values == _MISSING, np.nan, values))


@contextmanager
def _decoding(file: IO[bytes], path: str | Path, offset: int, length: int) -> Iterator[int]:
    """Give the eccodes handle of the message at ``offset``, and release it."""
    file.seek(offset)
    content = file.read(length)
    try:
        handle = eccodes.codes_new_from_message(content)
        try:
            yield handle
        finally:
            eccodes.codes_release(handle)
    except eccodes.CodesInternalError as error:
        raise ValueError(f"{path}: the message at byte {offset} cannot be decoded ({error})") from error
