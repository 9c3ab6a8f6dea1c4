import threading

import pytest

from climapred.whole import replacing, write_text


def break_off(path, *, folder=False, contended=False):
    """Write half of a file or folder, and fail."""
    with replacing(path, contended=contended) as temporary:
        if folder:
            temporary.mkdir()
        (temporary / "half" if folder else temporary).write_text("half")
        raise OSError("disk full")


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a.nc"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert (temporary.parent, temporary.suffix, temporary.name[0]) == (tmp_path, ".nc", ".")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("contended", [False, True])
def test_a_failed_write_leaves_the_old_file(tmp_path, contended):
    path = tmp_path / "a"
    path.write_text("old")

    with pytest.raises(OSError, match="disk full"):
        break_off(path, contended=contended)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_a_folder_or_a_file(tmp_path):
    path = tmp_path / "a.zarr"
    for content in ("first", "second"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text("")
        assert [file.name for file in path.iterdir()] == [content]
    with replacing(path) as temporary:
        temporary.write_text("a file")
    assert path.read_text() == "a file"
    with pytest.raises(OSError, match="disk full"):
        break_off(path, folder=True)
    assert path.read_text() == "a file"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    path = tmp_path / "a"
    with replacing(path) as left:
        left.write_text("")
    left.mkdir()
    (left / "half").write_text("")
    write_text(path, "whole")
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_have_places_of_their_own(tmp_path):
    path, places, together = tmp_path / "a", [], threading.Barrier(4)

    def write(number: int) -> None:
        with replacing(path, contended=True) as temporary:
            places.append(temporary)
            temporary.write_text(str(number))
            together.wait(10)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(places)) == 4
    assert path.read_text() in "0123"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf8(tmp_path):
    assert write_text(tmp_path / "a", "40°N") == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == b"40\xc2\xb0N"


def test_the_folder_must_be_there(tmp_path):
    missing = tmp_path / "missing" / "a"
    with pytest.raises(
        FileNotFoundError, match=r"cannot write .*: the folder .*missing does not exist, create it first"
    ):
        write_text(missing, "")
