"""The synthetic temperature in memory, and the best forecast of it; climapred.testing has the equations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.sparse
import xarray as xr
from scipy.special import expit

from climapred.calendar import Times, climatology_at, harmonic_design
from climapred.grid import EARTH_RADIUS_KM, Array, Grid, cell_areas
from climapred.variables import VARIABLES

Box = tuple[float, float, float, float]

_YEAR_DAYS = 365.2425
_LATE_DAYS = 25.0  # from 1 January to the coldest day over land; the sea is as late again
_JET_KM_PER_HOUR, _MEANDER_KM_PER_HOUR = 14 * 3.6, 3 * 3.6
_MEANDER_WAVENUMBERS = np.arange(3, 7)
_TAU_DAYS_SEA, _TAU_DAYS_LAND, _SPIN_UP_DAYS = 10.0, 15.0, 20.0
_WEATHER_KM, _CONTINENT_KM = 700.0, 2000.0
_BLOCK = 64  # noise fields drawn at once: part of what a seed means


@dataclass(frozen=True)
class Link:
    """A planted long-range link: the target box follows the source box.

    Attributes:
        source, target: boxes (south, north, west, east), degrees, edges included; longitudes modulo 360.
        lag_hours: how much later the target follows.
        strength: kelvin of the target box's mean per kelvin of the source box's mean.

    Raises:
        ValueError: if a box is empty or the lag is not positive.
    """

    source: Box
    target: Box
    lag_hours: int = 24
    strength: float = 0.5

    def __post_init__(self) -> None:
        for name, box in (("source", self.source), ("target", self.target)):
            south, north, west, east = box
            if not (south < north and west < east <= west + 360):
                raise ValueError(f"{name} must be (south, north, west, east), south < north, west < east, got {box}")
        if self.lag_hours <= 0:
            raise ValueError(f"lag_hours must be positive, got {self.lag_hours}: a target cannot lead its source")

    def source_weights(self, grid: Grid) -> Array:
        """Return the weights of the source box's area mean, shape (H, W), sum 1."""
        return _box_weights("source", self.source, grid)

    def target_pattern(self, grid: Grid) -> Array:
        """Return how the target box responds, shape (H, W): a dome, zero on the edges, of area mean 1."""
        south, north, west, east = self.target
        weights = _box_weights("target", self.target, grid)
        y = 2 * (grid.latitude - south) / (north - south) - 1
        x = 2 * ((grid.longitude - west) % 360) / (east - west) - 1
        dome = np.maximum(1 - y**2, 0)[:, None] * np.maximum(1 - x**2, 0)
        mean = float((dome * weights).sum())
        if mean < 1e-12:
            raise ValueError(f"link target {self.target} has grid points on its edges only; widen the box")
        return dome / mean


def _box_weights(name: str, box: Box, grid: Grid) -> Array:
    south, north, west, east = box
    inside_rows = (grid.latitude >= south) & (grid.latitude <= north)
    inside_columns = (grid.longitude - west) % 360 <= east - west
    first, last = grid.longitude_bounds[[0, -1]]
    fits = south >= grid.latitude_bounds[0] and north <= grid.latitude_bounds[-1]
    fits = fits and (grid.periodic or (west - first) % 360 + (east - west) <= last - first)
    if not fits or not inside_rows.any() or not inside_columns.any():
        raise ValueError(
            f"link {name} {box} (south, north, west, east) must lie in {grid!r} and hold grid points; "
            "pass links= with boxes of this grid, or links=() for none"
        )
    weights = cell_areas(grid) * inside_rows[:, None] * inside_columns
    return np.asarray(weights / weights.sum())


# The subtropical Pacific drives north-east Canada, the Bering Sea the Gulf of Mexico.
DEFAULT_LINKS = (
    Link(source=(25, 35, 190, 215), target=(52.5, 65, 262.5, 285), lag_hours=24, strength=0.5),
    Link(source=(55, 67.5, 187.5, 210), target=(22.5, 32.5, 262.5, 285), lag_hours=36, strength=0.5),
)


