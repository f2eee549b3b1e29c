# Needs Python 3.11 or newer, gcc and g++, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
ROOMS = calibration model export runtime training validation
SOURCES = $(ROOMS) scripts tests setup.py
# A worker each core; every test keeps its own arithmetic to one or two threads.
WORKERS ?= 2

.PHONY: help dev dev-gpu test test-slow lint types sanitize bench-kernels demo bundles clean

help:
	@echo "make dev        set up $(VENV) with everything the tests need"
	@echo "make dev-gpu    the same with a GPU's libraries (GPU=gpu-cuda12,trt-rtx: other extras)"
	@echo "make test       lint, types and the fast tests"
	@echo "make test-slow  the tests marked slow"
	@echo "make sanitize   run the native kernels' own tests under the sanitizers of addresses, undefined behaviour, threads"
	@echo "make bench-kernels  how much of the processor's peak the parts of the native kernels reach"
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

# Instruction sets, their lanes and flags are those of setup.py.
NATIVE = runtime/native/src
HEADERS = $(wildcard $(NATIVE)/*.hpp)
COMPILE = $(CXX) -std=c++17 -ffp-contract=fast -fno-math-errno -pthread -I$(NATIVE)
INSTRUCTION_SETS = scalar
ifeq ($(shell uname -m),x86_64)
INSTRUCTION_SETS += avx2 avx512
COMPILE += -DPCSR_X86 -march=x86-64
endif
FOR_scalar = -DPCSR_ISA=scalar -DPCSR_LANES=1
FOR_avx2 = -DPCSR_ISA=avx2 -DPCSR_LANES=8 -mavx2 -mfma
FOR_avx512 = -DPCSR_ISA=avx512 -DPCSR_LANES=16 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
KERNELS = $(filter-out $(NATIVE)/abi.cpp $(NATIVE)/network.cpp,$(wildcard $(NATIVE)/*.cpp))

# Of tests/runtime/native: kernels_test and paint_test once, with all instruction sets; backbone_test for each of them; and
# for threads paint_test and backbone_test, with the plain instruction set.
SANITIZED = build/sanitize
SANITIZE = $(COMPILE) -O1 -g1 -fno-sanitize-recover=all
NATIVE_TESTS = tests/runtime/native
TEST_HEADERS = $(HEADERS) $(wildcard $(NATIVE_TESTS)/*.hpp)

define SANITIZED_KERNELS
SANITIZED_OBJECTS += $(KERNELS:$(NATIVE)/%.cpp=$(SANITIZED)/$(1)/%.o)
$(SANITIZED)/$(1)/%.o: $(NATIVE)/%.cpp $(HEADERS)
	@mkdir -p $$(@D)
	$(SANITIZE) -fsanitize=address,undefined $$(FOR_$(1)) -c $$< -o $$@

$(SANITIZED)/$(1)/backbone_test: $(NATIVE_TESTS)/backbone_test.cpp $(SANITIZED)/$(1)/backbone.o $(NATIVE)/network.cpp $(TEST_HEADERS)
	$(SANITIZE) -fsanitize=address,undefined $$(FOR_$(1)) $$(filter-out %.hpp,$$^) -o $$@
endef
$(foreach set,$(INSTRUCTION_SETS),$(eval $(call SANITIZED_KERNELS,$(set))))

$(SANITIZED)/kernels_test $(SANITIZED)/paint_test: $(SANITIZED)/%: $(NATIVE_TESTS)/%.cpp $(NATIVE)/network.cpp \
		$(SANITIZED_OBJECTS) $(TEST_HEADERS)
	$(SANITIZE) -fsanitize=address,undefined $(filter-out %.hpp,$^) -o $@

SANITIZE_THREADS = $(SANITIZE) -UPCSR_X86 -fsanitize=thread $(FOR_scalar)
$(SANITIZED)/threads/%.o: $(NATIVE)/%.cpp $(HEADERS)
	@mkdir -p $(@D)
	$(SANITIZE_THREADS) -c $< -o $@

THREADS_TESTS = $(SANITIZED)/threads/backbone_test $(SANITIZED)/threads/paint_test
$(SANITIZED)/threads/backbone_test: $(SANITIZED)/threads/backbone.o
$(SANITIZED)/threads/paint_test: $(KERNELS:$(NATIVE)/%.cpp=$(SANITIZED)/threads/%.o)
$(THREADS_TESTS): $(SANITIZED)/threads/%: $(NATIVE_TESTS)/%.cpp $(NATIVE)/network.cpp $(TEST_HEADERS)
	$(SANITIZE_THREADS) $(filter-out %.hpp,$^) -o $@

BACKBONE_TESTS = $(INSTRUCTION_SETS:%=$(SANITIZED)/%/backbone_test)
PROGRAMS = $(SANITIZED)/kernels_test $(SANITIZED)/paint_test $(BACKBONE_TESTS)
sanitize: $(PROGRAMS) $(THREADS_TESTS)
	set -e; for program in $(PROGRAMS); do $$program; done
	set -e; for program in $(THREADS_TESTS); do $$program threads; done

# A program of scripts/bench_kernels.py for each instruction set, which runs those that the processor has.
BENCHED = backbone heads perceptron network
build/bench/%: scripts/bench_kernels.cpp scripts/peaks.hpp $(HEADERS) $(BENCHED:%=$(NATIVE)/%.cpp)
	@mkdir -p $(@D)
	$(COMPILE) -O3 $(FOR_$*) -Iscripts $(filter %.cpp,$^) -o $@

bench-kernels: dev
	$(BIN)/python scripts/bench_kernels.py

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
