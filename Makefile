# Everything a person or CI runs. `make demo` and `make test` build the environment when needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ARGS ?=

.PHONY: setup demo test test-slow test-interop lint format docs bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==2.11.0" "torchaudio==2.11.0"
	$(BIN)/python -m pip install --quiet --editable ".[dev,deploy]"
	touch $(STAMP)

demo: setup
	$(BIN)/omnisparse demo --out demo $(DEMO_ARGS)

test: setup
	$(BIN)/python -m pytest -q --durations=10

test-slow: setup
	$(BIN)/python -m pytest -q -m slow --durations=0

test-interop: setup
	$(BIN)/python -m pip install --quiet --editable ".[dev,interop]"
	$(BIN)/python -m pytest -q -m interop

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages that are made from the code; a test says when this is due.
docs: setup
	$(BIN)/python tools/make_docs.py

bench: setup
	$(BIN)/python tools/benchmark_training.py
	$(BIN)/python tools/benchmark_extract.py

# Trainings (runs) and corpora (data) are the user's: they stay.
clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./runs/*" -not -path "./data/*" -prune \
	  -exec rm -rf {} +
