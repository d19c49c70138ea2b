#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Builds a debug kernel: KASAN, lockdep, debug objects, fault injection. Takes 15 minutes on two
# cores, once.
#   deploy/kasan-kernel.sh SOURCE OUTPUT
# SOURCE is unpacked from Debian's linux-source if it does not exist.
set -eu
source=${1:?source directory}
output=${2:?output directory}
config=$(cd "$(dirname "$0")/../tests/kernel" && pwd)/debug.config
[ -e "$output/arch/x86/boot/bzImage" ] && [ -e "$output/modules.order" ] && exit 0

"$(dirname "$0")/packages.sh" flex bison bc cpio libelf-dev libssl-dev

if [ ! -e "$source/Makefile" ]; then
	mkdir -p "$source"
	"$(dirname "$0")/kernel.sh" --source "$source"
fi
mkdir -p "$output"
make -s -C "$source" O="$(cd "$output" && pwd)" tinyconfig
cat "$config" >>"$output/.config"
make -s -C "$source" O="$(cd "$output" && pwd)" olddefconfig
# tinyconfig's SLUB_TINY would silently disable KASAN.
grep -q '^CONFIG_KASAN=y' "$output/.config" || {
	echo "kasan-kernel: the configuration has lost KASAN" >&2
	exit 1
}
echo "kasan-kernel: building in $output"
nice make -s -C "$source" O="$(cd "$output" && pwd)" -j"$(nproc)" bzImage modules
