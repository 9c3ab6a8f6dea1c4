import base64
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
import zlib
from html import escape

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib import colormaps
from matplotlib.colors import to_hex

from climapred.data.statistics import training_statistics
from climapred.data.store import create_store, finish_store, write_region, write_statistics
from climapred.grid import Grid
from climapred.results import report
from climapred.results.baselines import persistence
from climapred.results.cf import adjacency_to_cf, from_cf, to_cf, write_netcdf
from climapred.results.evaluate import evaluate, region_scores, score_table, season_scores
from climapred.results.links.correlations import correlation_map, strongest_links
from climapred.results.maps import temperature_colours
from climapred.results.report import write_report
from climapred.results.significance import comparison_table, error_series, score_intervals
from climapred.results.skill import skill_of_cells, squared_errors
from climapred.results.sums import error_sums

GRID = Grid(np.linspace(25, 70, 10), np.linspace(200, 305, 15))
TIMES = np.arange("2001-01-01", "2001-03-01", 6, dtype="datetime64[h]").astype("datetime64[ns]")
STARTS, LEADS = TIMES[120:220], np.arange(6, 25, 6) * np.timedelta64(3600 * 10**9, "ns")
WEST = (30, 60, 200, 240)
MODEL = "graph & <i>net"  # a name that a careless page would take for markup
TITLE = "<script>alert('title')</script> & winter"
RECIPE = "title: '</pre></script><script>alert(1)</script>'\nname: $policy ${script}\n"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def weather(grid=GRID, times=TIMES, seed=0):
    noise = np.random.default_rng(seed).normal(0, 4, (times.size, *grid.shape))
    values = 280 - 0.5 * (grid.latitude[:, None] - 45) + noise
    coords = {"time": times, **grid.coordinates()}
    return xr.DataArray(values.astype("f4"), coords, ("time", "latitude", "longitude"), attrs={"units": "K"})


def adjacency(grid=GRID, seed=1):
    """Rows as softmax after ReLU leaves them: a floor near 1 / N, and weights above it."""
    logits = np.maximum(np.random.default_rng(seed).normal(0, 1, (grid.size, grid.size)), 0)
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype("f4")


def write_forecasts(folder, fields, starts=STARTS, leads=LEADS, models=(MODEL,), seed=2):
    """Write a forecast per model: the truth and an error; return them in memory, with persistence."""
    found = {"persistence": persistence(fields.to_dataset(name="air"), starts, leads)}
    truth = fields.sel(time=found["persistence"]["valid_time"]).drop_vars("time")
    (folder / "forecasts").mkdir()
    for number, model in enumerate(models):
        error = np.random.default_rng(seed + number).normal(0.3, 1, truth.shape)
        found[model] = (truth + error.astype("f4")).assign_attrs(units="K").to_dataset(name="air")
        cf = to_cf(found[model], source="test", title=f"{TITLE}: forecasts of {model}")
        write_netcdf(cf, folder / "forecasts" / f"{model}.nc")
    return found


def write_correlations(folder, weights, grid=GRID, model=MODEL):
    (folder / "correlations").mkdir(exist_ok=True)
    write_netcdf(adjacency_to_cf(weights, grid, source="test"), folder / "correlations" / f"{model}.nc")


def write_store(path, fields, grid=GRID):
    files = [{"name": "a<b>.nc", "size": 1, "mtime_ns": 1}]
    attributes = {"source": json.dumps(files), "regrid_method": "conservative", "variables": ["air"]}
    create_store(path, grid=grid, times=fields["time"].values, variables=["air"], attributes=attributes)
    write_region(path, "air", 0, fields.values)
    finish_store(path, attributes)
    write_statistics(
        path, training_statistics(fields.isel(time=slice(0, 100)).to_dataset(name="air"), annual=1, daily=1)
    )


