"""``import climapred`` is light, gives every public name, and makes the order of eccodes and cartopy safe."""

import subprocess
import sys

import pytest

import climapred

HEAVY = ("torch", "lightning", "matplotlib", "cartopy", "distributed", "dask.distributed", "eccodes", "zarr", "xarray")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_loads_no_heavy_library():
    child = python(f"import sys, climapred; print([name for name in {HEAVY} if name in sys.modules])")
    assert (child.returncode, child.stdout.strip()) == (0, "[]"), child.stderr


@pytest.mark.parametrize("name", climapred.__all__)
def test_public_names_resolve(name):
    found = getattr(climapred, name)
    assert found.__name__ == name
    assert found.__module__.startswith("climapred.")
    assert found.__doc__


def test_dir_lists_public_names():
    assert set(climapred.__all__) <= set(dir(climapred))


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'climapred' has no attribute 'forcast'"):
        climapred.forcast  # noqa: B018


def test_star_import_is_complete():
    names: dict[str, object] = {}
    exec("from climapred import *", names)
    assert set(climapred.__all__) <= set(names)


@pytest.mark.parametrize(
    "code",
    [
        "import climapred.data.grib, climapred.results.maps",
        "import climapred.results.maps, climapred.data.grib",
        "import climapred, eccodes, cartopy.crs",
    ],
    ids=["grib first", "maps first", "libraries"],
)
def test_eccodes_and_cartopy_in_one_process(code):
    """Each brings a PROJ; in the wrong order the interpreter crashes when a projection is used."""
    use = "import cartopy.crs, eccodes; cartopy.crs.Robinson().transform_point(10, 50, cartopy.crs.PlateCarree())"
    child = python(f"{code}\n{use}\nprint(eccodes.codes_get_api_version())")
    assert child.returncode == 0, child.stderr
