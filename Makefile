# Everything needs Python 3.11 or newer; PYTHON=python3.13 chooses one.
PYTHON ?= python3
VENV ?= .venv
# What `make setup` installs beside the core: dev, or on a TPU host tpu.
EXTRAS ?= dev
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(EXTRAS)

.PHONY: setup quickstart test test-extras lint clean

setup: $(READY)

$(READY): setup.py constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

# Installs, makes the embedded data, trains, evaluates and prints a summary: under 10 minutes on 2 cores.
quickstart:
	$(PYTHON) launch/quickstart.py $(QUICKSTART)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --ignore=tests/extras

# What needs more than the core: peers in torch, the TPU compiler. They are installed on the first call.
test-extras: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers,tpu]'
	$(BIN)/python -m pytest -q tests/extras

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs
