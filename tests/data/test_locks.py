import os
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from climapred.data.locks import Busy, locked


def test_one_at_a_time(tmp_path):
    file = tmp_path / "a.lock"
    with (
        locked(file, "somebody is here"),
        pytest.raises(Busy, match=rf"somebody is here \(process {os.getpid()} on "),
        locked(file, "somebody is here"),
    ):
        pass
    assert not file.exists()  # the last one removes it
    with locked(file, ""):
        pass


def test_shared(tmp_path):
    file = tmp_path / "a.lock"
    with ExitStack() as first:
        first.enter_context(locked(file, "", shared=True))
        with locked(file, "", shared=True), pytest.raises(Busy), locked(file, ""):
            pass
        assert file.exists()  # the other one still holds it
    assert not file.exists()
    with locked(file, ""), pytest.raises(Busy), locked(file, "", shared=True):
        pass


def test_an_error_frees_it(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a.lock", ""):
        raise ZeroDivisionError
    assert not (tmp_path / "a.lock").exists()


def test_a_file_that_a_kill_left_is_no_lock(tmp_path):
    code = "import sys, os, pathlib; from climapred.data.locks import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1]), ''): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.lock")]).returncode == -9
    assert (tmp_path / "a.lock").exists()
    with locked(tmp_path / "a.lock", ""):
        pass
    assert not (tmp_path / "a.lock").exists()


def test_waiting_in_turns(tmp_path):
    """Each one finds the file removed by the one before, or made by another: no two are ever inside."""
    inside, most, rounds = [], [], 50

    def work():
        for _ in range(rounds):
            with locked(tmp_path / "a.lock", "", wait=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4 * rounds
    assert not (tmp_path / "a.lock").exists()
