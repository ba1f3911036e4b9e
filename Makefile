# Two commands: `make study` sets up and runs the laptop study, `make test` sets up and runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= runs/laptop

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.PHONY: study smoke test lint
study: $(VENV)/.ready
	$(BIN)/python -m study --preset laptop --out $(OUT)

smoke: $(VENV)/.ready
	$(BIN)/python -m study --preset smoke --out runs/smoke

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q tests

lint: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ruff==0.17.6
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
