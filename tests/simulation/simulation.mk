# SPDX-License-Identifier: GPL-2.0-only
SEEDS ?= 2000
SEED_START ?= 0

.PHONY: simulate
simulate: $(BUILD)/.setup ## the protocol under faults: SEEDS=N, SEED_START=M
	@$(PYTHON) -m tests.simulation.seeds --seeds $(SEEDS) --start $(SEED_START)
