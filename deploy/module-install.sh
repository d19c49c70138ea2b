#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Registers the module with DKMS, builds and installs it for the running kernel.
#   deploy/module-install.sh VERSION
set -eu
version=${1:?version}
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || {
	echo "module-install: not root" >&2
	exit 1
}
command -v dkms >/dev/null || {
	echo "module-install: no dkms here; run: apt-get install dkms linux-headers-$(uname -r)" >&2
	exit 1
}
source=/usr/src/bdr-$version
if dkms status "bdr/$version" | grep -q .; then
	dkms remove "bdr/$version" --all
fi
rm -rf "$source"
mkdir -p "$source"
cp kern/*.c kern/*.h kern/Kbuild "$source/"
sed "s/@VERSION@/$version/" kern/dkms.conf >"$source/dkms.conf"
dkms add "bdr/$version"
dkms build "bdr/$version"
dkms install "bdr/$version"
echo "module-install: bdr $version is installed; load it with: modprobe bdr"
