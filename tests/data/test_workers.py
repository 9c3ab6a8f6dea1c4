import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import psutil
import pytest

from climapred.data import workers
from climapred.data.workers import completed, local_executor


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setattr(workers, "_PROCESSES_FROM", 0)


def test_every_result_comes_once():
    with local_executor(3, 2000, volume=0) as executor:
        tasks = ((divmod, number, 7) for number in range(2000))
        found = sorted(completed(executor, tasks))
    assert found == sorted(divmod(number, 7) for number in range(2000))


def test_results_come_in_the_order_in_which_tasks_end():
    first_may_end = threading.Event()

    def wait_and_return():
        first_may_end.wait(timeout=10)
        return "first"

    with local_executor(2, 2, volume=0) as executor:
        results = completed(executor, iter([(wait_and_return,), (str, "second")]))
        assert next(results) == "second"
        first_may_end.set()
        assert list(results) == ["first"]


def test_tasks_are_handed_out_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(workers, "_OUTSTANDING", 5)
    begun, most = 0, 0

    def tasks():
        nonlocal begun
        for number in range(100):
            begun += 1
            yield abs, number

    with local_executor(2, 100, volume=0) as executor:
        for ended, _ in enumerate(completed(executor, tasks())):
            most = max(most, begun - ended)
    assert (begun, most) == (100, 5)


def test_a_fault_is_raised_and_the_others_do_not_begin():
    begun = []

    def fail(number):
        begun.append(number)
        time.sleep(0.05)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), local_executor(1, 50, volume=0) as executor:
        list(completed(executor, ((fail, number) for number in range(50))))
    assert len(begun) < 5


@pytest.mark.parametrize(
    ("wanted", "tasks", "threads"),
    [(3, 10, 3), (3, 2, 2), (3, 0, 1), (None, 1000, workers._processors())],
)
def test_no_more_workers_than_tasks(wanted, tasks, threads):
    with local_executor(wanted, tasks, volume=0) as executor:
        assert isinstance(executor, ThreadPoolExecutor)
        assert executor._max_workers == threads


def test_processors_are_those_that_may_be_used():
    assert 1 <= workers._processors() <= os.cpu_count()


def test_much_is_read_by_processes_of_their_own():
    """Spawned: a forked Zarr may wait for ever; and Ctrl-C is the parent's."""
    with local_executor(1, 1, volume=2**30) as executor:
        assert isinstance(executor, ProcessPoolExecutor)
        assert executor.submit(os.getpid).result() != os.getpid()
        assert executor.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
        (worker,) = executor._processes.values()
        assert "spawn" in type(worker).__name__.lower()


def test_a_worker_process_that_dies(processes):
    with (
        local_executor(2, 2, volume=0) as executor,
        pytest.raises(
            RuntimeError, match=r"a worker process has died: killed for want of memory \(use fewer workers\)"
        ),
    ):
        list(completed(executor, iter([(os._exit, 1), (abs, 1)])))


PARENT = """
import time
from climapred.data import workers

if __name__ == "__main__":
    workers._PROCESSES_FROM = 0
    with workers.local_executor(2, 2, volume=0) as executor:
        results = [executor.submit(time.sleep, 0.5) for _ in range(2)]
        [result.result() for result in results]
        print("ready", flush=True)
        time.sleep(60)
"""


def test_worker_processes_end_with_their_parent(tmp_path):
    """However it ends."""
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
    assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.skipif(sys.platform != "linux", reason="glibc keeps holes; others have their own ways")
def test_memory_that_was_freed_goes_back_to_the_system():
    code = """
import psutil
from climapred.data.workers import give_memory_back
pieces = [bytearray(b"x" * 100_000) for _ in range(1000)]  # 100 MB, each below what the library maps by itself
last = pieces[-1]  # lies on top: what is freed below is a hole
del pieces
before = psutil.Process().memory_info().rss
give_memory_back()
print(before - psutil.Process().memory_info().rss)
"""
    freed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(freed) > 50e6
