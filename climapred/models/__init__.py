"""The networks: torch only, plain keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

from climapred.models.agcrn import agcrn
from climapred.models.conv_gru import conv_gru, traj_gru
from climapred.models.convlstm import convlstm
from climapred.models.crevnet import crevnet
from climapred.models.d_convlstm import d_convlstm
from climapred.models.e3d_lstm import e3d_lstm
from climapred.models.fc_lstm import fc_lstm
from climapred.models.ls_ntp import ls_ntp
from climapred.models.mim import mim
from climapred.models.patched import Patched
from climapred.models.phydnet import phydnet
from climapred.models.predrnn import predrnn
from climapred.models.predrnn_pp import predrnn_pp
from climapred.models.recurrent import Network
from climapred.models.sa_convlstm import sa_convlstm
from climapred.models.simvp import simvp
from climapred.models.spatial import close_circle

MODELS: dict[str, Callable[..., Network]] = {
    function.__name__: function
    for function in (
        convlstm,
        ls_ntp,
        fc_lstm,
        conv_gru,
        traj_gru,
        predrnn,
        predrnn_pp,
        mim,
        e3d_lstm,
        phydnet,
        crevnet,
        agcrn,
        sa_convlstm,
        d_convlstm,
        simvp,
    )
}

_GRID = ("height", "width")  # given to those that are built for one grid; a convolution fits any
_WINDOW = ("history", "horizon")  # given to those that are built for one window; a recurrent network fits any
_COMMON = {"patch": 1, "periodic": False}  # options of every model


def build_model(name: str, **options: Any) -> Network:
    """Return a network by name; ``options`` are the keywords of its function, and two that every model has.

    ``patch`` (1): the network sees patches of patch x patch points as one pixel with more channels; see ``Patched``.
    ``periodic`` (False): the grid goes round the globe, so that the last column is followed by the first.
    ``height`` and ``width``, ``history`` and ``horizon`` may be given to any model; those that do not depend on the grid, or
    on the numbers of frames, ignore them.

    Raises:
        ValueError: for an unknown name or option (the message lists the known ones), or a value of another type.

    >>> build_model("convlstm", channels=1, hidden=8, height=24, width=48).readout
    Convolution(8, 1, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    known = _parameters(name)
    if unknown := set(options) - set(known) - {*_GRID, *_WINDOW, *_COMMON}:
        listed = ", ".join([*known, *_COMMON])
        raise ValueError(f"model {name!r} has no option {', '.join(sorted(unknown))}; its options: {listed}")
    required = {key for key, parameter in known.items() if parameter.default is parameter.empty}
    if missing := required - set(options):
        raise ValueError(f"model {name!r} needs {', '.join(sorted(missing))}")
    for key, wanted in (get_type_hints(MODELS[name]) | {key: type(value) for key, value in _COMMON.items()}).items():
        kinds = get_args(wanted) or (wanted,)
        if key in options and not any(_is_a(options[key], kind) for kind in kinds):
            listed = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"option {key} of model {name!r} must be {listed}, got {options[key]!r}")
    network = _patched(name, {key: value for key, value in options.items() if key in known}, options.get("patch", 1))
    if options.get("periodic"):
        close_circle(network)
    return network


def _is_a(value: Any, wanted: type) -> bool:
    """Return whether an option has its type: a truth value is no number, but a whole number is one."""
    return type(value) is wanted or (wanted is float and type(value) is int)


def _patched(name: str, options: dict[str, Any], patch: int) -> Network:
    if patch == 1:
        return MODELS[name](**options)
    if grid_bound(name):
        raise ValueError(f"model {name!r} has weights for every point of the grid and takes no patch, got {patch}")
    if patch < 1:
        raise ValueError(f"patch must be at least 1, got {patch}")
    defaults = {"channels": 1, "forcings": 0}
    counts = {key: options.get(key, default) * patch**2 for key, default in defaults.items()}
    return Patched(MODELS[name](**{**options, **counts}), patch)


def grid_bound(name: str) -> bool:
    """Return whether the weights of a model belong to the points of one grid, so that they fit no other.

    >>> grid_bound("ls_ntp"), grid_bound("convlstm")
    (True, False)
    """
    return bool(set(_GRID) & set(_parameters(name)))


def has_option(name: str, option: str) -> bool:
    """Return whether a model has an option of this name."""
    return option in _parameters(name) or option in _COMMON


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known models: {', '.join(MODELS)}")
    return inspect.signature(MODELS[name]).parameters
