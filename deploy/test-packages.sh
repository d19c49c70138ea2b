#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Installs additional requirements of the tests. Prometheus is unpacked, not installed: its package
# would start a service on this host. The tests use systemd-analyze; its package does not replace a
# running init.
#   deploy/test-packages.sh DIRECTORY	Prometheus goes there
set -eu
tools=${1:?directory}
cd "$(dirname "$0")/.."

deploy/packages.sh clang libclang-rt-dev tmux logrotate procps systemd

[ -x "$tools/usr/bin/promtool" ] || {
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	cd "$work"
	# A new host may have no package lists yet.
	apt-get download -qq prometheus 2>/dev/null ||
		{ apt-get update -q >/dev/null && apt-get download -qq prometheus 2>/dev/null; }
	cd - >/dev/null
	mkdir -p "$tools"
	dpkg-deb -x "$work"/prometheus_*.deb "$tools"
}
"$tools/usr/bin/promtool" --version >/dev/null
