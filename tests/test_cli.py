import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from climapred.cli import app
from climapred.data.regrid import regrid
from climapred.grid import Grid
from climapred.models import MODELS
from climapred.models.cost import cost
from climapred.results.cf import from_cf
from climapred.testing import synthetic_temperature, write_grib, write_ncep

CATALOGS = Path(__file__).parents[1] / "catalogs"


def climapred(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def plain(text: str) -> str:
    """Return the words of a boxed or coloured message."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def test_help_names_the_commands():
    code, out, _ = climapred("--help")
    assert code == 0
    for command in ("run", "validate", "inspect", "regrid", "models", "catalog"):
        assert re.search(rf"\b{command}\b", plain(out))


def test_help_of_run_names_the_options():
    code, out, _ = climapred("run", "--help")
    assert code == 0
    for option in ("RECIPE", "--out", "--set", "--until", "--restart", "--scheduler", "--workers"):
        assert option in plain(out)
    for option in ("--part", "--finish", "--append", "--repair"):
        assert option in plain(out)


def test_no_command_shows_the_help():
    code, out, err = climapred()
    assert code == 2
    assert "Usage:" in out + err


def test_a_run_from_build_to_train(tiny_recipe):
    code, out, err = climapred("run", tiny_recipe.recipe, "--out", tiny_recipe.out, "--until", "train")
    assert code == 0
    assert (tiny_recipe.out / "models/conv/model.json").exists()
    assert str(tiny_recipe.out / "models/conv/model.json") in out
    assert "train: conv, 1,389 parameters" in err


def test_nothing_to_do(tiny_run):
    code, out, err = climapred("run", tiny_run.recipe, "--out", tiny_run.out)
    assert code == 0
    assert plain(err) == "nothing to do: every stage is finished, for this recipe and these files"
    assert out.split()[:2] == ["model", "mae"]
    assert "persistence" in out


def test_set_reaches_the_recipe(tiny_run):
    code, _, err = climapred(
        *("run", tiny_run.recipe, "--out", tiny_run.out, "--until", "build"),
        *("--set", "climatology.daily=1", "--set", "climatology.annual=0"),
    )
    assert code == 0
    assert "build: statistics" in err
    assert "annual: 0\n  daily: 1" in (tiny_run.out / "recipe.yaml").read_text()


def test_restart(tiny_run):
    code, out, _ = climapred("run", tiny_run.recipe, "--out", tiny_run.out, "--until", "build", "--restart")
    assert code == 0
    assert out.strip() == ""  # nothing to report yet
    assert not (tiny_run.out / "models").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.epochs=x"], "--set: training.epochs: Input should be a valid integer, got 'x'"),
        (["maps.leads_hours=[7]"], "maps.leads_hours: 7 is not a lead of the forecast; those are [6.0, 12.0]"),
        (["source={path: '[a]/x.nc', variables: air}"], "source: no file matches '[a]/x.nc' (working directory"),
        (["models.0.architecture=lstm"], "models.0: unknown model 'lstm'; known models: convlstm, ls_ntp"),
    ],
)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_errors_are_one_clear_line(finished_run, tmp_path, command, overrides, message):
    folder = ["--out", tmp_path / "out"] if command == "run" else []
    sets = [part for override in overrides for part in ("--set", override)]
    code, out, err = climapred(command, finished_run.recipe, *folder, *sets)
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_every_fault_of_a_recipe_is_shown(finished_run):
    code, _, err = climapred("validate", finished_run.recipe, "--set", "a=1", "--set", "b=2")
    assert code == 1
    assert "--set: a: unknown key" in err
    assert "--set: b: unknown key" in err


def test_no_recipe(tmp_path):
    code, _, err = climapred("validate", tmp_path / "absent.yaml")
    assert (code, err) == (1, f"error: no recipe at {tmp_path / 'absent.yaml'}\n")


def test_a_folder_in_use(tiny_run):
    import fcntl

    with (tiny_run.out / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        code, _, err = climapred("run", tiny_run.recipe, "--out", tiny_run.out)
    assert code == 1
    assert err.startswith("error: another run works in ")


def test_a_folder_that_is_a_file(finished_run, tmp_path):
    (tmp_path / "out").write_text("")
    code, _, err = climapred("run", finished_run.recipe, "--out", tmp_path / "out")
    assert code == 1
    assert err.startswith("error: ")
    assert str(tmp_path / "out") in err


def test_unknown_stage(finished_run, tmp_path):
    code, _, err = climapred("run", finished_run.recipe, "--out", tmp_path / "out", "--until", "tain")
    assert code == 2
    assert "'tain' is not a stage; stages: build, train, forecast, evaluate, maps" in plain(err)


@pytest.fixture
def files_recipe(tmp_path):
    """A recipe of a file, without its run; its fields are large enough for two shards."""
    path = write_ncep(synthetic_temperature(periods=400).fields, tmp_path)[0]
    (tmp_path / "r.yaml").write_text(
        f"name: files\nsource: {{path: {path}, variables: air}}\nsplit: {{validation: 0.6, test: 0.8}}\n"
        "grid: {spacing: 0.5, region: [22, 77, 181, 296], method: bilinear}\n"
        "models: [{name: conv, architecture: convlstm, options: {hidden: 4}}]\n"
    )
    return tmp_path / "r.yaml", tmp_path / "out"


def test_parts_of_a_batch_array(files_recipe):
    recipe, out = files_recipe
    run = ("run", recipe, "--out", out)
    code, _, err = climapred(*run, "--finish")
    assert (code, err.startswith("error: no part of ")) == (1, True)
    assert climapred(*run, "--part", "1/2")[0] == 0
    code, _, err = climapred(*run, "--finish")
    assert (code, "shards (first: times " in err, "run their parts again" in err) == (1, True, True)
    assert climapred(*run, "--part", "2/2", "--workers", "1")[0] == 0
    assert climapred(*run, "--finish") == (0, "", "build: the tensors are finished\n")
    assert climapred(*run, "--finish") == (0, "", "nothing to do: the tensors are finished\n")
    code, _, err = climapred(*run, "--until", "build", "--repair", "--append")
    assert code == 0
    assert "build: every shard is intact" in err
    assert sorted(path.name for path in out.iterdir()) == ["journal.jsonl", "recipe.yaml", "tensors.zarr"]


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/2/3", "-1/2"])
def test_parts_that_are_none(files_recipe, part):
    recipe, out = files_recipe
    code, _, err = climapred("run", recipe, "--out", out, "--part", part)
    assert code == 2
    assert f"{part!r} is not I/N with I from 1 to N, such as 3/8" in plain(err)
    assert not out.exists()


@pytest.mark.parametrize("other", ["--finish", "--restart", "--append", "--repair", "--until=build"])
def test_a_part_goes_with_nothing_else(files_recipe, other):
    recipe, out = files_recipe
    code, _, err = climapred("run", recipe, "--out", out, "--part", "1/2", other)
    assert code == 2
    assert "--part and --finish stand alone" in plain(err)
    assert not out.exists()


def test_out_is_needed(finished_run):
    code, _, err = climapred("run", finished_run.recipe)
    assert code == 2
    assert "Missing option '--out'" in plain(err)


def test_validate(finished_run):
    assert climapred("validate", finished_run.recipe) == (0, f"{finished_run.recipe}: valid\n", "")


@pytest.fixture
def ncep_file(tmp_path):
    return write_ncep(synthetic_temperature(periods=40).fields, tmp_path)[0]


def test_inspect_of_a_file_that_harmonise_takes(ncep_file):
    code, out, err = climapred("inspect", ncep_file)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == str(ncep_file)
    assert lines[1].startswith("  air: time 40 x lat ")
    assert any(line.startswith("  latitude: descends from ") and line.endswith("-> sorted to ascend") for line in lines)
    assert lines[-1] == "harmonise takes this"
    assert not re.search("\x1b", out)  # no terminal, no colours


def test_inspect_of_a_file_that_harmonise_refuses(ncep_file):
    code, out, err = climapred("inspect", ncep_file, ncep_file)  # the same times twice
    assert (code, err) == (1, "")
    assert out.splitlines()[-1].startswith("refused: time: 40 of 80 times in 'time' are repeated: ")
    code, out, _ = climapred("inspect", ncep_file, ncep_file, "--duplicates", "first")
    assert code == 0
    assert "-> dropped all but the first of each" in out


def test_inspect_for_machines(ncep_file):
    code, out, _ = climapred("inspect", ncep_file, "--json", "--every-time")
    found = json.loads(out)
    assert (code, found["refused"]) == (0, False)
    assert found["files"] == [str(ncep_file)]
    assert found["variables"][0]["times_read"] == found["times"]["count"] == 40
    code, out, _ = climapred("inspect", ncep_file, ncep_file, "--json")
    assert (code, json.loads(out)["refused"]) == (1, True)


def test_inspect_of_some_messages(tmp_path):
    path = write_grib(tmp_path / "a.grib", *({"shortName": name, "dataTime": 600} for name in ("2t", "10u", "z")))
    code, out, _ = climapred("inspect", path, "-v", "t2m", "--select", "data_type=an")
    assert code == 0
    assert "  u10: 1 message -> left out\n" in out
    code, out, err = climapred("inspect", path, "--select", "level=17")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: no message of {path} has level [17.0]; there are ")
    code, _, err = climapred("inspect", path, "--select", "level")
    assert code == 2
    assert "'level' is not KEY=VALUE, such as level=500" in plain(err)


def test_inspect_of_damaged_messages(tmp_path):
    path = write_grib(tmp_path / "a.grib", *({"shortName": "2t", "dataTime": time} for time in (0, 600)))
    path.write_bytes(path.read_bytes()[:-10])
    code, out, _ = climapred("inspect", path)
    assert code == 1
    assert out.splitlines()[-1].startswith(f"refused: files: {path} is truncated or damaged at byte ")
    code, out, _ = climapred("inspect", path, "--skip-damaged")
    assert code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file matches '{path}' (working directory "),
        (b"", "{path} is empty; a GRIB, NetCDF or Zarr source was wanted"),
        (b"x,y\n", "{path} is neither GRIB, NetCDF nor Zarr: it begins with b'x,y"),
    ],
)
def test_inspect_of_what_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "a.nc"
    if content is not None:
        path.write_bytes(content)
    code, out, err = climapred("inspect", path)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("error: " + message.format(path=path))


def test_catalog_lists_entries():
    code, out, _ = climapred("catalog", CATALOGS / "ncep.yaml")
    assert code == 0
    assert out.splitlines()[0].startswith("air_sig995 (netcdf): ")
    assert "  year: one year, or * for all (default *)" in out.splitlines()


def test_no_catalog(tmp_path):
    code, _, err = climapred("catalog", tmp_path / "absent.yaml")
    assert code == 1
    assert err.startswith("error: ")


def test_a_damaged_file_is_one_clear_line(tmp_path):
    """Found by a worker in the middle of the build: no traceback, neither ours nor Dask's."""
    path = write_ncep(synthetic_temperature(periods=400).fields, tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[-20000:-10000] = bytes(10000)
    path.write_bytes(content)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: damaged\nsource: {{path: {path}, variables: air}}\nsplit: {{validation: 0.6, test: 0.8}}\n"
        "models: [{name: conv, architecture: convlstm, options: {hidden: 4}}]\n"
    )
    command = [sys.executable, "-m", "climapred.cli", "run", str(recipe), "--out", str(tmp_path / "out")]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 1
    assert child.stdout == ""
    *progress, message = child.stderr.splitlines()
    assert message.startswith(f"error: air cannot be read from {path}: ")
    assert all(line.startswith("build: shards") for line in progress)


def test_as_a_program(finished_run, tmp_path):
    """In a process of its own: exit codes, and nothing but the message on the terminal."""
    command = [sys.executable, "-m", "climapred.cli", "validate", str(finished_run.recipe)]
    good = subprocess.run(command, capture_output=True, text=True)
    assert (good.returncode, good.stdout, good.stderr) == (0, f"{finished_run.recipe}: valid\n", "")
    bad = subprocess.run([*command, "--set", "split.test=0.1"], capture_output=True, text=True)
    assert bad.returncode == 1
    assert bad.stderr.startswith(f"error: {finished_run.recipe}, line 8: split: ")
    assert "Traceback" not in bad.stderr


def test_regrid(tmp_path):
    path = write_ncep(synthetic_temperature(periods=8).fields, tmp_path)[0]
    out = tmp_path / "out.nc"
    command = ("regrid", path, out, "--grid", "5", "--region", 30, 60, 200, 260, "--variables", "air")
    assert climapred(*command, "--method", "bilinear") == (0, f"{out}: written\n", "")
    with xr.open_dataset(out) as written, xr.open_dataset(path) as source:
        expected = regrid(source[["air"]], Grid.regular(5, (30, 60, 200, 260)), "bilinear")
        np.testing.assert_array_equal(written["air"], expected["air"])
        assert re.fullmatch(
            rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ: climapred regrid {path} {out} --grid 5 "
            r"--region 30.0 60.0 200.0 260.0 --method bilinear --max-missing 0.5",
            written.attrs["history"],
        )
    code, _, err = climapred(*command)
    assert (code, err) == (
        1,
        f"error: {out} exists; remove it, name another, or allow it to be replaced (--overwrite)\n",
    )
    assert climapred(*command, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "T63"], "a grid is a spacing in degrees such as 1.5, N48 or F48, or a file; no file 'T63'"),
        (["--grid", "5", "--method", "cubic"], "method must be one of nearest, bilinear, conservative, got 'cubic'"),
        (["--grid", "5", "--variables", "t2m,u10"], "variable 't2m' cannot be taken from"),
        (["--grid", "5", "--region", "0", "10", "5", "25"], "no point of the target lies in the source"),
    ],
)
def test_regrid_errors_are_one_clear_line(tmp_path, options, message):
    path = write_ncep(synthetic_temperature(periods=8).fields, tmp_path)[0]
    code, out, err = climapred("regrid", path, tmp_path / "out.zarr", *options)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert message in err
    assert not list(tmp_path.glob("out*"))


