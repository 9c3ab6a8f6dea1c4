"""A seeded near-surface temperature with known ground truth, in memory and in files like those of reanalyses.

The sample is cheap, looks like weather, and rewards what a forecast should learn: a mean climate, anomalies
that move with the wind, and a few long-range links. With latitude phi, longitude lambda, land fraction l in
[0, 1], and d and h the angles of the day of year and of the hour (see calendar.py), the temperature in K is

    T = C + Y
    C = 300 - 45 sin(phi)^2                                                          annual mean
        - sin(phi) (5 + 16 l) cos(d - 25 days (2 - l))                               season
        + (0.5 + 4.5 l) cos(phi) (1 - 0.4 sin(phi) cos(d)) cos(h + lambda - 15 h)    day, in local solar time
    X(t + dt) = a X(t, departure point) + s sqrt(1 - a^2) e(t)                       weather
    Y(t) = X(t) + sum over links: strength P <Y(t - lag)>                            weather with its links

C is made of the harmonics of calendar.py, so that a fit of order (1, 1) can find it exactly. The weather X
fades with a = exp(-dt / tau), tau = 10 days over sea and 15 over land, and rides a steady flow, traced back
hour by hour and interpolated by cubics (semi-Lagrangian): a westerly jet of 14 m/s sin(2 phi)^2 with a
meander of 3 m/s. The stirring e is Gaussian noise without memory, of unit variance and correlation
exp(-r^2 / 2 L^2), L = 700 km. Its size

    s = (2 + 4 |sin(phi)|) (0.7 + 0.3 l) (1 + 0.35 sin(phi) cos(d - 25 days))

is the standard deviation that X keeps, as far as the flow does not blend it. A link adds the mean anomaly <Y>
of its source box to its target box, exactly ``lag`` later, in a pattern P of mean 1. The air circles the
globe, also where the grid is only a part of it: what comes in over a western edge is weather from outside.
"""

from climapred.testing.files import write_era5_grib, write_grib, write_ncep
from climapred.testing.weather import (
    DEFAULT_LINKS,
    Link,
    Sample,
    perfect_forecast,
    planted_weights,
    synthetic_temperature,
)

__all__ = [
    "DEFAULT_LINKS",
    "Link",
    "Sample",
    "perfect_forecast",
    "planted_weights",
    "synthetic_temperature",
    "write_era5_grib",
    "write_grib",
    "write_ncep",
]
