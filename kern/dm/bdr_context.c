// SPDX-License-Identifier: GPL-2.0-only
/*
 * Contexts: their lifetime, their bitmaps, status and wake-ups.
 *
 * Everything here runs in process context and may sleep, except
 * bdr_context_wake().  Allocations happen when a table is loaded;
 * bdr_context_adopt(), which runs between suspend and resume, makes none.
 */
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/random.h>
#include <linux/slab.h>

#include "bdr_context.h"
#include "bdr_request.h"

#define BDR_BIO_POOL		64

/*----------------------------------------------------------------
 * Bitmaps
 *--------------------------------------------------------------
 */

static u64 bdr_regions(u64 device_sectors, u64 region_sectors)
{
	return (device_sectors + region_sectors - 1) / region_sectors;
}

int bdr_bitmap_pair_alloc(struct bdr_bitmap_pair *bitmaps, u64 device_sectors,
			  u64 region_sectors)
{
	u64 words = bdr_bitmap_words(bdr_regions(device_sectors, region_sectors));

	/* A table may ask for more memory than there is: an error, no warning. */
	bitmaps->active = kvcalloc(words, sizeof(u64), GFP_KERNEL | __GFP_NOWARN);
	bitmaps->resync = kvcalloc(words, sizeof(u64), GFP_KERNEL | __GFP_NOWARN);
	if (bitmaps->active && bitmaps->resync)
		return 0;
	bdr_bitmap_pair_free(bitmaps);
	return -ENOMEM;
}

void bdr_bitmap_pair_free(struct bdr_bitmap_pair *bitmaps)
{
	kvfree(bitmaps->active);
	kvfree(bitmaps->resync);
	bitmaps->active = NULL;
	bitmaps->resync = NULL;
}

/*----------------------------------------------------------------
 * Creation and end
 *--------------------------------------------------------------
 */

static void bdr_context_set_bdev_locked(struct bdr_context *ctx,
					struct block_device *bdev)
{
	snprintf(ctx->underlying, sizeof(ctx->underlying), "/dev/%pg", bdev);
	strreplace(ctx->underlying, '!', '/');
	ctx->underlying_dev = bdev->bd_dev;
}

static void bdr_context_free(struct bdr_context *ctx)
{
	struct bdr_bitmap_pair bitmaps = { ctx->gate.active, ctx->gate.resync };

	if (ctx->workqueue)
		destroy_workqueue(ctx->workqueue);
	bioset_exit(&ctx->bios);
	kvfree(ctx->gate.marks.table);
	bdr_bitmap_pair_free(&bitmaps);
	bdr_memory_free(&ctx->memory);
	kfree(ctx);
}

static void bdr_context_release(struct kref *kref)
{
	bdr_context_free(container_of(kref, struct bdr_context, kref));
}

void bdr_context_get(struct bdr_context *ctx)
{
	kref_get(&ctx->kref);
}

void bdr_context_put(struct bdr_context *ctx)
{
	kref_put(&ctx->kref, bdr_context_release);
}

