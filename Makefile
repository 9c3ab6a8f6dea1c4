# Each target makes its own virtual environment and installs what it needs, exactly as in constraints.txt.
PYTHON ?= python3
VENV := .venv
OUT ?= runs/demo

.PHONY: demo test clean
.DEFAULT_GOAL := demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.run  ## run the embedded sample through every stage into $(OUT)
	$(VENV)/bin/climapred run pipelines/demo.yaml --out $(OUT)

test: $(VENV)/.dev  ## lint, type-check, run all tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest

clean:
	rm -rf $(VENV) runs
