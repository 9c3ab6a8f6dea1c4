"""A trained model as a folder: model.safetensors (weights and statistics) and model.json (everything else)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors.torch import load_file, save_file

from climapred.grid import Grid
from climapred.learning.windows import Window
from climapred.models import build_model
from climapred.models.scaled import Inputs, Scaled, Target

FORMAT = 1

_GRID_AXES = ("latitude", "longitude", "latitude_bounds", "longitude_bounds")


@dataclass(frozen=True)
class Scaling:
    """What a network sees and predicts; see ``climapred.models.scaled.Scaled``."""

    inputs: Inputs = "anomaly"
    target: Target = "change"


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network with all that is needed to forecast with it.

    Attributes:
        name: what the recipe calls it.
        architecture, options: as ``build_model`` takes them.
        scaling, orders: what the network sees, and the (annual, daily) harmonics of its climatology (None without one).
        variables: channels, canonical names in order.
        grid, window, step: of the training data.
        module: the network between physical fields.
        training: identity of the training data and how it was trained.
    """

    name: str
    architecture: str
    options: dict[str, Any]
    scaling: Scaling
    orders: tuple[int, int] | None
    variables: tuple[str, ...]
    grid: Grid
    window: Window
    step: np.timedelta64
    module: Scaled
    training: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> str:
        """Return a hash of weights and statistics."""
        digest = hashlib.sha256()
        for key, value in sorted(self.module.state_dict().items()):
            digest.update(key.encode() + value.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def adjacency(self) -> np.ndarray | None:
        """Return the learned adjacency (N, N), row = target, nodes in C order of the grid; None if the model has none."""
        shared = getattr(self.module.network, "shared", None)
        if shared is None:
            return None
        with torch.no_grad():
            weights: np.ndarray = shared().float().cpu().numpy()
        return weights


def scaled_network(
    architecture: str,
    options: dict[str, Any],
    *,
    scaling: Scaling,
    statistics: xr.Dataset,
    variables: tuple[str, ...],
    seed: int,
) -> tuple[Scaled, tuple[int, int] | None]:
    """Return an untrained network between physical fields, and the orders of the calendar it takes.

    Raises:
        ValueError: for an unknown architecture or option, or statistics that lack a variable.
    """
    if missing := set(variables) - set(statistics["variable"].values):
        known = ", ".join(statistics["variable"].values)
        raise ValueError(f"the statistics lack {', '.join(sorted(missing))}; they hold {known}")
    if given := {"channels", "height", "width"} & set(options):
        raise ValueError(f"options of {architecture}: {', '.join(sorted(given))} come from the data, leave them out")
    torch.manual_seed(seed)
    chosen = statistics.sel(variable=list(variables))
    height, width = statistics.sizes["latitude"], statistics.sizes["longitude"]
    network = build_model(architecture, channels=len(variables), height=height, width=width, **options)
    orders = None
    if scaling.inputs == "anomaly":
        orders = (
            int(statistics["climatology"].attrs["annual"]),
            int(statistics["climatology"].attrs["daily"]),
        )
        reference = chosen["climatology"].transpose("harmonic", "variable", "latitude", "longitude").values
        scale = chosen["anomaly_std"].values
    else:
        low = chosen["minimum" if scaling.inputs == "minmax" else "mean"].values
        reference = low[None, :, None, None]
        scale = chosen["maximum"].values - low if scaling.inputs == "minmax" else chosen["std"].values
    module = Scaled(network, reference=torch.tensor(reference), scale=torch.tensor(scale), target=scaling.target)
    return module, orders


def save_model(model: TrainedModel, folder: str | Path) -> Path:
    """Write ``model`` to ``folder``; until the last file is there, the folder holds no model rather than half of one."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description, weights = folder / "model.json", folder / "model.safetensors"
    description.unlink(missing_ok=True)
    save_file({key: value.contiguous() for key, value in model.module.state_dict().items()}, folder / "model.tmp")
    os.replace(folder / "model.tmp", weights)
    content = {
        "format": FORMAT,
        "name": model.name,
        "architecture": model.architecture,
        "options": model.options,
        "scaling": asdict(model.scaling),
        "orders": model.orders,
        "variables": model.variables,
        "grid": {name: getattr(model.grid, name).tolist() for name in _GRID_AXES},
        "window": asdict(model.window),
        "step_seconds": int(model.step / np.timedelta64(1, "s")),
        "training": model.training,
        "versions": {name: importlib.metadata.version(name) for name in ("climapred", "torch", "xarray", "numpy")},
        "weights_sha256": _file_hash(weights),
    }
    (folder / "model.json.tmp").write_text(json.dumps(content, indent=1))
    os.replace(folder / "model.json.tmp", description)
    return folder


def load_model(folder: str | Path) -> TrainedModel:
    """Return the trained model in ``folder``.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if it was written by a newer climapred, or weights and description do not belong together.
    """
    folder = Path(folder)
    description, weights = folder / "model.json", folder / "model.safetensors"
    for path in (description, weights):
        if not path.exists():
            raise FileNotFoundError(
                f"no trained model in {folder}: {path.name} is missing; train it with `climapred run`"
            )
    content = json.loads(description.read_text())
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{description} has format {content.get('format')!r}, this climapred reads {FORMAT}; update climapred"
        )
    if _file_hash(weights) != content["weights_sha256"]:
        raise ValueError(f"{weights} is not the file that {description.name} describes; copy both again or train again")
    grid = Grid(**{name: np.array(content["grid"][name]) for name in _GRID_AXES})
    tensors = load_file(weights)
    variables = tuple(content["variables"])
    height, width = grid.shape
    network = build_model(
        content["architecture"], channels=len(variables), height=height, width=width, **content["options"]
    )
    scaling = Scaling(**content["scaling"])
    module = Scaled(network, reference=tensors["reference"], scale=tensors["scale"].flatten(), target=scaling.target)
    module.load_state_dict(tensors)
    return TrainedModel(
        name=content["name"],
        architecture=content["architecture"],
        options=content["options"],
        scaling=scaling,
        orders=None if content["orders"] is None else tuple(content["orders"]),
        variables=variables,
        grid=grid,
        window=Window(**content["window"]),
        step=np.timedelta64(content["step_seconds"], "s"),
        module=module.eval(),
        training=content["training"],
    )


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
