# wetread: the commands that the README and CI use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
CASE ?= $(wildcard $(or $(WETREAD_TEST_DATA),../shared/data)/lidc-idri-0314/dicom)

.PHONY: help demo test test-all lint types layers venv venv-all venv-tensorflow bench clean

help:
	@echo "make demo      synthesise a chest CT, read it, show the findings"
	@echo "make test      lint, types, layers and the tests that need no torch"
	@echo "make test-all  also the tests against torch, MONAI, SimpleITK and the DICOM validators"
	@echo "make bench     the benchmarks of docs/benchmarks (minutes; needs the case lidc-idri-0314)"

# ---- environments -----------------------------------------------------------------------------------------
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "wetread needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "cannot make a virtual environment: on Debian, apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml
	@echo "installing wetread into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing what the tests need ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

# torch comes first: whatever depends on it would otherwise pull a build for GPUs
$(VENV)/.all: $(VENV)/.dev
	@echo "installing torch and the peers ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,peers]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "nnunetv2==2.8.1" \
	  "dynamic_network_architectures==0.4.4" "batchgeneratorsv2==0.3.6" "batchgenerators==0.25.5" \
	  "acvl_utils==0.2.6"
	@touch $@

# TensorFlow keeps to itself: it pins what others need newer
$(VENV)-tensorflow/.all: $(VENV)/.made
	@echo "installing TensorFlow and tf2onnx ..."
	@$(PYTHON) -m venv $(VENV)-tensorflow
	@$(VENV)-tensorflow/bin/python -m pip install --quiet --disable-pip-version-check \
	  "tensorflow-cpu==2.21.*" "tf2onnx==1.17.*"
	@touch $@

venv: $(VENV)/.dev
venv-all: $(VENV)/.all
venv-tensorflow: $(VENV)-tensorflow/.all

# ---- what people run --------------------------------------------------------------------------------------
demo: $(VENV)/.run
	@$(BIN)/python examples/demo.py --out demo-out

test: $(VENV)/.dev lint types layers
	$(BIN)/python -m pytest -m "not peer" -n $(JOBS) -q

test-all: $(VENV)/.all $(VENV)-tensorflow/.all
	$(BIN)/python -m pytest -m peer -n $(JOBS) --dist loadgroup -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

bench: $(VENV)/.all
	$(BIN)/python benchmarks/load_series.py --out docs/benchmarks
	$(BIN)/python benchmarks/resample.py $(CASE) --out docs/benchmarks
	$(BIN)/python benchmarks/read_case.py --out docs/benchmarks
	$(BIN)/python benchmarks/int8_unet.py --out docs/benchmarks

clean:
	rm -rf $(VENV) $(VENV)-tensorflow build dist demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
