# Requires Python 3.11 or newer; PYTHON=python3.13 selects an interpreter.
PYTHON ?= python3
VENV ?= .venv
# The extras that `make setup` installs: dev, or tpu on a TPU host.
EXTRAS ?= dev
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(EXTRAS)
GPU_COMPILER = $(VENV)/gpu-compiler
BEAM = $(VENV)/beam

.PHONY: setup quickstart test test-extras docs lint clean

setup: $(READY)

$(READY): setup.py constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

# Installs the package, generates the embedded data, trains, evaluates and prints a summary: under 10 minutes on 2 cores.
quickstart:
	$(PYTHON) launch/quickstart.py --venv $(VENV) $(QUICKSTART)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --ignore=tests/extras

# Tests that need more than the core, or take long: peers in torch, compilers for TPUs and GPUs, the site, a wheel in its
# own environment, and jobs of several processes. Everything they need is installed on the first call.
test-extras: $(READY) $(GPU_COMPILER) $(BEAM)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers,onnx,tpu,docs,notebook,int8,wandb,mlflow]'
	PYTHONPATH=$(GPU_COMPILER) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests/extras --ignore=tests/extras/test_beam.py
	$(BEAM)/bin/python -m pytest -q tests/extras/test_beam.py

# Builds the site in build/site; a broken link is an error.
docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS),docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Without CUDA's libraries, which compilation does not need; outside the environment, where JAX would look for a GPU.
$(GPU_COMPILER): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $@ \
		jax-cuda12-plugin jax-cuda12-pjrt
	touch $@

# An environment of its own: Apache Beam excludes the versions of protobuf, NumPy and others that constraints.txt names.
$(BEAM)/.ready: setup.py constraints-beam.txt
	$(PYTHON) -m venv $(BEAM)
	$(BEAM)/bin/pip install --quiet --disable-pip-version-check -c constraints-beam.txt -e '.[dev,beam]'
	touch $@

# Formatting and types, too; pyright is installed on the first call, since the tests do without.
lint: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS),lint]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# Keeps runs/, which holds trained models.
clean:
	rm -rf $(VENV) build
