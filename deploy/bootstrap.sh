#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Installs what BDR needs to be built, run and tested: Debian packages that are
# missing, and a virtual environment with the Python ones.
#   deploy/bootstrap.sh [VENV]
set -eu
venv=${1:-.venv}
cd "$(dirname "$0")/.."

packages="python3 python3-venv gcc make pkg-config libc6-dev
	nbdkit nbdkit-plugin-dev libnbd-bin fuse3 e2fsprogs util-linux iproute2 fio"

missing=
for package in $packages; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
		missing="$missing $package"
done
if [ -n "$missing" ]; then
	command -v apt-get >/dev/null || {
		echo "bootstrap: these Debian packages are missing:$missing; this host has no apt-get: install their like by hand" >&2
		exit 1
	}
	[ "$(id -u)" = 0 ] || {
		echo "bootstrap: not root; run as root: apt-get install$missing" >&2
		exit 1
	}
	echo "bootstrap: apt-get install$missing"
	apt-get update -q >/dev/null || echo "bootstrap: apt-get update failed, trying with the lists at hand" >&2
	# The names are a list of words on purpose.
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
fi

python=
for candidate in python3 python3.13 python3.12 python3.11; do
	if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
		python=$candidate
		break
	fi
done
[ -n "$python" ] || {
	echo "bootstrap: BDR needs Python 3.11 or newer with venv; found $(python3 --version 2>&1)" >&2
	exit 1
}
if [ ! -x "$venv/bin/python" ]; then
	echo "bootstrap: virtual environment $venv ($("$python" --version))"
	"$python" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]'
