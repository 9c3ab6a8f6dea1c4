"""GRIB messages by their octets: where each one ends, and what tells it from others.

Both editions put lengths and dates at fixed places (WMO Manual on Codes, volume I.2, FM 92), so none of this needs the
tables of names and parameters that eccodes brings; climapred.data.messages asks eccodes what the octets mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import IO

_INTERVAL_END = {
    8: 34,
    11: 37,
    12: 36,
}  # edition 2, section 4: template -> place of the seven octets that say when it ends
_SEARCH_BYTES = 2**20


class DamagedError(Exception):
    """A message that ends too early or contradicts itself."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A message as its octets tell it.

    Attributes:
        length: of the whole message, bytes.
        fields: number of data sections; more than one only in edition 2.
        start: date and time of the analysis, or of the start of the forecast.
        identity: all that decides what the message is, apart from its date: the octets of its header without the date, and
            the end of the interval of a mean or sum, seconds after the date.
        grid: the section that describes the grid.
    """

    length: int
    fields: int
    start: datetime
    identity: tuple[bytes, float]
    grid: bytes


def find_message(file: IO[bytes], position: int) -> tuple[int, bool]:
    """Return where the next message begins (-1: nowhere) and whether the end of a lost one comes before it."""
    stray, overlap, size = False, b"", 4  # most often it begins here, or after a few octets of padding
    file.seek(position)
    while block := file.read(size):
        text = overlap + block
        found = text.find(b"GRIB")
        stray |= b"7777" in (text if found < 0 else text[:found])
        if found >= 0:
            return position + found, stray
        overlap, size = text[-3:], min(size * 32, _SEARCH_BYTES)
        position += len(text) - len(overlap)
    return -1, stray


def read_frame(file: IO[bytes], offset: int) -> Frame:
    """Return the frame of the message at ``offset``, reading its header and its end.

    Raises:
        DamagedError: if it does not end where its length says, or its sections do not fit into it.
    """
    edition = _read(file, offset, 8)[7]
    if edition not in (1, 2):
        raise DamagedError(f"GRIB edition {edition}")
    frame = _read_frame_1(file, offset) if edition == 1 else _read_frame_2(file, offset)
    if _read(file, offset + frame.length - 4, 4) != b"7777":
        raise DamagedError(f"no end of a message after its {frame.length} bytes")
    return frame


def _read_frame_1(file: IO[bytes], offset: int) -> Frame:
    length, position = _number(file, offset + 4, 3), offset + 8
    product = _read(file, position, _number(file, position, 3))
    if len(product) < 28:
        raise DamagedError(f"a product section of {len(product)} bytes")
    position += len(product)
    grid = _read(file, position, _number(file, position, 3)) if product[7] & 0x80 else b""
    position += len(grid)
    if product[7] & 0x40:
        position += _number(file, position, 3)  # the bitmap
    if length & 0x800000 and (rest := _number(file, position, 3)) < 120:
        length = (length & 0x7FFFFF) * 120 - rest + 4  # how ECMWF writes lengths from 8 MiB on
    start = as_datetime((product[24] - 1) * 100 + product[12], *product[13:17])
    return Frame(length, 1, start, (product[:12] + product[17:24] + product[25:] + grid, 0.0), grid)


def _read_frame_2(file: IO[bytes], offset: int) -> Frame:
    length, position, fields = _number(file, offset + 8, 8), offset + 16, 0
    end = offset + length - 4
    sections = dict.fromkeys((1, 2, 3, 4), b"")
    while position < end:
        size, number = _number(file, position, 4), _number(file, position + 4, 1)
        if size < 5 or not 1 <= number <= 7:
            raise DamagedError(f"a section {number} of {size} bytes")
        if number in sections:
            sections[number] = _read(file, position, size)
        fields += number == 7
        position += size
    origin, product, interval = sections[1], sections[4], 0.0
    if position != end or not fields or len(origin) < 19 or len(product) < 9:
        raise DamagedError(f"sections that do not make up its {length} bytes")
    start = _datetime_2(origin[12:19])
    ends = _INTERVAL_END.get(int.from_bytes(product[7:9], "big"), len(product))
    if ends + 7 <= len(product):
        interval = (_datetime_2(product[ends : ends + 7]) - start).total_seconds()
        product = product[:ends] + product[ends + 7 :]
    octets = _read(file, offset + 6, 1) + origin[:12] + origin[19:] + sections[2] + sections[3] + product
    return Frame(length, fields, start, (octets, interval), sections[3])


def _datetime_2(octets: bytes) -> datetime:
    return as_datetime(int.from_bytes(octets[:2], "big"), *octets[2:])


def as_datetime(year: int, month: int, *rest: int) -> datetime:
    """Return the date, or raise DamagedError where there is none such."""
    try:
        return datetime(year, month, *rest)  # type: ignore[arg-type]  # tzinfo is never reached
    except ValueError as error:
        raise DamagedError(f"the date {(year, month, *rest)}: {error}") from error


def _number(file: IO[bytes], offset: int, size: int) -> int:
    return int.from_bytes(_read(file, offset, size), "big")


def _read(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    content = file.read(size)
    if len(content) < size:
        raise DamagedError("the file ends within the message")
    return content
