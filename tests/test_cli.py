import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from climapred.cli import app
from climapred.testing import synthetic_temperature, write_ncep

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
    for command in ("run", "validate", "catalog"):
        assert re.search(rf"\b{command}\b", plain(out))


def test_help_of_run_names_the_options():
    code, out, _ = climapred("run", "--help")
    assert code == 0
    for option in ("RECIPE", "--out", "--set", "--until", "--restart", "--scheduler"):
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


def test_out_is_needed(finished_run):
    code, _, err = climapred("run", finished_run.recipe)
    assert code == 2
    assert "Missing option '--out'" in plain(err)


def test_validate(finished_run):
    assert climapred("validate", finished_run.recipe) == (0, f"{finished_run.recipe}: valid\n", "")


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
