"""What the parts of LS-NTP are worth on real data: forecasts of a year, of networks that lack or change one part each.

    CLIMAPRED_DATA=FOLDER python benchmarks/ablation.py [--seeds 0 1 2] [--work FOLDER] [--out benchmarks/results/ablation.md]

pipelines/ncep_air.yaml (North America, 25 x 53 points, trained on 2013, all windows of 2014, leads 6 to 36 h) with one budget
for all: hidden 16, two layers, 2 epochs in batches of 16, an anomaly in and its change out, the epoch of the least validation
error. "w/o" as in Table 4 of Xu et al. (2022); "the paper's LS-Conv" is theirs between our gates, and "the paper's network" has
their gates (ReLU, no bias) and initial weights too. Mean over the seeds, and half the range between them; RMSE is the mean over
the leads of each lead's. Given the same --work again it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from climapred.pipeline import run

RECIPE = Path(__file__).parent.parent / "pipelines" / "ncep_air.yaml"
CLASSIC: dict[str, Any] = {"branch": 0, "smooth": 1, "directed": False, "relu": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name: what it is in the table, options
    "convlstm": ("ConvLSTM", {"architecture": "convlstm"}),
    "convlstm_5": ("- kernel 5", {"architecture": "convlstm", "kernel": 5}),
    "convlstm_7": ("- kernel 7", {"architecture": "convlstm", "kernel": 7}),
    "climapred": ("LS-NTP (climapred)", {}),
    "branch_kernel_5": ("- kernel 5", {"kernel": 5}),
    "branch_kernel_7": ("- kernel 7", {"kernel": 7}),
    "branch_smooth_2": ("- knots on every second row and column", {"smooth": 2}),
    "branch_smooth_8": ("- knots on every eighth", {"smooth": 8}),
    "branch_rough": ("- a vector for each point (`smooth: 1`)", {"smooth": 1}),
    "branch_without_nsa": ("- w/o NSA", {"attention": False}),
    "branch_symmetric": ("- symmetric, with ReLU and floor", {"directed": False, "relu": True}),
    "branch_signed": ("- signed weights (`adjacency: low_rank`)", {"adjacency": "low_rank"}),
    "branch_2000_km": ("- no link longer than 2,000 km (`max_km`)", {"max_km": 2000}),
    "classic": ("the paper's LS-Conv", CLASSIC),
    "without_nsa": ("- w/o NSA", {**CLASSIC, "attention": False}),
    "without_lagc": ("- w/o LAGC", {**CLASSIC, "long_range": False}),
    "without_lsi": ("- w/o LSI (kernel 1)", {**CLASSIC, "short_range": False}),
    "dagg": ("- DAGG-ConvLSTM", {**CLASSIC, "attention": False, "short_range": False}),
    "without_floor": ("- directed, w/o floor", {**CLASSIC, "directed": True, "floor": False}),
    "kernel_5": ("- kernel 5", {**CLASSIC, "kernel": 5}),
    "kernel_7": ("- kernel 7", {**CLASSIC, "kernel": 7}),
    "paper": ("the paper's network", {"variant": "paper"}),
}


def model(name: str) -> dict[str, Any]:
    options = dict(VARIANTS[name][1])
    return {
        "name": name,
        "architecture": options.pop("architecture", "ls_ntp"),
        "options": {"hidden": 16, **options},
    }


def scores(seed: int, names: list[str], work: Path) -> pd.DataFrame:
    """Train, forecast and score with one seed; mean over the leads, a row per model."""
    chosen = [f"models={json.dumps([model(name) for name in names])}", "forecast={baselines: []}"]
    budget = [f"training.{key}" for key in (f"seed={seed}", "epochs=2", "batch_size=16", "learning_rate=2e-3")]
    run(RECIPE, work / f"seed_{seed}", overrides=[*chosen, *budget], until="evaluate")
    found = pd.read_csv(work / f"seed_{seed}" / "scores.csv").groupby("model", sort=False)
    return found[["mae", "rmse", "mae_area", "rmse_area"]].mean().assign(seed=seed)


def table(found: pd.DataFrame, names: list[str]) -> str:
    metrics = ["mae", "rmse", "mae_area", "rmse_area"]
    lines = [f"| network | {' | '.join(f'{metric}, K' for metric in metrics)} |", "| :-- | " + "--: | " * len(metrics)]
    groups = found.groupby(level="model")
    mean, half = groups.mean(), (groups.max() - groups.min()) / 2
    rows = {name: VARIANTS[name][0] for name in names} | {"damped": "damped anomaly persistence"}
    for name, text in rows.items():
        values = [f"{mean.at[name, metric]:.4f} ± {half.at[name, metric]:.4f}" for metric in metrics]
        lines.append(f"| {text} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--work", type=Path, help="where runs are kept (a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ablation.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        found = pd.concat([scores(seed, options.only, work) for seed in options.seeds])
    seeds = f"Seeds {', '.join(map(str, options.seeds))}."
    text = f"# Ablation\n\n{__doc__.strip()}\n\n{seeds}\n\n{table(found, options.only)}\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
