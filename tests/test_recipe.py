import dataclasses
import inspect
import os
from pathlib import Path

import pytest
import yaml

from climapred import pipeline
from climapred.data.grib import SELECTABLE
from climapred.learning.loader import WindowLoader
from climapred.learning.training import Training
from climapred.learning.windows import Window
from climapred.recipe import LoaderRecipe, RecipeError, SelectRecipe, TrainingRecipe, WindowRecipe
from climapred.recipe_file import dump_recipe, load_recipe, located

PIPELINES = Path(__file__).parents[1] / "pipelines"
DATA = Path(os.environ.get("CLIMAPRED_DATA", Path(__file__).parents[1] / "../shared/data"))

# Lines are counted in the messages: name is line 2, source line 3, and so on.
VALID = """\
# A comment, so that the first key is not on the first line.
name: tiny
source:
  sample: {years: 1}
  variables: air
split: {validation: 2001-09-01, test: 2001-10-01}
models:
  - name: graph
    architecture: ls_ntp
    options: {hidden: 4}
  - name: conv
    architecture: convlstm
training:
  epochs: 2
"""


@pytest.fixture
def write(tmp_path):
    def write(text=VALID, **replaced):
        path = tmp_path / "r.yaml"
        for old, new in replaced.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def edited(old: str, new: str) -> str:
    assert VALID.count(old) == 1
    return VALID.replace(old, new)


def fault(path, *overrides) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_a_valid_recipe(write):
    recipe = load_recipe(write())
    assert recipe.name == "tiny"
    assert recipe.source.variables == ("air",)
    assert recipe.source.sample.years == 1
    assert recipe.split.validation == "2001-09-01"
    assert [model.name for model in recipe.models] == ["graph", "conv"]
    assert recipe.models[0].options == {"hidden": 4}
    assert (recipe.training.epochs, recipe.training.batch_size) == (2, 16)
    assert recipe.grid is None


