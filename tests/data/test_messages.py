import json
import os
from pathlib import Path

import eccodes
import numpy as np
import pytest

from climapred.data import messages
from climapred.data.messages import message_table
from climapred.testing import write_grib

DATA = Path(os.environ.get("CLIMAPRED_DATA", Path(__file__).parents[2] / "../shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared data missing")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIMAPRED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def scans(monkeypatch):
    """The files that are scanned, as they are."""
    found, scan = [], messages._scan
    monkeypatch.setattr(messages, "_scan", lambda path: found.append(path.name) or scan(path))
    return found


def two_metre(hour: int, **keys) -> dict:
    return {"shortName": "2t", "dataDate": 20200131, "dataTime": 100 * hour, **keys}


def assert_same_as_eccodes(path: Path) -> int:
    """Compare each row of the table with what eccodes says of each message; return how many there are."""
    table = message_table(path)
    with path.open("rb") as file:
        for message in table:
            handle, header = eccodes.codes_grib_new_from_file(file), message.header
            mine = {"offset": message.offset, "totalLength": message.length, "gridType": header.grid.kind}
            mine |= {
                "shortName": header.name,
                "units": header.units,
                "typeOfLevel": header.level_type,
                "level": header.level,
            }
            mine |= {"stepType": header.step_type, "number": header.member}
            if "." not in header.step_range:
                mine["stepRange"] = header.step_range
            else:
                eccodes.codes_set(handle, "stepUnits", "m")  # "1.5" hours; eccodes cannot tell them as hours
                mine["endStep"] = int(60 * float(header.step_range))
            for key, value in mine.items():
                if eccodes.codes_is_defined(handle, key):
                    assert (key, value) == (key, eccodes.codes_get(handle, key, type(value)))
            for time, prefix in ((message.start, "data"), (message.time, "validity")):
                date, clock = (eccodes.codes_get_long(handle, prefix + part) for part in ("Date", "Time"))
                assert f"{date:08d} {clock:04d}" == f"{time.item():%Y%m%d %H%M}"
            eccodes.codes_release(handle)
        assert eccodes.codes_grib_new_from_file(file) is None
    return len(table)


@needs_data
@pytest.mark.parametrize(
    "path", [*sorted(DATA.glob("grib/*.grib")), *DATA.glob("era5*.grib")], ids=lambda path: path.name
)
def test_real_tables_equal_eccodes(path):
    if "corrupted" not in path.name:
        assert assert_same_as_eccodes(path) > 0


EDITION_2 = "regular_ll_sfc_grib2"
STEPS = [
    *({"stepRange": step} for step in (0, 6, 240)),
    *({"shortName": "tp", "stepType": "accum", "stepRange": step} for step in ("0-6", "0-12", "6-12")),
    {"stepUnits": "m", "stepRange": 90},
    {"stepUnits": "D", "stepRange": 3},
]


@pytest.mark.parametrize("keys", STEPS, ids=str)
@pytest.mark.parametrize("sample", ["regular_ll_sfc_grib1", EDITION_2])
def test_steps_and_intervals_equal_eccodes_on_any_date(tmp_path, sample, keys):
    dates = (19991231, 20000228, 20200131, 20200229, 20201231, 21000228)
    path = write_grib(
        tmp_path / "s.grib", *({**keys, "dataDate": date, "dataTime": 1830} for date in dates), sample=sample
    )
    assert assert_same_as_eccodes(path) == 6


@pytest.mark.parametrize("template", [11, 12])
def test_intervals_of_ensembles_equal_eccodes(tmp_path, template):
    keys = {"productDefinitionTemplateNumber": template, "stepRange": "0-6"}
    path = write_grib(
        tmp_path / "s.grib", *({**keys, "dataDate": date} for date in (20200228, 20200229)), sample=EDITION_2
    )
    assert assert_same_as_eccodes(path) == 2


def test_steps_of_months_are_refused(tmp_path):
    """eccodes would make a month of 30 days of them."""
    month = {"indicatorOfUnitOfTimeRange": 3, "P1": 1, "timeRangeIndicator": 0}
    path = write_grib(tmp_path / "s.grib", two_metre(0), {**two_metre(0), **month})
    with pytest.raises(ValueError, match=r"a step in months or years, of which eccodes makes no right date\); 1 good"):
        message_table(path)


def test_table_says_what_is_where(tmp_path):
    path = write_grib(tmp_path / "s.grib", two_metre(0), two_metre(6, typeOfLevel="surface", stepRange=12))
    first, second = message_table(path)
    assert (first.offset, second.offset) == (0, first.length)
    assert second.offset + second.length == path.stat().st_size
    assert (first.header.name, first.header.units, first.header.member, first.header.level) == ("2t", "K", 0, 0)
    assert second.start == np.datetime64("2020-01-31T06:00")
    assert second.time == np.datetime64("2020-01-31T18:00")
    assert (first.step, second.step) == (0, 12)
    assert str(first.header.grid) == "regular_ll 31 x 16 from 60, 0 to 0, 30"
    assert first.header.grid == second.header.grid


@pytest.mark.slow
def test_messages_beyond_8_mib_in_edition_1(tmp_path):
    """Their three octets of length count in units of 120 bytes."""
    keys = {"Ni": 2400, "Nj": 2000, "bitsPerValue": 16, "values": np.random.default_rng(0).normal(280, 9, 4_800_000)}
    path = write_grib(tmp_path / "s.grib", two_metre(0, **keys), two_metre(6))
    assert message_table(path)[0].length > 2**23
    assert assert_same_as_eccodes(path) == 2


def test_table_is_scanned_once_and_kept_as_json(tmp_path, own_cache, scans):
    path = write_grib(tmp_path / "s.grib", two_metre(0), two_metre(6))
    table = message_table(path)
    os.chdir(tmp_path)
    assert message_table("s.grib") == message_table(path) == table
    assert scans == ["s.grib"]
    (kept,) = (own_cache / "grib").iterdir()
    head, rows = map(json.loads, kept.read_text().splitlines())
    assert head["key"]["path"] == str(path)
    assert len(rows["messages"]) == 2
    assert len(rows["headers"]) == len(rows["grids"]) == 1
    assert sorted(os.listdir(tmp_path)) == ["cache", "s.grib"]


def test_table_is_made_anew_when_the_file_changes(tmp_path, scans):
    path = write_grib(tmp_path / "s.grib", two_metre(0))
    assert len(message_table(path)) == 1
    write_grib(path, two_metre(0), two_metre(6))
    assert len(message_table(path)) == 2
    os.utime(path, ns=(0, 7))
    assert len(message_table(path)) == 2
    assert len(scans) == 3


def test_damaged_or_unwritable_cache_is_no_hindrance(tmp_path, own_cache, scans, monkeypatch):
    path = write_grib(tmp_path / "s.grib", two_metre(0))
    table = message_table(path)
    (kept,) = (own_cache / "grib").iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])
    assert message_table(path) == table
    assert message_table(path) == table  # it was made anew
    assert len(scans) == 2
    monkeypatch.setenv("CLIMAPRED_CACHE", str(path))  # no folder
    assert message_table(path) == table
    assert len(scans) == 3


