# `make study` runs the laptop study, `make test` the tests, `make shell` opens a shell for commands by hand; each makes
# the environment first if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= runs/laptop

$(VENV)/.ready: requirements.txt
	@echo "setting up $(VENV), once: pip downloads PyTorch (0.2 GB, with CUDA several GB) and a few small packages"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

.PHONY: study smoke test lint shell
study: $(VENV)/.ready
	$(BIN)/python -m study --preset laptop --out $(OUT)

smoke: $(VENV)/.ready
	$(BIN)/python -m study --preset smoke --out runs/smoke

test: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pytest-xdist==3.8.0
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests

lint: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ruff==0.17.6
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

shell: $(VENV)/.ready
	@echo "python is now that of $(VENV); leave with exit"
	@bash -c 'exec bash --rcfile <(cat ~/.bashrc 2>/dev/null; echo ". $(BIN)/activate") -i'  # after .bashrc, which may set PATH
