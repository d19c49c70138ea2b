/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A context has the lifetime of a stream of writes: ring, bitmaps, gate and control
 * device.  It outlives the tables of its dm device (a reload passes it from the old
 * target to the new one), and the dm device itself as long as the control device
 * is open or mapped.
 *
 *	targets ----+
 *	            +--> context --> ring, bitmaps
 *	files ------+
 *	 ^ VMAs
 *
 * The destruction of the last target makes the context dead: the control device is
 * deregistered, sleepers are woken, every later request gets ENODEV.  The memory
 * is freed with the last reference.
 *
 * A stream is the writes to one underlying device, without a gap in time.  A
 * table with another underlying device starts another stream in the same
 * context, in mode OVERFLOW with every region marked, so that the consumer
 * detects the change before it reads any slot of the new stream.  So does a
 * table that becomes live after one without the context was live.
 *
 * Locks, outermost first:
 *
 *	bdr_registry_lock  mutex   contexts by name, ->targets; held over
 *				   misc_register() and misc_deregister()
 *	misc_mtx (misc.c)          held over ->open(), which therefore must not
 *				   take the registry lock
 *	->resume_lock      mutex   one RESUME at a time
 *	->release_lock     mutex   one RELEASE at a time
 *	->bitmap_lock      mutex   the bitmaps as a pair: merge, clear, read and
 *				   exchange.  Not held over an access to user
 *				   memory, whose fault may need this device
 *	->lock             irqsave gate, in-flight tree, cursor; O(log n) inside, and
 *				   O(n) for n writes of the same block in flight
 *
 * Completions set bits without a lock.  The bitmaps are exchanged only while the
 * device is suspended, when there are no completions.
 */
#ifndef BDR_CONTEXT_H
#define BDR_CONTEXT_H

#include <linux/bio.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/rbtree.h>
#include <linux/spinlock.h>
#include <linux/timekeeping.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "bdr_gate.h"
#include "bdr_memory.h"
#include "bdr_uapi.h"

#define BDR_NAME_MAX	64	/* bytes of a control device's name, with its NUL */

struct dm_table;
struct file;
struct mapped_device;

struct bdr_context {
	struct kref kref;
	char name[BDR_NAME_MAX];		/* of the node in /dev */
	char sysfs_name[BDR_NAME_MAX + 4];	/* unique among misc devices */

	/* Under bdr_registry_lock. */
	struct list_head registered;
	struct mapped_device *md;	/* its tables may share this context */
	struct list_head targets;	/* attachments, one a table */
	struct miscdevice misc;

	struct bdr_memory memory;
	struct bio_set bios;		/* bios over ring pages */

	spinlock_t lock ____cacheline_aligned_in_smp;
	struct bdr_gate gate;
	struct rb_root_cached inflight;	/* captured writes not yet completed */
	u64 arrivals;			/* captured bios, total */
	u64 cursor;			/* slot whose publication wakes the consumer */
	u64 events;			/* counts changes of mode, size and stream */
	u64 events_seen;		/* as of the consumer's last STATUS */
	bool stream_seen;		/* the consumer knows this stream */
	const struct bdr_attachment *live;	/* of the table resumed last */
	bool was_live;			/* a table has been resumed */
	bool dead;
	struct file *consumer;
	u64 failed;
	u64 serialised;			/* writes that waited for an overlapping one */
	u64 published;			/* every slot below it has been published */
	u8 stream_id[BDR_STREAM_ID_BYTES];
	char underlying[64];		/* path of the underlying device */
	dev_t underlying_dev;

	wait_queue_head_t poll_wait;	/* the consumer */
	wait_queue_head_t drain_wait;	/* RESUME, and targets in destruction */

	struct bio_list resubmit;	/* deferred bios whose blocker has completed */
	struct work_struct resubmit_work;
	struct bio_list zero;		/* write-zeroes that the device has rejected */
	struct work_struct zero_work;
	struct workqueue_struct *workqueue;

	struct mutex resume_lock;	/* one RESUME at a time */
	struct mutex release_lock;	/* one RELEASE at a time */
	struct mutex bitmap_lock;	/* merge, clear, read, exchange */
};

/* Both bitmaps of one size, allocated ahead of their use. */
struct bdr_bitmap_pair {
	u64 *active;
	u64 *resync;
};

/* The reference of a target: a table has at most one to each context. */
struct bdr_attachment {
	struct list_head list;
	const struct dm_table *table;
};

/* The arguments of a table line, as far as they concern its context. */
struct bdr_settings {
	const char *name;
	struct mapped_device *md;
	struct bdr_attachment *attachment;	/* its table is set */
	struct block_device *bdev;
	u64 capacity;
	u64 region_sectors;
	u64 device_sectors;
};

/*
 * The clock of marks: cheap, and exact to a tick.  Under the lock of the context, so
 * that its readings do not decrease from holder to holder.
 */
static inline u64 bdr_clock_read_locked(void)
{
	return ktime_get_coarse_boottime_ns();
}

struct bdr_context *bdr_context_create(const struct bdr_settings *settings,
				       char **error);
void bdr_context_get(struct bdr_context *ctx);
void bdr_context_put(struct bdr_context *ctx);
int bdr_bitmap_pair_alloc(struct bdr_bitmap_pair *bitmaps, u64 device_sectors,
			  u64 region_sectors);
void bdr_bitmap_pair_free(struct bdr_bitmap_pair *bitmaps);
void bdr_context_adopt(struct bdr_context *ctx,
		       const struct bdr_attachment *attachment,
		       struct bdr_bitmap_pair *spare, u64 device_sectors,
		       struct block_device *bdev);
u64 bdr_context_status(struct bdr_context *ctx, struct bdr_status *status);
bool bdr_context_is_readable(const struct bdr_context *ctx);
void bdr_context_wake(struct bdr_context *ctx);

#endif /* BDR_CONTEXT_H */
