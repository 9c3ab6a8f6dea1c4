"""Files behind URLs: a local HTTP server that serves ranges, and a local S3 server."""

import contextlib
import json
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from moto.server import ThreadedMotoServer

from climapred.data.cache import cache_folder
from climapred.data.remote import RemoteFile, expand_url, is_url
from climapred.data.sources import expand_paths, open_source, source_identity
from climapred.testing import write_grib


def make_dataset(start="2020-01-01", count=8) -> xr.Dataset:
    values = np.arange(count * 12, dtype=np.float32).reshape(count, 3, 4)
    times = pd.date_range(start, periods=count, freq="6h", unit="ns")
    coords = {"time": times, "lat": [50.0, 40.0, 30.0], "lon": [0.0, 10.0, 20.0, 30.0]}
    return xr.Dataset({"t2m": (("time", "lat", "lon"), values, {"units": "K"})}, coords)


class RangeHandler(SimpleHTTPRequestHandler):
    """Files of a folder, also in part, with etags; every request is noted."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        if wanted is None or not path.is_file():
            return super().do_GET()
        first, last = wanted.removeprefix("bytes=").split("-")
        content = path.read_bytes()
        part = content[-int(last) :] if not first else content[int(first) : int(last) + 1 if last else None]
        begin = len(content) - int(last) if not first else int(first)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def end_headers(self):
        path = Path(self.translate_path(self.path))
        if path.is_file() and self.server.tells_versions:
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        super().end_headers()

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and self.command == "HEAD":
            value = str(int(value) + self.server.promised)
        if keyword != "Last-Modified":
            super().send_header(keyword, value)

    def list_directory(self, path):
        return super().list_directory(path) if self.server.lists else self.send_error(404)

    def log_message(self, format, *args):
        pass

    def log_request(self, code="-", size="-"):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))


@pytest.fixture
def http(tmp_path):
    """A server of the folder `served`; `server.url` is its address, `server.requests` what it was asked."""
    (tmp_path / "served").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(tmp_path / "served")))
    server.folder, server.url = tmp_path / "served", f"http://127.0.0.1:{server.server_port}"
    server.requests, server.lists, server.tells_versions, server.promised = [], False, True, 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def s3():
    """A bucket `climate` on a local S3 server; fsspec finds it by its configuration, as a user would set it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "nobody", "secret": "nothing"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}", **options})
        files = fsspec.filesystem("s3")
        files.mkdir("climate")
        yield files
    server.stop()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIMAPRED_CACHE", str(tmp_path / "cache"))


def _nothing():
    return contextlib.nullcontext()


def fetched(server) -> list[str]:
    """Return the paths whose content was asked for."""
    return [path for command, path, _ in server.requests if command == "GET"]


@pytest.mark.parametrize("format", ["NETCDF4", "NETCDF3_CLASSIC"])
def test_netcdf_over_http_is_fetched_once(http, format):
    make_dataset().to_netcdf(http.folder / "a.nc", format=format)
    for _ in range(2):
        xr.testing.assert_equal(open_source(f"{http.url}/a.nc").load(), make_dataset())
    assert fetched(http) == ["/a.nc"]
    (copy,) = (cache_folder() / "files").rglob("a.nc")
    assert copy.read_bytes() == (http.folder / "a.nc").read_bytes()


def test_changed_file_is_fetched_anew_and_the_old_copy_goes(http):
    url = f"{http.url}/a.nc"
    make_dataset().to_netcdf(http.folder / "a.nc")
    before = source_identity(url)
    open_source(url)
    changed = make_dataset() + 1
    changed.to_netcdf(http.folder / "a.nc")
    xr.testing.assert_equal(open_source(url).load(), changed)
    assert source_identity(url) != before
    assert len(list((cache_folder() / "files").rglob("*.nc"))) == 1


def test_file_without_a_version_is_never_trusted_to_be_the_same(http):
    http.tells_versions = False
    make_dataset().to_netcdf(http.folder / "a.nc")
    for _ in range(2):
        open_source(f"{http.url}/a.nc")
    assert fetched(http) == ["/a.nc", "/a.nc"]


def test_damaged_copy_is_fetched_anew(http):
    make_dataset().to_netcdf(http.folder / "a.nc")
    copy = RemoteFile(f"{http.url}/a.nc").local_copy()
    copy.write_bytes(copy.read_bytes()[:100])
    xr.testing.assert_equal(open_source(f"{http.url}/a.nc").load(), make_dataset())


def test_grib_over_http(http):
    write_grib(http.folder / "f.grib", {"shortName": "2t", "dataDate": 20200131})
    dataset = open_source(f"{http.url}/f.grib?version=1", variables=["t2m"])
    np.testing.assert_array_equal(dataset.t2m.values.ravel(), np.arange(1.0, 497))
    assert expand_paths(f"{http.url}/f.grib?version=1")[0].name == "f.grib"


@pytest.mark.parametrize("version", [2, 3])
def test_consolidated_zarr_over_http_is_read_chunk_by_chunk(http, version):
    with (
        pytest.warns() if version == 3 else _nothing()
    ):  # consolidated metadata are no part of the v3 specification yet
        make_dataset().chunk(time=2).to_zarr(http.folder / "a.zarr", zarr_format=version, consolidated=True)
    dataset = open_source(f"{http.url}/a.zarr", block=2)
    chunks = [path for path in fetched(http) if "/t2m/" in path and path[-1].isdigit()]
    assert chunks == []
    xr.testing.assert_equal(dataset.isel(time=[2, 3]).load(), make_dataset().isel(time=[2, 3]))
    chunks = [path for path in fetched(http) if "/t2m/" in path and path[-1].isdigit()]
    assert len(chunks) == 1
    xr.testing.assert_equal(dataset.load(), make_dataset())
    assert not (cache_folder() / "files").exists()