/* The caller adds the worker and the control device, which use a context. */
struct bdr_context *bdr_context_create(const struct bdr_settings *settings,
				       char **error)
{
	struct bdr_bitmap_pair bitmaps = { };
	struct bdr_context *ctx;
	int r = -ENOMEM;

	*error = "Cannot allocate the ring and bitmaps";
	ctx = kzalloc(sizeof(*ctx), GFP_KERNEL);
	if (!ctx)
		return ERR_PTR(-ENOMEM);

	kref_init(&ctx->kref);
	strscpy(ctx->name, settings->name, sizeof(ctx->name));
	snprintf(ctx->sysfs_name, sizeof(ctx->sysfs_name), "bdr-%s", ctx->name);
	get_random_bytes(ctx->stream_id, sizeof(ctx->stream_id));
	ctx->md = settings->md;
	INIT_LIST_HEAD(&ctx->targets);
	spin_lock_init(&ctx->lock);
	ctx->inflight = RB_ROOT_CACHED;
	init_waitqueue_head(&ctx->poll_wait);
	init_waitqueue_head(&ctx->drain_wait);
	bio_list_init(&ctx->resubmit);
	bio_list_init(&ctx->zero);
	mutex_init(&ctx->resume_lock);
	mutex_init(&ctx->release_lock);
	mutex_init(&ctx->bitmap_lock);

	r = bioset_init(&ctx->bios, BDR_BIO_POOL, 0, BIOSET_NEED_BVECS);
	if (r)
		goto fail;
	/* One with a rescuer for each context: bdr devices may be stacked. */
	r = -ENOMEM;
	/* Two work items: bios are resubmitted while others wait for zeros. */
	ctx->workqueue = alloc_workqueue("bdr-%s", WQ_MEM_RECLAIM | WQ_UNBOUND, 2,
					 ctx->name);
	if (!ctx->workqueue)
		goto fail;
	r = bdr_memory_alloc(&ctx->memory, settings->capacity);
	if (r)
		goto fail;
	r = bdr_bitmap_pair_alloc(&bitmaps, settings->device_sectors,
				  settings->region_sectors);
	if (r)
		goto fail;
	ctx->gate.active = bitmaps.active;
	ctx->gate.resync = bitmaps.resync;
	r = -ENOMEM;
	ctx->gate.marks.table = kvcalloc(BDR_MARKS_MAX, sizeof(struct bdr_mark),
					 GFP_KERNEL);
	if (!ctx->gate.marks.table)
		goto fail;

	ctx->gate.ring.headers = ctx->memory.address;
	ctx->gate.ring.payload = ctx->memory.address +
				 ctx->memory.header_pages * PAGE_SIZE;
	ctx->gate.ring.capacity = settings->capacity;
	ctx->gate.device_sectors = settings->device_sectors;
	ctx->gate.region_sectors = settings->region_sectors;
	bdr_gate_init(&ctx->gate);
	bdr_context_set_bdev_locked(ctx, settings->bdev);
	return ctx;
fail:
	bdr_context_free(ctx);
	return ERR_PTR(r);
}

/*----------------------------------------------------------------
 * Reload
 *--------------------------------------------------------------
 */

/* Fills `spare` for a device of another size; new regions are marked. */
static void bdr_context_resize(const struct bdr_context *ctx,
			       struct bdr_bitmap_pair *spare, u64 device_sectors)
{
	const struct bdr_gate *gate = &ctx->gate;
	u64 regions = bdr_regions(device_sectors, gate->region_sectors);
	u64 common = min(regions, bdr_gate_regions(gate));

	memcpy(spare->active, gate->active, bdr_bitmap_words(common) * sizeof(u64));
	memcpy(spare->resync, gate->resync, bdr_bitmap_words(common) * sizeof(u64));
	/* The copy is of whole words. */
	bdr_bitmap_clear(spare->active, common, round_up(common, BDR_WORD_REGIONS));
	bdr_bitmap_clear(spare->resync, common, round_up(common, BDR_WORD_REGIONS));
	if (device_sectors > gate->device_sectors)
		bdr_bitmap_mark(spare->active,
				gate->device_sectors / gate->region_sectors, regions);
}

/*
 * Sets the size and the underlying device to those of the table that is about to
 * be resumed.  `spare` was allocated for that size when the table was loaded, and
 * receives the bitmaps that are no longer needed.
 *
 * New regions are dirty, since the content of the replica there is unknown.  If
 * another stream begins (see bdr_context.h), all regions are.  They are marked in
 * `active`, not in `resync`, which a scan under way clears.
 *
 * No I/O is in flight: a completion could otherwise mark the old bitmaps.
 */
void bdr_context_adopt(struct bdr_context *ctx,
		       const struct bdr_attachment *attachment,
		       struct bdr_bitmap_pair *spare, u64 device_sectors,
		       struct block_device *bdev)
{
	struct bdr_gate *gate = &ctx->gate;
	bool is_resized, is_other;