def write_comparisons(folder, forecasts, fields, ending="", variable="air"):
    """Write seasons, regions, what is more than luck, and the skill of every cell; a third model is as good as the first."""
    forecasts = {name: forecast[variable] for name, forecast in forecasts.items()}
    sums = {name: error_sums(forecast, fields, by_season=True) for name, forecast in forecasts.items()}
    regions = score_table(region_scores({name: found.sum("season") for name, found in sums.items()}, {"<b>west": WEST}))
    regions.insert(2, "season", "all")
    errors = {name: error_series(forecast, fields) for name, forecast in forecasts.items()}
    noise = np.random.default_rng(0).standard_normal(errors[MODEL]["squared"].shape)
    errors["twin"] = errors[MODEL] * (1.002 + 0.1 * (noise - noise.mean()))  # 2 parts in 1000, known to 5
    tables = {
        "scores_seasons": score_table(season_scores(sums)),
        "scores_regions": regions,
        "comparison": comparison_table(errors, replicates=200),
        "comparison_mean": comparison_table(errors, average=True, replicates=200),
    }
    for name, table in tables.items():
        (folder / f"{name}{ending}.csv").write_text(table.to_csv(index=False))
    squared = {name: squared_errors(forecast, fields) for name, forecast in forecasts.items()}
    skill = skill_of_cells(squared[MODEL], squared["persistence"]).expand_dims(model=[MODEL])
    # A cell that may be luck: the noise of these fields leaves none.
    skill["not_significant"] = skill["not_significant"].where(skill["longitude"] > 210, 1).astype("i1")
    write_netcdf(skill.assign_attrs(reference="persistence"), folder / f"skill{ending}.nc")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run as the pipeline leaves it, with names and texts that try to be markup."""
    folder, fields = tmp_path_factory.mktemp("run"), weather()
    write_store(folder / "tensors.zarr", fields)
    forecasts = write_forecasts(folder, fields)
    found = evaluate(forecasts, fields.to_dataset(name="air"))
    errors = {name: error_series(forecast["air"], fields) for name, forecast in forecasts.items()}
    write_netcdf(found.assign(score_intervals(errors, replicates=200)), folder / "scores.nc")
    (folder / "scores.csv").write_text(score_table(found).to_csv(index=False))
    write_comparisons(folder, forecasts, fields)
    write_correlations(folder, adjacency())
    (folder / "models" / MODEL).mkdir(parents=True)
    (folder / "models" / MODEL / "log.csv").write_text(
        "epoch,step,train_loss,validation_mae\n0,10,0.9,2.5\n1,20,0.5,\n"
    )
    (folder / "recipe.yaml").write_text(RECIPE)
    rows = [{"begun": "a", "unit": "maps"}, {"finished": "2026-01-01T00:00:00", "unit": "maps", "seconds": 3.25}]
    (folder / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"finished": "cut sh')
    (folder / "maps").mkdir()
    (folder / "maps" / "mae of #1.png").write_bytes(b"png")
    return folder


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return write_report(run, tmp_path_factory.mktemp("page") / "page.html")


def embedded(page):
    return json.loads(re.search(r'id="numbers">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def inflate(text, dtype="u1"):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def unpacked(field):
    low, high = inflate(field["data"]).reshape(2, -1).astype(int)
    codes = (low + 256 * high).reshape(field["shape"])
    return np.where(codes == 0xFFFF, np.nan, field["offset"] + field["step"] * codes)


# --- what is written ---


def test_fields_of_the_page_are_those_of_the_files(run, page):
    part = embedded(page)["forecasts"]
    chosen = [pd.Timestamp(start).tz_localize(None) for start in part["starts"]]
    assert (len(chosen), part["of"], chosen[0], chosen[-1]) == (48, 100, STARTS[0], STARTS[-1])
    with xr.open_dataset(run / "forecasts" / f"{MODEL}.nc") as stored:
        wanted = from_cf(stored)["air"].sel(init_time=chosen).load() - 273.15
    found = part["fields"][MODEL]
    assert found["step"] < 0.02
    np.testing.assert_allclose(unpacked(found), wanted.values, atol=found["step"] / 2 + 1e-4)
    truth = weather().sel(time=wanted["valid_time"]).values - 273.15
    np.testing.assert_allclose(unpacked(part["truth"]), truth, atol=part["truth"]["step"] / 2 + 1e-4)
    assert (part["units"], part["differences"], part["leads"]) == ("°C", "K", [6, 12, 18, 24])


def test_error_maps_of_the_page_are_those_of_the_scores(run, page):
    part = embedded(page)["errors"]
    with xr.open_dataset(run / "scores.nc") as scores:
        for kind in part["kinds"][:3]:
            packed = kind["fields"]
            np.testing.assert_allclose(unpacked(packed), scores[f"{kind['name']}_map"], atol=packed["step"] / 2 + 1e-6)
    assert [kind["name"] for kind in part["kinds"]] == ["mae", "rmse", "bias", "skill against persistence"]


def test_weights_of_the_page_are_those_of_the_file_above_the_floor(page):
    part, weights = embedded(page)["correlations"]["models"][MODEL], adjacency().astype("f8")
    wanted = weights - weights.min(axis=1, keepdims=True)
    scale = inflate(part["scale"], "<f4")[:, None].astype("f8")
    found = (inflate(part["codes"]).reshape(wanted.shape) / 255) ** 2 * scale
    # half a step of the root, s = 1 / 510, is |w - w'| <= 2 s sqrt(w w_max) + s**2 w_max
    assert (abs(found - wanted) <= 2 / 510 * np.sqrt(wanted * scale) + scale / 510**2 + 1e-9).all()
    first = strongest_links(adjacency_to_cf(adjacency(), GRID, source=""), 1, min_km=1000).iloc[0]
    row, column = divmod(part["first"], GRID.shape[1])
    assert (GRID.latitude[row], GRID.longitude[column]) == (first["target_latitude"], first["target_longitude"])


def test_the_largest_weights_are_kept_where_not_all_have_room(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_LINK_BYTES", 5 * 7 * GRID.size)
    part = embedded(write_report(run, tmp_path / "page.html"))["correlations"]["models"][MODEL]
    assert part["count"] == 7
    columns = inflate(part["columns"], "<u4").reshape(GRID.size, 7)
    largest = np.sort(np.argsort(adjacency(), axis=1)[:, -7:], axis=1)
    assert np.array_equal(columns, largest)


def test_large_grids_are_thinned_out(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_FIELD_BYTES", 2 * 2 * LEADS.size * 6 * 40)  # 6 starts of 5 x 8 points
    monkeypatch.setattr(report, "_ERROR_BYTES", 2 * 2 * LEADS.size * 3 * 20)  # 4 x 5 points
    found = embedded(write_report(run, tmp_path / "page.html"))
    part = found["forecasts"]
    assert (part["grid"]["stride"], part["fields"][MODEL]["shape"]) == (2, [6, 4, 5, 8])
    with xr.open_dataset(run / "forecasts" / f"{MODEL}.nc") as stored:
        wanted = from_cf(stored)["air"].isel(init_time=-1).values[:, ::2, ::2] - 273.15
    np.testing.assert_allclose(unpacked(part["fields"][MODEL])[-1], wanted, atol=0.05)
    assert found["errors"]["grid"]["latitude"] == GRID.latitude[::3].tolist()


def test_missing_values_keep_their_code(tmp_path):
    fields = weather()
    fields[125, 3, 4] = np.nan
    write_store(tmp_path / "tensors.zarr", fields)
    write_forecasts(tmp_path, weather(), starts=STARTS[:12])
    page = write_report(tmp_path)
    truth = unpacked(embedded(page)["forecasts"]["truth"])
    assert np.isnan(truth).sum() == 4  # the time 125 is 4 leads after 4 starts
    assert np.isnan(truth[..., 3, 4]).sum() == 4
    assert "of the values are missing" in page.read_text()


def test_an_ensemble_is_shown_by_its_mean(tmp_path):
    found = write_forecasts(tmp_path, weather(), starts=STARTS[:3])[MODEL]
    members = xr.concat([found, found + 2], dim="realization").assign_coords(realization=[0, 1])
    members["air"].attrs = {"units": "K"}
    write_netcdf(to_cf(members, source="test"), tmp_path / "forecasts" / f"{MODEL}.nc")
    part = embedded(write_report(tmp_path))["forecasts"]
    wanted = found["air"].transpose("init_time", "lead_time", ...).values + 1 - 273.15
    np.testing.assert_allclose(unpacked(part["fields"][MODEL]), wanted, atol=0.02)


def test_a_forecast_of_other_times_is_named_not_shown(tmp_path):
    write_forecasts(tmp_path, weather())
    (tmp_path / "other").mkdir()
    write_forecasts(tmp_path / "other", weather(), starts=STARTS[:5], models=("later",))
    (tmp_path / "other" / "forecasts" / "later.nc").rename(tmp_path / "forecasts" / "later.nc")
    part = embedded(write_report(tmp_path))["forecasts"]
    assert (part["models"], part["leftout"]) == ([MODEL], ["later"])


def test_text_of_a_run_is_never_markup(page):
    text = page.read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert "alert('title')" not in text.replace(escape("alert('title')"), "")
    assert escape(RECIPE) in text
    assert "a&lt;b&gt;.nc" in text
    assert "<i>" not in text


def test_the_page_tells_data_findings_journal_and_files(run, page):
    text = page.read_text()
    for said in (
        "10 × 15 points, 25°N to 70°N, 160°W to 55°W",
        "every 6 h",
        "No gap in time.",
        "air: no value is missing.",
        "all plausible",
        "conservative",
        "<td>3.2</td>",
    ):
        assert said in text
    link = re.search(r'href="([^"]*mae[^"]*)"', text)[1]
    assert link == os.path.relpath(run, page.parent) + "/maps/mae%20of%20%231.png"


def test_gaps_and_implausible_values_are_found(tmp_path):
    fields = weather()
    fields[0, 0, 0] = 3.0
    write_store(tmp_path / "tensors.zarr", fields.isel(time=np.r_[0:100, 110:150]))
    text = write_report(tmp_path).read_text()
    assert "Gaps in time: 1, the longest 2 days 18:00:00." in text
    assert "1 of them beyond what weather takes, 130 to 370" in text


def test_a_run_of_the_largest_kind_stays_below_ten_megabytes(tmp_path):
    """Noise, which nothing compresses, on the grid of NCEP's North America; more starts would only be thinned out."""
    grid = Grid(np.linspace(15, 75, 25), np.linspace(200, 330, 53))
    leads, models = np.arange(6, 37, 6) * np.timedelta64(3600 * 10**9, "ns"), tuple("abcdef")
    fields = weather(grid, TIMES[:100])
    found = evaluate(write_forecasts(tmp_path, fields, TIMES[20:50], leads, models), fields.to_dataset(name="air"))
    write_netcdf(found, tmp_path / "scores.nc")
    for seed, model in enumerate(("a", "b")):
        weights = np.random.default_rng(seed).random((grid.size, grid.size))
        write_correlations(tmp_path, weights.astype("f4"), grid, model)
    assert 5e6 < write_report(tmp_path).stat().st_size < 10e6


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no run: none of tensors\.zarr, recipe\.yaml, .* pass the folder given"
    ):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        write_report(tmp_path, tmp_path / "nowhere" / "page.html")
    assert write_report(tmp_path) == tmp_path / "report.html"


