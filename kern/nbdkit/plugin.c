// SPDX-License-Identifier: GPL-2.0-only
/*
 * nbdkit plugin `bdr`: serves a file or block device over NBD, and records every
 * write in a ring of shared memory.  It is the capture for hosts that cannot
 * load the kernel module; for a reader the two are the same.
 *
 *	nbdkit -U /run/v.nbd build/nbdkit/bdr.so file=disk.img ring=/run/v.ring
 *
 * The path of a write, in any of the server's threads:
 *
 *	range lock      waits for earlier writes that overlap: one order for both
 *	begin           slots, or dirty bits, under the gate's lock; copies the data
 *	store           pwrite or fallocate, and fdatasync for FUA
 *	end             publishes, wakes the consumer if it waits for these slots
 *	range unlock
 *
 * NBD does not define the order of overlapping requests in flight, so any order
 * is correct that is the same in ring and disk.  A flush takes no range: its
 * slot follows those of every write that completed before it was sent.
 *
 * A write of more than 256 slots is recorded as several.  FUA is set on the last:
 * its fdatasync covers them all.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "capture.h"
#include "control.h"
#include "store.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define BDR_WRITES_DEFAULT	16384	/* 64 MiB */
#define BDR_BLOCK_PREFERRED	4096

static struct {
	char *file;
	char *ring;
	__u64 writes;
	__u64 region_bytes;

	bool has_store;
	bool has_capture;
	bool has_control;
	struct bdr_store store;
	struct bdr_capture capture;
	struct bdr_control control;
} bdr;

/* ---- parameters -------------------------------------------------------- */

static void bdr_plugin_load(void)
{
	bdr.writes = BDR_WRITES_DEFAULT;
	bdr.region_bytes = BDR_REGION_SECTORS_DEFAULT * BDR_SECTOR_BYTES;
}

static int bdr_config_writes(const char *value)
{
	int64_t writes = nbdkit_parse_size(value);

	if (writes < 0) {
		nbdkit_error("writes=%s: wanted the ring's capacity in writes, a number from %d to %llu",
			     value, BDR_CAPACITY_MIN, BDR_CAPACITY_MAX);
		return -1;
	}
	if (writes < BDR_CAPACITY_MIN || (__u64)writes > BDR_CAPACITY_MAX) {
		nbdkit_error("writes=%s: out of range; wanted %d to %llu writes of %d bytes",
			     value, BDR_CAPACITY_MIN, BDR_CAPACITY_MAX,
			     BDR_SLOT_BYTES);
		return -1;
	}
	bdr.writes = (__u64)writes;
	return 0;
}

static int bdr_config_region(const char *value)
{
	const __u64 least = BDR_REGION_SECTORS_MIN * BDR_SECTOR_BYTES;
	const __u64 most = (__u64)BDR_REGION_SECTORS_MAX * BDR_SECTOR_BYTES;
	int64_t bytes = nbdkit_parse_size(value);

	if (bytes < 0) {
		nbdkit_error("region=%s: wanted a size in bytes, e.g. 64K", value);
		return -1;
	}
	if ((__u64)bytes < least || (__u64)bytes > most || bytes & (bytes - 1)) {
		nbdkit_error("region=%s: wanted a power of two from %llu to %llu bytes",
			     value, least, most);
		return -1;
	}
	bdr.region_bytes = (__u64)bytes;
	return 0;
}

static int bdr_config_path(char **path, const char *key, const char *value,
			   bool exists)
{
	if (!*value) {
		nbdkit_error("%s= is empty; wanted a path", key);
		return -1;
	}
	if (*path) {
		nbdkit_error("%s= is given twice: %s and %s", key, *path, value);
		return -1;
	}
	/* The server changes to / when it goes into the background. */
	*path = exists ? nbdkit_realpath(value) : nbdkit_absolute_path(value);
	return *path ? 0 : -1;
}

static int bdr_plugin_config(const char *key, const char *value)
{
	if (!strcmp(key, "file"))
		return bdr_config_path(&bdr.file, key, value, true);
	if (!strcmp(key, "ring"))
		return bdr_config_path(&bdr.ring, key, value, false);
	if (!strcmp(key, "writes"))
		return bdr_config_writes(value);
	if (!strcmp(key, "region"))
		return bdr_config_region(value);
	nbdkit_error("unknown parameter %s=%s; wanted file=, ring=, writes= or region=",
		     key, value);
	return -1;
}

static int bdr_plugin_config_complete(void)
{
	if (!bdr.file) {
		nbdkit_error("file= is missing: the file or block device to serve");
		return -1;
	}
	if (!bdr.ring) {
		nbdkit_error("ring= is missing: the path of the ring's control socket");
		return -1;
	}
	return 0;
}

