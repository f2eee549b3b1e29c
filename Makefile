# Needs Python 3.11 or newer, gcc, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
ROOMS = calibration model export runtime training validation
SOURCES = $(ROOMS) scripts tests
# A worker each core; every test keeps its own arithmetic to one or two threads.
WORKERS ?= 2

.PHONY: help dev dev-gpu test test-slow lint types demo bundles clean

help:
	@echo "make dev        set up $(VENV) with everything the tests need"
	@echo "make dev-gpu    the same with a GPU's libraries (GPU=gpu-cuda12,trt-rtx: other extras)"
	@echo "make test       lint, types and the fast tests"
	@echo "make test-slow  the tests marked slow"
	@echo "make demo       upscale and validate one photograph (CHECKPOINT=path: export that first)"
	@echo "make bundles    export the networks that ship (training/networks) into runtime/bundles"

# torch first and alone: whatever else wants it then finds it installed.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt 'setuptools>=77'
	$(PIP) install -q -c constraints.txt torch==2.13.0
	PYTHONWARNINGS=ignore $(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev]' --config-settings editable_mode=strict
	touch $@

# The strict editable install links files one by one, so new files need the links made anew.
dev: $(VENV)/installed
	PYTHONWARNINGS=ignore $(PIP) install -q --no-deps --no-build-isolation -e . --config-settings editable_mode=strict

# Both packages are the module onnxruntime and would overwrite one another.
GPU ?= gpu,trt
dev-gpu: dev
	$(PIP) uninstall -q -y onnxruntime onnxruntime-gpu
	PYTHONWARNINGS=ignore $(PIP) install -q -c constraints.txt --no-build-isolation -e '.[$(GPU)]' --config-settings editable_mode=strict

lint: dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: dev
	$(BIN)/mypy $(patsubst %,-p pcsr.%,$(ROOMS))

test: lint types
	$(BIN)/pytest -m 'not slow' -n $(WORKERS)

test-slow: dev
	$(BIN)/pytest -m slow -n $(WORKERS)

demo: dev
	$(BIN)/python scripts/demo.py $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)')

bundles: dev
	set -e; for network in training/networks/*.safetensors; do \
		bundle="runtime/bundles/$$(basename "$$network" .safetensors)"; \
		rm -rf "$$bundle"; \
		$(BIN)/pcsr-export "$$network" -o "$$bundle" --calibration "$${network%.safetensors}.calibration.json"; \
	done

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
