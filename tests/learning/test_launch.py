import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

from climapred.learning import launch
from climapred.learning.launch import Interrupted, on_term, together
from tests.learning import waves, workers
from tests.learning.waves import SHARED, STOPPED, assert_same_weights, checkpoint, read_log, read_rows, send_term


def test_a_term_signal_is_heard_inside_and_only_there():
    heard, before = [], signal.getsignal(signal.SIGTERM)
    with on_term(lambda: heard.append("outer")):
        send_term()
        with on_term(lambda: heard.append("inner")):
            send_term()
            send_term()
        send_term()
        with pytest.raises(KeyError), on_term(lambda: heard.append("failing")):
            raise KeyError
        send_term()
    assert heard == ["outer", "inner", "inner", "outer", "outer"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_cannot_hear_it():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with on_term(lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_interrupted_program_asks_to_be_run_again():
    # EX_TEMPFAIL of sysexits.h, as Python knows it.
    assert Interrupted().code == os.EX_TEMPFAIL == 75
    assert "has saved its state; run the same command again" in str(Interrupted())


MESSAGES = [
    "no luck",
    "first line: a reason\nhint: what to do\n\n  indented\nlast line",
    "in a worker.\nOriginal Traceback (most recent call last):\n  File",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_the_exception_is_what_follows_the_last_traceback(message):
    report = (
        "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n"
        '  File "a.py", line 3, in f\n    raise KeyError(3)\n    ^^^^^^^^^^^^^^^^^\nKeyError: 3\n\n'
        "The above exception was the direct cause of the following exception:\n\nTraceback (most recent call last):\n"
        f'  File "b.py", line 5, in <module>\n    g()\n  [Previous line repeated 9 more times]\na.b.Error: {message}\n'
    )
    assert launch._TRACEBACK.split(report)[-1].strip() == f"a.b.Error: {message}".strip()


def test_each_process_finds_its_place(tmp_path):
    together(workers.tell, (tmp_path,), 3)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [(each["RANK"], each["LOCAL_RANK"]) for each in told] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert {(each["WORLD_SIZE"], each["LOCAL_WORLD_SIZE"], each["MASTER_ADDR"]) for each in told} == {
        ("3", "3", "127.0.0.1")
    }
    assert len({each["MASTER_PORT"] for each in told}) == 1
    assert {each["threads"] for each in told} == {1}
    assert "RANK" not in os.environ


@pytest.mark.parametrize("message", MESSAGES[:2])
def test_a_failing_process_is_named_with_its_message(message):
    with pytest.raises(RuntimeError) as error:
        together(workers.fail, (1, message), 2)
    assert str(error.value) == f"process 1 of 2 failed: ValueError: {message}"


def test_a_killed_process_is_named_and_the_others_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match="process 1 of 2 ended: process 1 terminated with signal SIGKILL"):
        together(workers.die, (1, tmp_path), 2)
    (waited,) = tmp_path.glob("waiting *")
    with pytest.raises(ProcessLookupError):
        os.kill(int(waited.name.split()[1]), 0)


def test_processes_that_have_saved_their_state_pass_it_on():
    with pytest.raises(Interrupted):
        together(workers.leave, (75,), 2)
    with pytest.raises(RuntimeError, match=r"process [01] of 2 ended: process [01] terminated with exit code 3"):
        together(workers.leave, (3,), 2)


# Training in two processes.


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two processes have trained all of ``SHARED`` here."""
    folder = tmp_path_factory.mktemp("shared")
    together(waves.train_shared, (folder,), 2)
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp", "odd"])
def test_two_processes_learn_what_one_learns(shared, tmp_path, name):
    alone = {**SHARED[name], "strategy": "ddp"}
    module, outcome = waves.train(tmp_path, **alone)
    found = torch.load(shared / name / "result.pt")
    for key, weight in module.state_dict().items():  # float32: sums in another order, over 14 steps
        torch.testing.assert_close(found["weights"][key], weight, rtol=1e-5, atol=1e-6)
    assert found["outcome"]["validation_mae"] == pytest.approx(outcome["validation_mae"], rel=1e-6)
    assert found["outcome"]["best_epoch"] == outcome["best_epoch"]
    for row, other in zip(read_log(shared / name), read_log(tmp_path), strict=True):
        assert (row["epoch"], row["step"], row["learning_rate"]) == (
            other["epoch"],
            other["step"],
            other["learning_rate"],
        )
        for column in ("train_loss", "validation_mae"):
            assert float(row[column]) == pytest.approx(float(other[column]), rel=1e-5)


@pytest.mark.parametrize("name", SHARED)
def test_no_window_is_trained_or_validated_twice(shared, name):
    windows = [json.loads((shared / name / f"windows {rank}.json").read_text()) for rank in (0, 1)]
    times = waves.make_waves()["time"].values.astype(int)
    split = SHARED[name].get("loader", {}).get("split", waves.SPLIT)
    starts = {period: split.starts(period, times, waves.WINDOW) for period in ("train", "validation")}
    for period, expected in starts.items():
        batches = len(windows[0][period]) // 2  # of an epoch; both have as many
        for epoch in (0, 1):
            parts = [np.concatenate(of[period][epoch * batches : (epoch + 1) * batches]) for of in windows]
            np.testing.assert_array_equal(np.sort(np.concatenate(parts)), times[expected])
    sizes = [[len(batch) for batch in of["train"]] for of in windows]
    assert sizes[0] == sizes[1]


def test_sampling_and_averaging_work_in_two_processes(shared):
    assert all(weight.isfinite().all() for weight in torch.load(shared / "sampled" / "result.pt")["weights"].values())
    rows = read_log(shared / "sampled")
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])


@pytest.mark.slow
def test_a_nan_in_one_process_is_the_reason_for_all(tmp_path):
    wanted = (
        r"process 1 of 2 failed: FloatingPointError: the loss became nan in epoch 0, step \d \(windows from .*\): "
        "input finite, truth NOT finite, output finite; lower training.learning_rate"
    )
    with pytest.raises(RuntimeError, match=wanted):
        together(waves.train_with_a_gap, (tmp_path,), 2)


@pytest.mark.parametrize(("name", "hook"), STOPPED)
def test_one_process_that_is_asked_stops_both_and_they_go_on_bit_for_bit(shared, name, hook):
    folder = shared / f"{name} stopped at {hook}"
    saved = torch.load(folder / "interrupted.ckpt", weights_only=True, mmap=True)["global_step"]
    assert saved == (STOPPED[name, hook] if hook == "on_train_batch_start" else 13)
    assert_same_result(folder, shared / name)


def assert_same_result(folder, reference):
    found, expected = (torch.load(path / "result.pt") for path in (folder, reference))
    assert_same_weights(found["weights"], expected["weights"])
    assert found["outcome"] == expected["outcome"]
    assert read_rows(folder) == read_rows(reference)


PROGRAM = """
import pathlib, sys
from climapred.learning.launch import together
if __name__ == "__main__":
    module, work, folder, *numbers = sys.argv[1:]
    together(getattr(__import__(module, fromlist=[work]), work), (pathlib.Path(folder), *map(int, numbers)), 2)
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a program which calls ``together``; what is left of it in the end is killed."""
    script, started = tmp_path / "program.py", []
    script.write_text(PROGRAM)

    def begin(module, *arguments):
        command = [sys.executable, script, module.__name__, *map(str, arguments)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_a_term_signal_to_the_parent_stops_all_and_the_run_goes_on(shared, start, tmp_path):
    folder = tmp_path / "run"
    parent = start(waves, "train_and_stop", folder, 10)
    assert (parent.communicate(timeout=100)[1], parent.returncode) == ("", 75)
    assert torch.load(checkpoint(folder), weights_only=True, mmap=True)["global_step"] == 10
    assert not (folder / "result.pt").exists()
    together(waves.train_and_stop, (folder, 0), 2)
    assert_same_result(folder, shared / "ddp")


def test_a_term_signal_before_they_listen_stops_them_too(start, tmp_path):
    parent = start(workers, "wait_for_ever", tmp_path)
    began = time.monotonic()
    while len(list(tmp_path.glob("waiting *"))) < 2:
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    parent.terminate()
    assert (parent.communicate(timeout=60)[1], parent.returncode) == ("", 75)
