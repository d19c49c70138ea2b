#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# What the virtual machine of the kernel tests needs of this host: an emulator,
# a compiler, the tools that the tests call, and virtme-ng in the virtual
# environment. udev runs in the machine, with the rules of LVM and of software RAID:
# each looks at every new block device, as on any server.
#   deploy/vm-packages.sh VENV
set -eu
venv=${1:?virtual environment}
cd "$(dirname "$0")/.."

packages="qemu-system-x86 gcc make libc6-dev kmod xz-utils zstd file busybox-static sparse
	dmsetup udev lvm2 mdadm util-linux e2fsprogs xfsprogs btrfs-progs fio iproute2"
# Debian's headers name the compiler that built the kernel.
[ -e /etc/os-release ] && . /etc/os-release
[ "${VERSION_CODENAME:-}" = bookworm ] && packages="$packages gcc-12"

# libelf1 became libelf1t64 with the transition to 64-bit time.
dpkg-query -W -f '${Status}' libelf1t64 2>/dev/null | grep -q 'ok installed' ||
	packages="$packages libelf1"

# The names are a list of words on purpose.
# shellcheck disable=SC2086
deploy/packages.sh $packages
[ -x "$venv/bin/vng" ] ||
	"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[vm]'
