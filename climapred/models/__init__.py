"""The networks: torch only, plain keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from climapred.models.convlstm import convlstm
from climapred.models.ls_ntp import ls_ntp
from climapred.models.recurrent import EncoderForecaster

MODELS: dict[str, Callable[..., EncoderForecaster]] = {"convlstm": convlstm, "ls_ntp": ls_ntp}

_GRID = ("height", "width")  # given to those that are built for one grid; a convolution fits any


def build_model(name: str, **options: Any) -> EncoderForecaster:
    """Return a network by name; ``options`` are the keywords of its function.

    ``height`` and ``width`` may be given to any model; those that do not depend on the grid ignore them.

    Raises:
        ValueError: for an unknown name or option (the message lists the known ones), or a value of another type.

    >>> build_model("convlstm", channels=1, hidden=8, height=24, width=48).readout
    Conv2d(8, 1, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    known = _parameters(name)
    if unknown := set(options) - set(known) - set(_GRID):
        raise ValueError(f"model {name!r} has no option {', '.join(sorted(unknown))}; its options: {', '.join(known)}")
    required = {key for key, parameter in known.items() if parameter.default is parameter.empty}
    if missing := required - set(options):
        raise ValueError(f"model {name!r} needs {', '.join(sorted(missing))}")
    for key, wanted in get_type_hints(MODELS[name]).items():
        if key in options and type(options[key]) is not wanted:
            raise ValueError(f"option {key} of model {name!r} must be {wanted.__name__}, got {options[key]!r}")
    return MODELS[name](**{key: value for key, value in options.items() if key in known})


def grid_bound(name: str) -> bool:
    """Return whether the weights of a model belong to the points of one grid, so that they fit no other.

    >>> grid_bound("ls_ntp"), grid_bound("convlstm")
    (True, False)
    """
    return bool(set(_GRID) & set(_parameters(name)))


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known models: {', '.join(MODELS)}")
    return inspect.signature(MODELS[name]).parameters