@dataclass(frozen=True, eq=False)
class Sample:
    """A synthetic temperature with the truth behind it.

    Attributes:
        fields: ``t2m`` in K, float32, dims (time, latitude, longitude).
        step_hours: hours between two fields.
        climatology: coefficients of the climate C in K, dims (harmonic, latitude, longitude), for
            climatology_at().
        land: land fraction in [0, 1], dims (latitude, longitude).
        links: the planted links.
        propagator: the matrix, shape (H W, H W), that takes the weather X one step on, without noise and
            without the air that comes from outside the grid.
    """

    fields: xr.Dataset
    step_hours: int
    climatology: xr.DataArray
    land: xr.DataArray
    links: tuple[Link, ...]
    propagator: scipy.sparse.csr_array

    @property
    def anomaly(self) -> xr.DataArray:
        """The anomaly Y = T - C in K, float32, dims as the fields."""
        climate = climatology_at(self.climatology, self.fields["time"])
        return (self.fields["t2m"] - climate).astype(np.float32).rename("anomaly")


def synthetic_temperature(
    grid: Grid | None = None,
    *,
    start: str = "2001-01-01",
    periods: int = 2920,
    step_hours: int = 6,
    links: Sequence[Link] = DEFAULT_LINKS,
    seed: int = 0,
) -> Sample:
    """Return a seeded sample; the docstring of climapred.testing has its equations.

    Args:
        grid: any grid of at least 4 x 4 points; by default 24 x 48, 2.5 degrees, Pacific and North America.
        start: first time, UTC.
        periods: number of fields.
        step_hours: hours between fields; climate and weather are the same for every step.
        links: the long-range links; the default ones need a grid that holds them.
        seed: same seed, same sample. Links do not touch the noise: without them, only they are missing.

    Raises:
        ValueError: if the grid is too small, a link's box is not in it, or a lag is no multiple of the step.

    >>> synthetic_temperature(periods=2).fields["t2m"].shape
    (2, 24, 48)
    """
    grid = Grid.regular(2.5, region=(20, 77.5, 180, 297.5)) if grid is None else grid
    if min(grid.shape) < 4:
        raise ValueError(f"grid must have at least 4 latitudes and 4 longitudes, got {grid!r}")
    if periods < 1 or step_hours < 1:
        raise ValueError(f"periods and step_hours must be at least 1, got {periods=}, {step_hours=}")
    plan = _plan_links(links, grid, step_hours)

    land_rng, flow_rng, noise_rng = np.random.default_rng(seed).spawn(3)
    circle = _close_circle(grid)
    land = _land(grid, circle, land_rng)
    decay = np.exp(-step_hours / 24 / (_TAU_DAYS_SEA + (_TAU_DAYS_LAND - _TAU_DAYS_SEA) * land))
    advection = _advection(grid.latitude, circle, step_hours, flow_rng)
    propagator = scipy.sparse.diags_array(decay.ravel()).tocsr() @ advection
    inside = np.arange(land.size).reshape(land.shape)[:, : grid.shape[1]].ravel()

    spin_up = round(_SPIN_UP_DAYS * 24 / step_hours)
    times = np.datetime64(start, "ns") + np.arange(-spin_up, periods) * np.timedelta64(step_hours, "h")
    weather = _weather(grid.latitude, land, decay, propagator, times, noise_rng)
    anomaly = np.empty((periods, grid.size), dtype=np.float32)
    for index, state in enumerate(islice(weather, spin_up, None)):
        anomaly[index] = state[inside]
    _add_links(anomaly, plan)

    land = land[:, : grid.shape[1]]
    climatology = _climatology(grid, land)
    time = xr.DataArray(times[spin_up:], dims="time", attrs={"standard_name": "time", "axis": "T"})
    t2m = _temperature(climatology, time.assign_coords(time=time), anomaly)
    return Sample(
        fields=t2m.to_dataset(name="t2m").assign_attrs(title=f"Synthetic 2 metre temperature, seed {seed}"),
        step_hours=step_hours,
        climatology=climatology,
        land=_on_grid(land, grid, standard_name="land_area_fraction", units="1"),
        links=tuple(links),
        propagator=propagator[inside][:, inside],
    )


