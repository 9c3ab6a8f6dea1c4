"""NetCDF files, lazily, and never by two threads at once: the NetCDF and HDF5 libraries cannot bear it.

xarray guards the opening of a file and the reading of values, but not of attributes, so that opening one file while another is
opened or read crashes the process. Here the whole opening holds xarray's own lock.
"""

from __future__ import annotations

import threading
import warnings
from math import prod
from pathlib import Path
from types import TracebackType

import xarray as xr
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK


class _Reentrant:
    """xarray's lock of the NetCDF library; a thread that holds it may take it again. Pickled, it is that of the process."""

    def __init__(self) -> None:
        self._own, self._depth = threading.RLock(), 0

    def acquire(self, blocking: bool = True) -> bool:
        if not self._own.acquire(blocking):
            return False
        if self._depth == 0 and not NETCDF4_PYTHON_LOCK.acquire(blocking):
            self._own.release()
            return False
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            NETCDF4_PYTHON_LOCK.release()
        self._own.release()

    def __enter__(self) -> _Reentrant:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __reduce__(self) -> str:
        return "NETCDF_LOCK"


NETCDF_LOCK = _Reentrant()


def open_netcdf(path: Path) -> xr.Dataset:
    """Return a NetCDF file, classic or 4, lazily and without dask; packed and missing values are decoded by xarray.

    Times of calendars other than the standard one become cftime dates. Where `_FillValue` and `missing_value` differ, both are
    missing.

    Raises:
        OSError, ValueError, KeyError: if the file is truncated or not decodable.
    """
    with NETCDF_LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has multiple fill values", xr.SerializationWarning)
        dataset = xr.open_dataset(path, engine="netcdf4", chunks=None, lock=NETCDF_LOCK)
        _check_classic_size(path, dataset)
    return dataset


def _check_classic_size(path: Path, dataset: xr.Dataset) -> None:
    """Refuse a classic NetCDF file that is shorter than its uncompressed variables.

    The NetCDF library reads zeros past the end of such a file. A cut of less than the header's length is not noticed.
    """
    with path.open("rb") as file:
        if file.read(3) != b"CDF":
            return
    encodings = (variable.encoding for variable in dataset.variables.values())
    wanted = sum(prod(e["original_shape"]) * e["dtype"].itemsize for e in encodings if "original_shape" in e)
    if path.stat().st_size < wanted:
        raise ValueError(f"its variables need {wanted} bytes, the file has {path.stat().st_size}")
