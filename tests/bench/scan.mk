# SPDX-License-Identifier: GPL-2.0-only
.PHONY: bench-scan
bench-scan: plugin ## a scan of equal devices against cmp; an overflow with 1 % dirty
	@$(PYTHON) -m tests.bench.scan

.PHONY: bench-overload
bench-overload: plugin ## writes faster than the link: overflows, then convergence
	@$(PYTHON) -m tests.bench.overload

.PHONY: bench-slow-link
bench-slow-link: plugin ## 1 Mbit/s, 300 ms, 1 % loss against bare TCP: writes, scan; 10 minutes
	@$(PYTHON) -m tests.bench.slow_link
