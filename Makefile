# Each target makes its own virtual environment and installs what it needs, exactly as in constraints.txt.
PYTHON ?= python3
VENV := .venv
OUT ?= runs/demo

.PHONY: demo test bench clean
.DEFAULT_GOAL := demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.run
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[bench]'
	touch $@

demo: $(VENV)/.run  ## run the embedded sample through every stage into $(OUT)
	$(VENV)/bin/climapred run pipelines/demo.yaml --out $(OUT)

test: $(VENV)/.dev  ## lint, type-check, run all tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest

bench: $(VENV)/.bench  ## measure against peers, side by side; the tables go to benchmarks/results
	$(VENV)/bin/python benchmarks/grib.py
	$(VENV)/bin/python benchmarks/loading.py
	$(VENV)/bin/python benchmarks/training.py
	$(VENV)/bin/python benchmarks/regridding.py
	$(VENV)/bin/python benchmarks/building.py
	$(VENV)/bin/python benchmarks/ls_ntp.py
	$(VENV)/bin/python benchmarks/links.py
	$(VENV)/bin/python benchmarks/models.py
	$(VENV)/bin/python examples/moving_digits.py --out benchmarks/results/moving_digits.md
	CLIMAPRED_DATA=$${CLIMAPRED_DATA:?the folder of the data} $(VENV)/bin/python benchmarks/ablation.py

clean:
	rm -rf $(VENV) runs
