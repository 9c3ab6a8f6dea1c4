"""The two files of a trained model: written whole or not at all, read as if anyone had written them.

model.safetensors holds tensors, model.json all else and the hash of model.safetensors. Neither can hold code.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Kind = TypeVar("Kind")

_SHOWN = 5  # names in one message

# A type hint, or its origin -> the types that JSON has for it. True is no int here.
_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    float: (float, int),
    dict: (dict,),
    Literal: (str,),
}


def write_model(folder: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write model.json and model.safetensors; until both are there whole, ``read_model`` finds the older ones.

    Each is written beside its target, then renamed. A kill between the two renames leaves new weights beside the older
    description, and the new description as model.json.tmp: ``_description_of`` knows it by the hash of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, description = folder / "model.safetensors", folder / "model.json"
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    text = json.dumps({**content, "weights_sha256": _hash(data)}, indent=1)
    if (current := _description_of(weights)) != description:
        os.replace(current, description)  # what an interrupted save has left to do
    try:
        _write(_partial(weights), data)
        _write(_partial(description), text.encode())
    except BaseException:
        for path in (weights, description):
            _partial(path).unlink(missing_ok=True)
        raise
    os.replace(_partial(weights), weights)
    os.replace(_partial(description), description)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _description_of(weights: Path) -> Path:
    """Return the description of ``weights``: model.json, or what a save has left that ended between its two renames."""
    description = weights.with_name("model.json")
    left = _partial(description)
    if not (left.is_file() and weights.is_file()):
        return description
    try:
        described = json.loads(left.read_bytes())["weights_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):  # not written to its end
        return description
    return left if described == _hash(weights.read_bytes()) else description


def read_model(folder: Path, kind: type[Kind], *, version: int) -> tuple[Path, Kind, dict[str, Tensor]]:
    """Return the path of the description, what it holds as the dataclass ``kind``, and the tensors.

    Raises:
        FileNotFoundError: if one of the files is missing.
        ValueError: if the description is not as ``kind`` wants it or of another format than ``version``, if the weights
            are not those that it describes, or no safetensors file.
    """
    weights = folder / "model.safetensors"
    description = _description_of(weights)
    for path in (description, weights):
        if not path.is_file():
            raise FileNotFoundError(
                f"no trained model in {folder}: {path.name} is missing; train it with `climapred run`"
            )
    content, data = _read_description(description, kind, version), weights.read_bytes()
    if _hash(data) != content.weights_sha256:  # type: ignore[attr-defined]
        raise ValueError(f"{weights} is not the file that {description.name} describes; copy both again or train again")
    with blaming(weights):
        return description, content, safetensors.torch.load(data)


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with the content of a file into a ValueError that names it and the way out."""
    try:
        yield
    except Exception as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        way_out = "the file is damaged, or was changed after it was written; copy it again or train again"
        raise ValueError(f"{path}: {reason}: {way_out}") from error


def _read_description(path: Path, kind: type[Kind], version: int) -> Kind:
    """Return the JSON object in ``path`` as a dataclass, every key checked against its type hint.

    Hints may be str, bool, int, float, dict, Literal of str, tuples, NumPy arrays of one dimension, dataclasses, and each
    of them ``| None``. Keys of fields with a default may be left out.
    """
    with blaming(path):
        content = json.loads(path.read_bytes())
        found = content.get("format") if isinstance(content, dict) else None
        if type(found) is not int or found < 1:
            raise ValueError(f'it must hold a JSON object with "format": {version}, got {reprlib.repr(content)}')
    if found != version:
        way_out = "update climapred" if found > version else "train it again"
        raise ValueError(f"{path} has format {found}, this climapred reads {version}; {way_out}")
    with blaming(path):
        return _read_fields(kind, content, "")


def _read_fields(kind: type[Kind], value: Any, key: str) -> Kind:
    label = f"{key}: " if key else ""
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be an object, got {reprlib.repr(value)}")
    known = {each.name: each for each in fields(kind) if each.init}  # type: ignore[arg-type]
    needed = [name for name, each in known.items() if each.default is MISSING and each.default_factory is MISSING]
    for problem, names in (("unknown keys", set(value) - set(known)), ("missing keys", set(needed) - set(value))):
        if names:
            raise ValueError(f"{label}{problem} {_listed(sorted(names), ', ')}; known keys: {', '.join(known)}")
    hints = get_type_hints(kind)
    given = {name: _read(hints[name], part, f"{key}.{name}".lstrip(".")) for name, part in value.items()}
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{label}{error}") from error


def _read(wanted: Any, value: Any, key: str) -> Any:
    """Return a JSON value as what the type hint ``wanted`` asks for."""
    inner = get_args(wanted)
    if is_dataclass(wanted):
        return _read_fields(wanted, value, key)  # type: ignore[arg-type]
    if type(None) in inner:
        return None if value is None else _read(inner[0], value, key)
    kind = get_origin(wanted) or wanted
    if kind is np.ndarray:
        return np.array(_read(tuple[float, ...], value, key), dtype=np.float64)
    if kind is tuple and isinstance(value, list):
        parts = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(parts) == len(value):
            pairs = zip(parts, value, strict=True)
            return tuple(_read(part, each, f"{key}[{position}]") for position, (part, each) in enumerate(pairs))
    elif type(value) in _PLAIN.get(kind, ()):
        return value
    raise ValueError(f"{key} must be {inspect.formatannotation(wanted)}, got {reprlib.repr(value)}")


def outline(build: Callable[[], nn.Module], *, like: Mapping[str, Tensor]) -> nn.Module:
    """Return the network that ``build`` makes, with shapes but without memory or values (device "meta").

    Options from a file may ask for a width of a billion, which costs nothing here, or for a billion layers, which would
    take for ever: it ends where there are far more tensors than in ``like``.
    """
    with torch.device("meta"), _ShapesAlone(limit=1000 + 100 * len(like)):
        return build()


class _ShapesAlone(TorchFunctionMode):
    """Counts calls, and leaves out those that would only fill a tensor in place."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.limit -= 1
        if self.limit == -1:  # once: what cleans up on the way out calls torch, as no_grad does to put gradients back
            raise ValueError("the options ask for a far larger network than the one whose weights are stored")
        name, kwargs = func.__name__, kwargs or {}
        if name.endswith("_") and not name.endswith("__"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_tensors(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, may_have_gaps: Collection[str] = ()
) -> None:
    """Check that ``tensors`` have the names, types and shapes of those ``wanted``, and finite values but for some.

    Raises:
        ValueError: names what is missing, unknown, or other than wanted.
    """
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in wanted]
    for name in wanted.keys() & tensors.keys():
        if (came := _form(tensors[name])) != (form := _form(wanted[name])):
            problems.append(f"{name} must be {form}, got {came}")
        elif name not in may_have_gaps and not tensors[name].isfinite().all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        raise ValueError(f"it does not fit model.safetensors, in which {_listed(sorted(problems), '; ')}")


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _listed(names: Iterable[str], separator: str) -> str:
    names = list(names)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(name[:200] for name in names[:_SHOWN]) + rest
