from pathlib import Path

import pytest
import yaml

from climapred.data.catalog import load_catalog
from climapred.testing import synthetic_temperature, write_ncep

CATALOGS = Path(__file__).parents[2] / "catalogs"


def write(folder: Path, **changes: object) -> Path:
    entry = {
        "description": "air",
        "driver": "netcdf",
        "parameters": {"year": {"description": "a year", "type": "str", "default": "*"}},
        "args": {"urlpath": "{{ CATALOG_DIR }}/air.sig995.{{ year }}.nc"},
    }
    path = folder / "catalog.yaml"
    path.write_text(yaml.safe_dump({"metadata": {"version": 1}, "sources": {"air": entry | changes}}))
    return path


@pytest.mark.parametrize("path", sorted(CATALOGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_catalogs_of_the_project_are_valid(path, monkeypatch):
    monkeypatch.setenv("CLIMAPRED_DATA", "/data")
    entries = load_catalog(path)
    assert entries
    for entry in entries.values():
        assert not any("{{" in filled or "$" in filled for filled in entry.paths())


def test_entry_opens_the_files_of_its_folder_and_a_parameter_selects_a_year(tmp_path):
    fields = synthetic_temperature(start="2001-12-30", periods=16).fields
    write_ncep(fields, tmp_path)
    entry = load_catalog(write(tmp_path))["air"]
    assert entry.open().sizes["time"] == 16
    assert entry.open(year="2001").sizes["time"] == 8


def test_environment_variables_are_filled_in_or_named(tmp_path, monkeypatch):
    entry = load_catalog(write(tmp_path, args={"urlpath": "$SOME_FOLDER/x.nc"}))["air"]
    with pytest.raises(ValueError, match="SOME_FOLDER is not set"):
        entry.paths()
    monkeypatch.setenv("SOME_FOLDER", "/data")
    assert entry.paths() == ["/data/x.nc"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"driver": "my.module.Class"}, r"sources\.air\.driver: Input should be 'netcdf', 'grib' or 'zarr'"),
        ({"module": "os"}, r"sources\.air\.module: Extra inputs are not permitted"),
        (
            {"args": {"urlpath": "{{ env(HOME) }}/x"}},
            r"sources\.air\.args\.urlpath: env\(HOME\) is neither CATALOG_DIR",
        ),
        ({"args": {"urlpath": "{{ month }}.nc"}}, "month is neither CATALOG_DIR nor a parameter"),
    ],
)
def test_faults_name_file_and_key(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_catalog(write(tmp_path, **changes))
    assert "catalog.yaml" in str(caught.value)


def test_unknown_parameter_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no parameter month; its parameters: year"):
        load_catalog(write(tmp_path))["air"].paths(month="1")


def test_what_is_not_yaml_is_said(tmp_path):
    (tmp_path / "catalog.yaml").write_text("sources: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_catalog(tmp_path / "catalog.yaml")
