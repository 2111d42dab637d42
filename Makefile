# make demo      the whole pipeline on real data, in minutes, without a GPU or a data set
# make test      the default tests
# make test-all  all tests, against an installed wheel
# make check     format, lint, types, default tests
# Each installs what is missing first: system libraries, then a virtual environment in .venv.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# Where system libraries are unpacked by a user who is not root.
SYSTEM := $(CURDIR)/.venv-system
LONG := faults or processes or long
# Without bytecode, each command compiles torch again: 5 seconds of a core instead of 2.5.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all check lint format

demo: .venv/installed
	$(BIN)/python benchmarks/end_to_end.py digits

test: .venv/dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not ($(LONG))'

# PARTS="default faults" runs some of the parts; packaging/test_all.py lists them.
test-all: .venv/dev
	$(BIN)/python packaging/test_all.py $(PARTS)

check: lint test

lint: .venv/dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.venv/installed: pyproject.toml packaging/prerequisites.py
	@$(PYTHON) packaging/prerequisites.py install $(SYSTEM)
	@echo "Installing into .venv: up to 3 GB to download (torch with CUDA), 6.5 GB on disk."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(call install,--editable .)
	@touch $@

.venv/dev: .venv/installed
	@$(call install,--editable '.[dev]')
	@touch $@

# uv downloads and unpacks packages at the same time; pip does one after the other.
define install
eval "$$($(PYTHON) packaging/prerequisites.py environment $(SYSTEM))" && \
    VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet $(1) opencv-python-headless
endef
