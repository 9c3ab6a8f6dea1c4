"""Who may write: locks that the system frees when their holder ends, however it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Busy(RuntimeError):
    """Somebody else writes there."""


@contextmanager
def locked(file: Path, complaint: str, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock ``file``; the system frees it when the process ends, however it ends, and so none is ever stale.

    Threads of one process exclude each other as processes do. The last holder removes the file.

    Args:
        complaint: what the error says; who holds the lock is added.
        shared: several may hold it, all of them so.
        wait: until it is free.

    Raises:
        Busy: if somebody else holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks, and none needed for a single user's runs
        yield
        return
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        with file.open("a+") as stream:
            try:
                fcntl.flock(stream, kind)
            except BlockingIOError:
                stream.seek(0)
                raise Busy(f"{complaint} ({stream.read().strip() or 'it has just begun'})") from None
            if not _is_file(stream.fileno(), file):  # its last holder has removed it meanwhile
                continue
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            stream.flush()
            try:
                yield
            finally:
                _remove_if_last(stream.fileno(), file)
            return


def _is_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _remove_if_last(descriptor: int, file: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if _is_file(descriptor, file):
        file.unlink()
