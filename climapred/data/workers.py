"""Tasks on this machine: run by threads, or by processes where much is to be read; what they return comes as they end."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from itertools import islice
from typing import Any

from numcodecs import blosc

_PROCESSES_FROM = 2**29  # bytes of fields to read; fewer are read before processes have started
_OUTSTANDING = 512  # tasks that are handed out at a time: a scheduler need not hold those of a whole century
_M_ARENA_MAX = -8  # malloc.h


@contextmanager
def local_executor(workers: int | None, tasks: int, volume: int) -> Iterator[Executor]:
    """Give threads where little is to be read, else processes; no more than there are tasks.

    Processes, for the HDF5 library reads for one thread at a time, and because they may be set up for this work. They are
    spawned: a forked Zarr may wait for ever.

    Args:
        workers: None for as many as there are processors.
        tasks: number of tasks.
        volume: bytes that all tasks together read.
    """
    workers = max(1, min(workers or _processors(), tasks))
    if volume < _PROCESSES_FROM:
        with ThreadPoolExecutor(workers) as executor:
            yield executor
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_worker) as executor:
            yield executor


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def completed(executor: Executor, tasks: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
    """Yield what the tasks (function, arguments...) return, in the order in which they end.

    Raises:
        RuntimeError: if a worker process dies. What a task raises is raised; those that have not begun are cancelled then.
    """
    waiting: set[Future[Any]] = {executor.submit(*task) for task in islice(tasks, _OUTSTANDING)}
    try:
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            waiting |= {executor.submit(*task) for task in islice(tasks, len(done))}
    except BrokenExecutor as error:
        raise RuntimeError(
            "a worker process has died: killed for want of memory (use fewer workers), or never begun (a script needs "
            '`if __name__ == "__main__":`); what is written stays'
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def _begin_worker() -> None:
    """In a worker process: leave Ctrl-C to the parent, end when it ends, however it ends, keep to one thread, and save memory.

    The C library keeps what was freed for each thread that has ever asked for memory, and Zarr has several of them: after
    ten shards that is twice what one shard takes. All threads of a worker share one pool here.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    atexit.register(os._exit, 0)  # taking down all that was imported would take as long as a shard
    _of_glibc("mallopt", _M_ARENA_MAX, 1)
    blosc.use_threads = False


def give_memory_back() -> None:
    """Give freed memory back to the system: the C library keeps holes between what is in use, more after every task."""
    _of_glibc("malloc_trim", 0)


def _of_glibc(function: str, *arguments: int) -> None:
    """Call a function that not every C library has."""
    found = getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
    if found is not None:
        found(*arguments)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