def test_sharded_zarr_over_http_reads_ranges(http):
    dataset = make_dataset(count=64)
    encoding = {"t2m": {"chunks": (1, 3, 4), "shards": (64, 3, 4), "compressors": ()}}
    with pytest.warns():
        dataset.to_zarr(http.folder / "a.zarr", zarr_format=3, consolidated=True, encoding=encoding)
    one = open_source(f"{http.url}/a.zarr", block=1).t2m[5].load()
    np.testing.assert_array_equal(one, dataset.t2m[5])
    ranges = [wanted for _, path, wanted in http.requests if "/t2m/c" in path]
    assert ranges
    assert None not in ranges


def test_zarr_over_http_that_lists_nothing_must_be_consolidated(http):
    make_dataset().to_zarr(http.folder / "a.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(ValueError, match=r"a.zarr is a zarr source, but .*no arrays are found; .*consolidate_metadata"):
        open_source(f"{http.url}/a.zarr")


def test_pattern_over_http_follows_the_links_of_the_folder(http):
    http.lists = True
    for number, start in ((2, "2020-01-03"), (10, "2020-01-05"), (1, "2020-01-01")):
        make_dataset(start).to_netcdf(http.folder / f"t.{number}.nc")
    assert [file.name for file in expand_paths(f"{http.url}/t.*.nc")] == ["t.1.nc", "t.2.nc", "t.10.nc"]
    assert open_source(f"{http.url}/t.*.nc").sizes["time"] == 24


def test_what_is_not_there_is_named(http, s3):
    with pytest.raises(FileNotFoundError, match=r"127.0.0.1:\d+/absent.nc is neither a file nor a Zarr store"):
        open_source(f"{http.url}/absent.nc")
    with pytest.raises(FileNotFoundError, match=r"absent.nc is neither"):
        source_identity(f"{http.url}/absent.nc")
    with pytest.raises(FileNotFoundError, match=r"no file matches 's3://climate/absent-\*.nc'"):
        open_source("s3://climate/absent-*.nc")
    with pytest.raises(OSError, match=r"http://127.0.0.1:9/a.nc cannot be read: .*Connect"):
        open_source("http://127.0.0.1:9/a.nc")
    with pytest.raises(OSError, match=r"nonsense://a.nc cannot be read: .*Protocol not known"):
        open_source("nonsense://a.nc")


def test_a_copy_that_is_cut_short_is_an_error(http):
    make_dataset().to_netcdf(http.folder / "a.nc")
    size, http.promised = (http.folder / "a.nc").stat().st_size, 5
    with pytest.raises(OSError, match=rf"a.nc cannot be read: .*only {size} of {size + 5} bytes came"):
        open_source(f"{http.url}/a.nc")
    assert not [path for path in (cache_folder() / "files").rglob("*") if path.is_file()]


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match=r"gs://bucket/a.nc needs .*pip install 'climapred\[cloud\]'"):
        open_source("gs://bucket/a.nc")


def test_files_and_patterns_on_s3(s3, tmp_path):
    for number, start in ((2, "2020-01-03"), (10, "2020-01-05"), (1, "2020-01-01")):
        make_dataset(start).to_netcdf(tmp_path / "a.nc")
        s3.put_file(str(tmp_path / "a.nc"), f"climate/ncep/t.{number}.nc")
    files = expand_paths(["s3://climate/ncep/t.[0-9]*.nc"])
    assert list(map(str, files)) == [f"s3://climate/ncep/t.{number}.nc" for number in (1, 2, 10)]
    dataset = open_source("s3://climate/ncep/*.nc")
    assert dataset.sizes["time"] == 24
    xr.testing.assert_equal(dataset.isel(time=slice(8)).load(), make_dataset())
    (identity,) = source_identity("s3://climate/ncep/t.1.nc")
    assert set(identity) == {"name", "size", "etag", "modified"}
    json.dumps(identity)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr_on_s3(s3, tmp_path, version, consolidated):
    with pytest.warns() if version == 3 and consolidated else _nothing():
        make_dataset().chunk(time=4).to_zarr(tmp_path / "a.zarr", zarr_format=version, consolidated=consolidated)
    url = f"s3://climate/{version}{consolidated}.zarr"
    s3.put(str(tmp_path / "a.zarr"), url, recursive=True)
    xr.testing.assert_equal(open_source(url).load(), make_dataset())
    (before,) = source_identity(url)
    assert set(before) == {"name", "metadata_sha256"}


def test_grib_on_s3_has_its_table_in_the_cache(s3, tmp_path):
    path = write_grib(tmp_path / "f.grib", *({"shortName": "2t", "dataTime": 600 * n} for n in range(3)))
    s3.put_file(str(path), "climate/f.grib")
    assert open_source("s3://climate/f.grib").t2m.shape == (3, 31, 16)
    assert len(list((cache_folder() / "grib").iterdir())) == 1


def test_a_folder_on_s3_that_is_no_store_is_named(s3):
    s3.pipe_file("climate/folder/a.txt", b"text")
    with pytest.raises(FileNotFoundError, match=r"s3://climate/folder is neither a file nor a Zarr store"):
        open_source("s3://climate/folder")


def test_urls_are_told_from_paths():
    assert all(map(is_url, ("http://a/b", "https://a/b", "s3://a/b", "gs://a", "memory://a")))
    assert not any(map(is_url, ("a/b", "/a//b", "C:/a", "C:\\a", "~/a", Path("s3:/a"))))
    assert expand_url("https://host/a.nc?first=[1]") == [RemoteFile("https://host/a.nc?first=[1]")]
