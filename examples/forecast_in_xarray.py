"""A trained model in an xarray workflow: forecast from the newest frames, write CF NetCDF, draw a map.

Run `climapred run pipelines/demo.yaml --out runs/demo` first, then `python examples/forecast_in_xarray.py runs/demo`.
"""

import sys
from pathlib import Path

import climapred
from climapred.results.maps import save_figure


def main(run: Path) -> None:
    model = climapred.load_model(run / "models" / "convlstm")

    # Any source will do that holds the model's variable on its grid: here the run's own raw files.
    fields = climapred.harmonise(climapred.open_source(run / "sample" / "*.nc"))

    # From the last time of the fields, four steps beyond the horizon it was trained for: the forecaster unrolls as far as
    # it is asked to, and of lazy fields only the frames that it sees are read.
    forecast = model.forecast(fields, steps=model.window.horizon + 4)
    climapred.write_netcdf(climapred.to_cf(forecast, source="climapred convlstm"), run / "newest.nc")

    last = forecast["air"].isel(init_time=0, lead_time=-1)
    hours = int(last["lead_time"].dt.total_seconds()) // 3600
    figure = climapred.plot_field(
        last, title=f"convlstm, {hours} hours after {last['init_time'].dt.strftime('%F %H UTC').item()}"
    )
    print(save_figure(figure, run / "newest.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
