#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Installs the requirements to build, run and test BDR: missing Debian packages, and a virtual
# environment with Python packages.
#   deploy/bootstrap.sh [VENV]
set -eu
venv=${1:-.venv}
cd "$(dirname "$0")/.."

deploy/packages.sh python3 python3-venv gcc make pkg-config libc6-dev \
	nbdkit nbdkit-plugin-dev libnbd-bin fuse3 e2fsprogs util-linux iproute2 fio

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