def test_a_baseline_is_a_name_and_a_file(tmp_path):
    code, _, err = climapred("run", "pipelines/demo.yaml", "--out", tmp_path / "out", "--baseline", "gfs.nc")
    assert code == 2
    assert "'gfs.nc' is not NAME=FILE, such as gfs=gfs.nc" in plain(err)
    assert not (tmp_path / "out").exists()


def test_models_are_listed_with_their_costs():
    code, out, _ = climapred("models", "--grid", "10x12", "--horizon", "2", "--set", "hidden=4", "--set", "cell=conv")
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert list(rows) == list(MODELS)
    found = cost("predrnn", height=10, width=12, history=6, horizon=2, hidden=4, cell="conv")
    assert f" {found.parameters:,} " in rows["predrnn"]
    assert "arXiv:1506.04214" in rows["convlstm"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "10"], "'10' is not HxW, such as 24x52"),
        (["--set", "depth=3"], "no model has the option depth"),
        (["--set", "hidden=many"], "option hidden of model 'convlstm' must be int, got 'many'"),
    ],
)
def test_models_errors_are_clear(options, message):
    code, _, err = climapred("models", *options)
    assert code in (1, 2)
    assert message in plain(err)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["field", "RUN", "--time", "2001-10-11T12", "--region", 30, 60, 200, 270], "field.png"),
        (["forecast", "RUN", "--model", "graph", "--lead", 6, "--lead", 12], "forecast.pdf"),
        (["errors", "RUN", "--against", "climatology"], "skill.svg"),
        (["scores", "RUN/scores.csv", "--score", "rmse", "--score", "skill_damped"], "scores.png"),
        (["correlations", "RUN", "--at", "40N", "100W"], "place.png"),
        (["correlations", "RUN", "--show", "arcs", "--beyond", 2000, "--count", 5], "arcs.pdf"),
        (["correlations", "RUN", "--show", "hubs"], "hubs.svg"),
        (["correlations", "RUN/correlations/graph.nc", "--show", "distance"], "distance.png"),
        (["animation", "RUN", "--model", "conv", "--start", "2001-10-11T12"], "film.gif"),
    ],
)
def test_plot_draws_every_kind_from_a_run(finished_run, tmp_path, options, name):
    options = [str(option).replace("RUN", str(finished_run.out)) for option in options]
    out = tmp_path / name
    assert climapred("plot", *options, "-o", out) == (0, f"{out}: written\n", "")
    magic = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "gif": b"GIF89a"}[out.suffix[1:]]
    assert out.read_bytes().startswith(magic)


