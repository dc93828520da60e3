# `make` alone lists the targets. Each installs what it misses (Debian packages, a Python
# environment in .venv) and says so before it does.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test slow metal metal-demo base-install lint bench fuzz soak kernel kernel-check fresh requirements clean

# uv must use the Python that is here, never fetch one.
export UV_PYTHON_DOWNLOADS := never

PYTHON := .venv/bin/python
ENVIRONMENT := .venv/requirements-installed
PYTEST := $(PYTHON) -m pytest
# Two workers: a machine under test is one busy core. More do not help on small hosts.
WORKERS ?= 2
FUZZ_MINUTES ?= 30
# What the qualification suite is run on.
EXAMPLE := --lab examples/lab.toml --candidate examples/sensor/candidate.toml \
	--content examples/sensor/content/benign

help: ## this list
	@echo "Bugcheck Lab: crashes security-sensor drivers before they ship. Start with: make demo"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; \
		do printf '  make %-13s %s\n' "$$name" "$$text"; done
	@echo
	@echo "LAB_ACCEPT_DEBUGGER_TERMS=1 lets test and soak use Microsoft's debugger engine as"
	@echo "a judge (docs/pykd.md); without it those tests are skipped."

demo: $(ENVIRONMENT) machine-packages ## a bad content file stops a machine: its dump, the culprit, HOLD
	.venv/bin/lab demo

test: $(ENVIRONMENT) test-packages ## every test, on real virtual machines
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not soak and not slow and not metal and not install" $(EXAMPLE)

slow: $(ENVIRONMENT) test-packages ## what takes long: a run with a guest slowed 50 times, every variant by other readers
	$(PYTEST) -n $(WORKERS) --dist worksteal -m slow --timeout 3600

metal: $(ENVIRONMENT) test-packages ## every family of power devices; physical machines in a box, and the qualification suite on one
	$(PYTEST) -n $(WORKERS) --dist worksteal -m metal --timeout 900

metal-demo: $(ENVIRONMENT) test-packages ## a physical machine in a box: crash, hangs, the ladder, healthy again
	$(PYTHON) -m tests.integration.metal.demo

base-install: $(ENVIRONMENT) test-packages ## a wheel, installed without a compiler on Linux and on Windows CPython (Wine)
	$(PYTEST) -m install

lint: $(ENVIRONMENT) ## ruff and mypy --strict
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: $(ENVIRONMENT) machine-packages ## ratios against bare QEMU, bare virsh, other readers of dumps, to docs/benchmarks.md
	$(PYTHON) -m benchmarks.boot
	$(PYTHON) -m benchmarks.lab
	$(PYTHON) -m benchmarks.console
	$(PYTHON) -m benchmarks.triage

fuzz: $(ENVIRONMENT) ## coverage-guided fuzzing of triage for FUZZ_MINUTES (30), one core
	$(PYTHON) -m fuzz --minutes $(FUZZ_MINUTES) --output docs/benchmarks.md

soak: $(ENVIRONMENT) test-packages ## 100 crash cycles, 100 and 200 (physical) with the power cut at random moments
	$(PYTEST) -n $(WORKERS) --dist worksteal -m soak --timeout 3600

kernel: $(ENVIRONMENT) ## rebuild the test kernel and the example drivers (clang, lld)
	@.ci/debian-packages kernel
	$(PYTHON) -m images.test_kernel.compile
	$(PYTHON) -m examples.sensor.build

kernel-check: $(ENVIRONMENT) machine-packages ## rebuild them elsewhere: same bytes, or the same tests pass
	@.ci/debian-packages kernel
	$(PYTHON) -m examples.sensor.build --check
	$(PYTHON) -m images.test_kernel.compile --check

fresh: ## demo and test on a bare Debian 12 made for the purpose (root)
	@.ci/debian-packages fresh
	.ci/fresh

requirements: $(ENVIRONMENT) ## compile the pinned requirements again, after a change in pyproject.toml
	.venv/bin/uv pip compile -q --no-emit-index-url --no-emit-find-links --generate-hashes \
		--python-version 3.11 --custom-compile-command "make requirements" \
		--extra dev pyproject.toml -o requirements/dev.txt

clean: ## remove the Python environment and what targets made
	rm -rf .venv .work build

.PHONY: machine-packages test-packages debugger-engine
machine-packages: debugger-engine
	@.ci/debian-packages machines

# Parts of the test kernel are also compiled for Linux and tested alone.
test-packages: debugger-engine
	@.ci/debian-packages machines firmware ssh metal compiler

# Microsoft's engine, for those who accept its terms; what is set up already is left alone.
debugger-engine: $(ENVIRONMENT)
	@.ci/debian-packages debugger
	@if [ "$(LAB_ACCEPT_DEBUGGER_TERMS)" = 1 ]; then \
		$(PYTHON) -m crashdump_analysis.engines.wine setup; fi

$(ENVIRONMENT): requirements/uv.txt requirements/dev.txt
	@.ci/debian-packages python
	@echo "Installing the pinned Python packages into .venv"
	[ -x $(PYTHON) ] || python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	VIRTUAL_ENV=.venv .venv/bin/uv pip sync --quiet --require-hashes --no-build-isolation requirements/dev.txt requirements/uv.txt
	VIRTUAL_ENV=.venv .venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