def _close_circle(grid: Grid) -> Array:
    """Return the grid's longitudes and, past its eastern edge, points of like spacing back to the first."""
    east, west = grid.longitude[-1], grid.longitude[0] + 360
    count = max(round((west - east) / float(np.diff(grid.longitude).mean())), 1)
    return np.concatenate([grid.longitude, np.linspace(east, west, count + 1)[1:-1]])


def _smooth_noise(rng: np.random.Generator, latitude: Array, columns: int, length_km: float) -> Iterator[Array]:
    """Yield Gaussian fields (H, columns), periodic, of unit variance and correlation exp(-r^2 / 2 length^2).

    White noise is smoothed over length / sqrt(2): along each circle by its wavenumbers (the nearer the pole,
    the fewer remain), then across the circles. Each row is divided by the standard deviation that this gives
    in theory.
    """
    phi, radius = np.radians(latitude), length_km / EARTH_RADIUS_KM / np.sqrt(2)
    wavenumber = np.abs(np.fft.fftfreq(columns, 1 / columns))
    zonal = np.exp(-((wavenumber * radius / np.maximum(np.cos(phi), 1e-6)[:, None]) ** 2) / 2)
    meridional = np.exp(-(((phi[:, None] - phi) / radius) ** 2) / 2)
    meridional /= np.sqrt(meridional**2 @ (zonal**2).mean(axis=1))[:, None]
    while True:
        waves = scipy.fft.rfft(rng.standard_normal((_BLOCK, phi.size, columns)))
        yield from meridional @ scipy.fft.irfft(waves * zonal[:, : waves.shape[-1]], n=columns)


def _land(grid: Grid, circle: Array, rng: np.random.Generator) -> Array:
    """Return the land fraction on the circle, shape (H, columns); half of the grid has more than 0.5."""
    height = next(_smooth_noise(rng, grid.latitude, circle.size, _CONTINENT_KM))
    inside = height[:, : grid.shape[1]]
    return np.asarray(expit(4 * (height - np.median(inside)) / inside.std()))


def _advection(latitude: Array, circle: Array, hours: int, rng: np.random.Generator) -> scipy.sparse.csr_array:
    """Return the matrix (N, N), rows of sum 1, that moves a field on the circle with the flow."""
    phase = rng.uniform(0, 2 * np.pi, _MEANDER_WAVENUMBERS.size)
    rows, columns = latitude.size, circle.size
    here = np.meshgrid(latitude, circle, indexing="ij")
    from_latitude, from_longitude = _departure_points(here[0], here[1], hours, phase)
    y, y_weights = _cubic(latitude, from_latitude)
    around = np.concatenate([circle[-2:] - 360, circle, circle[:3] + 360])
    x, x_weights = _cubic(around, (from_longitude - circle[0]) % 360 + circle[0])
    weights = y_weights[..., :, None] * x_weights[..., None, :]
    origins = y[..., :, None] * columns + ((x - 2) % columns)[..., None, :]
    targets = np.arange(rows * columns).repeat(16)
    entries = (weights.ravel(), (targets, origins.ravel()))
    return scipy.sparse.coo_array(entries, shape=(rows * columns, rows * columns)).tocsr()


