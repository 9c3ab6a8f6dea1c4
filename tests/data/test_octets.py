import io
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from climapred.data.octets import DamagedError, find_message, read_frame
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