	mutex_lock(&ctx->bitmap_lock);
	is_resized = device_sectors != gate->device_sectors;
	is_other = bdev->bd_dev != ctx->underlying_dev ||
		   (ctx->was_live && !ctx->live);
	if (is_resized)
		bdr_context_resize(ctx, spare, device_sectors);
	/* Outside the spinlock: there may be millions of regions. */
	if (is_other)
		bdr_bitmap_mark(is_resized ? spare->active : gate->active, 0,
				bdr_regions(device_sectors, gate->region_sectors));

	spin_lock_irq(&ctx->lock);
	ctx->live = attachment;
	ctx->was_live = true;
	if (is_resized) {
		swap(gate->active, spare->active);
		swap(gate->resync, spare->resync);
		gate->device_sectors = device_sectors;
		bdr_gate_marked_locked(gate);
	}
	if (is_other) {
		bdr_gate_begin_stream_locked(gate);
		ctx->stream_seen = false;
		get_random_bytes(ctx->stream_id, sizeof(ctx->stream_id));
		bdr_context_set_bdev_locked(ctx, bdev);
	}
	if (is_resized || is_other) {
		ctx->events++;
		bdr_context_wake(ctx);
	}
	spin_unlock_irq(&ctx->lock);
	mutex_unlock(&ctx->bitmap_lock);
}

/*----------------------------------------------------------------
 * Status and wake-up
 *--------------------------------------------------------------
 */

/* What poll() reports.  Needs no lock: see bdr_context_wake(). */
bool bdr_context_is_readable(const struct bdr_context *ctx)
{
	return READ_ONCE(ctx->events) != READ_ONCE(ctx->events_seen) ||
	       bdr_ring_is_published(&ctx->gate.ring, READ_ONCE(ctx->cursor));
}

/*
 * Wakes the consumer if the control device is readable.  In any context, with or
 * without the lock: a stale cursor is harmless, since the consumer polls the ring
 * after it has moved the cursor, and before it sleeps.
 */
void bdr_context_wake(struct bdr_context *ctx)
{
	/*
	 * wq_has_sleeper() has a full barrier: the header is stored before the
	 * queue is read.  Pairs with the one in bdr_chardev_poll().
	 */
	if (wq_has_sleeper(&ctx->poll_wait) && bdr_context_is_readable(ctx))
		wake_up_interruptible(&ctx->poll_wait);
}

/*
 * Moves ctx->published over what has been published since.  The search needs no
 * lock (see bdr_ring_find_unpublished()), and its result remains a lower bound.
 */
static u64 bdr_context_update_published(struct bdr_context *ctx)
{
	struct bdr_ring *ring = &ctx->gate.ring;
	u64 head, slot;

	spin_lock_irq(&ctx->lock);
	head = ring->head;
	slot = max(ctx->published, ring->tail);
	spin_unlock_irq(&ctx->lock);

	slot = bdr_ring_find_unpublished(ring, slot, head);

	spin_lock_irq(&ctx->lock);
	slot = max3(slot, ctx->published, ring->tail);
	ctx->published = slot;
	spin_unlock_irq(&ctx->lock);
	return slot;
}

/* Returns the event count as of the snapshot. */
u64 bdr_context_status(struct bdr_context *ctx, struct bdr_status *status)
{
	struct bdr_gate *gate = &ctx->gate;
	u64 published = bdr_context_update_published(ctx);
	u64 events, marked;

	spin_lock_irq(&ctx->lock);
	bdr_request_fill_status_locked(status, gate, published,
				       bdr_clock_read_locked());
	memcpy(status->stream_id, ctx->stream_id, sizeof(status->stream_id));
	status->failed_writes = ctx->failed;
	events = ctx->events;
	marked = gate->marked;
	spin_unlock_irq(&ctx->lock);

	mutex_lock(&ctx->bitmap_lock);
	bdr_request_count_bits(status, gate);
	mutex_unlock(&ctx->bitmap_lock);

	spin_lock_irq(&ctx->lock);
	bdr_request_finish_status_locked(status, gate, marked);
	spin_unlock_irq(&ctx->lock);
	return events;
}