@needs_data
def test_headers_that_differ_in_their_date_are_asked_for_once(monkeypatch):
    """Pain 8: 744 hourly messages cost two or three questions to eccodes, not 744."""
    asked, ask = [], messages._read_header
    monkeypatch.setattr(messages, "_read_header", lambda *arguments: asked.append(1) or ask(*arguments))
    assert len(message_table(DATA / "era5-2mt-2019-03-uk.grib")) == 744
    assert len(asked) == 1


@pytest.mark.parametrize("sample", ["regular_ll_sfc_grib1", EDITION_2])
@pytest.mark.parametrize("cut", [1, 4, 100, 900])
def test_truncated_file_is_an_error_with_its_place(tmp_path, sample, cut):
    path = write_grib(tmp_path / "s.grib", two_metre(0), two_metre(6), sample=sample)
    length = message_table(path)[0].length
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        ValueError, match=rf"s.grib is truncated or damaged at byte {length} .*; 1 good messages .*'skip'"
    ):
        message_table(path)
    with pytest.warns(UserWarning, match=rf"damaged at byte {length} .*; 1 good messages are in it and are read"):
        assert len(message_table(path, damaged="skip")) == 1


@pytest.mark.parametrize("begin", [0, 1, 2])
def test_message_without_its_beginning_is_not_skipped_silently(tmp_path, begin):
    path = write_grib(tmp_path / "s.grib", two_metre(0), two_metre(6), two_metre(12))
    content = bytearray(path.read_bytes())
    start = len(content) // 3 * begin
    content[start : start + 4] = b"XXXX"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"damaged at byte {start} \(the end of a message without its beginning\); 2 good"
    ):
        message_table(path)
    with pytest.warns(UserWarning, match="2 good messages"):
        assert [message.step for message in message_table(path, damaged="skip")] == [0, 0]


# octets of edition 1 (8 + n): length of section 1, month; of edition 2: number of a section, length of the message
@pytest.mark.parametrize(
    ("sample", "octet"),
    [("regular_ll_sfc_grib1", 9), ("regular_ll_sfc_grib1", 21), (EDITION_2, 20), (EDITION_2, 14)],
)
def test_a_wrong_octet_in_the_header_costs_one_message(tmp_path, sample, octet):
    path = write_grib(tmp_path / "s.grib", two_metre(0), two_metre(6), two_metre(12), sample=sample)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 + octet] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged at byte {len(content) // 3} \(.*\); 2 good messages"):
        message_table(path)


def test_padding_between_messages_is_allowed(tmp_path):
    path = write_grib(tmp_path / "s.grib", two_metre(0))
    path.write_bytes(b"\r\n" + path.read_bytes() + bytes(3_000_000) + path.read_bytes() + bytes(7))
    assert [message.offset for message in message_table(path)] == [2, 3_000_002 + message_table(path)[0].length]


def test_several_fields_in_one_message_are_refused(tmp_path):
    path = write_grib(tmp_path / "one.grib", {}, sample=EDITION_2)
    content = path.read_bytes()
    sections, position = {}, 16
    while content[position : position + 4] != b"7777":
        size = int.from_bytes(content[position : position + 4], "big")
        sections[content[position + 4]] = content[position : position + size]
        position += size
    second = b"".join(sections[number] for number in (4, 5, 6, 7))
    total = (len(content) + len(second)).to_bytes(8, "big")
    path.write_bytes(content[:8] + total + content[16:-4] + second + b"7777")
    with pytest.raises(ValueError, match=r"one.grib packs 2 fields into the message at byte 0; .*grib_copy"):
        message_table(path)


@pytest.mark.parametrize("content", [b"", b"no messages here", b"a GRIB is named, and no more"])
def test_file_without_messages_is_an_error(tmp_path, content):
    (tmp_path / "x.grib").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.grib (is empty|holds no GRIB message|is truncated .*; 0 good messages)"):
        message_table(tmp_path / "x.grib", damaged="skip")
