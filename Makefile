# Needs Python 3.11 or newer, gcc and g++, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
ROOMS = calibration model export runtime training validation
SOURCES = $(ROOMS) scripts tests setup.py
# A worker each core; every test keeps its own arithmetic to one or two threads.
WORKERS ?= 2

.PHONY: help dev dev-gpu test test-slow lint types sanitize demo bundles clean

help:
	@echo "make dev        set up $(VENV) with everything the tests need"
	@echo "make dev-gpu    the same with a GPU's libraries (GPU=gpu-cuda12,trt-rtx: other extras)"
	@echo "make test       lint, types and the fast tests"
	@echo "make test-slow  the tests marked slow"
	@echo "make sanitize   run the native kernels' own tests under the address and undefined-behaviour sanitizers"
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

# Instruction sets and their flags are those of setup.py.
NATIVE = runtime/native/src
KERNELS = $(filter-out $(NATIVE)/abi.cpp $(NATIVE)/network.cpp,$(wildcard $(NATIVE)/*.cpp))
HEADERS = $(wildcard $(NATIVE)/*.hpp)
SANITIZED = build/sanitize
SANITIZE = $(CXX) -std=c++17 -O1 -g -ffp-contract=fast -fno-math-errno -pthread \
	-fsanitize=address,undefined -fno-sanitize-recover=all -I$(NATIVE)

define SANITIZED_KERNELS
SANITIZED_OBJECTS += $(KERNELS:$(NATIVE)/%.cpp=$(SANITIZED)/$(1)/%.o)
$(SANITIZED)/$(1)/%.o: $(NATIVE)/%.cpp $(HEADERS)
	@mkdir -p $$(@D)
	$(SANITIZE) $(3) -DPCSR_ISA=$(1) -DPCSR_LANES=$(2) -c $$< -o $$@
endef

ifeq ($(shell uname -m),x86_64)
SANITIZE += -DPCSR_X86 -march=x86-64
endif
$(eval $(call SANITIZED_KERNELS,scalar,1,))
ifeq ($(shell uname -m),x86_64)
$(eval $(call SANITIZED_KERNELS,avx2,8,-mavx2 -mfma))
$(eval $(call SANITIZED_KERNELS,avx512,16,-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma))
endif

$(SANITIZED)/kernels_test: tests/runtime/native/kernels_test.cpp $(NATIVE)/network.cpp $(HEADERS) $(SANITIZED_OBJECTS)
	@mkdir -p $(@D)
	$(SANITIZE) $< $(NATIVE)/network.cpp $(SANITIZED_OBJECTS) -o $@

sanitize: $(SANITIZED)/kernels_test
	$<

demo: dev
	$(BIN)/python scripts/demo.py $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)')

bundles: dev
	set -e; for network in training/networks/*.safetensors; do \
		bundle="runtime/bundles/$$(basename "$$network" .safetensors)"; \
		rm -rf "$$bundle"; \
		$(BIN)/pcsr-export "$$network" -o "$$bundle" --calibration "$${network%.safetensors}.calibration.json"; \
	done

clean:
	rm -rf build dist demo runtime/native/kernels.so *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
