# make demo    the whole walk on real data, in minutes, without a GPU or a data set
# make test    all tests
# make check   format, lint, types, tests
# Each installs what is missing first: Debian packages, then a virtual environment in .venv.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
APT_PACKAGES := build-essential pkg-config python3-venv python3-dev libturbojpeg0-dev libopencv-dev

.PHONY: demo test check format install-system

demo: .venv/installed
	$(BIN)/python benchmarks/walk.py digits

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(MAKE) test

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.venv/installed: pyproject.toml | install-system
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is $$($(PYTHON) --version), expected Python 3.11 or newer. Say make PYTHON=..." >&2; exit 1; }
	@echo "Installing into .venv: about 3 GB to download (torch with CUDA), 6.5 GB on disk."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# FFCV is compiled against OpenCV and TurboJPEG.
install-system:
	@missing=$$(for package in $(APT_PACKAGES); do \
	    dpkg-query --show --showformat='$${db:Status-Status}\n' $$package 2>/dev/null \
	        | grep -qx installed || echo $$package; done); \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" != 0 ]; then \
	    echo "Debian packages are missing. Run this, then make again:" >&2; \
	    echo "    sudo apt-get update && sudo apt-get install --yes --no-install-recommends" $$missing >&2; \
	    exit 1; \
	fi; \
	echo "Installing Debian packages: about 150 MB to download, 500 MB on disk:" $$missing; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends $$missing >/dev/null
