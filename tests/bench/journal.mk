# SPDX-License-Identifier: GPL-2.0-only
.PHONY: bench-journal
bench-journal: $(BUILD)/.setup ## the pipeline with and without journal, and recovery
	@$(PYTHON) -m tests.bench.journal
