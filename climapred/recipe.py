"""Recipes: the keys that say what a run does, checked before anything runs."""

from __future__ import annotations

import datetime
import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
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
    leads_hours: Reals | None = None
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


SECTIONS: dict[str, type[BaseModel]] = {
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
