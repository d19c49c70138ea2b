# SPDX-License-Identifier: GPL-2.0-only
# The kernel module, and the virtual machine it is tested in. Included by the
# top-level Makefile; see docs/kernel.md.
#
#   KDIR=DIR        headers to build `make module` for (default: the running kernel's)
#   VM_KERNEL=DIR   a kernel for the machine: image, headers, release
#   KASAN_DIR=DIR   where `make test-kasan` builds its kernel (default: build/kasan)

KDIR ?= /lib/modules/$(shell uname -r)/build
VM := $(BUILD)/vm
VM_KERNEL ?= $(VM)/kernel
KASAN_DIR ?= $(BUILD)/kasan
KASAN_SOURCE ?= $(BUILD)/linux
MODULE_SOURCES := $(wildcard kern/dm/*.[ch] kern/include/*.h) kern/dm/Kbuild kern/dm/Makefile
MODULE_VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
VM_RUN := $(PYTHON) -m deploy.vm
# Empty: udevd runs in the machine, as on a server. `make test-kernel UDEV=--no-udev`: without.
UDEV ?=
# Arguments for tests/kernel/bench.py: make bench-kernel BENCH="--stable copy,hint"
BENCH ?=
# An argument for pytest: make test-kernel TESTS=tests/kernel/test_order.py
TESTS ?= tests/kernel
# How many machines share the tests; more than one only where these are files of several.
MACHINES ?= $(if $(filter tests/kernel,$(TESTS)),2,1)
VM_PYTEST := $(PYTHON) -m pytest -p no:cacheprovider -p no:hypothesispytest --durations=10 -o timeout=300

.PHONY: module
module: ## the kernel module for the running kernel
	@$(MAKE) -s -C kern/dm KDIR=$(KDIR)

.PHONY: module-install
module-install: ## the kernel module by DKMS, rebuilt with every new kernel
	@deploy/module-install.sh $(MODULE_VERSION)

.PHONY: module-uninstall
module-uninstall: ## takes the module away from DKMS
	@deploy/module-install.sh $(MODULE_VERSION) --remove

$(VM)/.packages: deploy/vm-packages.sh | $(BUILD)/.setup
	@deploy/vm-packages.sh $(VENV)
	@mkdir -p $(@D) && touch $@

$(VM)/kernel/release: deploy/kernel.sh | $(VM)/.packages
	@deploy/kernel.sh $(@D)

$(VM)/module/bdr.ko: $(MODULE_SOURCES) | $(VM_KERNEL)/release
	@$(MAKE) -s -C kern/dm KDIR=$(abspath $(VM_KERNEL)/headers) OUT=$(abspath $(@D)) STRICT=1

$(VM)/tools/%: tests/kernel/%.c kern/include/bdr_uapi.h
	@mkdir -p $(@D)
	@$(CC) -O2 -Wall -Wextra -Werror -pthread -Ikern/include -o $@ $<

VM_READY := $(VM)/.packages $(VM)/module/bdr.ko $(VM)/tools/hammer $(VM)/tools/fuzz

.PHONY: test-kernel
test-kernel: $(VM_READY) ## the module's tests, in a virtual machine
	@$(PYTHON) -m compileall -q common services deploy tests
	@$(PYTHON) -m deploy.machines $(MACHINES) --kernel $(VM_KERNEL) $(UDEV) --disk fast=1G --timeout 3000 \
		--append kfence.sample_interval=100 --append preempt=full -- $(VM_PYTEST) $(TESTS)

.PHONY: bench-kernel
bench-kernel: $(VM_READY) ## what the module costs the application, in a virtual machine
	@$(VM_RUN) --kernel $(VM_KERNEL) --no-udev --disk fast=1G --disk paced=1G,6K,400M --disk-cache none \
		--memory 4G --timeout 1800 -- $(PYTHON) -m tests.kernel.bench $(BENCH)

.PHONY: bench-kernel-instructions
bench-kernel-instructions: $(VM_READY) ## the same in instructions, independent of the host's load
	@$(VM_RUN) --kernel $(VM_KERNEL) --no-udev --cpus 1 --instruction-clock --timeout 1800 -- \
		tests/kernel/cost.sh $(VM)/module/bdr.ko

.PHONY: test-kasan
test-kasan: $(VM_READY) ## the same tests on a KASAN and lockdep kernel (builds it: 15 minutes)
	@deploy/kasan-kernel.sh $(KASAN_SOURCE) $(KASAN_DIR)
	@$(MAKE) -s -C kern/dm KDIR=$(abspath $(KASAN_DIR)) OUT=$(abspath $(KASAN_DIR)/bdr)
	@$(VM_RUN) --kdir $(KASAN_DIR) --no-udev --disk fast=1G --timeout 3600 --memory 4G -- \
		env BDR_MODULE=$(abspath $(KASAN_DIR))/bdr/bdr.ko $(VM_PYTEST) -o timeout=900 \
		-o 'python_files=test_*.py injected_faults.py' $(TESTS)

.PHONY: test-dkms
test-dkms: $(VM_KERNEL)/release ## the module through DKMS, in a directory of its own
	@deploy/packages.sh dkms kmod
	@tests/kernel/dkms.sh $(MODULE_VERSION) $(abspath $(VM_KERNEL)) $(abspath $(VM)/dkms)

.PHONY: demo-vm
demo-vm: $(VM_READY) ## the demonstration on the kernel module, in a virtual machine
	@$(VM_RUN) --kernel $(VM_KERNEL) --disk source=1G --disk replica=1G --timeout 1200 -- \
		env BDR_MODULE=$(VM)/module/bdr.ko BDR_DEMO_SOURCE=/dev/vda BDR_DEMO_REPLICA=/dev/vdb \
		BDR_DEMO_NAMESPACES=1 BDR_DEMO_FILES=800 BDR_DEMO_TIMEOUT_S=600 \
		$(PYTHON) -m deploy.demo

.PHONY: demo-resync-vm
demo-resync-vm: $(VM_READY) ## a blank target, and an overflow, on the kernel module, in a virtual machine
	@$(VM_RUN) --kernel $(VM_KERNEL) --disk source=256M --disk replica=256M --timeout 1500 -- \
		env BDR_MODULE=$(VM)/module/bdr.ko BDR_DEMO_SOURCE=/dev/vda BDR_DEMO_REPLICA=/dev/vdb \
		BDR_DEMO_TIMEOUT_S=600 $(PYTHON) -m deploy.demo_resync
