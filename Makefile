# make demo: from nothing to a meta-trained model.  make test: everything.  make check: what needs no Ray, in about a minute.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin

# TORCH=cpu installs PyTorch's build without CUDA first, a tenth of the size: 2.x.y+cpu is what constraints.txt asks for.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ifdef TORCH
ifneq ($(TORCH),cpu)
$(error TORCH is $(TORCH): leave it out, or set it to cpu)
endif
endif
# Tests start many processes: each is to find the project compiled.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(BIN)/pytest --numprocesses
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check lint fast all format
.DEFAULT_GOAL := demo

# Remade when a dependency changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11, 3.12 or 3.13 is needed and none was found: install one, or pass PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/metatrain train recipes/demo.yaml --set output=runs/first --resume auto $(ARGS)

# On two cores: tests in two processes, and linting beside them; in three where many wait for Ray.
check: $(VENV)/.installed
	$(MAKE) --no-print-directory -j2 lint fast

test: $(VENV)/.installed
	$(MAKE) --no-print-directory -j2 lint all

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fast: $(VENV)/.installed
	$(PYTEST) 2 -m 'not ray'

all: $(VENV)/.installed
	$(PYTEST) 3

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