@pytest.mark.parametrize(
    "extra",
    [
        "",
        "grid: {spacing: 2.5, region: [20, 70, 180, 290], method: bilinear}\n",
        "grid: {gaussian: 16}\nwindow: {history: 3, horizon: 2, stride: 5}\nclimatology: {annual: 1}\n",
        "title: Größe\nforecast: {stride: 4, baselines: [damped, persistence]}\n",
        "maps: {start_times: 2001-11-01T06, leads_hours: [6, 12.5], points: [[40, 260], [50.5, -3]]}\n",
    ],
)
def test_dump_reads_back_to_the_same_recipe(write, extra):
    recipe = load_recipe(write(VALID + extra))
    text = dump_recipe(recipe)
    assert load_recipe(write(text)) == recipe
    assert {"window", "training", "forecast", "maps", "grid"} <= set(yaml.safe_load(text))  # every default filled in


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VALID + "windows: {}\n", r"r.yaml, line 15: windows: unknown key; known keys here: name, title, source, grid"),
        (edited("epochs: 2", "epoch: 2"), r"r.yaml, line 14: training.epoch: unknown key; known keys here: epochs, "),
        (edited("years: 1", "year: 1"), r"line 4: source.sample.year: unknown key; known keys here: format, start, "),
        (
            edited("    options:", "    option:"),
            "line 10: models.0.option: unknown key; known keys here: name, architecture, options, inputs, target",
        ),
        (edited("epochs: 2", "epochs: many"), "line 14: training.epochs: Input should be a valid integer, got 'many'"),
        (edited("epochs: 2", "epochs: 1.5"), "line 14: training.epochs: Input should be a valid integer, got 1.5"),
        (edited("epochs: 2", "epochs: 0"), "line 14: training.epochs: Input should be greater than or equal to 1"),
        (edited("epochs: 2", "epochs: yes"), "line 14: training.epochs: Input should be a valid integer, got True"),
        (
            edited("epochs: 2", "loss: mse2"),
            "line 14: training.loss: Input should be 'mse', 'mae' or 'mse\\+mae', got 'mse2'",
        ),
        (edited("epochs: 2", "clip: -1"), "line 14: training.clip: Input should be greater than or equal to 0, got -1"),
        (edited("    architecture: convlstm\n", ""), "line 11: models.1.architecture: this key is missing"),
        (edited("name: tiny\n", ""), "line 2: name: this key is missing"),
        (edited("  variables: air\n", ""), "line 3: source.variables: this key is missing"),
        (edited("name: tiny", "name: a b"), "line 2: name: String should match pattern .*, got 'a b'"),
        (
            edited("variables: air", "variables: [air, wind]"),
            r"line 5: source.variables.1: unknown variable 'wind'; known variables \(and aliases\): t2m \(2t,",
        ),
        (
            edited("variables: air", "variables: t2m"),
            "line 3: source: the ncep sample holds `variables: air`, no other",
        ),
        (edited("variables: air", "variables: []"), "line 5: source.variables: Value should have at least 1 item"),
        (edited("sample: {years: 1}", "title: x"), "source: .*|line 4: source.title: unknown key"),
        (edited("variables: air", "variables: air\n  path: x.nc"), "line 3: source: a source is either .*, got both"),
        (edited("  sample: {years: 1}\n", ""), "line 3: source: a source is either `path` or `sample`, got neither"),
        (edited("name: conv", "name: graph"), "line 7: models: models need names of their own, .*: graph"),
        (edited("name: conv", "name: damped"), "line 7: models: models need names of their own, .*: damped"),
        (edited("name: conv", "name: ../x"), "line 11: models.1.name: String should match pattern"),
        (edited("validation: 2001-09-01", "validation: [1]"), r"line 6: split.validation: Input should be a valid"),
        (
            edited("sample: {years: 1}", "path: x\n  select: {height: 2}"),
            "line 5: source.select.height: unknown key; known keys here: level_type, level, member, step, ",
        ),
        (
            edited("sample: {years: 1}", "path: x\n  select:\n    level: [500, top]"),
            "line 6: source.select.level.1: Input should be a valid number, got 'top'",
        ),
        (
            edited("sample: {years: 1}", "path: x\n  damaged: ignore"),
            "line 5: source.damaged: Input should be 'error' or 'skip', got 'ignore'",
        ),
        (
            edited("sample: {years: 1}", "path: x\n  duplicates: mean"),
            "line 5: source.duplicates: Input should be 'refuse', 'first' or 'last', got 'mean'",
        ),
        (edited("years: 1}", "years: 1}\n  calendar: keep"), "line 5: source.calendar: unknown key; known keys here: "),
        (
            edited("years: 1}", "years: 1}\n  select: {level: 2}\n  damaged: skip"),
            "line 3: source: select, damaged: for the files of `path`; the sample is whole",
        ),
        (VALID + "grid: {method: nearest}\n", "line 15: grid: a grid needs `spacing` or `gaussian`, or a `region`"),
        (VALID + "grid: {gaussian: 8, spacing: 1}\n", "line 15: grid: a grid has either `spacing` or `gaussian`"),
        (
            VALID + "grid: {spacing: 1, region: [1, 2, x, 4]}\n",
            "line 15: grid.region.2: Input should be a valid number",
        ),
        (
            VALID + "store: {keep_bits: 24}\n",
            "line 15: store.keep_bits: Input should be less than or equal to 23, got 24",
        ),
        (VALID + "store: {shards: 2}\n", "line 15: store.shards: unknown key; known keys here: keep_bits, verify"),
        (VALID + "grid: {spacing: 0}\n", "line 15: grid.spacing: Input should be greater than 0, got 0"),
        (VALID + "maps: {points: [[40, 260], [40]]}\n", "line 15: maps.points.1.1: this key is missing"),
        (VALID + "name: twice\n", "r.yaml is not YAML: the key 'name' is repeated.*line 15"),
        ("a: [1\nb: 2\n", "r.yaml is not YAML: .*line 2"),
        ("- a\n- b\n", "r.yaml must be a mapping of keys, got list"),
        ("", "r.yaml must be a mapping of keys, got NoneType"),
    ],
)
def test_faults_name_file_line_and_key(write, text, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        load_recipe(write(text))


def test_every_fault_is_reported_at_once(write):
    lines = fault(write(VALID + "a: 1\nb: 2\n"), "training.epochs=x").splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == ["a", "b", "training.epochs"]


def test_no_file(tmp_path):
    assert fault(tmp_path / "absent.yaml") == f"no recipe at {tmp_path / 'absent.yaml'}"


def test_not_text(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"name: \xff\xfe")
    assert "r.yaml is not YAML" in fault(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.epochs=7", lambda r: r.training.epochs == 7),
        ("training.learning_rate=5e-4", lambda r: r.training.learning_rate == 5e-4),
        ("training.learning_rate=1E-3", lambda r: r.training.learning_rate == 1e-3),
        ("training.weight_decay=0", lambda r: r.training.weight_decay == 0),
        ("window.history=3", lambda r: (r.window.history, r.window.horizon) == (3, 6)),  # a section that is absent
        ("grid.spacing=2.5", lambda r: r.grid.spacing == 2.5),
        ("grid={gaussian: 8}", lambda r: r.grid.gaussian == 8),
        ("source.sample.seed=3", lambda r: (r.source.sample.seed, r.source.sample.years) == (3, 1)),
        ("models.0.options.hidden=16", lambda r: r.models[0].options == {"hidden": 16}),
        ("models.1.options.hidden=8", lambda r: r.models[1].options == {"hidden": 8}),
        ("models=[{name: a, architecture: convlstm}]", lambda r: [m.name for m in r.models] == ["a"]),
        ("forecast.baselines=damped", lambda r: r.forecast.baselines == ("damped",)),
        ("split.test=0.9", lambda r: r.split.test == 0.9),
        ("split.test=2001-11-05", lambda r: r.split.test == "2001-11-05"),
        ("split.test=2001-11-05T06", lambda r: r.split.test == "2001-11-05T06"),
        ("split.test=2001-11-05T06:00:00", lambda r: r.split.test == "2001-11-05T06:00:00"),
        ("split.test=2001-11-05T06:00:00+02:00", lambda r: r.split.test == "2001-11-05T04:00:00"),  # UTC
        ("maps.start_times=2001-11-05", lambda r: r.maps.start_times == ("2001-11-05",)),
        ("maps.leads_hours=6", lambda r: r.maps.leads_hours == (6,)),
        ("maps.leads_hours=[6, 1e1]", lambda r: r.maps.leads_hours == (6, 10)),
        ("title=a=b", lambda r: r.title == "a=b"),
        ("title=''", lambda r: r.title == ""),
    ],
)
def test_overrides(write, override, read):
    assert read(load_recipe(write(), [override]))


