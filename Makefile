# make demo: install into .venv, label picture-book scenes, print mIoU, write a report
# make test: install with the development tools, then lint, types and tests
# make test-tools: install other tools' packages into .venv-tools (heavy), read what is exported with them
# make docs: build the documentation into site/ (index.html opens in a browser); a warning is an error
# make wheel: build the package into dist/, install it into an empty environment, run a small demo from there
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

.PHONY: help demo test test-tools lint docs wheel clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -11

demo: .venv/.installed
	@$(PY) -m tag2mask demo --out "$(DEMO)"

test: .venv/.installed-dev lint
	@$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-tools: .venv-tools/.installed
	@.venv-tools/bin/python -m pytest tests_tools

.venv-tools/.installed: tests_tools/requirements.txt pyproject.toml
	@"$(PYTHON)" -m venv .venv-tools
	@if [ -n "$(TORCH_INDEX)" ]; then .venv-tools/bin/python -m pip install -q --index-url "$(TORCH_INDEX)" torch; fi
	@.venv-tools/bin/python -m pip install -q -e . -r tests_tools/requirements.txt
	@touch $@

lint: .venv/.installed-dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@.venv/bin/lint-imports
	@$(PY) -m mypy

docs: .venv/.installed-docs
	@NO_MKDOCS_2_WARNING=true $(PY) -m mkdocs build --quiet
	@echo "written: site/index.html"

wheel: .venv/.python
	@rm -rf build/wheel && mkdir -p build/wheel dist
	@$(PY) -m pip wheel -q --no-deps --wheel-dir build/wheel .
	@echo "Installing the wheel into build/wheel/venv: as much as make demo downloads."
	@"$(PYTHON)" -m venv build/wheel/venv
	@if [ -n "$(TORCH_INDEX)" ]; then build/wheel/venv/bin/python -m pip install -q -c constraints.txt --index-url "$(TORCH_INDEX)" torch; fi
	@build/wheel/venv/bin/python -m pip install -q -c constraints.txt build/wheel/*.whl
	@cd build/wheel && env -u PYTHONPATH venv/bin/tag2mask demo -n 12 --out demo
	@for wheel in build/wheel/*.whl; do mv "$$wheel" dist/ && echo "written: dist/$${wheel##*/}"; done
	@rm -rf build/wheel

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

.venv/.installed-docs: .venv/.installed pyproject.toml constraints.txt
	@echo "Installing what builds the documentation into .venv: 30 MB to download."
	@$(PY) -m pip install -q -c constraints.txt -e ".[docs]"
	@touch $@

clean:
	rm -rf .venv .venv-tools demo site build dist .mypy_cache .pytest_cache .ruff_cache
