#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# `make bench-kernel-instructions`: what a captured write costs in instructions.
#
# Runs in a virtual machine whose clock counts instructions, a nanosecond each
# (`--instruction-clock`), on a disk in memory: nothing waits, so the time of a
# write is the number of instructions between its submission and its end, and the
# same in each run, whatever else the host does. An emulated machine's wall clock
# cannot say that: what it measures is how fast the emulator was at that moment.
#
#   tests/kernel/cost.sh MODULE
#
# Prints instructions a write and fails below half of the bare disk's throughput.
set -eu
module=${1:?module}
floor=0.5

modprobe brd rd_nr=1 rd_size=131072
disk=/dev/ram0
insmod "$module"
sectors=$(blockdev --getsz $disk)
# Every page once: no run allocates any.
dd if=/dev/zero of=$disk bs=1M count=128 oflag=direct 2>/dev/null

instructions() { # instructions DEVICE DEPTH OPTIONS...: thousands a write
	device=$1
	depth=$2
	shift 2
	# Field 81 of fio's terse output is the mean latency of a write in microseconds.
	fio --minimal --name=cost --filename="$device" --ioengine=libaio --direct=1 --size=96M \
		--randrepeat=1 --norandommap --iodepth="$depth" "$@" | tail -n 1 |
		awk -F ';' -v depth="$depth" '{ printf "%.2f", $81 / depth }'
}

mapped() { # mapped TARGET DEPTH OPTIONS...: the same on a device-mapper device
	table=$1
	shift
	dmsetup create cost --table "0 $sectors $table"
	instructions /dev/mapper/cost "$@"
	dmsetup remove --retry cost
}

job() { # job TITLE DEPTH OPTIONS...
	title=$1
	shift
	instructions $disk "$@" >/dev/null # warms up
	bare=$(instructions $disk "$@")
	linear=$(mapped "linear $disk 0" "$@")
	copy=$(mapped "bdr $disk cost 65536 2 stable copy" "$@")
	hint=$(mapped "bdr $disk cost 65536 2 stable hint" "$@")
	echo "$bare $linear $copy $hint" | awk -v title="$title" -v floor=$floor '{
		printf "%-26s%9.2f%9.2f%9.2f%9.2f%8.2f\n", title, $1, $2, $3, $4, $1 / $3
		exit $1 / $3 < floor
	}'
}

echo "thousands of instructions a write, on brd"
echo "job                            bare   linear     copy     hint   ratio"
low=0
# No consumer: what is written fits into the ring.
job "4 KiB random, depth 1" 1 --rw=randwrite --bs=4k --io_size=32M || low=1
job "4 KiB random, depth 16" 16 --rw=randwrite --bs=4k --io_size=32M || low=1
job "1 MiB sequential, depth 4" 4 --rw=write --bs=1M --io_size=192M || low=1
[ $low = 0 ] || echo "cost: below its floor of $floor" >&2
exit $low