def test_colours_are_those_of_the_figures_and_step_evenly():
    script = report._asset("page.js")
    found = {
        name: re.search(rf"{name}: ([^:]*),\n", script)[1] for name in ("temperature", "viridis", "magma", "difference")
    }
    anchors = {name: re.findall(r"[0-9a-f]{6}", text) for name, text in found.items()}
    at = np.linspace(0, 1, 17)
    for name, colours in {
        "temperature": temperature_colours(),
        "viridis": colormaps["viridis"],
        "magma": colormaps["magma"],
    }.items():
        wanted = np.array([[int(to_hex(colours(x))[i : i + 2], 16) for i in (1, 3, 5)] for x in at])
        assert (
            abs(np.array([list(bytes.fromhex(hexadecimal)) for hexadecimal in anchors[name]]) - wanted).max() <= 2
        )  # its 256 colours are between ours
    steps = np.linalg.norm(np.diff([oklab(hexadecimal) for hexadecimal in anchors["difference"]], axis=0), axis=1)
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.08)


def oklab(hexadecimal):
    """Lightness and two opponent colours of sRGB, after Ottosson (2020), A perceptual color space for image processing."""
    share = np.frombuffer(bytes.fromhex(hexadecimal), np.uint8) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    cones.append([0.0883024619, 0.2817188376, 0.6299787005])
    mixed = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    mixed.append([0.0259040371, 0.7827717662, -0.8086757660])
    return np.array(mixed) @ np.cbrt(np.array(cones) @ linear)


