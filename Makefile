# Everything a developer types. `make demo` and `make test` work on a fresh machine with Python 3.10 and a C++20 compiler.
#
# Without PY, the environment in .venv is found or made. With PY=python3, an interpreter that already has every
# dependency is used as it is and nothing is installed; one that lacks some is what .venv is made from.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV ?= .venv
# Triton is pinned to 3.6.0, which is the one that torch 2.11 brings along on a GPU machine.
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
TORCH ?= $(if $(GPU),torch==2.11.0,torch==2.13.0)

RUN_NEEDS := torch numpy transformers tokenizers safetensors setuptools
TEST_NEEDS := $(if $(filter setup test sanitize,$(MAKECMDGOALS)),pytest hypothesis triton) \
	$(if $(filter test-gpu,$(MAKECMDGOALS)),pytest triton) $(if $(filter gpu-check,$(MAKECMDGOALS)),triton)
LINT_NEEDS := $(if $(filter setup lint,$(MAKECMDGOALS)),ruff mypy)

# PY counts when given on the command line or in the environment. find_spec looks without importing.
ifdef PY
HAS_ALL := $(shell $(PY) -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))' \
	$(RUN_NEEDS) $(TEST_NEEDS) $(LINT_NEEDS) >/dev/null 2>&1 && echo yes)
endif
BASE_PYTHON := $(or $(PY),python3)

ifeq ($(HAS_ALL),yes)
PYTHON := $(PY)
export PYTHONPATH := .
else
PYTHON := $(VENV)/bin/python
TORCH_READY := $(VENV)/.torch
RUN_READY := $(VENV)/.run
DEV_READY := $(VENV)/.dev
endif
# The checkout's folder named kernels must not be found in place of Hugging Face's package of that name.
export PYTHONSAFEPATH := 1

EXTENSION := kernels/cpu/_C.abi3.so
SOURCES := setup.py $(wildcard kernels/cpu/csrc/*)
PACKAGING := setup.py $(wildcard pyproject.toml) constraints.txt
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: help setup demo test lint test-gpu gpu-check bench sanitize clean

help: ## list the verbs
	@printf 'usage: make VERB [PY=python3] [TORCH=torch==2.13.0] [ARGS="..."]\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\nPY     an interpreter to use as it is if it has every dependency, else to make $(VENV) from\n'
	@printf 'TORCH  the torch to install; without a GPU, point pip at the CPU builds or several GB of CUDA come along\n'
	@printf 'ARGS   passed on to pytest (test, test-gpu, sanitize) or to the benchmark (bench, gpu-check)\n'

setup: $(DEV_READY) $(EXTENSION) ## install everything that demo, test and lint need into .venv

demo: $(RUN_READY) $(EXTENSION) ## run the packaged model dense and sparse, side by side
	$(PYTHON) -m prosparse demo
	@printf '\nnext: %s -m prosparse generate --prompt "Once upon a time" --temperature 0.7 --stats\n' '$(PYTHON)'
	@if [ -z "$(HAS_ALL)" ]; then printf '      . $(VENV)/bin/activate puts prosparse on your path; README.md goes on from there\n'; fi

test: $(DEV_READY) $(EXTENSION) ## run the tests
	$(PYTHON) -m pytest $(ARGS)

lint: $(DEV_READY) ## check style and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test-gpu: $(DEV_READY) $(EXTENSION) ## run the tests, those that need an NVIDIA GPU included
	@if [ -z "$(GPU)" ]; then echo 'test-gpu: no NVIDIA GPU here (nvidia-smi -L fails); run it on a CUDA machine' >&2; exit 2; fi
	PROSPARSE_TEST_GPU=1 $(PYTHON) -m pytest $(ARGS)

gpu-check: $(if $(GPU),$(DEV_READY)) ## measure and test what only a GPU can say, in parts; ARGS="--only PART -o DIR" and the like
	$(PYTHON) -m prosparse.bench.gpu.check $(ARGS)

bench: $(RUN_READY) $(EXTENSION) ## measure dense against sparse on this machine; ARGS="--quick -o FILE" and the like
	$(PYTHON) -m prosparse.bench $(ARGS)

FULL_PYTHON := $(if $(findstring /,$(PYTHON)),$(abspath $(PYTHON)),$(PYTHON))

# A copy, so that the instrumented kernels never replace the fast ones. torch itself is not instrumented: no leak check.
sanitize: export PROSPARSE_CXXFLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
sanitize: export LDFLAGS := -fsanitize=address,undefined
sanitize: export PYTHONPATH := .
sanitize: $(DEV_READY) ## run the kernels' tests under the address and undefined-behaviour sanitizers
	@echo 'sanitize: building the C++ kernels with sanitizers in build/sanitize (about two minutes)'
	@rm -rf build/sanitize
	@mkdir -p build/sanitize
	@cp -r setup.py $(wildcard pyproject.toml README.md) prosparse kernels bench tests build/sanitize/
	@rm -f build/sanitize/$(EXTENSION)
	cd build/sanitize && PROSPARSE_REQUIRE_EXT=1 $(FULL_PYTHON) setup.py -q build_ext --inplace
	cd build/sanitize && ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(or $(CXX),g++) -print-file-name=libasan.so) $$($(or $(CXX),g++) -print-file-name=libstdc++.so)" \
		$(FULL_PYTHON) -m pytest -q tests/ops $(ARGS)

clean: ## remove what was built (.venv stays)
	rm -rf build dist *.egg-info kernels/cpu/_C*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.torch:
	@echo '== $(VENV): an environment of $(BASE_PYTHON), then $(TORCH) (a download of 200 MB, or of several GB for CUDA)'
	$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "prosparse needs Python 3.10 or newer; make ... PY=python3.12")'
	$(BASE_PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt '$(TORCH)' numpy setuptools wheel
	$(VENV)/bin/python -c 'import torch; print("torch==" + torch.__version__)' | cat constraints.txt - > $(VENV)/constraints.txt
	touch $@

$(VENV)/.run: $(PACKAGING) | $(VENV)/.torch
	@echo '== $(VENV): what running needs (about a minute)'
	PROSPARSE_NO_EXT=1 $(PIP) install -c $(VENV)/constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(PACKAGING) | $(VENV)/.torch
	@echo '== $(VENV): what testing needs, Triton and the lm-evaluation-harness included (about two minutes)'
	PROSPARSE_NO_EXT=1 $(PIP) install -c $(VENV)/constraints.txt --no-build-isolation -e '.[gpu,dev,eval]'
	touch $@ $(VENV)/.run

# Built in place, so that an installed and a bare checkout load the same file. It may fail where there is no compiler;
# prosparse then says so and runs its slow reference.
$(EXTENSION): $(SOURCES) | $(TORCH_READY)
	@echo '== $@: compiling the C++ kernels (about a minute)'
	$(PYTHON) setup.py -q build_ext --inplace
	@if [ -e $@ ]; then touch $@; fi