def test_plot_takes_files_of_other_authors_and_names_its_file(tmp_path, monkeypatch):
    path = write_ncep(synthetic_temperature(periods=4).fields, tmp_path)[0]  # names lat and lon, north first, degK
    monkeypatch.chdir(tmp_path)
    assert climapred("plot", "field", path, "--title", "A map") == (0, "field.png: written\n", "")
    assert (tmp_path / "field.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["field", "FILE", "-v", "t2m"], "variable 't2m' cannot be taken from FILE, which has only: air"),
        (["field", "FILE", "--time", "1999-01-01"], "FILE has no time 1999-01-01; it holds 8"),
        (["field", "FILE", "--region", 0, 1, 0, 1], "must hold 2 x 2 points or more of Grid"),
        (["field", "FILE", "-o", "x.jpg"], "path must end in .png, .pdf or .svg, got 'x.jpg'"),
        (
            ["field", "FILE", "-o", "nowhere/x.png"],
            "cannot write nowhere/x.png: the folder nowhere does not exist, create it first",
        ),
        (["field", "absent.nc"], "no file matches 'absent.nc'"),
        (["forecast", "FILE"], "FILE is no forecast: it needs lead times"),
        (
            ["correlations", "FILE", "--at", "Chicago", "Illinois"],
            "a place is a latitude and a longitude such as 40N 100W",
        ),
        (["correlations", "FILE", "--at", "40N", "100W"], "adjacency must hold 'weight'"),
        (["correlations", "FILE", "--show", "hubs"], "adjacency must hold 'weight'"),
        (["correlations", "FILE"], "a correlation map is of a place (--at LATITUDE LONGITUDE"),
        (["scores", "FILE"], "FILE holds no scores"),
        (["animation", "FILE", "-o", "x.avi"], "path of an animation must end in .gif or .mp4, got 'x.avi'"),
    ],
)
def test_plot_errors_are_one_clear_line(tmp_path, monkeypatch, options, message):
    path = write_ncep(synthetic_temperature(periods=8).fields, tmp_path)[0]
    monkeypatch.chdir(tmp_path)
    code, out, err = climapred("plot", *(str(option).replace("FILE", str(path)) for option in options))
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert message.replace("FILE", str(path)) in err
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def forecast_of(run, *arguments, model="conv"):
    """Call ``climapred forecast`` with a model of the finished run."""
    return climapred("forecast", run.out / "models" / model, *arguments)


