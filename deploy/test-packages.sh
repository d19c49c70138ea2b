#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# What the tests need besides what BDR needs. Prometheus is unpacked, not installed:
# its package would start a service on this host. Of systemd the tests want
# systemd-analyze; the package does not take the place of a running init.
#   deploy/test-packages.sh DIRECTORY	Prometheus goes there
set -eu
tools=${1:?directory}
cd "$(dirname "$0")/.."

deploy/packages.sh clang libclang-rt-dev tmux logrotate procps systemd

[ -x "$tools/usr/bin/promtool" ] || {
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	cd "$work"
	# A fresh machine may have no lists yet.
	apt-get download -qq prometheus 2>/dev/null ||
		{ apt-get update -q >/dev/null && apt-get download -qq prometheus 2>/dev/null; }
	cd - >/dev/null
	mkdir -p "$tools"
	dpkg-deb -x "$work"/prometheus_*.deb "$tools"
}
"$tools/usr/bin/promtool" --version >/dev/null
