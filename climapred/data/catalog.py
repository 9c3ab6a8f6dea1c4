"""Catalogs of data sources: YAML in intake's version-1 shape, read as data and nothing else.

A catalog names no Python class and holds no template language: ``{{ CATALOG_DIR }}`` and the entry's own parameters are
filled in as text, environment variables as the shell would. ``intake.open_catalog`` opens the same file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xarray as xr
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from climapred.data.sources import open_source


class _Parameter(BaseModel):
    model_config = ConfigDict(extra="forbid")
    description: str
    type: Literal["str"] = "str"
    default: str


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")
    urlpath: str | list[str]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    description: str
    driver: Literal["netcdf", "grib", "zarr"]
    args: _Arguments
    parameters: dict[str, _Parameter] = {}
    metadata: dict[str, Any] = {}


class _Catalog(BaseModel):
    model_config = ConfigDict(extra="forbid")
    metadata: dict[str, Any] = {}
    sources: dict[str, _Entry]


@dataclass(frozen=True)
class CatalogEntry:
    """One source of a catalog.

    Attributes:
        name, description, driver, metadata: as in the file.
        templates: paths with ``{{ parameter }}`` still in them.
        parameters: name -> (description, default).
        folder: of the catalog.
    """

    name: str
    description: str
    driver: str
    templates: tuple[str, ...]
    parameters: Mapping[str, tuple[str, str]]
    metadata: Mapping[str, Any]
    folder: Path

    def paths(self, **parameters: str) -> list[str]:
        """Return the paths with parameters and environment variables filled in.

        Raises:
            ValueError: for an unknown parameter, or an environment variable that is not set.
        """
        if unknown := set(parameters) - set(self.parameters):
            raise ValueError(
                f"catalog entry {self.name!r} has no parameter {', '.join(sorted(unknown))}; "
                f"its parameters: {', '.join(self.parameters) or 'none'}"
            )
        values = {key: default for key, (_, default) in self.parameters.items()} | parameters
        values["CATALOG_DIR"] = str(self.folder)
        return [self._fill(template, values) for template in self.templates]

    def open(self, **parameters: str) -> xr.Dataset:
        """Open the entry lazily with ``open_source``."""
        return open_source(self.paths(**parameters))

    def _fill(self, template: str, values: Mapping[str, str]) -> str:
        filled = os.path.expandvars(re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: values[match[1]], template))
        if unset := re.search(r"\$\{?(\w+)", filled):
            raise ValueError(f"catalog entry {self.name!r}: the environment variable {unset[1]} is not set")
        return filled


def load_catalog(path: str | Path) -> dict[str, CatalogEntry]:
    """Return the checked entries of a catalog by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: names the file and the key of the first fault.
    """
    path = Path(path)
    try:
        catalog = _Catalog.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, fault['loc'])) or 'catalog'}: {fault['msg']}") from error
    return {name: _checked(path, name, entry) for name, entry in catalog.sources.items()}


def _checked(path: Path, name: str, entry: _Entry) -> CatalogEntry:
    urlpath = entry.args.urlpath
    templates = (urlpath,) if isinstance(urlpath, str) else tuple(urlpath)
    used = {key for template in templates for key in re.findall(r"\{\{\s*(.*?)\s*\}\}", template)}
    if unknown := used - set(entry.parameters) - {"CATALOG_DIR"}:
        raise ValueError(
            f"{path}: sources.{name}.args.urlpath: {', '.join(sorted(unknown))} is neither CATALOG_DIR nor a parameter of "
            "the entry; only these are filled in"
        )
    parameters = {key: (value.description, value.default) for key, value in entry.parameters.items()}
    return CatalogEntry(
        name, entry.description, entry.driver, templates, parameters, entry.metadata, path.parent.resolve()
    )
