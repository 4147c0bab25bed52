# `make` lists the targets. Each one that needs Python creates .venv first and installs into it;
# editing pyproject.toml or the constraints makes the next call install again.
#
#   TORCH=auto|cpu|cuda  which build of torch (auto: cuda where nvidia-smi answers, else cpu)
#   PYTHON=python3.12    which Python makes .venv
#   JOBS=2               how many processes run the tests (0: in one, for a debugger)
#   FAST=1               quickstart without training, with the branches that ship
#   QUICKSTART_OPTIONS=  for quickstart (default: --side-by-side), such as --seed 1
#
# What made the tiny preset and the tables of docs/study.md has no target: see
# `.venv/bin/python -m studies.pretrain --help` and `.venv/bin/python -m studies.study --help`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TORCH ?= auto
ifeq ($(TORCH),auto)
override TORCH := $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
endif
ifeq ($(filter $(TORCH),cpu cuda),)
$(error TORCH is "$(TORCH)"; it must be auto, cpu or cuda)
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
OTHER := $(filter-out $(TORCH),cpu cuda)
CONSTRAINTS := constraints/$(TORCH).txt
CPU_WHEELS := https://download.pytorch.org/whl/cpu
STAMP := $(VENV)/.installed-$(TORCH)
QUICKSTART := output/quickstart
QUICKSTART_OPTIONS ?= --side-by-side
SOURCES := video_llama tests studies $(wildcard benchmarks train.py demo_audiovideo.py)

# One thread per process: the tests run side by side, and OpenMP threads that wait for one another
# on a shared core slow small models down a hundredfold.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install lint check test test-slow quickstart bench pictures clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install the package with its development tools

lint: $(STAMP) ## Run ruff, ruff format and mypy
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy --strict video_llama

check: test ## The same as `make test`

test: lint ## Run lint, types and the tests (at most 10 minutes on two cores)
	@$(BIN)/python -m pytest -m "not slow" -n $(JOBS)
	@if nvidia-smi -L >/dev/null 2>&1; then $(BIN)/python -m pytest -m gpu -n 0; fi

test-slow: $(STAMP) ## Run the long tests: wheel, kill, fuzz and browser
	@$(BIN)/python -m pytest -m slow -n 0

quickstart: $(STAMP) ## Make data, train, score, ask; FAST=1: with shipped weights
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m video_llama.synthetic.quickstart \
	  --out $(QUICKSTART) $(if $(filter-out 0,$(FAST)),--fast) $(QUICKSTART_OPTIONS)

bench: $(STAMP) ## Run the benchmarks and renew the tables and plot of docs/speed.md
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.table

pictures: $(STAMP) ## Take the README's pictures of the page anew, in a real browser
	$(BIN)/python -m studies.page_pictures
	$(BIN)/python -m studies.badges

clean: ## Remove caches and build products (not .venv, not output)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." \
	       "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu:" \
	       "apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The index with the CPU builds is named only where the configured ones do not have the build: the
# question costs a moment, while a pip command that fails half-way would hide the reason. A change
# of TORCH takes the old build out first, because each satisfies the bounds of the other.
$(STAMP): pyproject.toml $(wildcard constraints/*.txt) | $(BIN)/python
	$(PIP) install --quiet "pip>=23"
	@if [ -f $(VENV)/.installed-$(OTHER) ]; then \
	  $(PIP) uninstall --quiet --yes torch torchvision torchaudio; fi
	@rm -f $(VENV)/.installed-*
	extra=""; \
	if [ $(TORCH) = cpu ] && \
	  ! $(PIP) install --quiet --dry-run --no-deps -c $(CONSTRAINTS) torch >/dev/null 2>&1; \
	then extra="--extra-index-url $(CPU_WHEELS)"; fi; \
	$(PIP) install --progress-bar off -c $(CONSTRAINTS) $$extra -e ".[dev]"
	@touch $@
