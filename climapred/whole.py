"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, contended: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path``; the file or folder written there takes its place if all goes well, else goes.

    Its name begins with a dot and ends as ``path`` does. What a killed writer has left of it is written over.

    Args:
        path: what is wanted; an older file or folder of this name stays until the new one is whole.
        contended: several threads or processes may write ``path`` at the same time; the last one wins.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist, create it first")
    writer = f"{os.getpid()}.{threading.get_ident()}." if contended else ""
    temporary = path.with_name(f".unfinished.{writer}{path.name}")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():  # a folder takes the place of none that exists
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def write_text(path: Path, text: str, *, contended: bool = False) -> Path:
    """Write a text file, UTF-8, as ``replacing`` does, and return its path."""
    with replacing(path, contended=contended) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
