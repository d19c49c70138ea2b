#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Attaches the kernel module's capture to a device: prompts for missing options, shows the command,
# checks, and attaches. `bdr attach` does the same without prompts.
#
#   deploy/setup.sh [--device PATH] [--name NAME] [--chardev NAME]
#                   [--buffer BYTES|nK|nM|nG] [--yes]
#   deploy/setup.sh --detach NAME [--force]
# The buffer is converted to writes of 4104 bytes.
set -eu

usage() {
	sed -n '3,/^set -eu/{/^#/s/^# \{0,1\}//p}' "$0"
	exit "${1:-64}"
}

fail() {
	echo "setup: $*" >&2
	exit 64
}

bdr() { # the command, without an installation
	root=$(cd "$(dirname "$0")/.." && pwd)
	python=$root/.venv/bin/python
	[ -x "$python" ] || python=python3
	PYTHONPATH=$root "$python" -m bdr.services.cli.attach "$@"
}

ask() { # ask VARIABLE QUESTION DEFAULT
	eval "value=\${$1}"
	[ -n "$value" ] && return
	if [ "$yes" ] || [ ! -t 0 ] && [ -n "$3" ]; then
		value=$3
	else
		printf '%s%s: ' "$2" "${3:+ [$3]}" >&2
		read -r value || fail "no answer to: $2"
		[ -n "$value" ] || value=$3
	fi
	[ -n "$value" ] || fail "no answer to: $2"
	eval "$1=\$value"
}

device='' name='' chardev='' buffer='' yes='' detach='' force=''
while [ $# -gt 0 ]; do
	case $1 in
	--device | --name | --chardev | --buffer | --detach)
		[ $# -ge 2 ] || fail "$1 needs a value"
		eval "${1#--}=\$2"
		shift
		;;
	--yes) yes=1 ;;
	--force) force=--force ;;
	--help | -h) usage 0 ;;
	*) usage ;;
	esac
	shift
done

[ "$(id -u)" = 0 ] || fail "not root"
if [ -n "$detach" ]; then
	bdr detach "$detach" $force
	exit
fi

if [ -z "$device" ] && [ -t 0 ]; then
	echo "Block devices of this host:" >&2
	lsblk -o NAME,SIZE,TYPE,FSTYPE,MOUNTPOINT >&2 || true
fi
ask device "Device that holds the data, such as /dev/vdb" ""
[ -b "$device" ] || fail "$device: no block device"
ask name "Name of the new device under /dev/mapper" "bdr-$(basename "$device")"
ask chardev "Name of the control device under /dev" "$name-ring"
ask buffer "Buffer in bytes, or with K, M, G" 64M

cat >&2 <<END
/dev/mapper/$name will be created over $device.
Everything must use /dev/mapper/$name from now on; the control device will be
/dev/$chardev, the buffer $buffer.
END
if [ -z "$yes" ] && [ -t 0 ]; then
	answer=''
	ask answer "Attach it? (yes or no)" no
	[ "$answer" = yes ] || fail "not attached"
fi
bdr attach "$device" --name "$name" --chardev "$chardev" --buffer "$buffer"