#define bdr_plugin_config_help \
	"file=PATH       (required) file or block device to serve\n" \
	"ring=PATH       (required) control socket of the ring, created here\n" \
	"writes=NUMBER   capacity of the ring in writes of 4104 bytes (default 16384)\n" \
	"region=SIZE     bytes per bit of the dirty bitmap (default 64K)"

static void bdr_plugin_dump(void)
{
	printf("bdr_abi_version=%d\n", BDR_ABI_VERSION);
	printf("bdr_slot_bytes=%d\n", BDR_SLOT_BYTES);
	printf("bdr_writes_default=%d\n", BDR_WRITES_DEFAULT);
}

/* ---- life -------------------------------------------------------------- */

/* Before the fork, so that errors appear in the foreground.  No threads yet. */
static int bdr_plugin_get_ready(void)
{
	if (bdr_store_open(&bdr.store, bdr.file) < 0)
		return -1;
	bdr.has_store = true;
	if (bdr_capture_create(&bdr.capture, bdr.file, bdr.store.bytes,
			       bdr.writes, bdr.region_bytes) < 0)
		return -1;
	bdr.has_capture = true;
	if (bdr_control_create(&bdr.control, &bdr.capture, bdr.ring) < 0)
		return -1;
	bdr.has_control = true;
	return 0;
}

static int bdr_plugin_after_fork(void)
{
	return bdr_control_start(&bdr.control);
}

/* Also after a start that failed; no request is in flight. */
static void bdr_plugin_unload(void)
{
	if (bdr.has_control)
		bdr_control_destroy(&bdr.control);
	if (bdr.has_capture)
		bdr_capture_destroy(&bdr.capture);
	if (bdr.has_store)
		bdr_store_close(&bdr.store);
	free(bdr.ring);
	free(bdr.file);
	memset(&bdr, 0, sizeof(bdr));
}

/* ---- what a connection offers ------------------------------------------ */

