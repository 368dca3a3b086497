# Every target sets up what it needs: a .venv here, installed with the tested versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo-report

.DEFAULT_GOAL := help
.PHONY: help setup demo test check picto docs leaderboard

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/installed ## make .venv and install efface into it

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "efface needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/installed ## erase "cigarette" from the bundled model and write a report (under three minutes)
	$(BIN)/efface demo --out $(OUT)

test: .venv/installed ## run the tests (no network, two cores, about ten minutes)
	$(BIN)/python -m pytest --numprocesses 2

check: .venv/installed ## format, lint, types, layers, documentation tables
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python docs/make_methods.py --check

picto: .venv/installed ## train the bundled model again, or go on where the last run stopped (see docs/picto.md)
	$(BIN)/python -m training.picto

docs: .venv/installed ## write the method tables of docs/methods.md from the code
	$(BIN)/python docs/make_methods.py

leaderboard: .venv/installed ## measure every defense on picto, hours on two cores; resumes (see docs/leaderboard.md)
	$(BIN)/python -m benchmarks.leaderboard.run
