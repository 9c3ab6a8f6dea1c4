"""The messages of a GRIB file: where each one lies and what it is, from one scan of the headers.

The scan walks the sections by their length octets, which both editions have at fixed places, and never reads a field. What the
octets mean, eccodes tells, once for each header that differs in more than its date: a month of hourly fields asks it once. The
table is kept in climapred's own cache as JSON, never next to the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import eccodes
import numpy as np
import numpy.typing as npt

from climapred.data.cache import read_cached, write_cached
from climapred.data.octets import DamagedError, Frame, as_datetime, find_message, read_frame

Damaged = Literal["error", "skip"]

FORMAT = 1  # of the kept table; raise it when Header, MessageGrid or the meaning of a column changes

_MONTHS_AND_YEARS = (3, 4, 5, 6, 7)  # codes, in both editions, of units of time whose length depends on the date
_INTERVAL_END = {
    8: 34,
    11: 37,
    12: 36,
}  # GRIB 2, section 4: template -> place of the seven octets that say when it ends
_SEARCH_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class MessageGrid:
    """Where the values of a message lie, as its header says it.

    Attributes:
        kind: eccodes' gridType.
        rows, columns: number of latitudes and longitudes; a reduced grid has no columns.
        latitudes, longitudes: of the first and last point scanned, degrees.
        by_column: consecutive values run along a meridian, not along a parallel.
        alternating: every other row runs backwards.
        number: of parallels between pole and equator, on Gaussian grids.
        row_lengths: number of points on each parallel of a reduced grid (`pl`).
    """

    kind: str
    rows: int = 0
    columns: int = 0
    latitudes: tuple[float, float] = (0.0, 0.0)
    longitudes: tuple[float, float] = (0.0, 0.0)
    by_column: bool = False
    alternating: bool = False
    number: int = 0
    row_lengths: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns, or the number of points of a reduced grid."""
        return (sum(self.row_lengths),) if self.row_lengths else (self.rows, self.columns)

    def longitude(self) -> npt.NDArray[np.float64]:
        """Return the longitudes in scanning order; a full circle has exact steps where the header rounds."""
        first, last = self.longitudes
        step = (last - first) / max(self.columns - 1, 1)
        if abs(abs(step) * self.columns - 360) < 2e-3 * max(abs(step), 1):
            step = np.copysign(360 / self.columns, step)
        return np.round(first + step * np.arange(self.columns), 6)

    def __str__(self) -> str:
        north, south, west, east = *self.latitudes, *self.longitudes
        return f"{self.kind} {' x '.join(map(str, self.shape))} from {north:g}, {west:g} to {south:g}, {east:g}"


@dataclass(frozen=True, slots=True)
class Header:
    """What a message is, apart from its time.

    Attributes:
        name, long_name, units: eccodes' shortName, name and units.
        level_type, level: eccodes' typeOfLevel and level.
        member: number of the ensemble member; 0 where the message has none.
        step_type: "instant", "accum", "avg", ...
        step_range: such as "0", "6" or "0-6", hours.
        data_type, expver: such as "an" or "fc", and ECMWF's version "0001" (final) or "0005" (preliminary); "" where unsaid.
        grid: where the values lie.
    """

    name: str
    long_name: str
    units: str
    level_type: str
    level: float
    member: int
    step_type: str
    step_range: str
    data_type: str
    expver: str
    grid: MessageGrid

    @property
    def origin(self) -> str:
        """Data type, step and version, such as "an 0 0001": tells apart what else is alike."""
        return " ".join(filter(None, (self.data_type, self.step_range, self.expver)))


@dataclass(frozen=True, slots=True)
class Message:
    """One GRIB message.

    Attributes:
        path, offset, length: the bytes of the message.
        start: date and time of the message: of the analysis, or of the start of the forecast; seconds.
        time: valid time, the end of the interval for means and sums; seconds.
        header: what it is.
    """

    path: Path
    offset: int
    length: int
    start: np.datetime64
    time: np.datetime64
    header: Header

    @property
    def step(self) -> float:
        """Hours from start to valid time."""
        return float((self.time - self.start) / np.timedelta64(1, "h"))


