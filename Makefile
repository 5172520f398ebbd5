# incident-rca: `make up` is the way in. Works with GNU make from 3.81 (macOS) on, and any POSIX shell.

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help up install install-dev test check bench proto lock docs clean

# Sets $$python to the first interpreter on the path that is new enough; PYTHON= names one to try first.
find_python = for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 ""; do \
	  [ -n "$$python" ] || { echo "incident-rca: Python 3.11 or newer is needed and none is on the path (found: $$(python3 --version 2>&1 || true)). Install one, or name it: make up PYTHON=/path/to/python3" >&2; exit 1; }; \
	  command -v "$$python" >/dev/null 2>&1 && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break; \
	done

help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

up: install ## Run the platform with this machine as its first agent
	@exec $(BIN)/incident-rca up

install: ## Make the virtual environment and fetch the front-end libraries
	@$(find_python); "$$python" tools/bootstrap.py --venv "$(VENV)"
	@if [ -f tools/fetch_frontend.py ]; then $(BIN)/python tools/fetch_frontend.py; fi

install-dev: ## The same with what tests and checks need
	@$(find_python); "$$python" tools/bootstrap.py --dev --venv "$(VENV)"
	@if [ -f tools/fetch_frontend.py ]; then $(BIN)/python tools/fetch_frontend.py; fi

test: install-dev ## Run all checks and the whole suite, with coverage
	@$(MAKE) --no-print-directory check
	@# Booted hosts come last and alone: under cgroup v1 they keep the Docker engine from reading its containers' statistics. 5: nothing chosen.
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not booted" --cov=connectors --cov=app --cov-branch --cov-report= $(ARGS) || [ $$? -eq 5 ]
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m booted --cov=connectors --cov=app --cov-branch --cov-append --cov-report=term-missing:skip-covered --cov-fail-under=90 $(ARGS) || [ $$? -eq 5 ]

check: install-dev ## Lint, types, import rules, freshness of generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate_proto.py --check
	$(BIN)/python tools/generate_docs.py --check
	$(BIN)/python tools/generate_client.py --check

bench: install-dev ## Run the benchmarks
	$(BIN)/python benchmarks/run.py $(ARGS)

proto: install-dev ## Generate the OpAMP messages from their .proto
	$(BIN)/python tools/generate_proto.py

docs: install-dev ## Generate the reference pages
	$(BIN)/python tools/generate_docs.py
	$(BIN)/python tools/generate_client.py

lock: ## Pin the dependencies anew (needs uv)
	@command -v uv >/dev/null 2>&1 || { echo "incident-rca: make lock needs uv on the path" >&2; exit 1; }
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --all-extras --group build pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --all-extras --group build --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock

clean: ## Remove the virtual environment and all caches (not the platform's data)
	rm -rf "$(VENV)" .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.* coverage.xml build dist
	find app connectors tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
