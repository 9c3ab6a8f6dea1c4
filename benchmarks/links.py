"""Whether planted links are found: the learned adjacency of LS-NTP, lagged correlation, ridge regression; and what it gains.

    python benchmarks/links.py [--out benchmarks/results/links.md] [--epochs 10] [--seeds 1] [--kept FILE] [--only NAME ...]

Four years of synthetic temperature (climapred.testing) every 6 hours on 13 x 25 points, 5 degrees, with four links between
boxes 6,100 to 7,000 km apart: a target follows its source 12 to 24 hours later, a kelvin for a kelvin of the source's mean. All
see 5 frames and forecast 4; the first 70 % of the times train, 15 % validate, 15 % test. Networks: hidden 8, one layer,
embedding 32, every second training window, batch 32, climapred's default training; an anomaly in, its change out.

Which pairs are linked is scored over all pairs of points beyond 1,000 km, with their direction:

    precision   share of planted pairs among the k strongest, k = number of planted pairs (0.5 % of all: chance is 0.005)
    AUC         probability that a planted pair is stronger than one that is not
    direction   share of planted pairs that are stronger than the same pair the other way round (chance 0.5)

What is scored: of an adjacency its weights, where they have a sign their modulus. "influence" is what the whole network does:
the gradient of the forecast at i, mean over the leads, for the anomaly at j in each frame seen, mean over eight training
windows, the largest of the frames in modulus. Pearson: the largest modulus of the correlation of x_j(t) with x_i(t + lag), lags
6 to 24 h. Ridge: all points of all five frames explain x_i of each lead (penalty 0.01 or 0.1 of the mean eigenvalue, the better
on the validation times); the largest modulus of the coefficients of the first lead over the frames.

"signed" is LS-NTP over A = E F^T without softmax (adjacency: low_rank).

The second table: weights of the true data against those of five surrogates (climapred.results.links.surrogates), for what takes
seconds to fit; of all pairs beyond 1,000 km, those that pass Benjamini and Hochberg's procedure at 5 %.

Perfect: the equations of the sample, without the noise and the air from outside the grid. Blind: the same without the links.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from scipy.stats import rankdata
from torch import nn

from climapred.data.statistics import training_statistics
from climapred.grid import Grid
from climapred.learning.artefact import Scaling, TrainedModel, scaled_network
from climapred.learning.dataset import WindowDataset
from climapred.learning.influence import influence
from climapred.learning.loader import WindowLoader
from climapred.learning.training import Training, fit
from climapred.learning.windows import Window, chronological_split, time_step
from climapred.results.links.adjacency import distance_rows
from climapred.results.links.significance import null_p_values, significant
from climapred.results.links.surrogates import block_shuffled, phase_randomised
from climapred.testing import Link, perfect_forecast, planted_weights, synthetic_temperature

GRID = Grid.regular(5.0, region=(20, 80, 180, 300))
LINKS = (
    Link(source=(20, 35, 180, 200), target=(60, 75, 265, 285), lag_hours=24, strength=1.0),
    Link(source=(60, 75, 185, 205), target=(20, 35, 265, 285), lag_hours=12, strength=1.0),
    Link(source=(25, 40, 280, 300), target=(60, 75, 205, 225), lag_hours=18, strength=1.0),
    Link(source=(40, 55, 280, 300), target=(25, 40, 205, 225), lag_hours=24, strength=1.0),
)
YEARS, WINDOW, MIN_KM = 4, Window(5, 4), 1000.0
HIDDEN, EMBEDDING, BATCH, STRIDE, STARTS, INFLUENCES = 8, 32, 32, 2, 4, 8
SMALL: dict[str, Any] = {"hidden": HIDDEN, "layers": 1}
ROUGH = "LS-NTP (climapred), a vector for each point"


class Recovery(NamedTuple):
    precision: float
    auc: float
    direction: float


PAPER: dict[str, Any] = {
    **SMALL,
    "branch": 0,
    "smooth": 1,
    "directed": False,
    "relu": True,
}  # its LS-Conv, between our gates
NETWORKS: Mapping[str, tuple[str, dict[str, Any]]] = {  # name: architecture, options
    "ConvLSTM": ("convlstm", SMALL),
    "the paper's LS-Conv": ("ls_ntp", PAPER),
    "the paper's LS-Conv, directed, no floor": ("ls_ntp", {**PAPER, "directed": True, "floor": False}),
    "LS-NTP (climapred)": ("ls_ntp", SMALL),
    "LS-NTP (climapred), knots on every second row and column": ("ls_ntp", {**SMALL, "smooth": 2}),
    ROUGH: ("ls_ntp", {**SMALL, "smooth": 1}),
    f"{ROUGH}, symmetric, with ReLU and floor": ("ls_ntp", {**SMALL, "smooth": 1, "directed": False, "relu": True}),
    f"{ROUGH}, directed, with ReLU, no floor": ("ls_ntp", {**SMALL, "smooth": 1, "relu": True, "floor": False}),
    "LS-NTP (climapred), signed": ("ls_ntp", {**SMALL, "adjacency": "low_rank"}),
    f"{ROUGH}, signed": ("ls_ntp", {**SMALL, "smooth": 1, "adjacency": "low_rank"}),
}


class Data:
    """The sample, cut into periods, and what was planted."""

    def __init__(self) -> None:
        self.sample = synthetic_temperature(GRID, periods=1460 * YEARS, links=LINKS, seed=0)
        self.fields, self.times = self.sample.fields, self.sample.fields["time"].values
        self.split = chronological_split(self.times, 0.7, 0.85)
        self.known = training_statistics(self.fields.isel(time=slice(*self.split.train)))
        self.orders = tuple(int(self.known["climatology"].attrs[name]) for name in ("annual", "daily"))
        self.anomaly = self.sample.anomaly.values.reshape(len(self.times), -1).astype(np.float64)
        self.windows = WindowDataset(self.fields, WINDOW, self.orders)
        self.tests = self.split.starts("test", self.times, WINDOW, stride=STARTS)
        self.far = distance_rows(GRID, slice(None)) > MIN_KM
        self.planted = (planted_weights(LINKS, GRID) > 0) & self.far

    def recovery(self, score: np.ndarray) -> Recovery:
        values, truth = score[self.far], self.planted[self.far]
        count, ranks = int(truth.sum()), rankdata(values)
        auc = (ranks[truth].sum() - count * (count + 1) / 2) / (count * (truth.size - count))
        there, back = score[self.planted], score.T[self.planted]
        precision = truth[np.argsort(-values, kind="stable")[:count]].mean()
        return Recovery(float(precision), float(auc), float((there > back).mean() + (there == back).mean() / 2))

    def error(self, forecast: Callable[[np.ndarray], np.ndarray], starts: np.ndarray) -> float:
        """Return the mean absolute error, K, of a forecast of anomalies (S, leads, N) from the places of the last frames."""
        now = starts + WINDOW.last_seen
        return float(np.abs(forecast(now) - self.anomaly[now[:, None] + WINDOW.leads]).mean())


# --- without a network ---


def bounds(data: Data) -> dict[str, float]:
    """Return errors of persistence, and of the equations of the sample with and without the links."""
    anomaly = data.anomaly

    def blind(now: np.ndarray) -> np.ndarray:
        state, steps = anomaly[now], []
        for _ in WINDOW.leads:
            state = (data.sample.propagator @ state.T).T
            steps.append(state)
        return np.stack(steps, axis=1)

    init = data.times[data.tests + WINDOW.last_seen]
    best = perfect_forecast(data.sample, init, WINDOW.horizon)["t2m"]
    truth = data.fields["t2m"].sel(time=best["valid_time"]).drop_vars("time")
    return {
        "persistence": data.error(lambda now: np.repeat(anomaly[now][:, None], WINDOW.horizon, axis=1), data.tests),
        "blind to the links": data.error(blind, data.tests),
        "perfect": float(np.abs(best - truth).mean()),
    }


def lagged_correlation(values: np.ndarray) -> np.ndarray:
    """Return |r(x_i(t + lag), x_j(t))| for lags 0 to 4, (5, N, N)."""
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    return np.stack([np.abs(values[lag:].T @ values[: len(values) - lag]) / (len(values) - lag) for lag in range(5)])


def pearson(data: Data) -> dict[str, Recovery]:
    lagged = lagged_correlation(data.anomaly[slice(*data.split.train)])
    return {
        "Pearson, no lag": data.recovery(lagged[0]),
        "Pearson, lags 6 to 24 h": data.recovery(lagged[1:].max(axis=0)),
    }


def ridge_weights(values: np.ndarray, penalty: float = 0.01) -> np.ndarray:
    """Return the largest modulus over the frames of the coefficients of the first lead, (N, N)."""
    last = np.arange(WINDOW.last_seen, len(values) - 1)
    inputs = values[last[:, None] - np.arange(WINDOW.history)].reshape(len(last), -1)
    normal = inputs.T @ inputs
    normal += penalty * np.trace(normal) / len(normal) * np.eye(len(normal))
    weights = np.linalg.solve(normal, inputs.T @ values[last + 1])
    return np.abs(weights.reshape(WINDOW.history, GRID.size, GRID.size)).max(axis=0).T


def ridge(data: Data) -> tuple[float, Recovery]:
    """Return the test error of ridge regression, and what its coefficients find."""
    first, stop = data.split.train
    last = np.arange(first + WINDOW.last_seen, stop - WINDOW.horizon)

    def seen(now: np.ndarray) -> np.ndarray:
        return data.anomaly[now[:, None] - np.arange(WINDOW.history)].reshape(len(now), -1)

    inputs = seen(last)
    normal = inputs.T @ inputs
    found = []
    for penalty in (0.01, 0.1):
        damped = normal + penalty * np.trace(normal) / len(normal) * np.eye(len(normal))
        weights = np.stack([np.linalg.solve(damped, inputs.T @ data.anomaly[last + lead]) for lead in WINDOW.leads])

        def forecast(now: np.ndarray, weights: np.ndarray = weights) -> np.ndarray:
            return np.stack([seen(now) @ of_lead for of_lead in weights], axis=1)

        validation = data.split.starts("validation", data.times, WINDOW, stride=STARTS)
        found.append((data.error(forecast, validation), data.error(forecast, data.tests), weights[0]))
    _, error, first_lead = min(found, key=lambda one: one[0])
    by_frame = first_lead.reshape(WINDOW.history, GRID.size, GRID.size)
    return error, data.recovery(np.abs(by_frame).max(axis=0).T)


# --- networks ---


def trained(data: Data, name: str, *, epochs: int, seed: int) -> TrainedModel:
    architecture, options = NETWORKS[name]
    options = {**options, "embedding": EMBEDDING} if architecture == "ls_ntp" else options
    about: Any = {"scaling": Scaling(), "statistics": data.known, "variables": ("t2m",), "window": WINDOW}
    module, orders = scaled_network(architecture, options, seed=seed, **about)
    starts = {period: data.split.starts(period, data.times, WINDOW) for period in ("train", "validation")}
    seen = WindowDataset(data.fields.isel(time=slice(0, data.split.validation[1])), WINDOW, data.orders)
    loaders = (
        WindowLoader(seen, starts["train"][::STRIDE], BATCH, seed=seed),
        WindowLoader(seen, starts["validation"], 4 * BATCH),
    )
    with tempfile.TemporaryDirectory() as folder:
        training = Training(epochs=epochs, batch_size=BATCH, seed=seed)
        fit(module, *loaders, history=WINDOW.history, training=training, folder=Path(folder), show_progress=False)
    return TrainedModel(
        name, architecture, options, Scaling(), orders, ("t2m",), GRID, WINDOW, time_step(data.times), module
    )


def network_error(data: Data, module: nn.Module) -> float:
    errors = []
    with torch.no_grad():
        for first in range(0, len(data.tests), 128):
            batch = data.windows[data.tests[first : first + 128]]
            forecast = module(batch.fields[:, : WINDOW.history], batch.calendar)
            errors.append((forecast - batch.fields[:, WINDOW.history :]).abs().mean(dim=(1, 2, 3, 4)))
    return float(torch.cat(errors).mean())


def measured(data: Data, name: str, *, epochs: int, seed: int, kept: Path | None) -> dict[str, Any]:
    """Return the error of a network and what it found; from the file of what was measured before, if it is there."""
    key = f"{name}, {epochs} epochs, seed {seed}"
    for line in kept.read_text(encoding="utf-8").splitlines() if kept is not None and kept.exists() else ():
        if (row := json.loads(line))["network"] == key:
            return {
                kind: Recovery(*value) if isinstance(value, list) else value for kind, value in row["found"].items()
            }
    began = time.perf_counter()
    model = trained(data, name, epochs=epochs, seed=seed)
    windows = data.times[np.linspace(*data.split.train, INFLUENCES + 2)[1:-1].astype(int) + WINDOW.last_seen]
    found: dict[str, Any] = {
        "mae": network_error(data, model.module),
        "influence": data.recovery(influence(model, data.fields, windows)),
    }
    if (weights := model.adjacency()) is not None:
        found["adjacency"] = data.recovery(weights)
    print(f"{key}: {found}, {time.perf_counter() - began:.0f} s", flush=True)
    if kept is not None:
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"network": key, "found": found}) + "\n")
    return found


# --- significance ---


def found_significant(data: Data) -> list[str]:
    """Return a table of what passes Benjamini and Hochberg's 5 % against five surrogates, of ridge regression and Pearson."""
    anomaly = data.sample.anomaly.isel(time=slice(*data.split.train)).astype(np.float64)
    nulls: dict[str, Callable[[int], xr.DataArray]] = {
        "phases of each point": lambda seed: phase_randomised(anomaly, seed=seed),
        "phases alike over 500 km": lambda seed: phase_randomised(anomaly, seed=seed, length_km=500),
        "common phases": lambda seed: phase_randomised(anomaly, seed=seed, length_km=np.inf),
        "10-day blocks of each point": lambda seed: block_shuffled(anomaly, block=40, seed=seed, common=False),
        "common 10-day blocks": lambda seed: block_shuffled(anomaly, block=40, seed=seed),
    }
    scores: dict[str, Callable[[xr.DataArray], np.ndarray]] = {
        "ridge": lambda field: ridge_weights(field.values.reshape(len(field), -1)),
        "Pearson, lags 6 to 24 h": lambda field: lagged_correlation(field.values.reshape(len(field), -1))[1:].max(
            axis=0
        ),
    }
    dims = ("node_target", "node_source")
    distance = xr.DataArray(distance_rows(GRID, slice(None)), dims=dims)
    lines = [
        "| scored | surrogates | p-values | significant | of them planted | of planted |",
        "| :-- | :-- | :-- | --: | --: | --: |",
    ]
    for name, score in scores.items():
        weights = xr.DataArray(score(anomaly), dims=dims)
        for kind, make in nulls.items():
            members = np.stack([score(make(seed)) for seed in range(5)])
            for method in ("pooled", "gaussian"):
                p_values = null_p_values(
                    weights, xr.DataArray(members, dims=("member", *dims)), method=method, distance=distance
                )
                found = significant(p_values.where(xr.DataArray(data.far, dims=dims))).values
                right, count = int((found & data.planted).sum()), int(found.sum())
                share = f"{right / count:.3f}" if count else ""
                lines.append(f"| {name} | {kind} | {method} | {count:,} | {share} | {right / data.planted.sum():.3f} |")
    return lines