# --- in a browser ---


# The browser reads commands from its descriptor 3 and answers through 4.
WIRE = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"


class Browser:
    """A headless Chromium that is driven through two pipes: the DevTools protocol, no socket."""

    def __init__(self, profile):
        (there, self._write), (self._read, back) = os.pipe(), os.pipe()
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        command = [CHROMIUM, *flags, "--disable-background-networking", f"--user-data-dir={profile}"]
        command += ["--remote-debugging-pipe", "about:blank"]
        wired = [sys.executable, "-c", WIRE, str(there), str(back), *command]
        self._process = subprocess.Popen(
            wired, pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(there)
        os.close(back)
        self._buffer, self._ids, self._session, self.events = b"", itertools.count(1), {}, []
        target = next(found for found in self.send("Target.getTargets")["targetInfos"] if found["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _receive(self):
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], 60)[0], "the browser does not answer"
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser has gone"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def js(self, expression):
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, (expression, answer)
        return answer["result"].get("value")

    def until(self, expression):
        deadline = time.monotonic() + 60
        while not (value := self.js(expression)):
            assert time.monotonic() < deadline, (expression, self.complaints())
            time.sleep(0.02)
        return value

    def open(self, page, fragment="", *, width=1200, height=900, scheme="light"):
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url="about:blank")
        self.events.clear()
        self.send("Page.navigate", url=page.as_uri() + fragment)
        self.until("document.documentElement?.dataset.ready === 'true'")

    def complaints(self):
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def requests(self):
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    def mouse(self, selector, x, y, *kinds):
        """Send mouse events to a place in an element, both from 0 to 1 across it."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        place = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
        for kind in kinds:
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def key(self, selector, name):
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=KEYS[name])

    def text(self, selector):
        return self.js(f"document.querySelector({json.dumps(selector)}).textContent")

    def picture(self, selector):
        return self.js(f"document.querySelector({json.dumps(selector + ' canvas')}).toDataURL()")

    def close(self):
        self._session = {}
        self.send("Browser.close")
        self._process.wait(30)
        os.close(self._read)
        os.close(self._write)


KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


def across(latitude, longitude, grid=GRID):
    """Where a place is on the map, from 0 to 1 across."""
    (south, north), (west, east) = grid.latitude_bounds[[0, -1]], grid.longitude_bounds[[0, -1]]
    return (longitude - west) / (east - west), (north - latitude) / (north - south)


def number(text, pattern):
    return float(re.search(pattern, text)[1].replace("−", "-"))


def test_the_page_asks_for_nothing_and_complains_about_nothing(browser, page):
    browser.open(page)
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.js("document.title") == TITLE
    assert browser.js("[...document.querySelectorAll('nav a')].map(a => a.textContent)") == [
        *("Scores", "Forecasts", "Learned correlations", "Errors by place", "Training", "Data", "Recipe", "Files"),
    ]
    refused = "fetch('https://example.org').then(() => 'loaded', () => 'refused')"
    assert browser.js(refused) == "refused"


def test_sliders_change_the_maps_and_the_values_are_those_of_the_file(browser, page, run):
    browser.open(page)
    before = browser.picture("#panel-forecast"), browser.picture("#panel-truth")
    browser.key("#lead", "Home")
    after = browser.picture("#panel-forecast"), browser.picture("#panel-truth")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert "+6 h" in browser.text("label:has(#lead)")
    browser.key("#start", "Home")
    assert "2001-01-31 00 UTC" in browser.text("label:has(#start)")
    assert browser.picture("#panel-forecast") != after[0]
    browser.mouse("#panel-error canvas", *across(50, 260), "mouseMoved")
    with xr.open_dataset(run / "forecasts" / f"{MODEL}.nc") as stored:
        forecast = float(from_cf(stored)["air"][0, 0].sel(latitude=50, longitude=260)) - 273.15
    truth = float(weather().sel(time="2001-01-31T06", latitude=50, longitude=260).item()) - 273.15
    said = browser.text("#forecast-readout")
    assert "50°N 100°W" in said
    assert number(said, r"truth (−?[\d.]+) °C") == pytest.approx(truth, abs=0.08)
    assert number(said, r"forecast (−?[\d.]+) °C") == pytest.approx(forecast, abs=0.08)
    assert number(said, r", error (−?[\d.]+) K") == pytest.approx(forecast - truth, abs=0.08)
    areas = np.cos(np.radians(GRID.latitude))[:, None] * np.ones(GRID.shape)
    with xr.open_dataset(run / "forecasts" / f"{MODEL}.nc") as stored:
        error = from_cf(stored)["air"][0, 0].values - weather().sel(time="2001-01-31T06").values
    assert number(said, r"Mean absolute error ([\d.]+) K") == pytest.approx(
        np.average(abs(error), weights=areas), abs=0.02
    )
    browser.key("#panel-truth canvas", "ArrowUp")
    assert "55°N 100°W" in browser.text("#forecast-readout")


@pytest.mark.parametrize("links", [None, 25], ids=["all", "largest"])
def test_a_click_shows_what_that_place_listens_to(browser, run, tmp_path, monkeypatch, links):
    if links is not None:
        monkeypatch.setattr(report, "_LINK_BYTES", 5 * links * GRID.size)
    browser.open(write_report(run, tmp_path / "page.html"))
    before = browser.picture("#panel-links")
    browser.mouse("#panel-links canvas", *across(40.6, 261), "mouseMoved", "mousePressed", "mouseReleased")
    assert browser.text("#panel-links figcaption") == f"{MODEL}: what 40°N 100°W listens to"
    assert browser.picture("#panel-links") != before
    assert_row(browser, run, 40, 260, "listens", links)
    browser.key("#panel-links canvas", "ArrowRight")
    browser.key("#panel-links canvas", "ArrowDown")
    assert browser.text("#panel-links figcaption") == f"{MODEL}: what 35°N 92.5°W listens to"
    assert_row(browser, run, 35, 267.5, "listens", links)
    browser.mouse("[name=direction][value=heard]", 0.5, 0.5, "mousePressed", "mouseReleased")
    assert browser.text("#panel-links figcaption") == f"{MODEL}: what listens to 35°N 92.5°W"
    assert_row(browser, run, 35, 267.5, "heard", links)
    assert browser.complaints() == []


def assert_row(browser, run, latitude, longitude, direction, links):
    """Compare the listed links and the values under the pointer with the file."""
    with xr.open_dataset(run / "correlations" / f"{MODEL}.nc") as stored:
        wanted = correlation_map(stored, latitude, longitude, direction=direction)
        if links is not None:  # only those among the largest of their row are in the page
            ranks = (-stored["weight"].values).argsort(axis=1).argsort(axis=1)
            node = int(np.argmin(abs(GRID.latitude - latitude))) * GRID.shape[1] + int(
                np.argmin(abs(GRID.longitude - longitude))
            )
            kept = (ranks[node] if direction == "listens" else ranks[:, node]) < links
            wanted = wanted.where(kept.reshape(GRID.shape), 0)
    largest = float(wanted.max())
    rows = browser.js(
        "[...document.querySelectorAll('#link-table tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert len(rows) == 8
    for place, kilometres, weight in rows:
        north, west = (float(value) for value in re.findall(r"([\d.]+)°", place))
        assert float(kilometres) >= 1000
        assert float(weight) == pytest.approx(
            float(wanted.sel(latitude=north, longitude=360 - west)), abs=0.006 * largest
        )
    for where in ((30, 297.5), (65, 215), (latitude, longitude)):
        browser.mouse("#panel-links canvas", *across(*where), "mouseMoved")
        found = number(browser.text("#link-readout"), r"weight ([\d.e−]+)")
        assert found == pytest.approx(float(wanted.sel(latitude=where[0], longitude=where[1])), abs=0.006 * largest)


def test_a_fragment_and_the_fields_of_numbers_choose_a_place(browser, page):
    browser.open(page, "#at=55.2,-102")
    browser.until("document.querySelector('#panel-links figcaption').textContent.includes('55°N 100°W')")
    browser.js(
        "(() => { const field = document.querySelector('#link-latitude'); field.value = 31; "
        "field.dispatchEvent(new Event('change')); })()"
    )
    assert "30°N 100°W" in browser.text("#panel-links figcaption")


def test_scores_are_tabled_and_drawn_by_choice(browser, page, run):
    browser.open(page)
    table = pd.read_csv(run / "scores.csv")
    for metric in ("rmse_area", "skill_persistence"):
        browser.js(
            f"(() => {{ const list = document.querySelector('#metric'); list.value = '{metric}'; "
            "list.dispatchEvent(new Event('change')); })()"
        )
        rows = browser.js(
            "[...document.querySelectorAll('#score-table tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
        )
        assert [row[0] for row in rows] == [MODEL, "persistence"]  # the best first
        for name, mean, *values in rows:
            wanted = table[table["model"] == name][metric]
            assert [float(value.replace("−", "-")) for value in values] == pytest.approx(list(wanted), abs=6e-4)
            assert float(mean.replace("−", "-")) == pytest.approx(wanted.mean(), abs=6e-4)
        assert browser.js("document.querySelectorAll('#score-table tbody tr:first-child td.best').length") == 5
    assert browser.js("document.querySelectorAll('#score-curves > svg polyline').length") == 2
    browser.key("#score-curves > svg", "ArrowRight")
    wanted = table[(table["model"] == MODEL) & (table["lead_hours"] == 6)]["skill_persistence"].item()
    said = browser.text("#score-curves .readout")
    assert said.startswith("+6 h: persistence 0, ")
    assert number(said, rf"{re.escape(MODEL)} ([\d.]+)") == pytest.approx(wanted, rel=6e-3)
    browser.mouse("#score-curves .legend input", 0.5, 0.5, "mousePressed", "mouseReleased")
    assert browser.js("document.querySelectorAll('#score-curves > svg polyline').length") == 1


def choose(browser, selector, value, event="change"):
    browser.js(
        f"(() => {{ const list = document.querySelector({json.dumps(selector)}); list.value = {json.dumps(value)}; "
        f"list.dispatchEvent(new Event('{event}')); }})()"
    )


def rows_of(browser, selector):
    return browser.js(
        f"[...document.querySelectorAll('{selector} tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )


def test_seasons_and_regions_are_tabled_by_choice(browser, page, run):
    browser.open(page)
    choices = browser.js("[...document.querySelector('#over').options].map(o => o.text)")
    assert choices == [
        "whole region, all test times",
        "December to February (DJF)",
        "<b>west, all test times",
    ]
    choose(browser, "#metric", "mae")
    seasons, regions = (pd.read_csv(run / f"scores_{name}.csv") for name in ("seasons", "regions"))
    assert seasons["season"].nunique() == 4  # those without a forecast are not offered
    expected = {1: seasons[seasons["season"] == "DJF"], 2: regions}
    for place, table in expected.items():
        choose(browser, "#over", str(place))
        for name, mean, *values in rows_of(browser, "#score-table"):
            wanted = table[table["model"] == name]["mae"]
            np.testing.assert_allclose([float(value) for value in values], wanted, atol=6e-4)
            assert float(mean) == pytest.approx(wanted.mean(), abs=6e-4)
        assert choices[place] in browser.text("#score-table caption")
    assert browser.complaints() == []


def test_what_may_be_luck_is_marked(browser, page, run):
    browser.open(page)
    assert browser.js("document.querySelector('#metric').value") == "rmse_area"
    table = pd.read_csv(run / "comparison_mean.csv").set_index("model")
    assert table["note"].to_dict() == {"persistence": "worse", MODEL: "reference", "twin": "not distinguishable"}
    rows = {row[0]: row[1:] for row in rows_of(browser, "#significance-table")}
    assert list(rows) == [MODEL, "twin", "persistence"]
    assert rows[MODEL][1:] == ["", "", "", "least RMSE"]
    assert rows["twin"][-1] == "≈ not distinguishable"
    assert rows["persistence"][-1] == f"worse than {MODEL}"
    ends = [float(end) for end in rows["persistence"][2].replace("−", "-").split(" to ")]
    np.testing.assert_allclose(ends, table.loc["persistence", ["lower", "upper"]].astype(float), atol=6e-4)
    assert float(rows["persistence"][1]) == pytest.approx(table.loc["persistence", "difference"], abs=6e-4)
    assert browser.js("document.querySelectorAll('#score-table td.alike').length") == 0  # the twin has no scores
    assert f"≈ not distinguishable from {MODEL}" in browser.text("#score-note")
    choose(browser, "#metric", "mae")
    assert "What is more than luck is known of rmse_area" in browser.text("#score-note")


def test_cells_are_marked_where_the_table_says_so(browser, run, tmp_path):
    """Where the best model leads the other by nothing, its cells have the mark, one by one."""
    shutil.copytree(run, tmp_path / "run")
    for name in ("comparison", "comparison_mean"):
        table = pd.read_csv(run / f"{name}.csv")
        alike = (table["model"] == "persistence") & (
            table["lead_hours"].isin([6, 18]) if "lead_hours" in table else True
        )
        table.loc[alike, "note"] = "not distinguishable"
        table.to_csv(tmp_path / "run" / f"{name}.csv", index=False)
    browser.open(write_report(tmp_path / "run"))
    marked = browser.js(
        "[...document.querySelectorAll('#score-table tbody tr')].map(r => [...r.cells].map(c => c.className.includes('alike')))"
    )
    assert marked == [[False] * 6, [False, True, True, False, True, False]]


def test_curves_of_trained_models_have_their_interval(browser, page, run):
    browser.open(page)
    assert browser.js("document.querySelectorAll('#score-curves polygon').length") == 1
    choose(browser, "#metric", "bias")
    assert browser.js("document.querySelectorAll('#score-curves polygon').length") == 0


def test_maps_of_skill_are_hatched_and_say_what_may_be_luck(browser, page, run):
    browser.open(page)
    choose(browser, "#error-kind", "skill against persistence", "input")
    browser.until("document.querySelector('#error-lead').disabled")
    assert browser.js("[...document.querySelectorAll('#error-maps figure')].map(f => f.hidden)") == [True, False]
    with xr.open_dataset(run / "skill.nc") as stored:
        skill = stored["skill"].sel(model=MODEL).load()
    hidden_first = "#error-maps figure:nth-child(2) canvas"
    for longitude, sure in ((207.5, False), (260, True)):
        browser.mouse(hidden_first, *across(45, longitude), "mouseMoved")
        said = browser.text("#error-readout")
        assert number(said, rf"{re.escape(MODEL)} (−?[\d.]+)") == pytest.approx(
            float(skill.sel(latitude=45, longitude=longitude)), abs=0.01
        )
        assert ("may be luck" in said) != sure
    assert browser.complaints() == []
    # Grey lines stand on the hatched columns of the map only.
    share = (
        "(() => {{ const c = document.querySelector({selector}); const w = c.width, x = {x} * w | 0; "
        "const d = c.getContext('2d').getImageData(x - 4, 4, 8, c.height - 8).data; let n = 0; "
        "for (let i = 0; i < d.length; i += 4) n += d[i] === 90 && d[i + 1] === 90; return n / (d.length / 4); }})()"
    )
    found = [
        browser.js(share.format(selector=json.dumps(hidden_first), x=across(45, longitude)[0]))
        for longitude in (207.5, 260)
    ]
    assert 0.08 < found[0] < 0.25  # one line in six, less what coasts cover
    assert found[1] < 0.01
    choose(browser, "#error-kind", "mae", "input")
    browser.until("!document.querySelector('#error-lead').disabled")


def test_a_run_of_two_variables_shows_either(browser, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("forecasts"))
    fields, pressure = weather(), weather(seed=7) * 100
    pressure.attrs["units"] = "Pa"
    forecasts = {name: found.copy() for name, found in write_forecasts(folder, fields).items()}
    truth = pressure.sel(time=forecasts[MODEL]["valid_time"]).drop_vars("time")
    forecasts[MODEL]["msl"] = (truth + 50).assign_attrs(units="Pa").astype("f4")
    write_netcdf(to_cf(forecasts[MODEL], source="test"), folder / "forecasts" / f"{MODEL}.nc")
    shutil.rmtree(folder / "tensors.zarr")
    alone = {
        "persistence": persistence(pressure.to_dataset(name="msl"), STARTS, LEADS),
        MODEL: forecasts[MODEL][["msl"]],
    }
    found = evaluate(alone, pressure.to_dataset(name="msl"))
    write_netcdf(found, folder / "scores_msl.nc")
    (folder / "scores_msl.csv").write_text(score_table(found).to_csv(index=False))
    write_comparisons(folder, alone, pressure, "_msl", "msl")
    browser.open(write_report(folder))
    assert browser.js("[...document.querySelector('#variable').options].map(o => o.text)") == ["air", "msl"]
    assert not browser.js("document.querySelector('#variables').hidden")
    shown = (
        "document.querySelector('#forecast-note').textContent.startsWith('{}') && "
        "document.querySelector('#panel-forecast figcaption').textContent.includes(' for ')"
    )
    of_air = browser.picture("#panel-forecast")
    choose(browser, "#variable", "msl")
    browser.until(shown.format("Mean sea level pressure"))
    browser.until("document.querySelector('#error-note').textContent.length")
    assert browser.picture("#panel-forecast") != of_air
    choose(browser, "#metric", "bias")
    rows = {row[0]: row[1:] for row in rows_of(browser, "#score-table")}
    np.testing.assert_allclose([float(value) for value in rows[MODEL]], 50, atol=0.01)  # rounding of float32
    assert "(Pa)" in browser.text("#score-table caption")
    choose(browser, "#variable", "air")
    browser.until(shown.format("Air temperature"))
    assert browser.picture("#panel-forecast") == of_air
    assert browser.complaints() == []


def test_error_maps_follow_kind_and_lead(browser, page, run):
    browser.open(page)
    before = browser.picture("#error-maps figure")
    browser.key("#error-lead", "Home")
    assert browser.picture("#error-maps figure") != before
    browser.mouse("#error-maps canvas", *across(45, 230), "mouseMoved")
    with xr.open_dataset(run / "scores.nc") as scores:
        wanted = scores["mae_map"].isel(lead_time=0).sel(latitude=45, longitude=230)
        for model in ("persistence", MODEL):
            found = number(browser.text("#error-readout"), rf"{re.escape(model)} ([\d.]+) K")
            assert found == pytest.approx(float(wanted.sel(model=model)), abs=0.01)


def test_a_phone_needs_no_sideways_scrolling(browser, page):
    browser.open(page, width=390, height=844)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.js("document.documentElement.scrollWidth") == 390
    assert browser.js(
        "[...document.querySelectorAll('canvas')].every(c => c.clientWidth > 150 && c.width === c.clientWidth)"
    )


def test_the_scheme_of_the_reader_is_followed(browser, page):
    browser.open(page)
    colours = "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
    ink, paper = (brightness(colour) for colour in browser.js(colours))
    assert paper - ink > 500
    light = browser.picture("#panel-links")
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.until(
        f"document.querySelector('#panel-links canvas').toDataURL() !== {json.dumps(light)}"
    )  # while it is open
    ink, paper = (brightness(colour) for colour in browser.js(colours))
    assert ink - paper > 500


def brightness(colour):
    return sum(int(part) for part in re.findall(r"\d+", colour))


def test_everything_that_takes_the_focus_has_a_name(browser, page):
    browser.open(page)
    browser.send("Accessibility.enable")
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    focusable = [
        node
        for node in nodes
        if any(p["name"] == "focusable" and p["value"].get("value") for p in node.get("properties", []))
        and node["role"]["value"] not in ("RootWebArea", "generic", "MenuListPopup")
    ]
    kinds = {node["role"]["value"] for node in focusable}
    assert {"combobox", "slider", "radio", "checkbox", "spinbutton", "application", "link"} <= kinds
    assert [node for node in focusable if not node.get("name", {}).get("value")] == []


@pytest.mark.parametrize(
    "part", ["tensors.zarr", "scores.csv", "scores.nc", "forecasts", "correlations", "models", "recipe.yaml"]
)
def test_a_missing_part_leaves_its_section_out_and_says_so(browser, run, tmp_path, part):
    section, sentence = {
        "tensors.zarr": ("data", "no tensors"),
        "scores.csv": ("scores", "no scores"),
        "scores.nc": ("errors", "no maps of errors"),
        "forecasts": ("forecasts", "no forecasts"),
        "correlations": ("correlations", "no learned correlations"),
        "models": ("training", "no training curves"),
        "recipe.yaml": ("recipe", "no recipe"),
    }[part]
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(part))
    browser.open(write_report(tmp_path / "run"))
    assert browser.text("ul.notes") == f"This run has {sentence}."
    assert browser.js(f"document.getElementById('{section}')") is None
    assert browser.js("document.querySelectorAll('main > section').length") == 7
    assert browser.complaints() == []
    if part == "tensors.zarr":
        assert browser.js("document.getElementById('panel-truth')") is None
        assert "The truth is not in this run" in browser.text("#forecast-note")


def test_the_globe_is_drawn_from_the_antimeridian(browser, tmp_path):
    grid = Grid.regular(15)
    weights = adjacency(grid)
    write_correlations(tmp_path, weights, grid)
    browser.open(write_report(tmp_path), "#at=0,180")
    for longitude in (-179.5, 179.5):
        x = (longitude + 180) / 360
        browser.mouse("#panel-links canvas", x, 0.5, "mouseMoved", "mousePressed", "mouseReleased")
        assert browser.text("#panel-links figcaption").endswith("what 0° 180°W listens to")
    browser.key("#panel-links canvas", "ArrowLeft")
    assert browser.text("#panel-links figcaption").endswith("what 0° 165°E listens to")
    browser.mouse("#panel-links canvas", 0.5, 0.5, "mouseMoved", "mousePressed", "mouseReleased")
    assert browser.text("#panel-links figcaption").endswith("what 0° 0° listens to")