def message_table(path: str | Path, *, damaged: Damaged = "error") -> list[Message]:
    """Return all messages of a file, in its order: from the cache if the file has not changed, else from a scan.

    Args:
        path: a GRIB file.
        damaged: what to do about messages that are cut, overwritten or not decodable: "error", or "skip" them with a warning.

    Raises:
        ValueError: if the file is empty, holds no GRIB message, has damaged ones, or one holds several fields; the error names
            the file and the offset and tells how many good messages there are.
    """
    path = Path(path).absolute()
    stat = path.stat()
    if stat.st_size == 0:
        raise ValueError(f"{path} is empty; a GRIB file was wanted")
    version = f"{FORMAT}, eccodes {eccodes.codes_get_api_version()}"
    key = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "format": version}
    kept = read_cached("grib", key)
    if kept is None:
        table = _scan(path)
        write_cached("grib", key, _plain(table))
    else:
        table = _from_plain(path, kept)
    _report_damage(path, table, damaged)
    return table.messages


@dataclass(slots=True)
class _Table:
    """Good messages, and (offset, reason) of each place where there should be one and is not."""

    messages: list[Message] = field(default_factory=list)
    damage: list[tuple[int, str]] = field(default_factory=list)


def _report_damage(path: Path, table: _Table, damaged: Damaged) -> None:
    good = len(table.messages)
    if table.damage:
        (offset, reason), more = table.damage[0], len(table.damage) - 1
        places = f"byte {offset} ({reason})" + (f" and {more} more places" if more else "")
        complaint = f"{path} is truncated or damaged at {places}; {good} good messages are in it"
        if damaged == "error" or not good:
            raise ValueError(f"{complaint}; damaged='skip' reads them" if good else complaint)
        warnings.warn(f"{complaint} and are read; the damaged ones are skipped", stacklevel=5)
    elif not good:
        raise ValueError(f"{path} holds no GRIB message")


def _plain(table: _Table) -> dict[str, Any]:
    """Return the table as plain JSON; what messages share is written once."""
    headers = {id(message.header): message.header for message in table.messages}
    grids = list(dict.fromkeys(header.grid for header in headers.values()))
    number = {identity: count for count, identity in enumerate(headers)}
    return {
        "grids": [asdict(grid) for grid in grids],
        "headers": [{**asdict(header), "grid": grids.index(header.grid)} for header in headers.values()],
        "messages": [
            [m.offset, m.length, number[id(m.header)], int(m.start.astype(int)), int(m.time.astype(int))]
            for m in table.messages
        ],
        "damage": table.damage,
    }


def _from_plain(path: Path, plain: dict[str, Any]) -> _Table:
    rows: list[dict[str, Any]] = [
        {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()} for row in plain["grids"]
    ]
    grids = [MessageGrid(**row) for row in rows]
    headers = [Header(**{**row, "grid": grids[row["grid"]]}) for row in plain["headers"]]
    messages = [
        Message(path, offset, length, np.datetime64(start, "s"), np.datetime64(time, "s"), headers[number])
        for offset, length, number, start, time in plain["messages"]
    ]
    return _Table(messages, [(offset, reason) for offset, reason in plain["damage"]])


def _scan(path: Path) -> _Table:
    """Walk through a file, from one message to the next."""
    table, known, end, lost = _Table(), _Known(), 0, False
    with path.open("rb") as file:
        while True:
            offset, stray = find_message(file, end)
            if stray and not lost:
                table.damage.append((end, "the end of a message without its beginning"))
            if offset < 0:
                return table
            try:
                frame = read_frame(file, offset)
                if frame.fields > 1:
                    raise ValueError(
                        f"{path} packs {frame.fields} fields into the message at byte {offset}; "
                        "split it first with `grib_copy IN OUT`, which writes one message per field"
                    )
                header, time = known.meaning(file, offset, frame)
            except (DamagedError, eccodes.CodesInternalError) as error:
                table.damage.append((offset, str(error)))
                end, lost = offset + 4, True
            else:
                start = np.datetime64(frame.start, "s")
                table.messages.append(Message(path, offset, frame.length, start, time, header))
                end, lost = offset + frame.length, False


class _Known:
    """What eccodes made of the headers seen so far."""

    def __init__(self) -> None:
        self._headers: dict[tuple[bytes, float], tuple[Header, np.timedelta64]] = {}
        self._grids: dict[bytes, MessageGrid] = {}

    def meaning(self, file: IO[bytes], offset: int, frame: Frame) -> tuple[Header, np.datetime64]:
        """Return the header and the valid time of a message."""
        start = np.datetime64(frame.start, "s")
        if found := self._headers.get(frame.identity):
            return found[0], start + found[1]
        file.seek(offset)
        handle = eccodes.codes_new_from_message(file.read(frame.length))
        try:
            if frame.grid not in self._grids:
                self._grids[frame.grid] = _read_grid(handle)
            time = _valid_time(handle)
            if time != start:
                _refuse_months(handle)
            header = _read_header(handle, self._grids[frame.grid])
            self._headers[frame.identity] = header, time - start
        finally:
            eccodes.codes_release(handle)
        return header, time


