# make demo: install into .venv, label picture-book scenes, print mIoU, write a report
# make test: install with the development tools, then lint, types and tests
#
#   PYTHON=python3.12        another Python, 3.11 or newer
#   TORCH_INDEX=URL          take PyTorch from this package index (the CPU build, or a certain CUDA)
#   DEMO=folder              where the demo writes
#   ARGS="-k crf"            passed on to pytest; ARGS="-n 0" runs all tests in one process

PYTHON ?= python3
TORCH_INDEX ?=
DEMO ?= demo
ARGS ?=
PY := .venv/bin/python

.PHONY: help demo test lint clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -8

demo: .venv/.installed
	@$(PY) -m tag2mask demo --out "$(DEMO)"

test: .venv/.installed-dev lint
	@$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/.installed-dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@.venv/bin/lint-imports
	@$(PY) -m mypy

.venv/.python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "tag2mask needs Python 3.11 or newer, and '$(PYTHON)' was not found. Install it, or name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tag2mask needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" -V). Name another: make PYTHON=python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: its ensurepip or venv module is missing. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@"$(PYTHON)" -m venv .venv
	@touch $@

define install
	@echo "Installing tag2mask$(1) into .venv. This downloads PyTorch (200 MB as CPU build; 2 GB and more where the"
	@echo "index offers a CUDA build: see TORCH_INDEX in the Makefile) and 150 to 210 MB of other packages."
	@if [ -n "$(TORCH_INDEX)" ]; then $(PY) -m pip install -q -c constraints.txt --index-url "$(TORCH_INDEX)" torch; fi
	@$(PY) -m pip install -q -c constraints.txt -e ".$(1)"
	@touch $@
endef

.venv/.installed: .venv/.python pyproject.toml constraints.txt
	$(call install,)

.venv/.installed-dev: .venv/.python pyproject.toml constraints.txt
	$(call install,[dev])
	@touch .venv/.installed

clean:
	rm -rf .venv demo .mypy_cache .pytest_cache .ruff_cache
