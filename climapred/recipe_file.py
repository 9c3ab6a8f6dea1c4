"""Recipes as YAML: read, overridden, written; errors name file, line and key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from climapred.recipe import SECTIONS, Recipe, RecipeError


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe at ``path``.

    Args:
        path: a YAML file.
        overrides: ``key=value`` with dotted keys (``training.epochs=2``, ``models.0.options.hidden=16``); the value is
            read as YAML.

    Raises:
        RecipeError: names the file, the line and the key of each fault.
    """
    path = Path(path)
    if not path.exists():
        raise RecipeError(f"no recipe at {path}")
    try:
        text = path.read_text()
        content = yaml.safe_load(text)
        lines = _key_lines(yaml.compose(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must be a mapping of keys, got {type(content).__name__}")
    overridden = [_override(content, item) for item in overrides]
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        faults = [_fault(path, lines, overridden, fault) for fault in error.errors()]
        raise RecipeError("\n".join(dict.fromkeys(faults))) from error


def _override(content: dict[str, Any], item: str) -> tuple[str, ...]:
    key, separator, text = item.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set takes key=value, got {item!r}")
    keys = tuple(key.split("."))
    place: Any = content
    for step in keys[:-1]:
        place = _entry(place, step, item)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {item}: the value is not YAML: {error}") from error
    if isinstance(place, list):
        place[_position(place, keys[-1], item)] = value
    else:
        place[keys[-1]] = value
    return keys


def _entry(place: Any, step: str, item: str) -> Any:
    """Return what lies under a key; an absent or empty section is made."""
    if isinstance(place, list):
        return place[_position(place, step, item)]
    if place.get(step) is None:
        place[step] = {}
    if not isinstance(place[step], dict | list):
        raise RecipeError(f"--set {item}: {step} is a single value, not a section")
    return place[step]


def _position(place: list[Any], step: str, item: str) -> int:
    if not step.isdigit() or int(step) >= len(place):
        raise RecipeError(f"--set {item}: the list has {len(place)} entries, use 0 to {len(place) - 1}, got {step!r}")
    return int(step)


def _key_lines(node: yaml.Node | None, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """Return the line of every key of a YAML document, lists by position."""
    lines = {prefix: node.start_mark.line + 1} if node is not None else {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if (*prefix, key.value) in lines:  # YAML itself would keep the last and drop the others
                problem = f"the key {'.'.join((*prefix, key.value))!r} is repeated"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines |= _key_lines(value, (*prefix, key.value)) | {(*prefix, key.value): key.start_mark.line + 1}
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            lines |= _key_lines(value, (*prefix, str(position)))
    return lines


def _fault(path: Path, lines: dict[tuple[str, ...], int], overridden: list[tuple[str, ...]], fault: Any) -> str:
    location = tuple(str(part) for part in fault["loc"])
    brought = {key[:length] for key in overridden for length in range(1, len(key) + 1)} - set(lines)
    if fault["type"] not in ("missing", "extra_forbidden"):
        while location and location not in lines and location not in brought:
            location = location[:-1]  # pydantic appends the names of alternatives
    known = location
    while known and known not in lines:
        known = known[:-1]
    from_override = location in brought or any(location[: len(key)] == key for key in overridden)
    where = "--set" if from_override else f"{path}, line {lines.get(known, 1)}"
    message = {"extra_forbidden": "unknown key", "missing": "this key is missing"}.get(fault["type"], fault["msg"])
    if fault["type"] == "extra_forbidden":
        message += f"; known keys here: {', '.join(_known_keys(location[:-1]))}"
    elif fault["type"] != "missing" and not isinstance(fault["input"], dict | list):
        message += f", got {fault['input']!r}"
    return f"{where}: {'.'.join(location) or 'recipe'}: {message.removeprefix('Value error, ')}"


def _known_keys(location: tuple[str, ...]) -> list[str]:
    section: type[BaseModel] = Recipe
    for step in location:
        if step in section.model_fields:  # others are places in a list, or names that the user gave
            section = SECTIONS[step]
    return list(section.model_fields)


@contextmanager
def located(path: str | Path, key: str) -> Iterator[None]:
    """Turn an error about the data of a recipe into a RecipeError that names file, line and key."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        lines = _key_lines(yaml.compose(Path(path).read_text(), Loader=yaml.SafeLoader))
        known = tuple(key.split("."))
        while known and known not in lines:  # a key that --set brought in: the section it belongs to
            known = known[:-1]
        raise RecipeError(f"{path}, line {lines.get(known, 1)}: {key}: {error}") from error


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default filled in; ``load_recipe`` reads it back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
