# PYTHON makes the environment; ARGS go to the command: make verify ARGS="--help", make test ARGS="-k dice"
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Stamps of what is installed: what verify needs, and on top of it what all else needs.
VERIFY := $(VENV)/verify
INSTALLED := $(VENV)/installed
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt --editable

.DEFAULT_GOAL := help
.PHONY: verify test lint bench report clean help

verify: $(VERIFY)  ## look for an input on which a fast loss differs from its reference
	$(BIN)/twinloss verify $(ARGS)

test: $(INSTALLED)  ## run the tests and the doctests
	$(BIN)/python -m pytest --numprocesses auto $(ARGS)

lint: $(INSTALLED)  ## ruff, and mypy --strict on reference and harness
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED)  ## time the fast losses
	$(BIN)/twinloss bench $(ARGS)

report: $(INSTALLED)  ## build the site, site/index.html, from the code and the latest run
	$(BIN)/twinloss report $(ARGS)

# A stamp is touched last: an install that was cut short is taken up again by the next make.
$(VERIFY): pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("twinloss needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[harness,real]"
	@touch $@

# The kernels are compiled here, as the processes of the tests would all compile the same ones.
$(INSTALLED): $(VERIFY)
	@rm -f $@
	$(INSTALL) ".[dev]"
	$(BIN)/twinloss warmup
	@touch $@

clean:  ## remove the environment and all that tools left behind
	rm -rf $(VENV) build dist site twinloss-report .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find reference fast harness src tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@sed -n 's/^\([a-z]*\):.*##/make \1\t/p' Makefile
