#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Registers the module with DKMS, builds and installs it; or removes it.
#   deploy/module-install.sh VERSION [--remove]
#
#   BDR_KERNEL=RELEASE    for this kernel instead of the running one
#   BDR_KERNEL_DIR=DIR    its headers, if they are not in the default location
#   BDR_DKMS_ROOT=DIR     everything below this directory; does not change the host
set -eu
version=${1:?version}
action=${2:-}
cd "$(dirname "$0")/.."

fail() {
	echo "module-install: $*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "not root"
kernel=${BDR_KERNEL:-$(uname -r)}
command -v dkms >/dev/null ||
	fail "no dkms here; run: apt-get install dkms linux-headers-$kernel"

root=${BDR_DKMS_ROOT:-}
sources=$root/usr/src
trees=
[ -z "$root" ] ||
	trees="--dkmstree $root/var/lib/dkms --sourcetree $sources --installtree $root/lib/modules"

call() { # call VERB ARGUMENTS...
	verb=$1
	shift
	# The options are deliberately a list of words.
	# shellcheck disable=SC2086
	dkms "$verb" $trees "$@"
}

change() { # the same for verbs that would run depmod, which does not support another root
	call "$@" ${root:+--no-depmod}
}

remove() {
	if call status "bdr/$version" | grep -q .; then
		change remove "bdr/$version" --all
	fi
	rm -rf "$sources/bdr-$version"
}

case $action in
--remove)
	remove
	echo "module-install: bdr $version is removed"
	exit
	;;
'') ;;
*) fail "unknown option $action" ;;
esac

headers=${BDR_KERNEL_DIR:-/lib/modules/$kernel/build}
[ -e "$headers/Makefile" ] ||
	fail "no headers of $kernel in $headers; run: apt-get install linux-headers-$kernel"
[ -z "$root" ] || mkdir -p "$root/var/lib/dkms" "$root/lib/modules/$kernel"

remove
make -s -C kern/dm sources OUT="$sources/bdr-$version"
sed "s/@VERSION@/$version/" kern/dm/dkms.conf >"$sources/bdr-$version/dkms.conf"
call add "bdr/$version"
call build "bdr/$version" -k "$kernel" --kernelsourcedir "$headers"
change install "bdr/$version" -k "$kernel" --kernelsourcedir "$headers"
echo "module-install: bdr $version is installed for $kernel; load it with: modprobe bdr"
