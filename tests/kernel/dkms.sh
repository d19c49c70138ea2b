#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# `make test-dkms`: installs the module by DKMS for the kernel of the virtual
# machine, twice, and removes it; in a directory of its own, so that the host keeps
# its modules as they are.
#   tests/kernel/dkms.sh VERSION KERNEL DIR
set -eu
version=${1:?version}
kernel=${2:?directory of a kernel: release and headers}
dir=${3:?directory to work in}
cd "$(dirname "$0")/../.."

BDR_KERNEL=$(cat "$kernel/release")
BDR_KERNEL_DIR=$kernel/headers
BDR_DKMS_ROOT=$dir
export BDR_KERNEL BDR_KERNEL_DIR BDR_DKMS_ROOT

fail() {
	echo "dkms: $*" >&2
	exit 1
}

rm -rf "$dir"
# Twice: a second `make module-install` replaces what the first has left.
for run in first second; do
	deploy/module-install.sh "$version" >"$dir.log" 2>&1 || {
		cat "$dir.log" >&2
		fail "the $run installation failed"
	}
done
module=$(find "$dir/lib/modules/$BDR_KERNEL/updates" -name 'bdr.ko*')
[ -n "$module" ] || fail "no module was installed"
case $(/sbin/modinfo -F vermagic "$module") in
"$BDR_KERNEL "*) ;;
*) fail "the module is not for $BDR_KERNEL" ;;
esac
deploy/module-install.sh "$version" --remove >"$dir.log" 2>&1 || {
	cat "$dir.log" >&2
	fail "it could not be removed"
}
left=$(find "$dir" -not -type d)
[ -z "$left" ] || fail "the removal leaves $left"
[ ! -e "$dir/var/lib/dkms/bdr" ] || fail "DKMS still knows the module"
rm -rf "$dir" "$dir.log"
echo "dkms: bdr $version was installed for $BDR_KERNEL, twice, and removed"
