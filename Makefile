# PYTHON is the interpreter of the environment. ARGS are passed to the command: make test ARGS="-k dice"
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Stamp files: VERIFY says that the packages for verify are installed, INSTALLED that all packages are.
VERIFY := $(VENV)/verify
INSTALLED := $(VENV)/installed
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt --editable

.DEFAULT_GOAL := help
.PHONY: verify test lint bench report clean help

verify: $(VERIFY)  ## hunt for an input on which a fast loss differs from its reference
	$(BIN)/twinloss verify $(ARGS)

# One thread for each process, since there is a process for each core. Tests of several threads ask for them.
test: $(INSTALLED)  ## run the tests and the doctests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

lint: $(INSTALLED)  ## ruff, mypy --strict, and import-linter for the rules of which part may import which
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)  ## time the fast losses
	$(BIN)/twinloss bench $(ARGS)

report: $(INSTALLED)  ## build the website, site/index.html, from the code and the latest run
	$(BIN)/twinloss report $(ARGS)

# The stamp is written last, so that the next make repeats an interrupted installation.
$(VERIFY): pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("twinloss needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[harness,real]"
	@touch $@

# Compile the kernels once here. The test processes would otherwise all compile the same ones.
$(INSTALLED): $(VERIFY)
	@rm -f $@
	$(INSTALL) ".[dev]"
	$(BIN)/twinloss warmup
	@touch $@

clean:  ## remove the environment and all files that tools have generated
	rm -rf $(VENV) build dist site twinloss-report .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find reference fast compat harness src tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@sed -n 's/^\([a-z]*\):.*##/make \1\t/p' Makefile
