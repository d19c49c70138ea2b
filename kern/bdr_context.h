/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A context is what lives as long as a stream of writes does: ring, bitmaps,
 * gate and control device.  It outlives the tables of its dm device (a reload
 * hands it from the old target to the new one) and it outlives the dm device
 * itself while someone has the control device open or mapped.
 *
 *	targets ----+
 *	            +--> context --> ring, bitmaps
 *	files ------+
 *	 ^ VMAs
 *
 * The last target that goes makes the context dead: the control device is
 * deregistered, sleepers are woken, every later request gets ENODEV.  The memory
 * goes with the last reference.
 *
 * A stream is that of one device below, without a break.  A table that puts another
 * one there begins another stream in the same context, in mode OVERFLOW with every
 * region marked: nothing of it is taken for the old one's before the consumer has
 * looked.  So does one that comes back after a table without the context was live.
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
 *				   exchange.  Never held over an access to user
 *				   memory, which may fault on this very device
 *	->lock             irqsave gate, in-flight tree, cursor; O(log n) inside, and
 *				   O(n) for n writes of the same block in flight
 *
 * Completions mark bits without a lock.  The bitmaps are exchanged only while
 * the device is suspended, when there are no completions.
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
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "bdr_gate.h"
#include "bdr_uapi.h"

#define BDR_NAME_MAX	64	/* bytes of a control device's name, with its NUL */

struct dm_table;
struct file;
struct mapped_device;

/* Ring memory: page by page for mappings and bios, in one piece for the CPU. */
struct bdr_memory {
	struct page **pages;	/* headers, then payload */
	unsigned long header_pages;
	unsigned long payload_pages;
	void *address;		/* vmap of all of them */
};

struct bdr_context {
	struct kref kref;
	char name[BDR_NAME_MAX];		/* of the node in /dev */
	char sysfs_name[BDR_NAME_MAX + 4];	/* apart from other misc devices' */

	/* Under bdr_registry_lock. */
	struct list_head registered;
	struct mapped_device *md;	/* whose tables may share this context */
	struct list_head targets;	/* one a table, by their attachments */
	struct miscdevice misc;

	struct bdr_memory memory;
	struct bio_set bios;		/* bios over ring pages */

	spinlock_t lock ____cacheline_aligned_in_smp;
	struct bdr_gate gate;
	struct rb_root_cached inflight;	/* captured writes not yet completed */
	u64 arrivals;			/* captured bios, ever */
	u64 cursor;			/* slot that the consumer waits for */
	u64 news;			/* counts changes of mode and size */
	u64 news_seen;			/* as of the consumer's last STATUS */
	const struct bdr_attachment *live;	/* whose table was resumed last */
	bool was_live;			/* a table of it has been */
	bool dead;
	struct file *consumer;
	u64 failed;
	u64 serialised;			/* writes that waited for an overlapping one */
	u64 scanned;			/* every slot below is published */
	u8 stream_id[BDR_STREAM_ID_BYTES];
	char underlying[64];		/* path of the device below */
	dev_t underlying_dev;

	wait_queue_head_t poll_wait;	/* the consumer */
	wait_queue_head_t drain_wait;	/* RESUME, and targets that go */

	struct bio_list deferred;	/* whose blocker has completed */
	struct work_struct deferred_work;
	struct workqueue_struct *workqueue;

	struct mutex resume_lock;	/* one RESUME at a time */
	struct mutex release_lock;	/* one RELEASE at a time */
	struct mutex bitmap_lock;	/* merge, clear, read, exchange */
};

/* Both bitmaps of one size, allocated ahead of the moment of exchange. */
struct bdr_bitmaps {
	u64 *active;
	u64 *resync;
};

/* A target's part in a context: a table has at most one of each name. */
struct bdr_attachment {
	struct list_head list;
	const struct dm_table *table;
};

/* What ctr asks for. */
struct bdr_settings {
	const char *name;
	struct mapped_device *md;
	struct bdr_attachment *attachment;	/* its table is set */
	struct block_device *bdev;
	u64 capacity;
	u64 region_sectors;
	u64 device_sectors;
};

/* bdr_context.c */
struct bdr_context *bdr_context_attach(const struct bdr_settings *settings,
				       char **error);
void bdr_context_detach(struct bdr_context *ctx,
			struct bdr_attachment *attachment);
void bdr_context_get(struct bdr_context *ctx);
void bdr_context_put(struct bdr_context *ctx);
int bdr_bitmaps_alloc(struct bdr_bitmaps *bitmaps, u64 device_sectors,
		      u64 region_sectors);
void bdr_bitmaps_free(struct bdr_bitmaps *bitmaps);
void bdr_context_adopt(struct bdr_context *ctx,
		       const struct bdr_attachment *attachment,
		       struct bdr_bitmaps *spare, u64 device_sectors,
		       struct block_device *bdev);
u64 bdr_context_status(struct bdr_context *ctx, struct bdr_status *status);
bool bdr_context_is_readable(const struct bdr_context *ctx);
void bdr_context_wake(struct bdr_context *ctx);

/* bdr_chardev.c */
int bdr_chardev_register(struct bdr_context *ctx);
void bdr_chardev_deregister(struct bdr_context *ctx);

/* bdr_io.c */
void bdr_io_submit_deferred(struct work_struct *work);

#endif /* BDR_CONTEXT_H */
