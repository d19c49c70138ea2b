// SPDX-License-Identifier: GPL-2.0-only
/*
 * Device-mapper target "bdr": passes a device through 1:1 and records every write
 * in a ring that user space maps.
 *
 *	0 SECTORS bdr UNDERLYING_DEVICE CHARDEV_NAME BUFFER_SIZE_IN_WRITES \
 *		[#opts [region_sectors N] [stable copy|hint] \
 *			[discard zero|pass]]
 *
 *	UNDERLYING_DEVICE	all of it, from its sector 0
 *	CHARDEV_NAME		the control device will be /dev/CHARDEV_NAME
 *	BUFFER_SIZE_IN_WRITES	capacity of the ring; one write is 4104 bytes
 *	region_sectors		sectors per bit of the dirty bitmap, a power of two;
 *				default 128 (64 KiB)
 *	stable			see bdr_lower.c; default copy
 *	discard			see bdr_lower.c; default zero
 *
 *	# a ring of 64 MiB over /dev/vdb
 *	dmsetup create data --table \
 *		"0 $(blockdev --getsz /dev/vdb) bdr /dev/vdb bdr-data 16352"
 *
 * Guarantees for a write, in the order of events:
 *
 *	- before it goes to the disk it has slots, or its regions are marked
 *	- slot order respects "completed before submitted"
 *	- its slots are published when the disk has completed it; if the disk
 *	  failed it they are published as NOP and its regions are marked
 *	- it never waits for the consumer: without room it is only marked
 *
 * Trace of three writes with room for two slots:
 *
 *	A -> slot 7, disk	B -> slot 8, disk	B done: publish 8
 *	C -> no room: OVERFLOW, mark, disk		A done: publish 7
 *	the consumer reads 7, 8, and the mode; later it requests RESUME
 *
 * A reload of the table of a device keeps its stream: the new target attaches to the
 * context of the old one, and may differ in size, `stable` and `discard`.  If it
 * differs in the underlying device, another stream starts, in mode OVERFLOW and
 * with every region marked.
 *
 * Messages:
 *	resync		mark all regions for a resync
 *	overflow	take no more slots until the consumer requests RESUME
 *
 * Status: STREAM|OVERFLOW <used>/<capacity> <head> <tail> <unpublished>
 *	<gap or -> <active regions> <resync regions> <unlogged> <overflows>
 *	<missed writes> <failed writes> <serialised writes> <stream id>
 *
 * Lifecycle functions run in process context under dm's locks, map and end_io
 * as bdr_io.c and bdr_lower.c say.
 */
#include <linux/ctype.h>
#include <linux/device-mapper.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "bdr_io.h"
#include "bdr_registry.h"
#include "compat.h"

#define DM_MSG_PREFIX "bdr"

/*----------------------------------------------------------------
 * Arguments
 *--------------------------------------------------------------
 */

struct bdr_arguments {
	const char *device;
	const char *name;
	unsigned int capacity;
	unsigned int region_sectors;
	enum bdr_stable stable;
	enum bdr_discard discard;
};

/* Whether the name is safe as that of a file in /dev. */
static bool bdr_name_is_valid(const char *name)
{
	size_t i, length = strlen(name);

	if (!length || length >= BDR_NAME_MAX || !isalnum(name[0]))
		return false;
	for (i = 0; i < length; i++)
		if (!isalnum(name[i]) && !strchr("-_.", name[i]))
			return false;
	return true;
}

static int bdr_arguments_parse_options(struct bdr_arguments *arguments,
				       struct dm_arg_set *set, char **error)
{
	static const struct dm_arg count_arg = {
		0, 6, "Invalid number of options"
	};
	static const struct dm_arg region_arg = {
		BDR_REGION_SECTORS_MIN, BDR_REGION_SECTORS_MAX,
		"region_sectors out of range"
	};
	unsigned int count;
	int r;