def test_overrides_in_order(write):
    assert load_recipe(write(), ["training.epochs=3", "training.epochs=4"]).training.epochs == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "--set takes key=value, got 'training.epochs'"),
        ("=3", "--set takes key=value, got '=3'"),
        ("training.epochs=x", "--set: training.epochs: Input should be a valid integer, got 'x'"),
        ("training.epoch=3", "--set: training.epoch: unknown key; known keys here: epochs, batch_size, "),
        ("trainings.epochs=3", "--set: trainings: unknown key; known keys here: name, title, "),
        ("training={epoch: 3}", "--set: training.epoch: unknown key; known keys here: epochs, batch_size, "),
        ("models.0={name: a}", "--set: models.0.architecture: this key is missing"),
        ("models.2.name=a", "--set models.2.name=a: the list has 2 entries, use 0 to 1, got '2'"),
        ("models.x.name=a", "--set models.x.name=a: the list has 2 entries, use 0 to 1, got 'x'"),
        ("models.2={}", "--set models.2={}: the list has 2 entries, use 0 to 1, got '2'"),
        ("name.x=a", "--set name.x=a: name is a single value, not a section"),
        ("training.epochs=[", "--set training.epochs=[: the value is not YAML: while parsing"),
        ("grid.method=nearest", "--set: grid: a grid needs `spacing` or `gaussian`"),
    ],
)
def test_bad_overrides(write, override, message):
    assert fault(write(), override).startswith(message)


