"""One HTML page per run that needs no network: data, scores, errors, forecasts, training, and whom a place listens to.

Style, script and numbers are inside the file, and its content security policy forbids it to load anything. Numbers are
base64 of deflated bytes: fields in 4095 steps between their least and greatest value, weights as square roots in 255
steps of the largest of their row, so that small ones keep two digits. What a run holds beyond the room for it is thinned
out, evenly, and the page says so: at most 6.7 MB before base64, whatever the run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.metadata
import importlib.resources
import json
import os
import re
import string
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.grid import Grid
from climapred.results.baselines import BASELINES, FURTHER_BASELINES
from climapred.results.captions import degrees, displayed, moment, quantity, units_of
from climapred.results.cf import from_cf
from climapred.results.geography import lines_within
from climapred.results.links.adjacency import row_blocks
from climapred.results.links.correlations import strongest_links
from climapred.results.page.numbers import Section, encoded, hours_of, numbers, packed, points, spread, stride_for
from climapred.results.page.scores import MOST_LEADS, error_section, score_section
from climapred.variables import VARIABLES, convert_units
from climapred.whole import write_text

Facts = list[tuple[str, str]]

# Room in the page. Fields have 12 of 16 bits to deflate, base64 makes 4 bytes of 3: 8.9 MB at most, below 10 MB together
# with coasts, tables and script.
_FIELD_BYTES, _LINK_BYTES, _ERROR_BYTES = 3_200_000, 3_600_000, 900_000
_MOST_STARTS, _LEAST_STARTS = 48, 6
_LEAST_LINKS = 5
_FIELDS_LOOKED_AT = 16_000_000  # values of the tensors that are looked through for findings
_PAIRS_SEARCHED = 4_000_000  # pairs of points among which the place shown first is searched

_ABSENT = {
    "data": "no tensors",
    "scores": "no scores",
    "errors": "no maps of errors",
    "forecasts": "no forecasts",
    "correlations": "no learned correlations",
    "training": "no training curves",
    "recipe": "no recipe",
}
_FILES = (
    "recipe.yaml",
    "scores*.csv",
    "comparison*.csv",
    "scores*.nc",
    "skill*.nc",
    "forecasts/*.nc",
    "correlations/*.nc",
    "models/*/log.csv",
    "maps/*.png",
)


def write_report(run_folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write a page that shows all of a run, and return its path.

    Args:
        run_folder: what ``climapred run`` wrote. A part that is missing, as the correlations of a run without graphs, is
            missing from the page, which says so.
        path: the file, replaced whole or not at all; None for ``report.html`` in the folder of the run. Links to figures
            and forecasts are relative to it.

    Raises:
        FileNotFoundError: if the folder, or that of ``path``, does not exist.
        ValueError: if the folder holds nothing of a run.
    """
    folder = Path(run_folder)
    path = folder / "report.html" if path is None else Path(path)
    for place in (folder, path.parent):
        if not place.is_dir():
            raise FileNotFoundError(f"cannot write {path}: the folder {place} does not exist")
    if not any(any(folder.glob(pattern)) for pattern in ("tensors.zarr", *_FILES)):
        raise ValueError(
            f"{folder} holds no run: none of tensors.zarr, {', '.join(_FILES)}; pass the folder given to --out"
        )
    return write_text(path, _page(folder, path))


def _page(folder: Path, path: Path) -> str:
    """Return the text of the page."""
    tensors = _tensors(folder)
    found, recipe = _numbers_of(folder, tensors), folder / "recipe.yaml"
    there = {*found, *(["data"] if tensors is not None else []), *(["recipe"] if recipe.exists() else [])}
    style, script = _asset("page.css"), _asset("page.js")
    template = re.sub(
        r"<!-- part (\w+) -->(.*?)<!-- end \1 -->",
        lambda found: found[2] if found[1] in there else "",
        _asset("page.html"),
        flags=re.DOTALL,
    )
    facts, findings = _data(tensors, folder) if tensors is not None else ([], [])
    return string.Template(template).substitute(
        policy=f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        title=html.escape(_title(folder)),
        style=style,
        script=script,
        numbers=json.dumps(found, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        missing=_items([f"This run has {text}." for name, text in _ABSENT.items() if name not in there]),
        facts="".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(said)}</dd>" for term, said in facts),
        findings=_items(findings),
        recipe=html.escape(recipe.read_text(encoding="utf-8")) if recipe.exists() else "",
        journal=_journal(folder),
        files=_links_to_files(folder, path.parent),
        version=html.escape(importlib.metadata.version("climapred")),
    )


