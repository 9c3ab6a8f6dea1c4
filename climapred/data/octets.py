"""GRIB messages by their octets: where each one ends, what tells it from others, and values in simple packing.

Both editions put lengths, dates and packing at fixed places (WMO Manual on Codes, volume I.2, FM 92), so none of this needs the
tables of names and parameters that eccodes brings; climapred.data.messages asks eccodes what the octets mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

_INTERVAL_END = {
    8: 34,
    11: 37,
    12: 36,
}  # edition 2, section 4: template -> place of the seven octets that say when it ends
_SEARCH_BYTES = 2**20
_UNPACK_VALUES = 2**15  # so many float64 stay in the processor's cache


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


class _Packing(NamedTuple):
    """Integers x that stand for (x 2^binary + reference) / 10^decimal."""

    integers: npt.NDArray[np.unsignedinteger]
    reference: float
    binary: int
    decimal: int


def unpack_simple(content: bytes, values: npt.NDArray[np.float32]) -> bool:
    """Write the values of a message into ``values``, 1-D, if it is packed simply in 8, 16 or 32 bits and without a bitmap.

    The result is that of eccodes: computed in double precision, in the same order, then rounded to float32; in a fifth of the
    time, for nothing but the values themselves is looked at. Return False, and write nothing, for any other message.
    """
    packing = _packing_1(content) if content[7] == 1 else _packing_2(content)
    if packing is None or packing.integers.size != values.size:
        return False
    scale, factor = _power(2, packing.binary), _power(10, -packing.decimal)
    buffer = np.empty(min(_UNPACK_VALUES, values.size))
    for begin in range(0, values.size, _UNPACK_VALUES):
        integers = packing.integers[begin : begin + _UNPACK_VALUES]
        part = np.multiply(integers, scale, out=buffer[: integers.size])
        part += packing.reference
        if factor != 1:
            part *= factor
        values[begin : begin + _UNPACK_VALUES] = part
    return True


def _packing_1(content: bytes) -> _Packing | None:
    flags, decimal = content[15], content[34:36]
    position = 8
    for is_there in (True, flags & 0x80):
        position += int.from_bytes(content[position : position + 3], "big") if is_there else 0
    data = content[position : position + 11]
    if flags & 0x40 or data[3] & 0xF0:  # a bitmap; spectral or second-order packing, integers
        return None
    unused, bits = data[3] & 0x0F, data[10]
    size = len(content) - 4 - position - 11 - unused // 8
    exponent, mantissa = data[6] & 0x7F, int.from_bytes(data[7:10], "big")
    reference = np.copysign(mantissa * 16.0 ** (exponent - 70), -1 if data[6] & 0x80 else 1)  # IBM's floating point
    integers = _integers(content, position + 11, size, bits)
    return None if integers is None else _Packing(integers, reference, _signed(data[4:6]), _signed(decimal))


def _packing_2(content: bytes) -> _Packing | None:
    position, packing = 16, b""
    while (number := content[position + 4]) != 7:
        size = int.from_bytes(content[position : position + 4], "big")
        if number == 5:
            packing = content[position : position + size]
        if number == 6 and content[position + 5] != 255:  # a bitmap
            return None
        position += size
    if packing[9:11] != b"\0\0":  # template 5.0 is simple packing
        return None
    integers = _integers(content, position + 5, len(content) - 4 - position - 5, packing[19])
    reference = float(np.frombuffer(packing, ">f4", 1, 11)[0])
    return None if integers is None else _Packing(integers, reference, _signed(packing[15:17]), _signed(packing[17:19]))


def _integers(content: bytes, position: int, size: int, bits: int) -> npt.NDArray[np.unsignedinteger] | None:
    kinds = {8: ">u1", 16: ">u2", 32: ">u4"}
    return np.frombuffer(content, kinds[bits], size * 8 // bits, position) if bits in kinds else None


def _signed(octets: bytes) -> int:
    """Return an integer whose first bit is its sign."""
    value = int.from_bytes(octets, "big")
    return -(value & 0x7FFF) if value & 0x8000 else value


def _power(base: int, exponent: int) -> float:
    """Return the power by repeated multiplication or division, as eccodes does: the last bit may differ otherwise."""
    result = 1.0
    for _ in range(abs(exponent)):
        result = result * base if exponent > 0 else result / base
    return result