	if (!set->argc)
		return 0;
	r = dm_read_arg_group(&count_arg, set, &count, error);
	if (r)
		return r;
	if (count != set->argc) {
		*error = "Invalid number of options";
		return -EINVAL;
	}
	while (set->argc) {
		const char *option = dm_shift_arg(set);
		const char *value;

		if (!set->argc) {
			*error = "An option has no value";
			return -EINVAL;
		}
		if (!strcasecmp(option, "region_sectors")) {
			r = dm_read_arg(&region_arg, set,
					&arguments->region_sectors, error);
			if (r)
				return r;
			if (!is_power_of_2(arguments->region_sectors)) {
				*error = "region_sectors is not a power of two";
				return -EINVAL;
			}
		} else if (!strcasecmp(option, "stable")) {
			value = dm_shift_arg(set);
			if (!strcasecmp(value, "copy")) {
				arguments->stable = BDR_STABLE_COPY;
			} else if (!strcasecmp(value, "hint")) {
				arguments->stable = BDR_STABLE_HINT;
			} else {
				*error = "stable must be copy or hint";
				return -EINVAL;
			}
		} else if (!strcasecmp(option, "discard")) {
			value = dm_shift_arg(set);
			if (!strcasecmp(value, "zero")) {
				arguments->discard = BDR_DISCARD_ZERO;
			} else if (!strcasecmp(value, "pass")) {
				arguments->discard = BDR_DISCARD_PASS;
			} else {
				*error = "discard must be zero or pass";
				return -EINVAL;
			}
		} else {
			*error = "Unknown option";
			return -EINVAL;
		}
	}
	return 0;
}

static int bdr_arguments_parse(struct bdr_arguments *arguments, unsigned int argc,
			       char **argv, char **error)
{
	static const struct dm_arg capacity_arg = {
		BDR_CAPACITY_MIN, BDR_CAPACITY_MAX,
		"Buffer size in writes out of range"
	};
	struct dm_arg_set set = { .argc = argc, .argv = argv };
	u64 bytes;
	int r;

	if (argc < 3) {
		*error = "Need: device, control device name, buffer size in writes";
		return -EINVAL;
	}
	arguments->region_sectors = BDR_REGION_SECTORS_DEFAULT;
	arguments->stable = BDR_STABLE_COPY;
	arguments->discard = BDR_DISCARD_ZERO;
	arguments->device = dm_shift_arg(&set);
	arguments->name = dm_shift_arg(&set);
	if (!bdr_name_is_valid(arguments->name)) {
		*error = "Control device name: 1 to 63 of a-z A-Z 0-9 - _ .";
		return -EINVAL;
	}
	r = dm_read_arg(&capacity_arg, &set, &arguments->capacity, error);
	if (r)
		return r;

	bytes = (u64)arguments->capacity * BDR_PAYLOAD_BYTES;
	if (bytes % PAGE_SIZE) {
		*error = "Buffer is not a multiple of the page size";
		return -EINVAL;
	}
	if (bytes >> PAGE_SHIFT > totalram_pages() / 2) {
		*error = "Buffer is larger than half of the memory";
		return -ENOMEM;
	}
	return bdr_arguments_parse_options(arguments, &set, error);
}

/*----------------------------------------------------------------
 * Construction and destruction
 *--------------------------------------------------------------
 */

/* Destroys a target, also a partly built one, in reverse order. */
static void bdr_target_destroy(struct bdr_target *target)
{
	struct bdr_context *ctx = target->ctx;

	if (ctx) {
		/* dm does not wait for I/O when it destroys a device. */
		spin_lock_irq(&ctx->lock);
		wait_event_lock_irq(ctx->drain_wait, !target->inflight, ctx->lock);
		spin_unlock_irq(&ctx->lock);
		bdr_registry_detach(ctx, &target->attachment);
	}
	bdr_bitmap_pair_free(&target->spare);
	if (target->dev)
		dm_put_device(target->ti, target->dev);
	kfree(target);
}

/* At most an eighth of the ring, in whole slots and blocks. */
static u32 bdr_write_sectors_max(u64 capacity, struct block_device *bdev)
{
	u32 slots = clamp_t(u64, capacity / 8, 1, BDR_WRITE_SLOTS_MAX);
	u32 block_sectors = bdev_logical_block_size(bdev) >> SECTOR_SHIFT;

	return max(round_down(slots * BDR_SLOT_SECTORS, block_sectors), block_sectors);
}

