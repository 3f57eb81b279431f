# What a person types here; `make` alone lists it. Everything happens in .venv, made on first use.
PYTHON ?= python3
ARCH   ?= 90
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check
CODE   := sd3par kernels launch benchmarks tests setup.py

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help venv demo nvgpu test check lint types format golden clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

venv: $(VENV)/.test ## .venv with sd3par and what its tests need (PYTHON=python3.12 picks another Python)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Paddle 3.3 needs Python 3.10 to 3.13, and $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments; Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.test: $(VENV)/.made setup.py pyproject.toml
	@echo "Installing Paddle (190 MB) and the rest into $(VENV): some minutes, once"
	@$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.nvgpu: $(VENV)/.test
	@echo "Installing NVIDIA's libraries (900 MB) into $(VENV)"
	@$(PIP) -e '.[nvgpu]'
	@touch $@

$(VENV)/.oracle: $(VENV)/.test
	@echo "Installing PyTorch, diffusers and transformers into $(VENV)"
	@$(PIP) -e '.[oracle]'
	@touch $@

demo: $(VENV)/.test ## demo.png: "a red circle on a blue background" by the bundled model on 4 processes (dp 2 x mp 2)
	@$(BIN)/sd3par generate "a red circle on a blue background" --dp_size 2 --mp_size 2 --device cpu \
		--output demo.png --overwrite

# An empty CUSTOM_DEVICE_ROOT: an older plug-in, of another Paddle, must not be loaded.
nvgpu: $(VENV)/.nvgpu ## the CUDA plug-in into .venv, for GPUs of ARCH=90 (or 80,90,100); needs nvcc, no GPU
	@CUSTOM_DEVICE_ROOT= $(BIN)/python -W ignore -m sd3par.kernels.nvgpu build --arch $(ARCH)

# Two at a time, whatever the machine: many tests start up to four processes themselves.
WORKERS = -n 2 --dist loadgroup

# Where there is CUDA's compiler, the tests of kernels/nvgpu build it, with the headers in NVIDIA's wheels.
test: $(VENV)/.test $(if $(shell command -v nvcc),$(VENV)/.nvgpu) ## all tests
	@$(BIN)/python -m compileall -q sd3par kernels launch tests  # they start hundreds of processes
	@$(BIN)/python -m pytest -q $(WORKERS)

check: lint types $(VENV)/.test ## what a change must pass, in 2 minutes: format, linter, types, fast tests
	@$(BIN)/python -m pytest -q $(WORKERS) -m 'not slow'

lint: $(VENV)/.dev ## ruff, as formatter and as linter
	@$(BIN)/ruff format --check --diff -q $(CODE)
	@$(BIN)/ruff check -q $(CODE)

# mypy knows nothing of `__path__`, so it reads kernels/ and launch/ where an install would put them.
types: $(VENV)/.dev ## mypy
	@rm -rf build/types && mkdir -p build/types/sd3par
	@ln -s $(CURDIR)/benchmarks build/types/
	@ln -s $(CURDIR)/sd3par/* $(CURDIR)/kernels $(CURDIR)/launch build/types/sd3par/
	@cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir ../mypy \
		-p sd3par -p benchmarks | sed -E 's#^sd3par/(kernels|launch)/#\1/#'

format: $(VENV)/.dev ## rewrites the code as ruff formats it
	@$(BIN)/ruff check -q --fix-only $(CODE)
	@$(BIN)/ruff format -q $(CODE)

golden: $(VENV)/.oracle ## tests/golden anew, with PyTorch and diffusers
	@for script in tests/make/golden_*.py; do \
		echo "$$script"; $(BIN)/python -m "tests.make.$$(basename "$$script" .py)"; done

clean: ## removes .venv and everything that was built
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
