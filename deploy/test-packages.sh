#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Installs additional requirements of the tests. Prometheus is unpacked, not installed: its package
# would start a service on this host. The tests use systemd-analyze; its package does not replace a
# running init.
#   deploy/test-packages.sh DIRECTORY	Prometheus goes there
set -eu
tools=${1:?directory}
cd "$(dirname "$0")/.."

deploy/packages.sh clang libclang-rt-dev tmux logrotate procps systemd \
	xfsprogs btrfs-progs stress-ng postgresql-common

# Debian's package of the server would make and start a cluster of its own.
clusters=/etc/postgresql-common/createcluster.conf
dpkg-query -W -f '${Status}' postgresql 2>/dev/null | grep -q 'ok installed' || {
	cp "$clusters" "$clusters.bdr"
	echo 'create_main_cluster = false' >>"$clusters"
	installed=0
	deploy/packages.sh postgresql || installed=$?
	mv "$clusters.bdr" "$clusters"
	[ "$installed" = 0 ] || exit "$installed"
}

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
