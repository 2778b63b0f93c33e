# Everything a person or CI runs. `make demo` and `make test` build the environment when needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ARGS ?=

CROSS ?= aarch64-linux-gnu-
WHEEL := OMNISPARSE_MANYLINUX=1 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

.PHONY: setup demo test test-slow test-interop test-nemo lint format docs bench wheels \
  wheel-x86_64 wheel-aarch64 clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard omnisparse/*/*_kernels.c omnisparse/*/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchaudio
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,dev,deploy]"
	touch $(STAMP)

demo: setup
	$(BIN)/omnisparse demo --out demo $(DEMO_ARGS)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --durations=10

test-slow: setup
	$(BIN)/python -m pytest -q -m slow --durations=0

test-interop: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,dev,interop]"
	$(BIN)/python -m pytest -q -m interop

# In an environment of its own: NeMo needs other packages in other versions.
test-nemo:
	$(PYTHON) -m venv .venv-nemo
	.venv-nemo/bin/python -m pip install --quiet --constraint constraints.txt torch torchaudio
	.venv-nemo/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[train,dev,nemo]"
	.venv-nemo/bin/python -m pytest -q -m interop tests/interop/test_nemo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages that are made from the code (a test says when this is due), and all pages as a site.
docs: setup
	$(BIN)/python tools/make_docs.py
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,dev,docs]"
	$(BIN)/python tools/build_site.py

bench: setup
	$(BIN)/python tools/benchmark_training.py
	$(BIN)/python tools/benchmark_extract.py
	OMP_NUM_THREADS=1 $(BIN)/python tools/benchmark_sparse_kernels.py

# Needs the cross compiler gcc-aarch64-linux-gnu.
wheels: setup wheel-x86_64 wheel-aarch64

wheel-x86_64:
	rm -rf build
	$(WHEEL)

wheel-aarch64: export _PYTHON_HOST_PLATFORM = linux-aarch64
wheel-aarch64: export CC = $(CROSS)gcc
wheel-aarch64: export LDSHARED = $(CROSS)gcc -shared
wheel-aarch64:
	rm -rf build
	$(WHEEL)

# Trainings (runs) and corpora (data) are the user's: they stay.
clean:
	rm -rf $(VENV) .venv-nemo demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./runs/*" -not -path "./data/*" -prune \
	  -exec rm -rf {} +