def newest_sample(run):
    return sorted((run.out / "sample").glob("*.nc"))[-1]


def test_forecast_from_new_data(finished_run, tmp_path):
    out = tmp_path / "latest.nc"
    data = tmp_path / "new.nc"  # on the model's grid, other habits: descending, degrees Celsius
    regridded = tmp_path / "regridded.nc"
    grid = ("--grid", "10", "--region", 20, 70, 180, 290, "--variables", "air")
    assert climapred("regrid", newest_sample(finished_run), regridded, *grid)[0] == 0
    with xr.open_dataset(regridded) as stored:
        other = (stored[["air"]] - 273.15).isel(lat=slice(None, None, -1))
        other["air"].attrs["units"] = "degC"
        other.to_netcdf(data)
    code, printed, err = forecast_of(finished_run, data, "-o", out, "--steps", 3)
    assert (code, printed, err) == (0, f"{out}: written\n", "forecast: 1 of 1 start times\n")
    with xr.open_dataset(out) as written, xr.open_dataset(regridded) as stored:
        last = stored["time"].values[-1]
        assert written["forecast_reference_time"].values == last
        np.testing.assert_array_equal(written["time"], last + np.array([6, 12, 18]) * np.timedelta64(1, "h"))
        assert abs(written["air"].mean() - stored["air"].isel(time=-1).mean()) < 10
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: climapred( .*)?", written.attrs["history"])
        assert re.fullmatch(r"climapred \S+: convlstm 'conv' \(\w+\)", written.attrs["source"])
        assert written.attrs["model"] == "conv"
    if shutil.which("cdo"):
        stamps = subprocess.run(["cdo", "-s", "showtimestamp", str(out)], capture_output=True, text=True).stdout.split()
        assert stamps == [f"{time}"[:19] for time in last + np.array([6, 12, 18]) * np.timedelta64(1, "h")]


