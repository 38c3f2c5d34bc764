# make run | test | test-thorough | check | docs | bench | test-statistical | test-faults: each sets
# up .venv once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/digits
ROWS ?=

.PHONY: run test test-thorough test-statistical test-faults check docs bench format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[experiments]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[experiments,dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[experiments,bench]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[experiments,docs]'
	touch $@

run: $(VENV)/.installed ## train a generator on the embedded digits, about two minutes
	$(BIN)/python -m experiments.train --dataset=digits --workdir=$(WORKDIR)

test: $(VENV)/.installed-dev ## what a change is likely to break; compiling takes longest, so little is optimised
	XLA_FLAGS=--xla_backend_optimization_level=0 $(BIN)/python -m pytest --numprocesses=3 --part=quick

test-thorough: $(VENV)/.installed-dev ## the rest of the tests
	$(BIN)/python -m pytest --numprocesses=3 --part=thorough

test-statistical: $(VENV)/.installed-dev ## calibration and invariance figures at full length, printed
	KERNELGRAD_SLOW_TESTS=1 $(BIN)/python -m pytest -svv tests/statistical_test.py tests/power_test.py
	$(BIN)/python -m pytest -svv tests/hmc_test.py tests/langevin_test.py -k "exact or law or mixes"

test-faults: $(VENV)/.installed-dev ## 320 kills, 1000 damages, 462 hostile files, about an hour
	KERNELGRAD_SLOW_TESTS=1 $(BIN)/python -m pytest -svv tests/experiments/faults

check: $(VENV)/.installed-dev ## ruff, mypy, and what a release would hold
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/packaging_test.py

docs: $(VENV)/.installed-docs ## the site, in build/docs/index.html; a page that has not changed is kept
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky \
	    --conf-dir docs --doctree-dir build/doctrees . build/docs

bench: $(VENV)/.installed-bench ## speed and memory against peers; ROWS=svgd,mmd-1000x50 for a part
	$(BIN)/python -m benchmarks --rows=$(ROWS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