static void *bdr_plugin_open(int readonly)
{
	(void)readonly;		/* nbdkit itself refuses writes */
	return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t bdr_plugin_get_size(void *handle)
{
	(void)handle;
	return (int64_t)bdr.store.bytes;
}

static int bdr_plugin_yes(void *handle)
{
	(void)handle;
	return 1;
}

static int bdr_plugin_can_fua(void *handle)
{
	(void)handle;
	return NBDKIT_FUA_NATIVE;
}

static int bdr_plugin_block_size(void *handle, uint32_t *minimum,
				 uint32_t *preferred, uint32_t *maximum)
{
	(void)handle;
	*minimum = BDR_SECTOR_BYTES;
	*preferred = BDR_BLOCK_PREFERRED;
	*maximum = 0xffffffff;
	return 0;
}

/* ---- requests ---------------------------------------------------------- */

static int bdr_fail(int err)
{
	errno = err;
	nbdkit_set_error(err);
	return -1;
}

static bool bdr_is_aligned(uint64_t offset, uint32_t count)
{
	return !((offset | count) % BDR_SECTOR_BYTES);
}

static int bdr_plugin_pread(void *handle, void *data, uint32_t count,
			    uint64_t offset, uint32_t flags)
{
	int err = bdr_store_read(&bdr.store, data, count, offset);

	(void)handle;
	(void)flags;
	return err ? bdr_fail(err) : 0;
}

/* Part of a write; its range is locked. */
static int bdr_write_part(const unsigned char *data, uint64_t bytes,
			  uint64_t offset, bool fua)
{
	struct bdr_io io = {
		.write = {
			.sector = offset / BDR_SECTOR_BYTES,
			.sectors = bytes / BDR_SECTOR_BYTES,
			.op = BDR_OP_WRITE,
			.fua = fua,
		},
	};
	int err;

	bdr_capture_begin(&bdr.capture, &io, data);
	err = bdr_store_write(&bdr.store, data, bytes, offset);
	if (!err && fua)
		err = bdr_store_sync(&bdr.store);
	bdr_capture_end(&bdr.capture, &io, err ? BDR_FAILED : BDR_DONE);
	return err;
}

static int bdr_plugin_pwrite(void *handle, const void *buffer, uint32_t count,
			     uint64_t offset, uint32_t flags)
{
	const uint64_t most =
		bdr_capture_write_sectors_max(&bdr.capture) * BDR_SECTOR_BYTES;
	const unsigned char *data = buffer;
	uint64_t left = count;
	struct bdr_range range;
	int err = 0;

	(void)handle;
	if (!bdr_is_aligned(offset, count))
		return bdr_fail(EINVAL);

	bdr_range_acquire(&bdr.capture.ranges, &range, offset, offset + count);
	while (left && !err) {
		uint64_t bytes = left < most ? left : most;

		left -= bytes;
		err = bdr_write_part(data, bytes, offset,
				     !left && (flags & NBDKIT_FLAG_FUA));
		data += bytes;
		offset += bytes;
	}
	bdr_range_release(&bdr.capture.ranges, &range);
	return err ? bdr_fail(err) : 0;
}

/* DISCARD and WRITE_ZEROES: one slot whatever their length. */
static int bdr_clear(enum bdr_op op, uint64_t bytes, uint64_t offset,
		     unsigned int how, bool fua)
{
	struct bdr_io io = {
		.write = {
			.sector = offset / BDR_SECTOR_BYTES,
			.sectors = bytes / BDR_SECTOR_BYTES,
			.op = op,
			.fua = fua,
		},
	};
	enum bdr_outcome outcome = BDR_DONE;
	struct bdr_range range;
	int err;

	if (!bytes)
		return 0;
	bdr_range_acquire(&bdr.capture.ranges, &range, offset, offset + bytes);
	bdr_capture_begin(&bdr.capture, &io, NULL);
	err = bdr_store_zero(&bdr.store, bytes, offset, how);
	if (err == EOPNOTSUPP) {
		outcome = BDR_REFUSED;
	} else {
		if (!err && fua)
			err = bdr_store_sync(&bdr.store);
		if (err)
			outcome = BDR_FAILED;
	}
	bdr_capture_end(&bdr.capture, &io, outcome);
	bdr_range_release(&bdr.capture.ranges, &range);
	return err;
}

/* A discarded range reads as zeros, on the source and on the replica. */
static int bdr_plugin_trim(void *handle, uint32_t count, uint64_t offset,
			   uint32_t flags)
{
	int err;

	(void)handle;
	if (!bdr_is_aligned(offset, count))
		return bdr_fail(EINVAL);
	err = bdr_clear(BDR_OP_DISCARD, count, offset, BDR_ZERO_MAY_TRIM,
			flags & NBDKIT_FLAG_FUA);
	return err ? bdr_fail(err) : 0;
}

static int bdr_plugin_zero(void *handle, uint32_t count, uint64_t offset,
			   uint32_t flags)
{
	unsigned int how = 0;
	int err;

	(void)handle;
	if (!bdr_is_aligned(offset, count))
		return bdr_fail(EINVAL);
	if (flags & NBDKIT_FLAG_MAY_TRIM)
		how |= BDR_ZERO_MAY_TRIM;
	if (flags & NBDKIT_FLAG_FAST_ZERO) {
		how |= BDR_ZERO_FAST;
		if (!bdr_store_can_zero_fast(&bdr.store, how))
			return bdr_fail(EOPNOTSUPP);
	}
	err = bdr_clear(BDR_OP_WRITE_ZEROES, count, offset, how,
			flags & NBDKIT_FLAG_FUA);
	return err ? bdr_fail(err) : 0;
}

static int bdr_plugin_flush(void *handle, uint32_t flags)
{
	struct bdr_io io = { .write = { .op = BDR_OP_FLUSH } };
	int err;

	(void)handle;
	(void)flags;
	bdr_capture_begin(&bdr.capture, &io, NULL);
	err = bdr_store_sync(&bdr.store);
	bdr_capture_end(&bdr.capture, &io, err ? BDR_FAILED : BDR_DONE);
	return err ? bdr_fail(err) : 0;
}

static struct nbdkit_plugin plugin = {
	.name = "bdr",
	.longname = "Block Device Replicator: capture",
	.version = BDR_VERSION,
	.description = "serves a file or block device and records its writes in a shared ring",
	.magic_config_key = "file",
	.load = bdr_plugin_load,
	.unload = bdr_plugin_unload,
	.config = bdr_plugin_config,
	.config_complete = bdr_plugin_config_complete,
	.config_help = bdr_plugin_config_help,
	.dump_plugin = bdr_plugin_dump,
	.get_ready = bdr_plugin_get_ready,
	.after_fork = bdr_plugin_after_fork,
	.open = bdr_plugin_open,
	.get_size = bdr_plugin_get_size,
	.block_size = bdr_plugin_block_size,
	.can_write = bdr_plugin_yes,
	.can_flush = bdr_plugin_yes,
	.can_trim = bdr_plugin_yes,
	.can_zero = bdr_plugin_yes,
	.can_fast_zero = bdr_plugin_yes,
	.can_fua = bdr_plugin_can_fua,
	.can_multi_conn = bdr_plugin_yes,
	.pread = bdr_plugin_pread,
	.pwrite = bdr_plugin_pwrite,
	.trim = bdr_plugin_trim,
	.zero = bdr_plugin_zero,
	.flush = bdr_plugin_flush,
	.errno_is_preserved = 1,
};

struct nbdkit_plugin *plugin_init(void);	/* nbdkit's header has none */
NBDKIT_REGISTER_PLUGIN(plugin)
