import io
import struct
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from climapred.data.octets import DamagedError, find_message, read_frame, unpack_simple
from climapred.testing import write_grib


@pytest.mark.parametrize("gap", [b"", b"\0" * 5, b"GRI" * 50, b"\0" * 200_000])
def test_messages_are_found_after_any_gap(gap):
    assert find_message(io.BytesIO(b"xx" + gap + b"GRIB...."), 2) == (2 + len(gap), False)
    assert find_message(io.BytesIO(gap + b"7777" + gap + b"GRIB"), 0) == (2 * len(gap) + 4, True)
    assert find_message(io.BytesIO(gap), 0) == (-1, False)


@given(st.binary(max_size=300), st.integers(0, 40))
def test_finding_equals_a_search_through_everything(content, position):
    content = content.replace(b"\1", b"GRIB").replace(b"\2", b"7777").replace(b"\3", b"GR")
    found = content.find(b"GRIB", position)
    before = content[position : found if found >= 0 else None]
    assert find_message(io.BytesIO(content), position) == (found, b"7777" in before)


@given(st.binary(max_size=200), st.sampled_from([1, 2]))
@settings(max_examples=300)
def test_garbage_is_damage_and_nothing_else(content, edition):
    with pytest.raises(DamagedError):
        read_frame(io.BytesIO(b"GRIB\0\1\2" + bytes([edition]) + content), 0)


def test_frames_of_messages_that_differ_in_their_date_are_alike(tmp_path):
    for sample in ("regular_ll_sfc_grib1", "regular_ll_sfc_grib2"):
        keys = {"shortName": "2t", "dataDate": 19991231, "dataTime": 1830}
        path = write_grib(
            tmp_path / "s.grib", keys, {**keys, "dataDate": 20200229}, {**keys, "shortName": "skt"}, sample=sample
        )
        with path.open("rb") as file:
            one = read_frame(file, 0)
            two, three = read_frame(file, one.length), read_frame(file, 2 * one.length)
        assert (one.start, two.start) == (datetime(1999, 12, 31, 18, 30), datetime(2020, 2, 29, 18, 30))
        assert one.identity == two.identity != three.identity
        assert one.grid == three.grid


def message_1(reference: bytes, binary: int, decimal: int, bits: int, data: bytes) -> bytes:
    """Return an edition-1 message without a grid section, octet by octet."""

    def signed(value: int) -> bytes:
        return struct.pack(">H", abs(value) | (0x8000 if value < 0 else 0))

    product = bytes([0, 0, 28]) + bytes(23) + signed(decimal)
    values = (11 + len(data)).to_bytes(3, "big") + b"\0" + signed(binary) + reference + bytes([bits]) + data
    length = 8 + len(product) + len(values) + 4
    return b"GRIB" + length.to_bytes(3, "big") + b"\1" + product + values + b"7777"


# IBM's floating point: sign, exponent of 16 with an excess of 64, 24 bits of fraction. 0x42640000 = 0.390625 * 16^2 = 100;
# 0xC1180000 = -0.09375 * 16 = -1.5
@pytest.mark.parametrize(("reference", "value"), [(0x42640000, 100.0), (0xC1180000, -1.5), (0, 0.0)])
@pytest.mark.parametrize(("bits", "kind"), [(8, ">u1"), (16, ">u2"), (32, ">u4")])
def test_unpacking_is_the_formula_of_the_manual(reference, value, bits, kind):
    integers = np.array([0, 1, 7, 200], kind)
    content = message_1(reference.to_bytes(4, "big"), -3, 2, bits, integers.tobytes())
    values = np.empty(4, np.float32)
    assert unpack_simple(content, values)
    np.testing.assert_allclose(values, (value + integers / 8) / 100, rtol=1e-7)


def test_other_packings_are_left_alone():
    values = np.full(4, 7, np.float32)
    whole = message_1(bytes(4), 0, 0, 16, bytes(8))
    spectral, bitmap = bytearray(whole), bytearray(whole)
    spectral[8 + 28 + 3] |= 0x80
    bitmap[15] |= 0x40
    for content in (
        bytes(spectral),
        bytes(bitmap),
        message_1(bytes(4), 0, 0, 12, bytes(6)),
        message_1(bytes(4), 0, 0, 16, bytes(10)),
    ):
        assert not unpack_simple(content, values)
    np.testing.assert_array_equal(values, 7)