def _read_header(handle: int, grid: MessageGrid) -> Header:
    text, number = eccodes.codes_get_string, eccodes.codes_get_long
    return Header(
        name=text(handle, "shortName"),
        long_name=text(handle, "name"),
        units=text(handle, "units"),
        level_type=text(handle, "typeOfLevel"),
        level=eccodes.codes_get_double(handle, "level"),
        member=_if_defined(number, handle, "number", 0),
        step_type=text(handle, "stepType"),
        step_range=_step_range(handle),
        data_type=_if_defined(text, handle, "dataType", ""),
        expver=_if_defined(text, handle, "expver", ""),
        grid=grid,
    )


def _if_defined(read: Callable[[int, str], Any], handle: int, key: str, otherwise: Any) -> Any:
    return read(handle, key) if eccodes.codes_is_defined(handle, key) else otherwise


def _step_range(handle: int) -> str:
    """Return "6", or "0-6" for what holds for an interval, in hours; eccodes' own text depends on what was read before it."""
    if not eccodes.codes_is_defined(handle, "endStep"):
        return ""
    eccodes.codes_set_string(handle, "stepUnits", "s")
    begin, end = (f"{eccodes.codes_get_long(handle, key) / 3600:g}" for key in ("startStep", "endStep"))
    return end if begin == end else f"{begin}-{end}"


def _refuse_months(handle: int) -> None:
    """Refuse steps of months and years: eccodes counts a month as 30 days, whatever the date."""
    keys = ("indicatorOfUnitOfTimeRange", "indicatorOfUnitForTimeRange")
    units = {_if_defined(eccodes.codes_get_long, handle, key, 1) for key in keys}
    if units & set(_MONTHS_AND_YEARS):
        raise DamagedError("a step in months or years, of which eccodes makes no right date")


def _valid_time(handle: int) -> np.datetime64:
    date, clock = (eccodes.codes_get_long(handle, key) for key in ("validityDate", "validityTime"))
    parts = (date // 10000, date // 100 % 100, date % 100, clock // 100, clock % 100)
    return np.datetime64(as_datetime(*parts), "s")


def _read_grid(handle: int) -> MessageGrid:
    kind = eccodes.codes_get_string(handle, "gridType")
    if kind not in ("regular_ll", "regular_gg", "reduced_gg"):
        return MessageGrid(kind)
    number = eccodes.codes_get_long(handle, "N") if kind.endswith("gg") else 0
    keys = ("iScansNegatively", "jPointsAreConsecutive", "alternativeRowScanning")
    westward, by_column, alternating = (bool(eccodes.codes_get_long(handle, key)) for key in keys)
    north, west, south, east = (
        eccodes.codes_get_double(handle, f"{axis}Of{end}GridPointInDegrees")
        for end in ("First", "Last")
        for axis in ("latitude", "longitude")
    )
    if westward and east > west:
        east -= 360
    if not westward and east < west:
        east += 360
    ends = {"latitudes": (north, south), "longitudes": (west, east)}
    order = {"by_column": by_column, "alternating": alternating, "number": number}
    rows = eccodes.codes_get_long(handle, "Nj")
    if kind == "reduced_gg":
        lengths = tuple(eccodes.codes_get_array(handle, "pl", ktype=int).tolist())
        return MessageGrid(kind, rows, **ends, **order, row_lengths=lengths)  # type: ignore[arg-type]
    return MessageGrid(kind, rows, eccodes.codes_get_long(handle, "Ni"), **ends, **order)  # type: ignore[arg-type]


@contextmanager
def message_handle(content: bytes, path: str | Path, offset: int) -> Iterator[int]:
    """Give the eccodes handle of a message, and release it; an error says where the message lies."""
    try:
        handle = eccodes.codes_new_from_message(content)
        try:
            yield handle
        finally:
            eccodes.codes_release(handle)
    except eccodes.CodesInternalError as error:
        raise ValueError(f"{path}: the message at byte {offset} cannot be decoded ({error})") from error
