# Every target does its own set-up: a venv in .venv, the exact versions of constraints.txt, the C++ extension.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-all bench gpu lint format setup clean

help:
	@echo "make demo      the whole study on the embedded base and corpus, and a report to look at (about 20 minutes on 2 cores)"
	@echo "make test      lint, types and every test that needs no GPU (about 10 minutes)"
	@echo "make test-all  the same with the slow tests: every program of the corpus compiled and run"
	@echo "make bench     pytest benchmarks/"
	@echo "make gpu       the tests and benchmarks that need a CUDA card, in at most nine minutes"
	@echo "make lint      ruff and mypy;  make format: ruff's formatter and fixes"

setup: $(READY)

$(READY): constraints.txt setup.py pyproject.toml $(wildcard csrc/*.* csrc/kernels/*)
	@bash scripts/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

test: lint
	@echo "== tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

test-all: lint
	$(BIN)/python -m pytest -m "not gpu"

bench: $(READY)
	$(BIN)/python -m pytest benchmarks/ --benchmark-columns=min,median,stddev,rounds

gpu: $(READY)
	PYTHON=$(BIN)/python bash benchmarks/gpu_session.sh

lint: $(READY)
	@echo "== lint and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build *.egg-info runs .pytest_cache .mypy_cache .ruff_cache