def test_forecast_is_what_the_run_forecast(finished_run, tmp_path):
    """From the run's own store, at the start times of the run's own forecasts."""
    with xr.open_dataset(finished_run.out / "forecasts/conv.nc") as stored:
        expected = from_cf(stored).load()
    starts = "/".join(str(start)[:16] for start in expected["init_time"].values)
    out = tmp_path / "all.zarr"
    code, _, err = forecast_of(finished_run, finished_run.out / "tensors.zarr", "-o", out, "--start", starts)
    assert (code, f"{len(expected['init_time'])} start times" in err) == (0, True)
    with xr.open_zarr(out, consolidated=False) as written:
        np.testing.assert_allclose(from_cf(written)["air"], expected["air"], rtol=0, atol=1e-3)
    again = forecast_of(finished_run, finished_run.out / "tensors.zarr", "-o", out, "--start", starts)
    assert again == (0, f"{out}: written\n", "")  # nothing to do


def test_forecast_of_an_ensemble_a_file_for_each_start(finished_run, tmp_path):
    options = ("--members", 2, "--with", finished_run.out / "models/graph", "--largest-error", 0.01)
    place = tmp_path / "e_{start}.nc"
    start = ("--start", "2001-10-11/to/2001-10-11T12/by/12h")
    code, printed, _ = forecast_of(finished_run, finished_run.out / "tensors.zarr", "-o", place, *start, *options)
    paths = [tmp_path / f"e_20011011T{hour}00.nc" for hour in ("00", "12")]
    assert (code, printed.split()[::2]) == (0, [f"{path}:" for path in paths])
    with xr.open_dataset(paths[1]) as written:
        assert written["air"].dims == ("time", "realization", "latitude", "longitude")
        assert written.sizes["realization"] == 4
        assert written["air"].attrs["largest_packing_error"] <= 0.01
        assert written.attrs["model"] == "conv, graph"
        assert len(np.unique(written["air"].isel(time=0).mean(["latitude", "longitude"]))) == 4


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("sample/*.nc", [], "error: model conv is for Grid(6 x 12, 20..70 N, 180..290 E), the data are on Grid("),
        ("tensors.zarr", ["--start", "1999-01-01"], "error: no field at 1999-01-01T00:00 (1 of 1 start times are not "),
        (
            "tensors.zarr",
            ["--start", "2001-01-01T06"],
            "error: model conv needs 3 frames, 6 h apart, up to 2001-01-01T06",
        ),
        ("tensors.zarr", ["--start", "soon"], "error: start times are latest, TIME, TIME/TIME or "),
        ("absent.nc", [], "error: no file matches "),
        ("scores.nc", [], "error: variable 'air' cannot be taken from "),
        (
            "tensors.zarr",
            ["--amplitude", "-1", "--members", "2"],
            "error: amplitude of a perturbation must be 0 or more",
        ),
    ],
)
def test_forecast_errors_are_one_clear_line(finished_run, tmp_path, data, options, message):
    code, out, err = forecast_of(finished_run, finished_run.out / data, "-o", tmp_path / "out.nc", *options)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith(message)
    assert not list(tmp_path.iterdir())