def _numbers_of(folder: Path, tensors: xr.Dataset | None) -> dict[str, Any]:
    """Return what the script of the page draws: the sections that the run has, the region of its maps, its baselines.

    Sections of a further variable stand under ``further``; the variables share the room.
    """
    names = _variables(folder, tensors)
    drawn = {name: _of_variable(folder, tensors, name, ending, len(names)) for name, ending in names.items()}
    links, training = _correlations(folder), _training(folder)
    grids = [grid for _, grid in drawn.values() if grid is not None] + ([] if links is None else [links[1]])
    (first, (found, _)), *others = drawn.items()
    return {
        **found,
        **({} if links is None else {"correlations": links[0]}),
        **({} if training is None else {"training": training}),
        **({"region": _region(grids[0])} if grids else {}),
        "variable": first,
        "further": {name: sections for name, (sections, _) in others},
        "baselines": _baseline_names(folder, found),
    }


def _variables(folder: Path, tensors: xr.Dataset | None) -> dict[str, str]:
    """Return what is forecast, and what the names of its files end in: nothing for the first variable of the recipe."""
    names = [] if tensors is None else list(map(str, tensors))
    for file in sorted((folder / "forecasts").glob("*.nc"))[: 0 if names else 1]:
        with xr.open_dataset(file) as stored:
            names = [str(name) for name in stored.data_vars if not str(name).endswith("_bounds")]
    further = [name for name in names if (folder / f"scores_{name}.nc").exists()]
    first = next((name for name in names if name not in further), "")
    return {first: "", **{name: f"_{name}" for name in further}}


