# Everything a person does with this project, each from a fresh clone: make demo, make test, make check.
.DEFAULT_GOAL := help
.PHONY: help setup demo test unit compat kill-matrix benchmarks screenshots docs dist check format lock clean
PYTEST := .venv/bin/python -m pytest
# tests/support/hangs.py ends a test that hangs; this ends a run that hangs.
BOUNDED := sh scripts/bounded
# Most tests wait more than they work; those with a real Airflow run later, and two at once only.
JOBS ?= 4

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

setup: ## make .venv from uv.lock (every other target does it first)
	@sh scripts/setup

demo: setup ## a real Airflow invokes actions on real sensor files, then everything stops
	@.venv/bin/invocations demo

test: setup ## all tests: unit, integration, every platform, one real Airflow, a quick run of the benchmarks
	@$(BOUNDED) 30m $(PYTEST) tests/unit tests/integration tests/platforms --numprocesses $(JOBS) --dist loadfile
	@$(BOUNDED) 30m $(PYTEST) tests/system tests/benchmarks --ignore=tests/system/test_page.py --numprocesses 2 --dist loadfile

unit: setup ## the fast tests only
	@$(BOUNDED) 15m $(PYTEST) tests/unit

compat: setup ## unit tests, operators and a real Airflow, on every other supported Airflow and Python (or AIRFLOW=3.4)
	@JOBS=$(JOBS) sh scripts/compat $(AIRFLOW)

kill-matrix: setup ## kill, stop and disconnect every component of a real Airflow (PostgreSQL, Redis; an hour)
	@$(BOUNDED) 3h $(PYTEST) tests/system/kill_matrix -m kill_matrix --kill-matrix-table dist/kill-matrix.md

benchmarks: setup ## the figures of docs/performance.md, and the soak (minutes)
	@.venv/bin/python -m tests.benchmarks.server
	@.venv/bin/python -m tests.benchmarks.waits
	@.venv/bin/python -m tests.benchmarks.waits --airflow
	@.venv/bin/python -m tests.benchmarks.action_logs
	@.venv/bin/python -m tests.benchmarks.soak

screenshots: setup ## the README's pictures of the page in a real Airflow (needs chromium)
	@$(PYTEST) tests/system/test_page.py --screenshots docs/images

docs: setup ## the documentation as a site, into dist/docs
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

dist: setup ## wheel and source distribution, into dist
	@VIRTUAL_ENV=.venv .venv/bin/uv build --quiet --no-build-isolation --out-dir dist

check: setup ## formatting, lint, types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

format: setup ## rewrite the files as `make check` wants them
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

lock: ## resolve the dependencies again, into uv.lock and tests/compat
	@sh scripts/lock

clean: ## remove what the other targets made
	@rm -rf .venv .compat .demo dist .mypy_cache .pytest_cache .ruff_cache
