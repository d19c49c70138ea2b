# SPDX-License-Identifier: GPL-2.0-only
.PHONY: test-databases
test-databases: plugin $(BUILD)/.test-packages ## databases and file systems on replicas of lost sources
	@$(PYTHON) -m pytest --numprocesses auto --dist worksteal tests/databases
