# Two commands do everything: `make evaluate` and `make test`. `make help` lists the rest.
PYTHON ?= python3
BENCHES := $(filter-out _%,$(basename $(notdir $(wildcard benchmarks/*.py))))
VENV := .venv
BIN := $(VENV)/bin
# Always the checkout's own: an instance that DAGSTER_HOME names elsewhere is never touched.
export DAGSTER_HOME := $(CURDIR)/.dagster_home
export DAGSTER_DISABLE_TELEMETRY = 1

.DEFAULT_GOAL := help
.PHONY: help setup home evaluate test check dev bench chaos protos fmt

help: ## say what each command does
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## create .venv with everything, pinned by constraints.txt

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is %s. Say which with: make PYTHON=python3.11" % sys.version.split()[0])'
	@echo "Installing into $(VENV), which takes a few minutes the first time and says little meanwhile."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,dspy,otel,postgresql]'
	@touch $@

home: setup
	@mkdir -p "$(DAGSTER_HOME)"
	@ln -sf "$(CURDIR)/dagster.yaml" "$(DAGSTER_HOME)/dagster.yaml"

evaluate: home ## run the main job: every partition of stdlib_search, then the leaderboard
	@$(BIN)/dspex evaluate stdlib_search

test: home ## run the tests
	@$(BIN)/python -m pytest

check: home ## the gate: format, lint, types, layers, generated code, definitions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_protos.py --check
	$(BIN)/dagster definitions validate --workspace workspace.yaml

dev: home ## open the Dagster UI on http://127.0.0.1:3000
	@echo "Dagster is going to warn of dagster.yaml: .dagster_home links to it, so it is used."
	@$(BIN)/dagster dev --workspace workspace.yaml --host 127.0.0.1

bench: home ## run one benchmark, make bench BENCH=throughput, or all
	@for name in $(or $(BENCH),$(BENCHES)); do $(BIN)/python -m benchmarks.$$name || exit 1; done

chaos: home ## break a running evaluation in every way: make chaos SEED=7 TRIALS=20000
	@$(BIN)/python -m chaos --seed $(or $(SEED),1) --trials $(or $(TRIALS),20000)

protos: setup ## regenerate dspex/v1 from protos/
	@$(BIN)/python scripts/generate_protos.py

fmt: setup ## format and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