static int bdr_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct bdr_arguments arguments;
	struct bdr_settings settings;
	struct bdr_target *target;
	struct bdr_context *ctx;
	int r;

	r = bdr_arguments_parse(&arguments, argc, argv, &ti->error);
	if (r)
		return r;

	target = kzalloc(sizeof(*target), GFP_KERNEL);
	if (!target) {
		ti->error = "Cannot allocate the target";
		return -ENOMEM;
	}
	target->ti = ti;
	target->stable = arguments.stable;
	target->discard = arguments.discard;

	r = dm_get_device(ti, arguments.device, dm_table_get_mode(ti->table),
			  &target->dev);
	if (r) {
		ti->error = "Cannot open the underlying device";
		goto fail;
	}
	/* dm checks this against the limits, too, but does not set ti->error. */
	if (ti->len > bdev_nr_sectors(target->dev->bdev)) {
		ti->error = "The underlying device is smaller than the target";
		r = -EINVAL;
		goto fail;
	}
	if (bdev_logical_block_size(target->dev->bdev) >
	    arguments.capacity * BDR_PAYLOAD_BYTES) {
		ti->error = "Buffer is smaller than a block of the device";
		r = -EINVAL;
		goto fail;
	}
	target->write_sectors_max = bdr_write_sectors_max(arguments.capacity,
							  target->dev->bdev);
	r = bdr_bitmap_pair_alloc(&target->spare, ti->len, arguments.region_sectors);
	if (r) {
		ti->error = "Cannot allocate the bitmaps";
		goto fail;
	}

	target->attachment.table = ti->table;
	settings = (struct bdr_settings) {
		.name = arguments.name,
		.md = dm_table_get_md(ti->table),
		.attachment = &target->attachment,
		.bdev = target->dev->bdev,
		.capacity = arguments.capacity,
		.region_sectors = arguments.region_sectors,
		.device_sectors = ti->len,
	};
	ctx = bdr_registry_attach(&settings, &ti->error);
	if (IS_ERR(ctx)) {
		r = PTR_ERR(ctx);
		goto fail;
	}
	target->ctx = ctx;

	ti->private = target;
	ti->per_io_data_size = sizeof(struct bdr_io);
	/* Even if the underlying device has no write cache. */
	ti->flush_supported = true;
	ti->accounts_remapped_io = true;
	ti->num_flush_bios = 1;
	/* Discards are offered only if the underlying device has write-zeroes. */
	ti->num_discard_bios = target->discard == BDR_DISCARD_PASS ||
			       bdev_write_zeroes_sectors(target->dev->bdev);
	ti->num_write_zeroes_bios = 1;
	/* Secure erase is not supported: the ring and the replica keep copies. */
	return 0;
fail:
	bdr_target_destroy(target);
	return r;
}

static void bdr_dtr(struct dm_target *ti)
{
	bdr_target_destroy(ti->private);
}

/* Must not fail and must not allocate: the device is suspended. */
static int bdr_preresume(struct dm_target *ti)
{
	struct bdr_target *target = ti->private;

	if (target->stable == BDR_STABLE_HINT)
		bdr_compat_resume_stable_writes(ti);
	bdr_context_adopt(target->ctx, &target->attachment, &target->spare,
			  ti->len, target->dev->bdev);
	return 0;
}

/*----------------------------------------------------------------
 * Status, messages and limits
 *--------------------------------------------------------------
 */