# --- the table ---


def cells(found: list[Recovery] | None) -> str:
    if not found:
        return " | | "
    ends = [(min(of), max(of)) for of in zip(*found, strict=True)]
    return " | ".join(" to ".join(dict.fromkeys(f"{value:.3f}" for value in both)) for both in ends)


def table(data: Data, names: list[str], *, epochs: int, seeds: int, kept: Path | None) -> list[str]:
    plain: list[tuple[str, float | None, str, list[Recovery] | None]] = [
        (name, error, "", None) for name, error in bounds(data).items()
    ]
    plain += [(name, None, "correlation", [found]) for name, found in pearson(data).items()]
    error, found = ridge(data)
    plain.append(("ridge regression", error, "coefficients", [found]))
    runs = {
        name: [measured(data, name, epochs=epochs, seed=seed, kept=kept) for seed in range(seeds)] for name in names
    }
    errors = {name: float(np.mean([one["mae"] for one in of])) for name, of in runs.items()}
    lines = [
        "| | MAE, K | of ConvLSTM's | scored | precision | AUC | direction |",
        "| :-- | --: | --: | :-- | --: | --: | --: |",
    ]
    reference = errors.get("ConvLSTM", np.nan)

    def line(name: str, error: float | None, what: str, found: list[Recovery] | None) -> str:
        numbers = " | " if error is None else f"{error:.3f} | {error / reference:.3f}"
        return f"| {name} | {numbers} | {what} | {cells(found)} |"

    lines += [line(*row) for row in plain]
    for name, of in runs.items():
        kinds = [kind for kind in ("adjacency", "influence") if kind in of[0]]
        for number, kind in enumerate(kinds):
            first = number == 0
            lines.append(line(name if first else "", errors[name] if first else None, kind, [one[kind] for one in of]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "links.md")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--kept", type=Path, help="JSON lines of the networks that are measured; those are not trained again"
    )
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Data()
    lines = table(data, options.only, epochs=options.epochs, seeds=options.seeds, kept=options.kept)
    pairs = f"{int(data.planted.sum())} planted pairs among {int(data.far.sum()):,} beyond {MIN_KM:,.0f} km"
    about = (
        f"{pairs}; {options.epochs} epochs, seeds: {options.seeds}; {platform.machine()}, torch {torch.__version__}."
    )
    tables = "\n".join([*lines, "", *found_significant(data)])
    text = f"# Planted links\n\n{__doc__.strip()}\n\n{about}\n\n{tables}\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
