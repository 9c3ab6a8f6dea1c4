"""Recipes: what a run does, checked before anything runs; errors name file, line and key."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from climapred.variables import find_variable

Region = tuple[float, float, float, float]


class RecipeError(ValueError):
    """A recipe that cannot run."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def _as_tuple(value: Any) -> Any:
    if isinstance(value, str | datetime.date):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _as_date(value: Any) -> Any:
    """YAML turns 2014-01-01 into a date of its own; times of a zone become UTC."""
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    return value.isoformat() if isinstance(value, datetime.date) else value


def _as_numbers(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else _as_tuple(value)


def _as_versions(value: Any) -> Any:
    """YAML reads ECMWF's 0005 as a number."""
    values = _as_numbers(value)
    return tuple(f"{v:04d}" if isinstance(v, int) else v for v in values) if isinstance(values, tuple) else values


def _as_float(value: Any) -> Any:
    """YAML 1.1 reads 2e-3 as text."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value, re.I) else value


def _canonical(value: str) -> str:
    return find_variable(value).name


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Whole = Annotated[tuple[int, ...], BeforeValidator(_as_numbers)]
Date = Annotated[str, BeforeValidator(_as_date)]
Real = Annotated[float, BeforeValidator(_as_float)]
Reals = Annotated[tuple[Real, ...], BeforeValidator(_as_numbers)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]
VariableName = Annotated[str, BeforeValidator(_canonical)]


class SampleRecipe(_Section):
    """The embedded data of ``climapred.testing``, written as real files into the run's folder."""

    format: Literal["ncep", "era5"] = "ncep"
    start: Date = "2001-01-01"
    years: int = Field(2, ge=1, le=50)
    seed: int = Field(0, ge=0)

    @property
    def variable(self) -> str:
        """The variable that files of this format hold."""
        return {"ncep": "air", "era5": "t2m"}[self.format]


class SelectRecipe(_Section):
    """Which GRIB messages are taken, by one value or several of each key; see ``climapred.data.grib.SELECTABLE``."""

    level_type: Texts | None = None
    level: Reals | None = None
    member: Whole | None = None
    step: Reals | None = Field(None, description="hours")
    step_type: Texts | None = None
    data_type: Texts | None = None
    expver: Annotated[tuple[str, ...], BeforeValidator(_as_versions)] | None = None


class SourceRecipe(_Section):
    """Where the fields come from: files (``path``: one, several, or a pattern) or the embedded sample.

    GRIB messages are taken by ``select``, such as {level: 500}; damaged ones may be skipped. Of a time that is there more
    than once, in NetCDF and Zarr, the first or the last field in the order of the files may be taken. There is no key to
    keep other calendars than the real one: tensors have real dates.
    """

    path: Texts | None = None
    sample: SampleRecipe | None = None
    variables: Annotated[tuple[VariableName, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    select: SelectRecipe = SelectRecipe()
    damaged: Literal["error", "skip"] = "error"
    duplicates: Literal["refuse", "first", "last"] = "refuse"

    @model_validator(mode="after")
    def _one_of_both(self) -> SourceRecipe:
        if (self.path is None) == (self.sample is None):
            raise ValueError(
                "a source is either `path` or `sample`, got " + ("neither" if self.path is None else "both")
            )
        if self.sample is not None and self.variables != (self.sample.variable,):
            raise ValueError(f"the {self.sample.format} sample holds `variables: {self.sample.variable}`, no other")
        if self.sample is not None and (given := self.reading()):
            raise ValueError(f"{', '.join(given)}: for the files of `path`; the sample is whole, and taken whole")
        return self

    def reading(self) -> dict[str, Any]:
        """Return how the files are read, where it is not the default."""
        return self.model_dump(mode="json", include={"select", "damaged", "duplicates"}, exclude_defaults=True)

    def expanded_paths(self) -> tuple[str, ...]:
        """Return the paths with environment variables filled in.

        Raises:
            RecipeError: if one is not set.
        """
        return tuple(_expand(path) for path in self.path or ())


def _expand(path: str) -> str:
    expanded = os.path.expandvars(path)
    if unset := re.search(r"\$\{?(\w+)\}?", expanded):
        raise RecipeError(
            f"path: {path}: the environment variable {unset[1]} is not set; set it to the folder of the data files, "
            "or give --set source.path=FILE"
        )
    return expanded


class GridRecipe(_Section):
    """The grid of the tensors; without it the source's own is kept, and with a ``region`` alone its own points in there."""

    spacing: Real | None = Field(None, gt=0, description="degrees")
    gaussian: int | None = Field(None, ge=1, description="N of a Gaussian grid")
    region: Annotated[Region | None, BeforeValidator(_as_tuple)] = Field(None, description="south, north, west, east")
    method: Literal["nearest", "bilinear", "conservative"] = "conservative"
    max_missing: Real = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _one_kind(self) -> GridRecipe:
        if self.spacing is not None and self.gaussian is not None:
            raise ValueError("a grid has either `spacing` or `gaussian`, got both")
        if self.spacing is None and self.gaussian is None and self.region is None:
            raise ValueError("a grid needs `spacing` or `gaussian`, or a `region` of the source's own points")
        return self


class StoreRecipe(_Section):
    """How the tensors are written: bits of mantissa that are kept (all by default), and whether shards are read again."""

    keep_bits: int | None = Field(None, ge=1, le=23)
    verify: bool = True


class WindowRecipe(_Section):
    """Frames in and out, and every how many times a training window starts."""

    history: int = Field(6, ge=1)
    horizon: int = Field(6, ge=1)
    spacing: int = Field(1, ge=1, description="time steps from frame to frame that is seen")
    lead_spacing: int = Field(1, ge=1, description="time steps from lead to lead")
    stride: int = Field(1, ge=1)


class SplitRecipe(_Section):
    """When validation and test begin: dates, or shares of all times counted from the start."""

    validation: Date | Real
    test: Date | Real
    embargo_hours: Real = Field(0.0, ge=0, description="before each of them, times that belong to no period")


class ClimatologyRecipe(_Section):
    """Harmonics of the training climatology; None: what the training period can determine."""

    annual: int | None = Field(None, ge=0, le=6)
    daily: int | None = Field(None, ge=0, le=6)


class ModelRecipe(_Section):
    """One model: its name in the results, its architecture, the keywords of that, and what it sees and predicts."""

    name: Name
    architecture: str
    options: dict[str, Any] = {}
    inputs: Literal["anomaly", "standard", "minmax"] = "anomaly"
    target: Literal["change", "value"] = "change"
    forcings: Annotated[
        tuple[Literal["latitude", "longitude", "day_of_year", "hour"], ...], BeforeValidator(_as_tuple)
    ] = ()

    @field_validator("options")
    @classmethod
    def _size_comes_from_the_data(cls, options: dict[str, Any]) -> dict[str, Any]:
        if given := {"channels", "forcings", "height", "width", "history", "horizon"} & set(options):
            raise ValueError(f"{', '.join(sorted(given))}: these follow from the data; leave them out")
        return options


_BASELINE_NAMES = ("persistence", "climatology", "damped", "same_hour", "eof_regression")


def _distinct_names(models: tuple[ModelRecipe, ...]) -> tuple[ModelRecipe, ...]:
    names = [model.name for model in models]
    if clash := sorted({name for name in names if names.count(name) > 1 or name in _BASELINE_NAMES}):
        raise ValueError(f"models need names of their own, other than the baselines' ones: {', '.join(clash)}")
    return models


class TrainingRecipe(_Section):
    """See ``climapred.learning.training.Training``."""

    epochs: int = Field(5, ge=1)
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    learning_rate: Real = Field(2e-3, gt=0)
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: Real = Field(0.3, ge=0, lt=1)
    weight_decay: Real = Field(0.01, ge=0)
    clip: Real = Field(1.0, ge=0)
    loss: Literal["mse", "mae", "mse+mae"] = "mse"
    loss_on_seen: bool = False
    area_weighted: bool = False
    averaging: Real = Field(0.0, ge=0, lt=1)
    patience: int = Field(0, ge=0)
    sampling: Literal["none", "scheduled", "reverse"] = "none"
    sampling_end: Real = Field(0.5, gt=0, le=1)
    curriculum: int = Field(0, ge=0)
    precision: Literal["auto", "bf16", "float32"] = "auto"
    compile: bool = False
    processes: int = Field(1, ge=1)
    strategy: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_seconds: Real = Field(60.0, ge=0)
    tensorboard: bool = False
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _whole_weights_to_average(self) -> TrainingRecipe:
        if self.strategy == "fsdp" and self.averaging:
            raise ValueError("averaging needs whole weights in each process; use `strategy: ddp`, or leave it out")
        return self


class LoaderRecipe(_Section):
    """Where windows are cut; see ``climapred.learning.loader.WindowLoader``."""

    tier: Literal["auto", "device", "memory", "stream"] = "auto"
    memory_limit_mb: int = Field(160, ge=1)
    workers: int = Field(0, ge=0)


class ForecastRecipe(_Section):
    """Every how many test windows are forecast, and the baselines that are written as files too."""

    stride: int = Field(1, ge=1)
    baselines: Annotated[
        tuple[Literal["persistence", "climatology", "damped", "same_hour", "eof_regression"], ...],
        BeforeValidator(_as_tuple),
    ] = ()


class ExternalRecipe(_Section):
    """Forecasts that others made, for comparison: regridded, and matched in time; see ``results.external``.

    ``variable`` is what they call the first variable of the source, where that is no name of it; of several variables it
    tells what they call each, such as {air: t, msl: prmsl}. ``select`` takes GRIB messages, such as {level_type: sigma}.
    """

    path: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    variable: str | dict[VariableName, str] | None = None
    select: SelectRecipe = SelectRecipe()
    method: Literal["nearest", "bilinear", "conservative"] = "bilinear"
    max_delay_hours: Real = Field(0.0, ge=0)

    def expanded_paths(self) -> tuple[str, ...]:
        """Return the paths with environment variables filled in.

        Raises:
            RecipeError: if one is not set.
        """
        return tuple(_expand(path) for path in self.path)

    def names(self, first: str) -> dict[str, str]:
        """Return what they call which of our variables, ``first`` among them or alone."""
        return self.variable if isinstance(self.variable, dict) else {first: self.variable or first}


class ScoresRecipe(_Section):
    """Boxes (south, north, west, east) that are scored by themselves, and forecasts of others that are scored beside ours."""

    regions: dict[Name, Annotated[tuple[float, float, float, float], BeforeValidator(_as_tuple)]] = {}
    external: dict[Name, ExternalRecipe] = {}


class CorrelationsRecipe(_Section):
    """How sure the learned links are: further trainings of each model that has links, from other seeds and on surrogates.

    See ``results.links.surrogates`` for what those keep (``length_km`` 0: each point by itself, .inf: all alike; "block": each
    point by itself), and ``results.links.significance`` for what few of them can show.
    """

    seeds: int = Field(0, ge=0)
    surrogates: int = Field(0, ge=0)
    surrogate: Literal["phase", "block"] = "phase"
    length_km: Real = Field(500.0, ge=0)
    block_hours: Real = Field(240.0, gt=0)
    method: Literal["pooled", "gaussian", "empirical"] = "pooled"

    @model_validator(mode="after")
    def _enough(self) -> CorrelationsRecipe:
        if self.method == "gaussian" and self.surrogates == 1:
            raise ValueError("one surrogate has no spread; take 2 or more, or `method: pooled`")
        return self


class MapsRecipe(_Section):
    """Start times and leads of the forecast maps, and the places whose learned correlation is drawn (latitude, longitude)."""

    start_times: Annotated[tuple[Date, ...], BeforeValidator(_as_tuple)] = ()
    leads_hours: Annotated[tuple[Real, ...] | None, BeforeValidator(_as_tuple)] = None
    points: Annotated[
        tuple[Annotated[tuple[float, float], BeforeValidator(_as_tuple)], ...], BeforeValidator(_as_tuple)
    ] = ()


class Recipe(_Section):
    """A whole run."""

    name: Name
    title: str = ""
    source: SourceRecipe
    grid: GridRecipe | None = None
    store: StoreRecipe = StoreRecipe()
    window: WindowRecipe = WindowRecipe()
    split: SplitRecipe
    climatology: ClimatologyRecipe = ClimatologyRecipe()
    models: Annotated[
        tuple[ModelRecipe, ...], BeforeValidator(_as_tuple), Field(min_length=1), AfterValidator(_distinct_names)
    ]
    training: TrainingRecipe = TrainingRecipe()
    loader: LoaderRecipe = LoaderRecipe()
    forecast: ForecastRecipe = ForecastRecipe()
    scores: ScoresRecipe = ScoresRecipe()
    correlations: CorrelationsRecipe = CorrelationsRecipe()
    maps: MapsRecipe = MapsRecipe()

    def ending(self, variable: str) -> str:
        """Return what the names of result files of a variable end in: nothing for the first, which most runs stop at."""
        return "" if variable == self.source.variables[0] else f"_{variable}"

    @model_validator(mode="after")
    def _forecasts_of_others_fit(self) -> Recipe:
        if clash := sorted({*_BASELINE_NAMES, *(model.name for model in self.models)} & set(self.scores.external)):
            raise ValueError(
                f"scores.external: {', '.join(clash)}: a baseline or a model has this name; choose another"
            )
        known = self.source.variables
        for name, external in self.scores.external.items():
            if unknown := sorted(set(external.names(known[0])) - set(known)):
                raise ValueError(f"scores.external.{name}.variable: {', '.join(unknown)}: not among {', '.join(known)}")
        return self


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
            section = _SECTIONS[step]
    return list(section.model_fields)


_SECTIONS: dict[str, type[BaseModel]] = {
    "source": SourceRecipe,
    "select": SelectRecipe,
    "sample": SampleRecipe,
    "grid": GridRecipe,
    "store": StoreRecipe,
    "window": WindowRecipe,
    "split": SplitRecipe,
    "climatology": ClimatologyRecipe,
    "models": ModelRecipe,
    "training": TrainingRecipe,
    "loader": LoaderRecipe,
    "forecast": ForecastRecipe,
    "scores": ScoresRecipe,
    "external": ExternalRecipe,
    "correlations": CorrelationsRecipe,
    "maps": MapsRecipe,
}


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