def test_environment_variables_in_paths(write, monkeypatch):
    path = write(edited("sample: {years: 1}", "path: [$TINY_DATA/a.nc, '${TINY_DATA}/b.nc']"))
    source = load_recipe(path).source
    monkeypatch.setenv("TINY_DATA", "/data")
    assert source.expanded_paths() == ("/data/a.nc", "/data/b.nc")
    monkeypatch.delenv("TINY_DATA")
    with pytest.raises(RecipeError, match="the environment variable TINY_DATA is not set; set it to the folder"):
        source.expanded_paths()
    with pytest.raises(RecipeError, match=r"r.yaml, line 3: source: .*TINY_DATA is not set; .*--set source.path=FILE"):
        pipeline.check(load_recipe(path), path)


def test_what_is_selected(write):
    """One value or several; ECMWF's versions, which YAML reads as octal numbers, are text."""
    text = edited(
        "sample: {years: 1}",
        "path: x\n  select: {level: [500, 850.0], member: 3, step: 6, data_type: an, level_type: [a, b], expver: 0005}",
    )
    recipe = load_recipe(write(text))
    assert recipe.source.select.model_dump(exclude_none=True) == {
        "level_type": ("a", "b"),
        "level": (500.0, 850.0),
        "member": (3,),
        "step": (6.0,),
        "data_type": ("an",),
        "expver": ("0005",),
    }
    assert load_recipe(write(dump_recipe(recipe))) == recipe
    assert load_recipe(write(text), ["source.select.expver=[1, '0005']"]).source.select.expver == ("0001", "0005")
    assert load_recipe(write()).source.reading() == {}


def test_messages_are_selected_by_what_grib_knows():
    assert list(SelectRecipe.model_fields) == list(SELECTABLE)


def test_located(write):
    path = write()
    with (
        pytest.raises(RecipeError, match=r"r.yaml, line 14: training.epochs: too many"),
        located(path, "training.epochs"),
    ):
        raise ValueError("too many")
    # a key that --set brought in has no line of its own: the nearest section that has
    with pytest.raises(RecipeError, match=r"r.yaml, line 13: training.clip: x"), located(path, "training.clip"):
        raise FileNotFoundError("x")
    with pytest.raises(KeyError), located(path, "training"):
        raise KeyError("a fault of ours")


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes(path, monkeypatch):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    if path.stem.startswith("paper_"):  # of files that are not at hand; tests/pipelines/test_paper.py makes such
        return
    if recipe.source.path is not None:
        if not DATA.is_dir():
            pytest.skip("shared data missing")
        monkeypatch.setenv("CLIMAPRED_DATA", str(DATA))
    pipeline.check(recipe, path)


def test_three_recipes_are_shipped():
    assert {"demo", "era5_t2m", "ncep_air"} <= {path.stem for path in PIPELINES.glob("*.yaml")}


def test_training_and_loader_keys_are_those_of_the_code():
    """Names and defaults; a recipe is checked without loading torch, so that they stand twice."""
    assert TrainingRecipe().model_dump() == dataclasses.asdict(Training())
    loader = LoaderRecipe()
    defaults = {name: each.default for name, each in inspect.signature(WindowLoader).parameters.items()}
    assert (loader.tier, loader.workers) == (defaults["tier"], defaults["workers"])
    assert loader.memory_limit_mb * 2**20 == defaults["memory_limit"]
    assert WindowRecipe().model_dump() == {**dataclasses.asdict(Window(6, 6)), "stride": 1}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.schedule=linear", "training.schedule: Input should be 'one_cycle', 'cosine' or 'constant'"),
        ("training={strategy: fsdp, averaging: 0.9}", "averaging needs whole weights in each process"),
        ("training.sampling_end=0", "training.sampling_end: Input should be greater than 0"),
        ("loader.tier=disk", "loader.tier: Input should be 'auto', 'device', 'memory' or 'stream'"),
        ("split.embargo_hours=-6", "split.embargo_hours: Input should be greater than or equal to 0"),
        ("models.0.forcings=[orography]", "models.0.forcings: Input should be 'latitude', 'longitude'"),
        ("models.0.options={forcings: 2}", "forcings: these follow from the data"),
    ],
)
def test_training_and_loader_keys_are_checked(write, override, message):
    assert message in fault(write(), override)
