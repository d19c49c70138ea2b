#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Installs the given Debian packages that are missing; needs root only if there are any.
#   deploy/packages.sh PACKAGE...
set -eu

missing=
for package; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
		missing="$missing $package"
done
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || {
	echo "packages: missing:$missing; this host has no apt-get: install their equivalents by hand" >&2
	exit 1
}
[ "$(id -u)" = 0 ] || {
	echo "packages: missing, and not root; run as root: apt-get install$missing" >&2
	exit 1
}
echo "packages: apt-get install$missing"
apt-get update -q >/dev/null ||
	echo "packages: apt-get update failed, trying with the lists at hand" >&2
# The names are deliberately a list of words.
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
