"""Curves of scores: intervals, other scores, the words on the axes."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from climapred.results.curves import plot_scores, score_title

LEADS = pd.to_timedelta([6, 12, 18], unit="h")


def scores(**values) -> xr.Dataset:
    models = ["ls_ntp", "persistence"]
    table = {name: (("model", "lead_time"), np.asarray(value), {"units": "K"}) for name, value in values.items()}
    return xr.Dataset(table, {"model": models, "lead_time": LEADS})


MAE = np.arange(1.0, 7.0).reshape(2, 3)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_bands_reach_from_lower_to_upper_in_the_colour_of_their_curve():
    central = scores(mae=MAE, rmse=2 * MAE)
    figure = plot_scores(
        central,
        metrics=["mae", "rmse"],
        lower=scores(mae=MAE - 0.5),
        upper=scores(mae=MAE + 0.25),
        interval="95 % interval",
    )
    mae, rmse = figure.axes
    assert not rmse.collections
    for row, (band, curve) in enumerate(zip(mae.collections, mae.lines, strict=True)):
        corners = band.get_paths()[0].vertices
        for lead, value in zip((6, 12, 18), MAE[row], strict=True):
            heights = corners[corners[:, 0] == lead, 1]
            assert (heights.min(), heights.max()) == (value - 0.5, value + 0.25)
        assert tuple(band.get_facecolor()[0][:3]) == pytest.approx(tuple(curve_colour(curve)))
    assert any("shaded: 95 % interval" in text for text in texts(figure))


def curve_colour(curve):
    from matplotlib.colors import to_rgb

    return to_rgb(curve.get_color())


def test_a_model_without_an_interval_gets_no_band():
    some = scores(mae=MAE).sel(model=["ls_ntp"])
    band, empty = plot_scores(scores(mae=MAE), metrics=["mae"], lower=some - 1, upper=some + 1).axes[0].collections
    assert band.get_paths()
    assert not [path for path in empty.get_paths() if np.isfinite(path.vertices).all() and len(path.vertices)]


@pytest.mark.parametrize(("models", "bands"), [(6, 7), (7, 0)])
def test_bands_that_would_hide_each_other_are_left_out(models, bands):
    names = ["persistence", *(f"model_{n}" for n in range(models))]
    ones = np.ones((len(names), 3))
    central = xr.Dataset({"mae": (("model", "lead_time"), ones, {"units": "K"})}, {"model": names, "lead_time": LEADS})
    figure = plot_scores(central, metrics=["mae"], lower=central - 0.5, upper=central + 0.5)
    assert len(figure.axes[0].collections) == bands
    assert any("shaded" in text for text in texts(figure)) == bool(bands)


def test_more_scores_than_a_row_holds_go_into_a_second_one():
    figure = plot_scores(scores(**{f"score_{n}": MAE for n in range(5)}), metrics=[f"score_{n}" for n in range(5)])
    tops = [axes.get_position().y1 for axes in figure.axes]
    assert tops[0] == tops[1] == tops[2] > tops[3] == tops[4]
    boxes = [axes.get_position() for axes in figure.axes]
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])


def test_errors_begin_at_zero_and_signed_scores_cross_a_line():
    error, skill = plot_scores(scores(rmse_area=MAE, skill_damped=MAE - 3), metrics=["rmse_area", "skill_damped"]).axes
    assert error.get_ylim()[0] == 0
    assert [line for line in skill.lines if set(line.get_ydata()) == {0}]
    assert [axes.get_title(loc="left") for axes in (error, skill)] == [
        "Root mean square error, area-weighted",
        "Skill against damped",
    ]
    assert [axes.get_ylabel() for axes in (error, skill)] == ["RMSE (K)", "Skill (K)"]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("mae_map", "Mean absolute error"),
        ("acc", "ACC"),
        ("spread", "Spread"),
        ("mae_winter", "Mean absolute error, winter"),
    ],
)
def test_titles_of_scores(name, title):
    assert score_title(xr.DataArray(0, name=name)) == title


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"scores lack the variables \['bias', 'rmse'\]; they have \['mae'\]"):
        plot_scores(scores(mae=MAE))
    with pytest.raises(ValueError, match="lower and upper go together, got only upper"):
        plot_scores(scores(mae=MAE), metrics=["mae"], upper=scores(mae=MAE))
