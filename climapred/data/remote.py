"""Files behind URLs: http(s)://, s3://, gs:// and whatever else fsspec knows.

Zarr stores are read where they are, chunk by chunk. GRIB and NetCDF files are copied whole into climapred's cache when they are
opened, and read from there: their libraries want a file, and seeking through one over a network costs a round trip per message
or chunk. A copy is used again as long as the server tells the same size and the same etag or date; it stays until another one
takes its place or you delete it, and ``$CLIMAPRED_CACHE`` says on which disk.

Credentials and endpoints are fsspec's: its configuration files, and variables such as ``FSSPEC_S3='{"anon": true}'`` for public
buckets. Packages for http, s3 and gs come with ``pip install 'climapred[cloud]'``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec

from climapred.data.cache import cache_folder, read_cached, write_cached
from climapred.whole import replacing

ZARR_DOCUMENTS = (
    "zarr.json",
    ".zmetadata",
    ".zgroup",
)  # by which a Zarr store is known; the first that is there counts

_log = logging.getLogger(__name__)


def is_url(path: object) -> bool:
    """Return whether ``path`` is a URL, such as s3://bucket/file, and not a local path.

    >>> is_url("https://host/air.nc"), is_url("C:/data/air.nc")
    (True, False)
    """
    return isinstance(path, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", path) is not None


@dataclass(frozen=True)
class RemoteFile:
    """A file or Zarr store behind a URL."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path.

        >>> RemoteFile("https://host/era5/air%202.nc?token=7").name
        'air 2.nc'
        """
        return unquote(urlsplit(self.url).path.rstrip("/").rpartition("/")[2])

    def identity(self) -> dict[str, str | int]:
        """Return name, size in bytes, etag and date of change, as far as the server tells them.

        Of a Zarr store: name and SHA-256 of the document that describes it.
        """
        info = self._file_info()
        if info is None:
            _, content = self.zarr_document()
            return {"name": self.name, "metadata_sha256": hashlib.sha256(content).hexdigest()}
        told = {key.lower().replace("-", ""): value for key, value in info.items() if value is not None}
        date = told.get("lastmodified", told.get("updated"))
        found = {"size": told.get("size"), "etag": told.get("etag"), "modified": date and str(date)}
        return {"name": self.name, **{key: value for key, value in found.items() if value is not None}}

    def is_zarr(self) -> bool:
        """Return whether it is a Zarr store and not a file.

        Raises:
            FileNotFoundError: if it is neither.
            OSError: if the server cannot be reached or refuses.
        """
        return self._file_info() is None and bool(self.zarr_document())

    def zarr_document(self) -> tuple[str, bytes]:
        """Return name and content of the document that describes a Zarr store."""
        with _named(self.url):
            system, path = fsspec.url_to_fs(self.url)
            system.invalidate_cache()
            for name in ZARR_DOCUMENTS:
                try:
                    return name, system.cat_file(f"{path.rstrip('/')}/{name}")
                except Exception as error:
                    if not _means_absent(error):
                        raise
        raise FileNotFoundError(f"{self.url} is neither a file nor a Zarr store (with {' or '.join(ZARR_DOCUMENTS)})")

    def is_consolidated(self) -> bool:
        """Return whether one document describes the whole Zarr store; http needs it, for it lists no folders."""
        name, content = self.zarr_document()
        return name == ".zmetadata" or bool(json.loads(content).get("consolidated_metadata"))

    def local_copy(self) -> Path:
        """Return a copy of the file in the cache, fetched if there is none or the server has another one now.

        Raises:
            FileNotFoundError: if there is no such file.
            OSError: if the server cannot be reached or refuses, or the copy is cut short or cannot be written.
        """
        identity = self.identity()
        kept = read_cached("remote", {"path": self.url}) or {}
        same = kept.get("identity") == identity and bool({"etag", "modified"} & set(identity))
        if same and _has_size(Path(kept["file"]), identity):
            return Path(kept["file"])
        version = hashlib.sha256(f"{self.url} {json.dumps(identity)}".encode()).hexdigest()[:32]
        path = cache_folder() / "files" / version / self.name
        _log.info("fetching %s to %s", self.url, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _named(self.url), replacing(path, contended=True) as temporary:
            system, remote = fsspec.url_to_fs(self.url)
            system.get_file(remote, str(temporary))
            if not _has_size(temporary, identity):
                got = temporary.stat().st_size
                raise OSError(f"only {got} of {identity['size']} bytes came")
        write_cached("remote", {"path": self.url}, {"identity": identity, "file": str(path)})
        if kept and (older := Path(kept["file"])) != path:
            older.unlink(missing_ok=True)
        return path

    def _file_info(self) -> dict[str, Any] | None:
        """Return what the server tells of the file; None if it must be a folder."""
        if self.url.endswith((".zarr", "/")):
            return None
        try:
            with _named(self.url):
                system, path = fsspec.url_to_fs(self.url)
                system.invalidate_cache()
                info = dict(system.info(path))
        except FileNotFoundError:
            return None  # over http, a folder without a page of its own
        return None if info["type"] == "directory" else info


def expand_url(url: str) -> list[RemoteFile]:
    """Return the files that a URL stands for: those that match its pattern, or itself, not looked up.

    In http URLs only ``*`` makes a pattern (``?`` begins a query), and the server must list its folders as links.
    """
    if not re.search(r"\*" if url.startswith("http") else r"[*?\[]", url):
        return [RemoteFile(url)]
    with _named(url):
        system, pattern = fsspec.url_to_fs(url)
        system.invalidate_cache()
        return [RemoteFile(system.unstrip_protocol(path)) for path in system.glob(pattern)]


def _means_absent(error: Exception) -> bool:
    """Return whether there is no such file; S3 answers "forbidden" for what it may not say is missing."""
    return isinstance(error, (FileNotFoundError, PermissionError)) or getattr(error, "status", None) in (403, 404)


def _has_size(path: Path, identity: dict[str, str | int]) -> bool:
    return path.is_file() and path.stat().st_size == identity.get("size", path.stat().st_size)


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Let every error name the URL, and a missing package say how it is installed."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{url} needs packages that are not installed ({error}): pip install 'climapred[cloud]'"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no {url}") from error
    except Exception as error:  # each of fsspec's file systems has errors of its own
        raise OSError(f"{url} cannot be read: {type(error).__name__}: {error}") from error
