"""The import rules of the house: what each module may import, at its top or inside a function."""

import ast
from pathlib import Path

import pytest

import climapred

PACKAGE = Path(climapred.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each room may import besides itself; the arrows point one way.
VOCABULARY = {"variables", "grid", "reduced", "calendar", "whole"}
ROOMS: dict[str, set[str]] = {
    "variables": set(),
    "grid": set(),
    "reduced": {"grid"},
    "calendar": set(),
    "whole": set(),
    "data": VOCABULARY,
    "models": set(),
    "learning": VOCABULARY | {"data", "models"},
    "results": VOCABULARY,
    "testing": VOCABULARY,
    "recipe": VOCABULARY | {"data"},
    "recipe_file": VOCABULARY | {"recipe"},
    "link_stages": VOCABULARY | {"data", "models", "learning", "results", "recipe"},
    "stages": VOCABULARY | {"data", "models", "learning", "results", "testing", "recipe", "link_stages"},
    "verification": VOCABULARY | {"data", "results", "recipe", "stages"},
    "pipeline": VOCABULARY
    | {"data", "models", "learning", "results", "recipe", "recipe_file", "link_stages", "stages", "verification"},
    "cli": VOCABULARY | {"data", "models", "learning", "results", "recipe", "recipe_file", "stages", "pipeline"},
}

# Each heavy library and the modules (or rooms) that own it.
OWNERS: dict[str, set[str]] = {
    "torch": {"models", "learning"},
    "safetensors": {"learning"},
    "lightning": {"learning.training", "learning.callbacks"},
    "eccodes": {"data.grib", "data.messages", "testing"},
    "cfgrib": {"data.grib"},
    "zarr": {"data.store", "data.shards", "learning.loader"},
    "numcodecs": {"data.shards", "data.workers"},
    "matplotlib": {
        "results.maps",
        "results.links.maps",
        "results.geography",
        "results.sheet",
        "results.curves",
        "results.animation",
    },
    "PIL": {"results.animation"},
    "cartopy": {"results.maps", "results.geography"},
    "pydantic": {"recipe", "recipe_file", "data.catalog"},
    "yaml": {"recipe_file", "data.catalog"},
    "distributed": {"data.build", "pipeline", "stages"},
    "dask.distributed": {"data.build", "pipeline", "stages"},
}
NOT_IN_MODELS = ("xarray", "pydantic", "yaml", "os", "pathlib", "json")
FORBIDDEN = ("pipelines", "examples", "tests", "benchmarks")
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def imports(source: str, package: str) -> set[str]:
    """Return every module that ``source`` imports when it runs, also inside functions, as absolute dotted names.

    ``package`` is the one that relative imports start from. ``from a import b`` counts as a.b: b may be a module. What
    stands under ``if TYPE_CHECKING`` is for the type checker alone and does not count.
    """
    found, tree = set(), ast.parse(source)
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            home = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {f"{home}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


def within(module: str, places: set[str] | tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def violations(module: str, source: str) -> list[str]:
    """Return what the module ``module`` (dotted, below climapred) must not import, one line each."""
    room = module.split(".")[0]
    package = f"climapred.{module}" if f"climapred.{module}" in PACKAGES else f"climapred.{module}".rpartition(".")[0]
    problems = [] if not VAGUE & set(module.split(".")) else [f"{module} says nothing: name it after what it holds"]
    for name in sorted(imports(source, package)):
        if within(name, FORBIDDEN):
            problems.append(f"{module} imports {name}: nothing in the package may")
        if name.startswith("climapred."):
            target = name.split(".")[1]
            if target != room and target not in ROOMS.get(room, set()):
                problems.append(f"{module} imports {name}: the arrow points the other way")
        for library, owners in OWNERS.items():
            if within(name, (library,)) and not within(module, owners):
                problems.append(f"{module} imports {name}: {library} belongs to {', '.join(sorted(owners))}")
        if room == "models" and within(name, NOT_IN_MODELS):
            problems.append(f"{module} imports {name}: models take plain tensors and keywords")
    return problems


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PACKAGES = {f"climapred.{dotted(path)}".rstrip(".") for path in MODULES if path.name == "__init__.py"}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_follow_the_house(path):
    assert violations(dotted(path), path.read_text(encoding="utf-8")) == []


def test_every_room_has_rules():
    assert {dotted(path).split(".")[0] for path in MODULES} - {""} <= set(ROOMS)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("results.cf", "import climapred.learning.forecast", "arrow points the other way"),
        ("results.cf", "def f():\n    from climapred.models import build_model", "arrow points the other way"),
        ("results.cf", "from climapred import data", "arrow points the other way"),
        ("results.cf", "from ..data import store", "arrow points the other way"),
        ("results.cf", "import torch.nn as nn", "torch belongs to learning, models"),
        ("data.store", "from climapred.recipe import Recipe", "arrow points the other way"),
        ("data.store", "import importlib\nimportlib.import_module('torch')", "torch belongs to"),
        ("data.regrid", "import zarr", "zarr belongs to data.shards, data.store, learning.loader"),
        ("data.harmonise", "class A:\n    def f(self):\n        import eccodes", "eccodes belongs to"),
        ("data.regrid", "from dask import distributed", "dask.distributed belongs to"),
        (
            "learning.forecast",
            "from lightning.pytorch import Trainer",
            "lightning belongs to learning.callbacks, learning",
        ),
        ("learning.forecast", "from climapred.results.cf import to_cf", "arrow points the other way"),
        ("learning.forecast", "import climapred.testing", "arrow points the other way"),
        ("models.convlstm", "import xarray as xr", "models take plain tensors"),
        ("models.convlstm", "from climapred.grid import Grid", "arrow points the other way"),
        ("grid", "from climapred.data.store import open_store", "arrow points the other way"),
        ("pipeline", "from climapred.cli import app", "arrow points the other way"),
        ("recipe", "from climapred.pipeline import run", "arrow points the other way"),
        (
            "stages",
            "import matplotlib.pyplot",
            "matplotlib belongs to results.animation, results.curves, results.geography, results.links.maps, results.maps",
        ),
        ("cli", "import yaml", "yaml belongs to data.catalog, recipe_file"),
        ("cli", "import tests.test_cli", "nothing in the package may"),
        ("data.utils", "", "says nothing"),
    ],
)
def test_a_planted_violation_is_found(module, source, complaint):
    found = violations(module, source)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("results.maps", "from climapred.results.geography import Geography\nimport cartopy.crs"),
        ("stages", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from matplotlib.figure import Figure"),
        ("stages", "def f():\n    from climapred.results.maps import plot_field\n    from climapred import testing"),
        ("learning.training", "import lightning\nimport torch\nfrom climapred.data.store import open_store"),
        ("data.build", "from distributed import Client\nfrom . import store\nfrom .regrid import regrid"),
        ("testing.files", "import eccodes\nfrom climapred.testing import weather"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert violations(module, source) == []
