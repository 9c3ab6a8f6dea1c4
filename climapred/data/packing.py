"""Values of GRIB messages in the two packings of ERA5: simple (editions 1 and 2) and CCSDS (edition 2).

Packing is described at fixed places (WMO Manual on Codes, volume I.2, FM 92: sections 1 and 4 of edition 1, templates 5.0 and
5.42 of edition 2), and CCSDS 121.0-B is decoded by libaec, which eccodes brings. Everything else is left to eccodes.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import NamedTuple

import findlibs
import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.unsignedinteger]

_VALUES_AT_ONCE = 2**15  # so many float64 stay in the processor's cache
_SIMPLE, _CCSDS = (0, 21), (42, 25)  # templates of section 5, and their octets
_SIGNED, _THREE_BYTES, _BIG_ENDIAN = 1, 2, 4  # flags of libaec


class _Packing(NamedTuple):
    """Integers x that stand for (x 2^binary + reference) / 10^decimal."""

    integers: Integers
    reference: float
    binary: int
    decimal: int


def unpack(content: bytes, values: npt.NDArray[np.float32]) -> bool:
    """Write the values of a message into ``values``, 1-D, if it is packed in one of these ways and without a bitmap.

    The result is that of eccodes: computed in double precision, in the same order, then rounded to float32. In a fifth of the
    time for simple packing in 8, 16 or 32 bits, for nothing but the values themselves is looked at. Return False for any other
    message; ``values`` are not written then.
    """
    packing = _packing_1(content) if content[7] == 1 else _packing_2(content, values.size)
    if packing is None or packing.integers.size != values.size:
        return False
    scale, factor = _power(2, packing.binary), _power(10, -packing.decimal)
    buffer = np.empty(min(_VALUES_AT_ONCE, values.size))
    for begin in range(0, values.size, _VALUES_AT_ONCE):
        integers = packing.integers[begin : begin + _VALUES_AT_ONCE]
        part = np.multiply(integers, scale, out=buffer[: integers.size])
        part += packing.reference
        if factor != 1:
            part *= factor
        values[begin : begin + _VALUES_AT_ONCE] = part
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


def _packing_2(content: bytes, count: int) -> _Packing | None:
    position, packing = 16, b""
    while (number := content[position + 4]) != 7:
        size = int.from_bytes(content[position : position + 4], "big")
        if number == 5:
            packing = content[position : position + size]
        if number == 6 and content[position + 5] != 255:  # a bitmap
            return None
        position += size
    template, position, end = (int.from_bytes(packing[9:11], "big"), len(packing)), position + 5, len(content) - 4
    integers: Integers | None = None
    if template == _SIMPLE:
        integers = _integers(content, position, end - position, packing[19])
    elif template == _CCSDS:
        integers = _ccsds(np.frombuffer(content, np.uint8, end - position, position), packing, count)
    if integers is None:
        return None
    reference = float(np.frombuffer(packing, ">f4", 1, 11)[0])
    return _Packing(integers, reference, _signed(packing[15:17]), _signed(packing[17:19]))


def _integers(content: bytes, position: int, size: int, bits: int) -> Integers | None:
    kinds = {8: ">u1", 16: ">u2", 32: ">u4"}
    return np.frombuffer(content, kinds[bits], size * 8 // bits, position) if bits in kinds else None


class _Stream(ctypes.Structure):
    """libaec's ``struct aec_stream``."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_size_t),
        ("total_in", ctypes.c_size_t),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_size_t),
        ("total_out", ctypes.c_size_t),
        ("bits_per_sample", ctypes.c_uint),
        ("block_size", ctypes.c_uint),
        ("rsi", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("state", ctypes.c_void_p),
    )


@cache
def _libaec() -> ctypes.CDLL | None:
    """Return the library beside eccodes' own, or the system's; None where neither is."""
    path = findlibs.find("aec", pkg_name="eccodeslib")
    try:
        return None if path is None else ctypes.CDLL(path)
    except OSError:
        return None


def _ccsds(data: npt.NDArray[np.uint8], packing: bytes, count: int) -> Integers | None:
    """Return the integers that section 5 describes, in the processor's order of bytes; None where libaec does not."""
    library, bits, flags = _libaec(), packing[19], packing[21]
    written = int.from_bytes(packing[5:9], "big")  # libaec itself takes the padding at the end for values
    if library is None or written != count or not 0 < bits <= 32 or flags & _SIGNED:
        return None
    integers: Integers = np.empty(count, f"u{1 if bits <= 8 else 2 if bits <= 16 else 4}")
    flags = flags & ~(_THREE_BYTES | _BIG_ENDIAN) | (_BIG_ENDIAN if sys.byteorder == "big" else 0)
    stream = _Stream(
        next_in=data.ctypes.data,
        avail_in=data.size,
        next_out=integers.ctypes.data,
        avail_out=integers.nbytes,
        bits_per_sample=bits,
        block_size=packing[22],
        rsi=int.from_bytes(packing[23:25], "big"),
        flags=flags,
    )
    decoded = library.aec_buffer_decode(ctypes.byref(stream)) == 0 and stream.total_out == integers.nbytes
    return integers if decoded else None


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