def _departure_points(latitude: Array, longitude: Array, hours: int, phase: Array) -> tuple[Array, Array]:
    """Return where the air of each point was some hours ago; never beyond the outer latitudes."""
    edges = latitude.min(), latitude.max()
    degrees_per_km = np.degrees(1 / EARTH_RADIUS_KM)
    for _ in range(hours):
        phi, jet = np.radians(latitude), np.sin(2 * np.radians(latitude)) ** 2
        waves = np.cos(np.radians(longitude)[..., None] * _MEANDER_WAVENUMBERS + phase)
        northward = _MEANDER_KM_PER_HOUR * jet * waves.sum(axis=-1) * np.sqrt(2 / phase.size)
        # jet / cos(phi) without a division by zero at the poles
        eastward = _JET_KM_PER_HOUR * 4 * np.sin(phi) ** 2 * np.cos(phi)
        latitude = np.clip(latitude - northward * degrees_per_km, *edges)
        longitude = longitude - eastward * degrees_per_km
    return latitude, longitude


def _cubic(axis: Array, points: Array) -> tuple[npt.NDArray[np.intp], Array]:
    """Return each point's four neighbours on the axis and their Lagrange weights, shapes (..., 4)."""
    first = np.clip(np.searchsorted(axis, points, side="right") - 2, 0, axis.size - 4)
    neighbours = first[..., None] + np.arange(4)
    nodes = axis[neighbours]
    weights = np.ones_like(nodes)
    for i in range(4):
        for j in set(range(4)) - {i}:
            weights[..., i] *= (points - nodes[..., j]) / (nodes[..., i] - nodes[..., j])
    return neighbours, weights


def _weather(
    latitude: Array,
    land: Array,
    decay: Array,
    propagator: scipy.sparse.csr_array,
    times: Times,
    rng: np.random.Generator,
) -> Iterator[Array]:
    """Yield the weather X on the whole circle at each time, shape (N,)."""
    sine = np.sin(np.radians(latitude))[:, None]
    late = 2 * np.pi * _LATE_DAYS / _YEAR_DAYS
    winter = harmonic_design(times, annual=1, daily=0)[:, 1:] @ np.array([np.cos(late), np.sin(late)])
    noise = _smooth_noise(rng, latitude, land.shape[1], _WEATHER_KM)
    spread = (2 + 4 * np.abs(sine)) * (0.7 + 0.3 * land)
    state = (spread * next(noise)).ravel()
    growth = spread * np.sqrt(1 - decay**2)
    for swing in winter:
        state = propagator @ state + (growth * (1 + 0.35 * sine * swing) * next(noise)).ravel()
        yield state


def _plan_links(links: Sequence[Link], grid: Grid, step_hours: int) -> list[tuple[int, Array, Array]]:
    """Return each link as lag in steps, source weights and target response, shapes (H W,)."""
    for link in links:
        if link.lag_hours % step_hours:
            raise ValueError(f"lag_hours must be a multiple of {step_hours=}, got {link.lag_hours} in {link}")
    return [
        (
            link.lag_hours // step_hours,
            link.source_weights(grid).ravel(),
            link.strength * link.target_pattern(grid).ravel(),
        )
        for link in links
    ]


def _add_links(anomaly: npt.NDArray[np.float32], plan: list[tuple[int, Array, Array]]) -> None:
    """Turn X, shape (T, H W), into Y in place, forward in time: a source may itself be a target."""
    for index in range(len(anomaly)):
        for lag, weights, response in plan:
            if index >= lag:
                anomaly[index] += response * (weights @ anomaly[index - lag])


def planted_weights(links: Sequence[Link], grid: Grid) -> Array:
    """Return what a perfect adjacency would hold of planted links, shape (N, N), row = target, nodes in C order.

    Entry (i, j) is the sum over the links of how many kelvin node i gets, one lag later, per kelvin of node j.

    Raises:
        ValueError: if a box is not in the grid.
    """
    weights = np.zeros((grid.size, grid.size))
    for link in links:
        weights += link.strength * np.outer(link.target_pattern(grid).ravel(), link.source_weights(grid).ravel())
    return weights


