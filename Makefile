# SPDX-License-Identifier: GPL-2.0-only
# `make demo` and `make test` set up what they need; a second run sets nothing up again.

VENV := .venv
PYTHON := $(VENV)/bin/python
BUILD := build

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  make %-18s %s\n", $$1, $$2 }'

.PHONY: setup
setup: $(BUILD)/.setup ## Debian packages, virtual environment, nbdkit plugin

$(BUILD)/.setup: deploy/bootstrap.sh pyproject.toml
	@deploy/bootstrap.sh $(VENV)
	@mkdir -p $(BUILD) && touch $@

.PHONY: plugin
plugin: $(BUILD)/.setup ## the nbdkit capture
	@$(MAKE) -s -C kern/nbdkit

.PHONY: demo
demo: plugin ## replicate a real block device, end to end
	@$(PYTHON) -m deploy.demo

.PHONY: demo-resync
demo-resync: plugin ## initial sync of a blank target, and repair after an overflow
	@$(PYTHON) -m deploy.demo_resync

.PHONY: test
test: test-native test-kernel ## every test but the long ones

$(BUILD)/.test-packages: deploy/test-packages.sh | $(BUILD)/.setup
	@deploy/test-packages.sh $(BUILD)/tools
	@touch $@

TEST_PATH = $(abspath $(BUILD)/tools/usr/bin):$$PATH

.PHONY: test-native
test-native: plugin $(BUILD)/.test-packages ## every test but the kernel module's and the long ones
	@# The quick ones first, and in processes that no device or signal has touched.
	@PATH=$(TEST_PATH) $(PYTHON) -m pytest --numprocesses auto --cov --cov-report term tests/unit
	@$(PYTHON) -m pytest --numprocesses auto tests/simulation
	@$(PYTHON) -m tests.simulation.seeds --seeds 2000 --every-transition
	@# Of the databases the short ones; `make test-databases` runs all.
	@PATH=$(TEST_PATH) $(PYTHON) -m pytest --numprocesses auto --dist worksteal \
		-m "not long" tests/nbdkit tests/pipeline tests/databases

.PHONY: lint
lint: $(BUILD)/.setup ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

.PHONY: docs
docs: $(BUILD)/.setup ## the parts of docs/ that are made from the code
	@$(PYTHON) -m deploy.docs

.PHONY: bench-pipeline
bench-pipeline: plugin ## the pipeline against a bare TCP-to-pwrite loop
	@$(PYTHON) -m tests.bench.pipeline

include kern/kernel.mk
-include tests/*/*.mk
