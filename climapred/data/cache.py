"""What climapred keeps between runs to save work: JSON and copies of remote files, in one private folder.

Nothing in it is ever needed: it may be deleted at any time, and a folder that cannot be written only costs time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from climapred.whole import replacing

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return ``$CLIMAPRED_CACHE``, or the folder that the system gives each user for such files.

    That is ``$XDG_CACHE_HOME/climapred`` or ``~/.cache/climapred`` on Linux, ``~/Library/Caches/climapred`` on macOS, and
    ``%LOCALAPPDATA%\\climapred\\Cache`` on Windows. The folder may not exist yet.
    """
    if chosen := os.environ.get("CLIMAPRED_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/climapred"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "climapred/Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "climapred"


def read_cached(kind: str, key: Mapping[str, Any]) -> Any | None:
    """Return what ``write_cached`` kept for ``key``; None if there is nothing, or it is damaged."""
    path = _place(kind, key)
    try:
        head, _, content = path.read_bytes().partition(b"\n")
        if json.loads(head) == {"key": dict(key), "sha256": hashlib.sha256(content).hexdigest()}:
            return json.loads(content)
        _log.info("%s is damaged and not used", path)
    except FileNotFoundError:
        pass  # nothing kept yet
    except (OSError, ValueError) as error:
        _log.info("%s is not used: %s", path, error)
    return None


def write_cached(kind: str, key: Mapping[str, Any], content: Any) -> None:
    """Keep ``content``, plain JSON, for ``key``; where the folder cannot be written, keep nothing.

    The file has two lines: the key with a checksum, and the content. Its name comes from ``key["path"]`` alone, so that
    what is kept for a file takes the place of what was kept for an older state of that file.
    """
    path = _place(kind, key)
    line = json.dumps(content, separators=(",", ":")).encode()
    head = json.dumps({"key": dict(key), "sha256": hashlib.sha256(line).hexdigest()}).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, contended=True) as temporary:
            temporary.write_bytes(head + b"\n" + line)
    except OSError as error:
        _log.info("%s is not kept: %s", path, error)


def _place(kind: str, key: Mapping[str, Any]) -> Path:
    return cache_folder() / kind / f"{hashlib.sha256(os.fsencode(key['path'])).hexdigest()[:32]}.json"