def test_forecast_of_data_of_another_step(finished_run, tmp_path):
    with xr.open_zarr(finished_run.out / "tensors.zarr", consolidated=False) as stored:
        daily = stored[["air"]].isel(time=slice(None, 80, 4)).load().drop_encoding()
        daily.drop_attrs(deep=False).to_netcdf(tmp_path / "daily.nc")
    code, _, err = forecast_of(finished_run, tmp_path / "daily.nc", "-o", tmp_path / "out.nc")
    assert code == 1
    assert "needs 3 frames, 6 h apart, up to a start time; no time has them: the data hold 20 times" in err
    assert "24 h apart" in err


def test_forecast_regrids_on_request(finished_run, tmp_path):
    data = finished_run.out / "sample/*.nc"
    code, _, err = forecast_of(finished_run, data, "-o", tmp_path / "out.nc", "--regrid", "conservative")
    assert (code, err) == (0, "forecast: 1 of 1 start times\n")
    code, _, err = forecast_of(finished_run, data, "-o", tmp_path / "out.nc", "--regrid", "bilinear")
    assert code == 1
    assert "holds something else, or forecasts of another model, other data" in err
    assert forecast_of(finished_run, data, "-o", tmp_path / "out.nc", "--regrid", "bilinear", "--overwrite")[0] == 0
