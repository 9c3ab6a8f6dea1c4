"""Training in several processes: those that torchrun has started, or our own, which look the same from inside."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

_GRACE_SECONDS = 30


class Interrupted(SystemExit):
    """Training was asked to stop, saved its state and stopped: the same command goes on from there.

    The exit code is 75, EX_TEMPFAIL in sysexits.h: "try again later", what batch schedulers can be told to requeue on
    (RequeueExit=75 in slurm.conf, REQUEUE_EXIT_VALUES=75 in LSF).
    """

    CODE = 75

    def __init__(self) -> None:
        super().__init__(self.CODE)

    def __str__(self) -> str:
        return "training was asked to stop and has saved its state; run the same command again to go on"


def together(work: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Run ``work(*arguments)`` in ``processes`` new processes of this machine and wait for them.

    Each finds RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment, as under
    torchrun, and gets its share of the cores. A TERM signal is passed on to all of them.

    Raises:
        Interrupted: if they were asked to stop and have saved their state.
        RuntimeError: if one fails; says which one and why. The others are stopped.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = start_processes(
        _child, (processes, port, work, arguments), nprocs=processes, join=False, start_method="spawn"
    )
    asked_to_stop = False

    def stop() -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        for process in started.processes:
            process.terminate()

    try:
        with on_term(stop):
            while not started.join(timeout=1, grace_period=_GRACE_SECONDS):
                pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        saved = isinstance(error, ProcessExitedException) and error.exit_code == Interrupted.CODE
        codes = {process.exitcode for process in started.processes}
        if saved or (
            asked_to_stop and codes & {Interrupted.CODE, -signal.SIGTERM}
        ):  # the latter: before it could listen
            raise Interrupted from error
        raise RuntimeError(_why(started, error)) from error
    finally:
        for path in started.error_files:
            Path(path).unlink(missing_ok=True)
    if asked_to_stop:
        raise Interrupted


def _why(started: ProcessContext, error: ProcessExitedException | ProcessRaisedException) -> str:
    """Say which process failed first, and why: the others fail for want of it."""
    count, failed = len(started.processes), error.error_index
    if isinstance(error, ProcessExitedException):
        return f"process {failed} of {count} ended: {error}"
    reports = [Path(path) for path in started.error_files]
    failed = min((path.stat().st_mtime_ns, number) for number, path in enumerate(reports) if path.exists())[1]
    text = str(pickle.loads(reports[failed].read_bytes()))
    return f"process {failed} of {count} failed: {_TRACEBACK.split(text)[-1].strip()}"


_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n(?: .*\n)*", re.MULTILINE)


def _child(number: int, processes: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    work(*arguments)


@contextmanager
def on_term(act: Callable[[], object]) -> Iterator[None]:
    """Call ``act`` at each TERM signal; only the main thread of a process can hear one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        act()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