def _climatology(grid: Grid, land: Array) -> xr.DataArray:
    """Return the coefficients of C, in harmonic_design's order: (1, cos d, sin d) x (1, cos h, sin h)."""
    sine = np.sin(np.radians(grid.latitude))[:, None]
    coldest = 2 * np.pi * _LATE_DAYS * (2 - land) / _YEAR_DAYS
    warmest = 2 * np.pi * 15 / 24 - np.radians(grid.longitude)
    daily = (0.5 + 4.5 * land) * np.sqrt(1 - sine**2) * np.stack([np.cos(warmest), np.sin(warmest)])[:, None]
    coefficients = np.zeros((3, 3, *grid.shape))
    coefficients[0, 0] = 300 - 45 * sine**2
    coefficients[1:, 0] = -sine * (5 + 16 * land) * np.stack([np.cos(coldest), np.sin(coldest)])
    coefficients[0, 1:] = daily
    coefficients[1, 1:] = -0.4 * sine * daily
    return _on_grid(coefficients.reshape(9, *grid.shape), grid, "harmonic", units="K", annual=1, daily=1)


def _on_grid(values: Array, grid: Grid, *leading: str, **attributes: str | int) -> xr.DataArray:
    dims = (*leading, "latitude", "longitude")
    return xr.DataArray(values, dims=dims, coords=grid.coordinates(), attrs=attributes)


def _temperature(climatology: xr.DataArray, times: xr.DataArray, anomaly: npt.NDArray[np.floating]) -> xr.DataArray:
    """Return T = C + Y in K, float32, with its CF attributes; the anomaly has the shape (times..., H W)."""
    climate = climatology_at(climatology, times).transpose(*times.dims, "latitude", "longitude")
    t2m = (climate + anomaly.reshape(climate.shape)).astype(np.float32)
    names = ("units", "standard_name", "long_name", "cell_methods")
    return t2m.assign_attrs({name: getattr(VARIABLES["t2m"], name) for name in names})


def perfect_forecast(sample: Sample, init_times: npt.ArrayLike, steps: int) -> xr.Dataset:
    """Return the forecast that knows the sample's equations and, on its grid, all fields until ``init_time``.

    It takes the links out of the last anomaly, lets the flow move what remains, and puts the links back in:
    the mark that a trained model can come near to. What it misses is the noise and the air from outside the
    grid.

    Args:
        sample: the sample.
        init_times: times of the last frames seen, in the sample, the longest lag or more after its start.
        steps: number of leads, ``sample.step_hours`` apart.

    Returns:
        ``t2m`` in K, float32, dims (init_time, lead_time, latitude, longitude), with ``valid_time``.

    Raises:
        ValueError: if an initial time is not in the sample or too early.
    """
    inits, times = np.asarray(init_times, dtype="datetime64[ns]"), sample.fields["time"].values
    plan = _plan_links(sample.links, Grid.of(sample.fields), sample.step_hours)
    longest = max((lag for lag, _, _ in plan), default=0)
    if not np.isin(inits, times[longest:]).all():
        raise ValueError(f"init_times must be times of the sample from step {longest} on, got {inits}")
    now = np.searchsorted(times, inits)

    seen = sample.anomaly.values.reshape(times.size, -1)
    anomaly = {step: seen[now + step] for step in range(-longest, 1)}  # step from init -> (init, H W)
    weather = anomaly[0] - sum(np.outer(anomaly[-lag] @ source, response) for lag, source, response in plan)
    for step in range(1, steps + 1):
        weather = (sample.propagator @ weather.T).T
        linked = (np.outer(anomaly[step - lag] @ source, response) for lag, source, response in plan)
        anomaly[step] = weather + sum(linked)

    leads = (np.arange(1, steps + 1) * np.timedelta64(sample.step_hours, "h")).astype("timedelta64[ns]")
    dims = ("init_time", "lead_time")
    valid = xr.DataArray(inits[:, None] + leads, dims=dims, coords={"init_time": inits, "lead_time": leads})
    values = np.stack([anomaly[step] for step in range(1, steps + 1)], axis=1)
    t2m = _temperature(sample.climatology, valid, values)
    return t2m.to_dataset(name="t2m").assign_coords(valid_time=valid)
