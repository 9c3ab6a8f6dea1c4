"""A trained model as a folder: model.safetensors (weights and statistics) and model.json (everything else)."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn

from climapred.data.regrid import Method, Regridder
from climapred.grid import Array, Grid
from climapred.learning.dataset import Forcing
from climapred.learning.files import blaming, check_tensors, outline, read_model, write_model
from climapred.learning.windows import Window
from climapred.models import build_model, grid_bound
from climapred.models.adjacency import LearnedAdjacency
from climapred.models.low_rank import LowRankAdjacency
from climapred.models.scaled import Inputs, Missing, Scaled, Target
from climapred.variables import VARIABLES

if TYPE_CHECKING:
    from climapred.learning.training import Precision

FORMAT = 1

_MOST_NODES = 2**14
_PAIRS_AT_ONCE = 2**22
_GRID_AXES = ("latitude", "longitude", "latitude_bounds", "longitude_bounds")


@dataclass(frozen=True)
class Scaling:
    """What a network sees and predicts.

    Attributes:
        inputs, target, missing: see ``climapred.models.scaled.Scaled``.
        forcings: what it sees besides the variables, see ``climapred.learning.dataset.forcing_channels``.
    """

    inputs: Inputs = "anomaly"
    target: Target = "change"
    forcings: tuple[Forcing, ...] = ()
    missing: Missing = "refuse"

    def __post_init__(self) -> None:
        for name, known in (("inputs", get_args(Inputs)), ("target", get_args(Target)), ("missing", get_args(Missing))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if len(set(self.forcings)) < len(self.forcings) or set(self.forcings) - set(get_args(Forcing)):
            raise ValueError(f"forcings must be of {', '.join(get_args(Forcing))}, each once, got {self.forcings}")


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network with all that is needed to forecast with it.

    Attributes:
        name: what the recipe calls it.
        architecture, options: as ``build_model`` takes them.
        scaling, orders: what the network sees, and the (annual, daily) harmonics of its climatology (None without one).
        variables: channels, canonical names in order.
        grid, window, step: of the training data; ``on_grid`` changes the grid.
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
        """Return a hash of all that a forecast depends on: weights, statistics and every setting, but not the name."""
        content = {**_settings(self), "grid": self.grid.hash}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        for key, value in sorted(self.module.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def adjacency(self) -> np.ndarray | None:
        """Return the learned adjacency (N, N), row = target, nodes in C order of ``node_grid``; None if the model has none.

        Of signed weights ("low_rank") the modulus: the layers beside them may turn every sign round, so that alone it means
        nothing, and differs from seed to seed.

        Raises:
            ValueError: for more than 16,384 nodes, where it would take more than a GiB.
        """
        if not self.has_adjacency:
            return None
        if self.node_grid.size > _MOST_NODES:
            raise ValueError(f"the adjacency of {self.node_grid} is too large for one array; take adjacency_rows()")
        return np.concatenate([*self.adjacency_rows()])

    @property
    def has_adjacency(self) -> bool:
        """Whether the model learned one."""
        return getattr(self.module.network, "shared", None) is not None

    def adjacency_rows(self) -> Iterator[np.ndarray]:
        """Yield the rows of ``adjacency`` in order, (rows, N) float32, a few at a time: it may be larger than memory.

        Raises:
            ValueError: if the model has none.
        """
        if not self.has_adjacency:
            raise ValueError(f"model {self.name} has no adjacency; LS-NTP with the long range, or AGCRN, learns one")
        with torch.no_grad():  # not over a yield: whoever takes a row would have no gradients until the last
            made = self.module.network.shared()  # type: ignore[operator]
        made = getattr(made, "adjacency", made)  # AGCRN's stands among its weights
        take = made.__getitem__ if isinstance(made, Tensor) else made.block
        count = max(1, _PAIRS_AT_ONCE // self.node_grid.size)
        for start in range(0, self.node_grid.size, count):
            weights = take(slice(start, start + count))
            yield (weights.abs() if isinstance(made, LowRankAdjacency) else weights).float().cpu().numpy()

    @property
    def node_grid(self) -> Grid:
        """The points that the adjacency links: those of the grid, or every other one (LS-NTP's ``downsample``)."""
        axes = _node_axes(self.options, self.grid.latitude, self.grid.longitude)
        return self.grid if len(axes[0]) == self.grid.shape[0] else Grid(*axes)

    def forecast(
        self,
        fields: xr.Dataset,
        init_times: npt.ArrayLike | None = None,
        *,
        steps: int | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> xr.Dataset:
        """Return forecasts from ``fields``, over any number of ``steps``; see ``climapred.learning.forecast.forecast``."""
        from climapred.learning.forecast import forecast

        return forecast(self, fields, init_times, steps=steps, batch_size=batch_size, precision=precision)

    def on_grid(self, grid: Grid, method: Method = "bilinear") -> TrainedModel:
        """Return a model with the same weights for fields on another grid; ``training`` keeps the grid it learned on.

        The climatology is regridded, and that is all. A convolution sees cells, not kilometres: on cells of another size
        its 3 x 3 neighbourhood is another piece of weather, which nobody has trained it for. The same spacing in another
        place, or a larger region, is what this is for; at another spacing, check the scores before you believe them.

        Args:
            grid: of the fields to come; must lie inside the model's own where the model has a climatology.
            method: of the regridding, see ``climapred.data.regrid.Regridder``.

        Raises:
            ValueError: if the weights belong to the grid they were trained on (LS-NTP), or the climatology does not
                cover ``grid``.
        """
        if grid == self.grid:
            return self
        if grid_bound(self.architecture):
            raise ValueError(
                f"model {self.name} cannot move to {grid}: the weights of {self.architecture} belong to the points they were "
                f"trained on, an adjacency holds one learned vector for each of the {self.grid.shape[0]} x "
                f"{self.grid.shape[1]} points of {self.grid}; regrid the fields instead: climapred.regrid(fields, model.grid)"
            )
        module = copy.deepcopy(self.module)
        for name, values in self.module.named_buffers(recurse=False):
            if values.shape[-2:] == self.grid.shape:  # else a constant, (..., 1, 1)
                moved = torch.tensor(Regridder(self.grid, grid, method)(values.cpu().numpy()), device=values.device)
                outside = int((~moved.isfinite()).flatten(0, -3).any(0).sum())
                if outside:
                    raise ValueError(
                        f"model {self.name} cannot move to {grid}: {outside} of its {grid.size} points lie outside "
                        f"{self.grid}, where the model's climatology is known; choose a region inside"
                    )
                setattr(module, name, moved)
        return replace(self, grid=grid, module=module, training={"trained_on": _axes(self.grid), **self.training})


def _axes(grid: Grid) -> dict[str, list[float]]:
    return {name: getattr(grid, name).tolist() for name in _GRID_AXES}


def _settings(model: TrainedModel) -> dict[str, Any]:
    """Return all that a forecast depends on besides the tensors, as model.json holds it."""
    return {
        "architecture": model.architecture,
        "options": model.options,
        "scaling": asdict(model.scaling),
        "orders": model.orders,
        "variables": model.variables,
        "grid": _axes(model.grid),
        "window": asdict(model.window),
        "step_seconds": int(model.step / np.timedelta64(1, "s")),
    }


def scaled_network(
    architecture: str,
    options: dict[str, Any],
    *,
    scaling: Scaling,
    statistics: xr.Dataset,
    variables: tuple[str, ...],
    window: Window,
    seed: int,
) -> tuple[Scaled, tuple[int, int] | None]:
    """Return an untrained network between physical fields, and the orders of the calendar it takes.

    Raises:
        ValueError: for an unknown architecture or option, or statistics that lack a variable.
    """
    if missing := set(variables) - set(statistics["variable"].values):
        known = ", ".join(statistics["variable"].values)
        raise ValueError(f"the statistics lack {', '.join(sorted(missing))}; they hold {known}")
    torch.manual_seed(seed)
    chosen = statistics.sel(variable=list(variables))
    axes = (statistics["latitude"].values, statistics["longitude"].values)
    network = _network(architecture, options, len(variables), scaling, axes, window)
    orders = None
    if scaling.inputs == "anomaly":
        annual, daily = (int(statistics["climatology"].attrs[name]) for name in ("annual", "daily"))
        orders = (annual, daily)
        reference = chosen["climatology"].transpose("harmonic", "variable", "latitude", "longitude").values
        scale = chosen["anomaly_std"].values
    else:
        low = chosen["minimum" if scaling.inputs == "minmax" else "mean"].values
        reference = low[None, :, None, None]
        scale = chosen["maximum"].values - low if scaling.inputs == "minmax" else chosen["std"].values
    return _scaled(network, torch.tensor(reference), torch.tensor(scale), scaling), orders


def _network(
    architecture: str,
    options: dict[str, Any],
    channels: int,
    scaling: Scaling,
    axes: tuple[Array, Array],
    window: Window,
) -> nn.Module:
    height, width = map(len, axes)
    sizes = {"channels": channels, "forcings": 2 * len(scaling.forcings), "height": height, "width": width}
    sizes |= {"history": window.history, "horizon": window.horizon}
    if given := set(sizes) & set(options):
        raise ValueError(f"options of {architecture}: {', '.join(sorted(given))} come from the data, leave them out")
    network = build_model(architecture, **sizes, **options)
    shared = getattr(network, "shared", None)
    if isinstance(shared, LearnedAdjacency) and shared.max_km < math.inf:
        shared.place(*map(torch.tensor, _node_axes(options, *axes)))
    return network


def _node_axes(options: dict[str, Any], *axes: Array) -> tuple[Array, ...]:
    """Return the latitudes and longitudes of the nodes: those in the middle of a kernel of stride 2 where there is one."""
    if not options.get("downsample"):
        return axes
    edge = options.get("kernel", 3) // 2
    return tuple(axis[edge : len(axis) - edge : 2] for axis in axes)


def _scaled(network: nn.Module, reference: Tensor, scale: Tensor, scaling: Scaling) -> Scaled:
    return Scaled(network, reference=reference, scale=scale, target=scaling.target, missing=scaling.missing)


def save_model(model: TrainedModel, folder: str | Path) -> Path:
    """Write ``model`` to ``folder`` and return it; until the new model is there whole, ``load_model`` finds the older one.

    That holds for a full disk, and for a kill at any moment. Two processes must not save into one folder at a time.
    """
    content = {
        "format": FORMAT,
        "name": model.name,
        **_settings(model),
        "training": model.training,
        "versions": {name: importlib.metadata.version(name) for name in ("climapred", "torch", "xarray", "numpy")},
    }
    write_model(Path(folder), content, model.module.state_dict())
    return Path(folder)


def load_model(folder: str | Path) -> TrainedModel:
    """Return the trained model in ``folder``. Safe with files from anywhere: they are read as text and numbers, never run.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if it was written by a newer climapred, if weights and description do not belong together, or if
            anything in them is not as ``save_model`` writes it; the message names file, key, and what was wanted.
    """
    path, content, tensors = read_model(Path(folder), _Description, version=FORMAT)
    with blaming(path):
        module = _restored(content, tensors)
    given = {name: value for name, value in vars(content).items() if name in TrainedModel.__dataclass_fields__}
    return TrainedModel(**given, step=np.timedelta64(content.step_seconds, "s"), module=module)


@dataclass(frozen=True)
class _Description:
    """What model.json holds."""

    format: int
    name: str
    architecture: str
    options: dict[str, Any]
    scaling: Scaling
    orders: tuple[int, int] | None
    variables: tuple[str, ...]
    grid: Grid
    window: Window
    step_seconds: int
    training: dict[str, Any]
    versions: dict[str, Any]
    weights_sha256: str

    def __post_init__(self) -> None:
        names, needs_orders = set(self.variables), self.scaling.inputs == "anomaly"
        for key, fits, wanted in (
            (
                "variables",
                0 < len(names) == len(self.variables) and names <= set(VARIABLES),
                f"of {', '.join(VARIABLES)}, each once",
            ),
            ("orders", needs_orders == (self.orders is not None), 'numbers for inputs "anomaly", null for others'),
            ("orders", min(self.orders or (0,)) >= 0, "0 or more"),
            ("step_seconds", 0 < self.step_seconds < 2**31, "1 or more, and below 2^31"),
        ):
            if not fits:
                raise ValueError(f"{key} must be {wanted}, got {getattr(self, key)!r}")


def _restored(content: _Description, tensors: dict[str, Tensor]) -> Scaled:
    """Return the described network with ``tensors``, which are compared with an outline before anything is allocated."""

    def network() -> nn.Module:
        axes = (content.grid.latitude, content.grid.longitude)
        return _network(content.architecture, content.options, channels, content.scaling, axes, content.window)

    channels, one, scaling = len(content.variables), torch.ones(()), content.scaling
    shape = (1, channels, 1, 1)
    if content.orders is not None:
        annual, daily = content.orders
        shape = ((2 * annual + 1) * (2 * daily + 1), channels, *content.grid.shape)
    wanted = _scaled(outline(network, like=tensors), one.expand(shape), one.expand(channels), scaling)
    gaps = {"reference"} if scaling.missing == "mask" else set()  # where no training field had a value
    check_tensors(tensors, wanted.state_dict(), may_have_gaps=gaps)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        module = _scaled(network(), tensors["reference"], tensors["scale"].flatten(), scaling)
    module.load_state_dict(tensors)
    return module.eval()