static void bdr_status(struct dm_target *ti, status_type_t type,
		       unsigned int status_flags, char *result,
		       unsigned int maxlen)
{
	struct bdr_target *target = ti->private;
	struct bdr_context *ctx = target->ctx;
	struct bdr_status status;
	const char *stable = target->stable == BDR_STABLE_COPY ? "copy" : "hint";
	const char *discard = target->discard == BDR_DISCARD_ZERO ? "zero" : "pass";
	unsigned int sz = 0;

	switch (type) {
	case STATUSTYPE_INFO:
		bdr_context_status(ctx, &status);
		DMEMIT("%s %llu/%llu %llu %llu %llu",
		       status.mode == BDR_MODE_STREAM ? "STREAM" : "OVERFLOW",
		       status.head - status.tail, ctx->gate.ring.capacity,
		       status.head, status.tail, status.unpublished);
		if (status.gap == BDR_GAP_NONE)
			DMEMIT(" -");
		else
			DMEMIT(" %llu", status.gap);
		DMEMIT(" %llu %llu %llu %llu %llu %llu %llu %*phN",
		       status.active_regions, status.resync_regions,
		       status.unlogged, status.overflows, status.missed_writes,
		       status.failed_writes, READ_ONCE(ctx->serialised),
		       BDR_STREAM_ID_BYTES, status.stream_id);
		break;
	case STATUSTYPE_TABLE:
		DMEMIT("%s %s %llu 6 region_sectors %llu stable %s discard %s",
		       target->dev->name, ctx->name, ctx->gate.ring.capacity,
		       ctx->gate.region_sectors, stable, discard);
		break;
	case STATUSTYPE_IMA:
		DMEMIT_TARGET_NAME_VERSION(ti->type);
		DMEMIT(",device_name=%s,control_name=%s,capacity=%llu",
		       target->dev->name, ctx->name, ctx->gate.ring.capacity);
		DMEMIT(",region_sectors=%llu,stable=%s,discard=%s;",
		       ctx->gate.region_sectors, stable, discard);
		break;
	}
}

static int bdr_message(struct dm_target *ti, unsigned int argc, char **argv,
		       char *result, unsigned int maxlen)
{
	struct bdr_target *target = ti->private;
	struct bdr_context *ctx = target->ctx;

	if (argc == 1 && !strcasecmp(argv[0], "resync")) {
		/* Not in `resync`, where a scan under way may clear it. */
		mutex_lock(&ctx->bitmap_lock);
		bdr_bitmap_mark(ctx->gate.active, 0, bdr_gate_regions(&ctx->gate));
		spin_lock_irq(&ctx->lock);
		bdr_gate_marked_locked(&ctx->gate);
		spin_unlock_irq(&ctx->lock);
		mutex_unlock(&ctx->bitmap_lock);
	} else if (argc == 1 && !strcasecmp(argv[0], "overflow")) {
		spin_lock_irq(&ctx->lock);
		bdr_gate_overflow_locked(&ctx->gate);
		spin_unlock_irq(&ctx->lock);
	} else {
		DMERR("unknown message; known: resync, overflow");
		return -EINVAL;
	}
	spin_lock_irq(&ctx->lock);
	ctx->events++;
	bdr_context_wake(ctx);
	spin_unlock_irq(&ctx->lock);
	return 0;
}

static int bdr_iterate_devices(struct dm_target *ti,
			       iterate_devices_callout_fn fn, void *data)
{
	struct bdr_target *target = ti->private;

	return fn(ti, target->dev, 0, ti->len, data);
}

static void bdr_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct bdr_target *target = ti->private;

	if (target->stable == BDR_STABLE_HINT)
		bdr_compat_limits_stable_writes(limits);
	/*
	 * A discard holds up the ring until the device has zeroed it, so its limit
	 * is that of write-zeroes.  Both fields: which of them is used depends on
	 * the kernel.
	 */
	if (target->discard == BDR_DISCARD_ZERO) {
		unsigned int most = limits->max_write_zeroes_sectors;

		limits->max_hw_discard_sectors =
			min(limits->max_hw_discard_sectors, most);
		limits->max_discard_sectors =
			min(limits->max_discard_sectors, most);
	}
}

static struct target_type bdr_target_type = {
	.name = "bdr",
	.version = {1, 0, 0},
	.module = THIS_MODULE,
	.ctr = bdr_ctr,
	.dtr = bdr_dtr,
	.map = bdr_io_map,
	.end_io = bdr_io_end,
	.preresume = bdr_preresume,
	.status = bdr_status,
	.message = bdr_message,
	.iterate_devices = bdr_iterate_devices,
	.io_hints = bdr_io_hints,
};

static int __init bdr_init(void)
{
	return dm_register_target(&bdr_target_type);
}

static void __exit bdr_exit(void)
{
	dm_unregister_target(&bdr_target_type);
}

module_init(bdr_init);
module_exit(bdr_exit);

MODULE_ALIAS("dm-bdr");
MODULE_DESCRIPTION(DM_NAME " target that records writes for replication");
MODULE_AUTHOR("BDR maintainers");
MODULE_LICENSE("GPL");
