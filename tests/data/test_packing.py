import struct

import eccodes
import findlibs
import numpy as np
import pytest

from climapred.data.packing import _libaec, unpack
from climapred.testing import write_grib


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
    assert unpack(content, values)
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
        assert not unpack(content, values)
    np.testing.assert_array_equal(values, 7)


def ccsds_message(tmp_path, values, bits, decimal=0):
    """Return a message as eccodes packs it, and its values as eccodes unpacks them."""
    keys = {"shortName": "2t", "bitsPerValue": bits, "decimalScaleFactor": decimal, "packingType": "grid_ccsds"}
    path = write_grib(tmp_path / "c.grib", {**keys, "values": values}, sample="regular_ll_sfc_grib2")
    with path.open("rb") as file:
        handle = eccodes.codes_grib_new_from_file(file)
    try:
        assert eccodes.codes_get(handle, "packingType") == "grid_ccsds"
        assert eccodes.codes_get(handle, "bitsPerValue") == bits or decimal  # which decides how many are needed
        return path.read_bytes(), eccodes.codes_get_values(handle)
    finally:
        eccodes.codes_release(handle)


def weather(seed=0):
    return np.random.default_rng(seed).normal(280, 20, 496)


@pytest.mark.parametrize(
    ("bits", "decimal"), [*((bits, 0) for bits in (1, 3, 8, 9, 12, 16, 17, 23, 24, 25, 32)), (2, -2), (17, 3), (30, 7)]
)
def test_ccsds_is_unpacked_as_eccodes_does_to_the_last_bit(tmp_path, bits, decimal):
    content, expected = ccsds_message(tmp_path, weather(bits), bits, decimal)
    values = np.empty(496, np.float32)
    assert unpack(content, values)
    np.testing.assert_array_equal(values, expected.astype(np.float32))


def test_ccsds_that_does_not_fill_the_field_is_left_to_eccodes(tmp_path):
    content, expected = ccsds_message(tmp_path, weather(), 16)
    values = np.full(497, 7, np.float32)
    assert not unpack(content, values)
    begin = 16
    while content[begin + 4] != 7:  # the section of data
        begin += int.from_bytes(content[begin : begin + 4], "big")
    shorter = (len(content) - 4 - begin) // 2
    assert not unpack(
        content[:begin] + struct.pack(">IB", shorter, 7) + content[begin + 5 :][: shorter - 5] + b"7777", values[:496]
    )
    np.testing.assert_array_equal(values, 7)
    assert unpack(content, values[:496])
    np.testing.assert_array_equal(values[:496], expected.astype(np.float32))


@pytest.mark.parametrize("length", [0, 12, 20, 24])
@pytest.mark.parametrize("packing", ["grid_simple", "grid_ccsds"])
def test_a_message_that_does_not_say_how_it_is_packed_is_left_to_eccodes(tmp_path, packing, length):
    keys = {"shortName": "2t", "bitsPerValue": 16, "packingType": packing, "values": weather()}
    content = write_grib(tmp_path / "s.grib", keys, sample="regular_ll_sfc_grib2").read_bytes()
    begin = 16
    while content[begin + 4] != 5:
        begin += int.from_bytes(content[begin : begin + 4], "big")
    size = int.from_bytes(content[begin : begin + 4], "big")
    assert size == {"grid_simple": 21, "grid_ccsds": 25}[packing]
    short = struct.pack(">IB", length, 5) + content[begin + 5 :][: length - 5] if length else b""
    assert not unpack(content[:begin] + short + content[begin + size :], np.empty(496, np.float32))


def test_without_libaec_ccsds_is_left_to_eccodes(tmp_path, monkeypatch):
    content, _ = ccsds_message(tmp_path, weather(), 16)
    values = np.full(496, 7, np.float32)
    for found in (None, str(tmp_path / "c.grib")):  # nothing, and what is no library
        monkeypatch.setattr(findlibs, "find", lambda *_, found=found, **__: found)
        _libaec.cache_clear()
        assert not unpack(content, values)
    _libaec.cache_clear()
    np.testing.assert_array_equal(values, 7)