def _of_variable(
    folder: Path, tensors: xr.Dataset | None, name: str, ending: str, share: int
) -> tuple[dict[str, Section], Grid | None]:
    """Return the sections of one variable, and the grid of its maps."""
    scores = score_section(folder, ending)
    maps = {
        "errors": error_section(folder, ending, room=_ERROR_BYTES / share),
        "forecasts": _forecasts(folder, tensors, name, _FIELD_BYTES // share),
    }
    there = {part: found for part, found in maps.items() if found is not None}
    sections = {} if scores is None else {"scores": scores}
    return sections | {part: found[0] for part, found in there.items()}, next((g for _, g in there.values()), None)


def _asset(name: str) -> str:
    return (importlib.resources.files(__package__) / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _items(lines: Sequence[str]) -> str:
    return "".join(f"<li>{html.escape(line)}</li>" for line in lines)


def _title(folder: Path) -> str:
    """Return the title of the recipe, as the forecast files tell it, else the name of the folder."""
    for file in sorted((folder / "forecasts").glob("*.nc"))[:1]:
        with xr.open_dataset(file) as stored:
            title = str(stored.attrs.get("title", "")).removesuffix(f": forecasts of {file.stem}")
        if title:
            return title
    return folder.resolve().name


def _baseline_names(folder: Path, sections: Mapping[str, Section]) -> list[str]:
    """Return what was not trained, as far as the run has trained anything."""
    names = [name for part in ("scores", "forecasts") for name in sections.get(part, {}).get("models", ())]
    trained = {place.name for place in (folder / "models").glob("*")}
    known = {*BASELINES, *FURTHER_BASELINES}
    return sorted({name for name in names if name in known or (trained and name not in trained)})


# --- sections ---


def _region(grid: Grid) -> Section:
    """Return the edges of the map, and coasts and borders as flat lists of longitudes and latitudes, 1/100 degree.

    A map of the globe runs from 180 W to 180 E, as an atlas has it.
    """
    if grid.periodic:
        longitude = np.sort((grid.longitude + 180) % 360 - 180)
        grid = Grid(grid.latitude, longitude, grid.latitude_bounds, np.linspace(-180, 180, longitude.size + 1))
    (south, north), (west, east) = grid.latitude_bounds[[0, -1]].tolist(), grid.longitude_bounds[[0, -1]].tolist()
    lines = {
        name: [(100 * line).round().astype(int).ravel().tolist() for line in lines_within(grid, border=border)]
        for name, border in (("coast", False), ("borders", True))
    }
    return {"south": south, "north": north, "west": west, "east": east, **lines}


def _tensors(folder: Path) -> xr.Dataset | None:
    """Return the finished store of a run, lazily."""
    store = folder / "tensors.zarr"
    if not (store / "zarr.json").exists():
        return None
    fields = xr.open_zarr(store, consolidated=False, chunks=None)
    return None if fields.attrs.get("unfinished") else fields[fields.attrs["variables"]]


def _data(tensors: xr.Dataset, folder: Path) -> tuple[Facts, list[str]]:
    """Return what the tensors are, and what about them a reader should know."""
    grid, times = Grid.of(tensors), tensors.indexes["time"]
    steps = pd.TimedeltaIndex(np.diff(times.values))
    step = steps.to_series().mode().iloc[0] if len(steps) else pd.Timedelta(0)
    ends = [(axis[0], axis[-1], letters) for axis, letters in ((grid.latitude, "NS"), (grid.longitude, "EW"))]
    span = ", ".join(f"{degrees(first, letters)} to {degrees(last, letters)}" for first, last, letters in ends)
    facts: Facts = [
        ("Variables", "; ".join(f"{quantity(tensors[name])} ({name}, {units_of(tensors[name])})" for name in tensors)),
        ("Grid", f"{grid.shape[0]} × {grid.shape[1]} points, {span}"),
        (
            "Times",
            f"{len(times):,}, {moment(times[0])} to {moment(times[-1])}, every {step / pd.Timedelta(hours=1):g} h",
        ),
        *_origin(tensors.attrs),
    ]
    training, findings = _statistics(folder), []
    gaps = int((steps != step).sum())
    findings.append(f"Gaps in time: {gaps}, the longest {steps.max()}." if gaps else "No gap in time.")
    if training is not None:
        start, stop = (moment(training.attrs[f"training_{end}"]) for end in ("start", "stop"))
        facts.append(("Training period", f"{start} to {stop}, {int(training.attrs['training_times']):,} times"))
    chosen = spread(len(times), max(1, _FIELDS_LOOKED_AT // (grid.size * len(tensors))))
    for name in map(str, tensors):
        findings += _findings(tensors[name].isel(time=chosen).values, name, units_of(tensors[name]), training)
    findings.append(f"Looked at {len(chosen):,} of {len(times):,} fields of each variable.")
    return facts, findings


def _origin(attributes: Mapping[str, Any]) -> Facts:
    """Return files and treatment, as the store tells them."""
    files = json.loads(attributes.get("source", "[]"))
    names = [str(file["name"]) for file in files]
    facts: Facts = (
        [("Files", ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else ""))] if names else []
    )
    if method := attributes.get("regrid_method"):
        facts.append(("Regridding", str(method)))
    if keep_bits := attributes.get("keep_bits"):
        facts.append(("Rounded to", f"{keep_bits} bits of the mantissa"))
    reading = attributes.get("reading", {})
    policy = [f"{key}: {reading[key]}" for key in ("damaged", "duplicates") if key in reading]
    return [*facts, ("In case of", ", ".join(policy))] if policy else facts


def _statistics(folder: Path) -> xr.Dataset | None:
    store = folder / "tensors.zarr"
    if not (store / "statistics" / "zarr.json").exists():
        return None
    return xr.open_zarr(store, group="statistics", consolidated=False, chunks=None)


def _findings(values: npt.NDArray[np.floating], name: str, units: str, training: xr.Dataset | None) -> list[str]:
    """Return one line on missing, implausible and unseen values of a variable each."""
    finite = values[np.isfinite(values)]
    missing = 1 - finite.size / values.size
    lines = [f"{name}: {missing:.2%} of the values are missing." if missing else f"{name}: no value is missing."]
    if not finite.size:
        return lines
    low, high = VARIABLES[name].plausible if name in VARIABLES else (-np.inf, np.inf)
    beyond = int(((finite < low) | (finite > high)).sum())
    verdict = f"{beyond:,} of them beyond what weather takes, {low:g} to {high:g}" if beyond else "all plausible"
    lines.append(f"{name}: values from {finite.min():.5g} to {finite.max():.5g} {units}, {verdict}.")
    if training is not None:
        known = training.sel(variable=name)
        low, high = float(known["minimum"]), float(known["maximum"])
        share = float(((finite < low) | (finite > high)).mean())
        lines.append(
            f"{name}: {share:.2%} of the values beyond those of the training period, {low:.5g} to {high:.5g} {units}."
        )
    return lines


def _forecasts(folder: Path, tensors: xr.Dataset | None, name: str, room: int) -> tuple[Section, Grid] | None:
    """Return forecasts of a variable and its truth from a spread of start times, of an ensemble the mean, and their grid.

    All files of a run have the starts, leads and grid of the first; one that has not is named, not shown.
    """
    with ExitStack() as stack:
        files = sorted((folder / "forecasts").glob("*.nc"))
        opened = {file.stem: from_cf(stack.enter_context(xr.open_dataset(file))) for file in files}
        if not opened:
            return None
        first = next(iter(opened.values()))
        grid = Grid.of(first)
        alike = {model: found[name] for model, found in opened.items() if name in found and _same_axes(found, first)}
        if not alike:
            return None
        leads = spread(first.sizes["lead_time"], MOST_LEADS)
        field_bytes = 2 * leads.size * (len(alike) + 1)
        stride = stride_for(grid, room / (field_bytes * min(_LEAST_STARTS, first.sizes["init_time"])))
        cells = -(-grid.shape[0] // stride) * -(-grid.shape[1] // stride)
        starts = spread(first.sizes["init_time"], min(_MOST_STARTS, max(1, room // (field_bytes * cells))))
        thin = {"latitude": slice(None, None, stride), "longitude": slice(None, None, stride)}
        chosen = {"init_time": starts, "lead_time": leads, **thin}
        shown = {model: _mean(found.isel(chosen)) for model, found in alike.items()}
    sample = next(iter(shown.values()))
    truth = _truth(tensors, name, sample, thin)
    given, (_, units) = units_of(sample), displayed(sample)
    fields = {model: packed(convert_units(found, given, units).values) for model, found in shown.items()}
    section = {
        "grid": points(grid, stride),
        "variable": quantity(sample),
        "units": units,
        "differences": given,
        "starts": [f"{pd.Timestamp(start).isoformat()}Z" for start in sample["init_time"].values],
        "of": int(first.sizes["init_time"]),
        "leads": hours_of(sample["lead_time"]),
        "models": list(fields),
        "leftout": sorted(opened.keys() - fields.keys()),
        "fields": fields,
        "truth": None if truth is None else packed(convert_units(truth, given, units).values),
    }
    return section, grid


def _same_axes(found: xr.Dataset, first: xr.Dataset) -> bool:
    times = all(found.indexes[name].equals(first.indexes[name]) for name in ("init_time", "lead_time"))
    return times and Grid.of(found) == Grid.of(first)


def _mean(forecast: xr.DataArray) -> xr.DataArray:
    """Return a forecast in memory, dims (init_time, lead_time, latitude, longitude)."""
    dims = ("init_time", "lead_time", "latitude", "longitude")
    members = [dim for dim in forecast.dims if dim not in dims]
    return forecast.load().mean(members, keep_attrs=True, skipna=False).transpose(*dims)


def _truth(
    tensors: xr.Dataset | None, name: str, forecast: xr.DataArray, thin: Mapping[str, slice]
) -> xr.DataArray | None:
    """Return what the tensors have at the valid times of a forecast, NaN where they have nothing; None if they never do."""
    if tensors is None or name not in tensors:
        return None
    where = tensors.indexes["time"].get_indexer(pd.DatetimeIndex(forecast["valid_time"].values.ravel()))
    fields = tensors[name].isel(thin)
    if (where < 0).all() or fields.shape[1:] != forecast.shape[2:]:
        return None
    needed, back = np.unique(np.where(where < 0, where.max(), where), return_inverse=True)
    values = fields.isel(time=needed).values[back]
    values[where < 0] = np.nan
    return forecast.copy(data=values.reshape(forecast.shape))


def _correlations(folder: Path) -> tuple[Section, Grid] | None:
    """Return the learned weights of each model and their grid: all of them, or as many of each row as there is room for."""
    files, models = sorted((folder / "correlations").glob("*.nc")), {}
    grid: Grid | None = None
    for file in files:
        with xr.open_dataset(file) as adjacency:
            found = Grid(*(np.unique(adjacency[f"target_{name}"].values) for name in ("latitude", "longitude")))
            grid, room = grid or found, _LINK_BYTES // len(files)
            count = found.size if found.size**2 <= room else room // (5 * found.size)
            if found == grid and count >= min(_LEAST_LINKS, found.size):
                models[file.stem] = _links(adjacency, grid, count)
    if grid is None or not models:
        return None
    return {
        "grid": points(grid),
        "models": models,
        "leftout": sorted({file.stem for file in files} - set(models)),
    }, grid


def _links(adjacency: xr.Dataset, grid: Grid, count: int) -> Section:
    """Return the weights above the floor of their row as ``(code / 255) ** 2 * scale``, and the place to show first.

    Where ``count`` is less than N, the largest ``count`` of each row are left, and ``columns`` says which they are.
    """
    dense = count == grid.size
    codes, scale = np.empty((grid.size, count), np.uint8), np.empty(grid.size, np.float32)
    columns = np.empty((grid.size, count), "<u4")
    for here, weights in row_blocks(adjacency, above_floor=True):
        scale[here] = weights.max(axis=1)
        if not dense:
            columns[here] = np.sort(np.argpartition(weights, -count, axis=1)[:, -count:], axis=1)
            weights = np.take_along_axis(weights, columns[here].astype(np.intp), axis=1)
        shares = weights / np.where(scale[here] > 0, scale[here], 1)[:, None]
        codes[here] = np.round(255 * np.sqrt(np.clip(shares, 0, 1)))
    section = {"count": count, "scale": encoded(scale.astype("<f4")), "codes": encoded(codes)}
    section |= {} if dense else {"columns": encoded(columns)}
    return {**section, "first": _telling_node(adjacency, grid)}


def _telling_node(adjacency: xr.Dataset, grid: Grid) -> int:
    """Return the node that listens most to one beyond 1000 km, the middle one where that takes long to find."""
    far = strongest_links(adjacency, 1, min_km=1000) if grid.size**2 <= _PAIRS_SEARCHED else pd.DataFrame()
    if far.empty:
        return int(grid.shape[0] // 2 * grid.shape[1] + grid.shape[1] // 2)
    row = np.searchsorted(grid.latitude, far["target_latitude"].iloc[0])
    return int(row * grid.shape[1] + np.searchsorted(grid.longitude, far["target_longitude"].iloc[0]))


def _training(folder: Path) -> Section | None:
    """Return the columns of every training log but the counts of steps, against the epoch."""
    models, columns = {}, []
    for log in sorted((folder / "models").glob("*/log.csv")):
        frame = pd.read_csv(log)
        numeric = [name for name in frame.select_dtypes("number").columns if name not in ("epoch", "step")]
        columns += [name for name in numeric if name not in columns]
        models[log.parent.name] = {name: numbers(frame[name].to_numpy(np.float64)) for name in ("epoch", *numeric)}
    return {"models": models, "columns": columns} if columns else None


# --- what was done, and where it is ---


def _journal(folder: Path) -> str:
    """Return table rows of the units of a run, each as it was last finished; a line that a kill cut short ends in no brace."""
    journal = folder / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    finished = {row["unit"]: row for row in rows if "finished" in row}
    return "".join(
        f'<tr><th scope="row">{html.escape(str(row["unit"]))}</th><td>{html.escape(str(row["finished"]))}</td>'
        f"<td>{float(row['seconds']):.1f}</td></tr>"
        for row in finished.values()
    )


def _links_to_files(folder: Path, home: Path) -> str:
    """Return links to what a run wrote, relative to the folder of the page."""
    found = [file for pattern in _FILES for file in sorted(folder.glob(pattern))]
    return "".join(
        f'<li><a href="{html.escape(urllib.parse.quote(Path(os.path.relpath(file, home)).as_posix()))}">'
        f"{html.escape(file.relative_to(folder).as_posix())}</a> {file.stat().st_size / 1e3:,.0f} kB</li>"
        for file in found
    )
