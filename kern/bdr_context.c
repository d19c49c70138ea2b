// SPDX-License-Identifier: GPL-2.0-only
/*
 * Contexts: their memory, their registry by name, their life.
 *
 * Everything here runs in process context and may sleep, except
 * bdr_context_wake().  Allocations happen when a table is loaded;
 * bdr_context_adopt(), which runs between suspend and resume, makes none.
 */
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/mm.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "bdr_context.h"

#define BDR_BIO_POOL		64
#define BDR_CHUNK_ORDER		8	/* 1 MiB of contiguous payload, if to be had */

static LIST_HEAD(bdr_registry);
static DEFINE_MUTEX(bdr_registry_lock);

/*----------------------------------------------------------------
 * Ring memory
 *--------------------------------------------------------------
 */

static void bdr_memory_free(struct bdr_memory *memory)
{
	unsigned long i, count = memory->header_pages + memory->payload_pages;

	vunmap(memory->address);
	if (memory->pages)
		for (i = 0; i < count && memory->pages[i]; i++)
			__free_page(memory->pages[i]);
	kvfree(memory->pages);
	memory->pages = NULL;
	memory->address = NULL;
}

/*
 * Pages are taken in contiguous chunks where there are any: a write of 1 MiB is
 * then one segment for the device below, not 256.
 */
static int bdr_memory_fill(struct page **pages, unsigned long count)
{
	unsigned int order = min(BDR_CHUNK_ORDER, MAX_PAGE_ORDER);
	unsigned long i = 0;

	while (i < count) {
		gfp_t gfp = GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN;
		struct page *page;
		unsigned long k;

		while (order && (1UL << order) > count - i)
			order--;
		if (order)
			gfp |= __GFP_NORETRY;
		else
			gfp |= __GFP_RETRY_MAYFAIL;
		page = alloc_pages(gfp, order);
		if (!page) {
			if (!order)
				return -ENOMEM;
			order--;
			continue;
		}
		if (order)
			split_page(page, order);
		for (k = 0; k < 1UL << order; k++)
			pages[i++] = page + k;
		cond_resched();
	}
	return 0;
}

static int bdr_memory_alloc(struct bdr_memory *memory, u64 capacity)
{
	unsigned long count;

	memory->header_pages = PFN_UP(capacity * BDR_HEADER_BYTES);
	memory->payload_pages = PFN_DOWN(capacity * BDR_PAYLOAD_BYTES);
	count = memory->header_pages + memory->payload_pages;

	memory->pages = kvcalloc(count, sizeof(*memory->pages),
				 GFP_KERNEL | __GFP_NOWARN);
	if (!memory->pages)
		return -ENOMEM;
	/* Headers apart from payload: both begin with a contiguous chunk. */
	if (bdr_memory_fill(memory->pages, memory->header_pages) ||
	    bdr_memory_fill(memory->pages + memory->header_pages,
			    memory->payload_pages))
		goto fail;
	memory->address = vmap(memory->pages, count, VM_MAP, PAGE_KERNEL);
	if (!memory->address)
		goto fail;
	return 0;
fail:
	bdr_memory_free(memory);
	return -ENOMEM;
}

/*----------------------------------------------------------------
 * Bitmaps
 *--------------------------------------------------------------
 */

static u64 bdr_regions(u64 device_sectors, u64 region_sectors)
{
	return (device_sectors + region_sectors - 1) / region_sectors;
}

int bdr_bitmaps_alloc(struct bdr_bitmaps *bitmaps, u64 device_sectors,
		      u64 region_sectors)
{
	u64 words = bdr_bitmap_words(bdr_regions(device_sectors, region_sectors));

	/* A table may ask for more than there is: that is an error, not a splat. */
	bitmaps->active = kvcalloc(words, sizeof(u64), GFP_KERNEL | __GFP_NOWARN);
	bitmaps->resync = kvcalloc(words, sizeof(u64), GFP_KERNEL | __GFP_NOWARN);
	if (bitmaps->active && bitmaps->resync)
		return 0;
	bdr_bitmaps_free(bitmaps);
	return -ENOMEM;
}

void bdr_bitmaps_free(struct bdr_bitmaps *bitmaps)
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
	struct bdr_bitmaps bitmaps = { ctx->gate.active, ctx->gate.resync };

	if (ctx->workqueue)
		destroy_workqueue(ctx->workqueue);
	bioset_exit(&ctx->bios);
	bdr_bitmaps_free(&bitmaps);
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

static struct bdr_context *bdr_context_create(const struct bdr_settings *settings,
					      char **error)
{
	struct bdr_bitmaps bitmaps = { };
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
	bio_list_init(&ctx->deferred);
	INIT_WORK(&ctx->deferred_work, bdr_io_submit_deferred);
	mutex_init(&ctx->resume_lock);
	mutex_init(&ctx->release_lock);
	mutex_init(&ctx->bitmap_lock);

	r = bioset_init(&ctx->bios, BDR_BIO_POOL, 0, BIOSET_NEED_BVECS);
	if (r)
		goto fail;
	/* With a rescuer of its own: bdr devices may be stacked. */
	r = -ENOMEM;
	ctx->workqueue = alloc_workqueue("bdr-%s", WQ_MEM_RECLAIM | WQ_UNBOUND, 1,
					 ctx->name);
	if (!ctx->workqueue)
		goto fail;
	r = bdr_memory_alloc(&ctx->memory, settings->capacity);
	if (r)
		goto fail;
	r = bdr_bitmaps_alloc(&bitmaps, settings->device_sectors,
			      settings->region_sectors);
	if (r)
		goto fail;

	ctx->gate.ring.headers = ctx->memory.address;
	ctx->gate.ring.payload = ctx->memory.address +
				 ctx->memory.header_pages * PAGE_SIZE;
	ctx->gate.ring.capacity = settings->capacity;
	ctx->gate.active = bitmaps.active;
	ctx->gate.resync = bitmaps.resync;
	ctx->gate.device_sectors = settings->device_sectors;
	ctx->gate.region_sectors = settings->region_sectors;
	bdr_gate_init(&ctx->gate);
	bdr_context_set_bdev_locked(ctx, settings->bdev);

	*error = "Cannot register the control device";
	r = bdr_chardev_register(ctx);
	if (r)
		goto fail;
	return ctx;
fail:
	bdr_context_free(ctx);
	return ERR_PTR(r);
}

static int bdr_context_check_reload(const struct bdr_context *ctx,
				    const struct bdr_settings *settings,
				    char **error)
{
	const struct bdr_attachment *other;
	int r = -EINVAL;

	list_for_each_entry(other, &ctx->targets, list) {
		if (other->table == settings->attachment->table) {
			*error = "Control device name is in this table already";
			return -EEXIST;
		}
	}
	if (ctx->md != settings->md) {
		*error = "Control device name is in use by another device";
		r = -EEXIST;
	} else if (ctx->gate.ring.capacity != settings->capacity) {
		*error = "A reload cannot change the buffer size";
	} else if (ctx->gate.region_sectors != settings->region_sectors) {
		*error = "A reload cannot change region_sectors";
	} else {
		r = 0;
	}
	return r;
}

/* Finds the context of this device and name, or makes it. */
struct bdr_context *bdr_context_attach(const struct bdr_settings *settings,
				       char **error)
{
	struct bdr_context *ctx;
	int r;

	mutex_lock(&bdr_registry_lock);
	list_for_each_entry(ctx, &bdr_registry, registered) {
		if (strcmp(ctx->name, settings->name))
			continue;
		r = bdr_context_check_reload(ctx, settings, error);
		if (r)
			ctx = ERR_PTR(r);
		else
			bdr_context_get(ctx);
		goto attach;
	}
	ctx = bdr_context_create(settings, error);
	if (!IS_ERR(ctx))
		list_add(&ctx->registered, &bdr_registry);
attach:
	if (!IS_ERR(ctx))
		list_add(&settings->attachment->list, &ctx->targets);
	mutex_unlock(&bdr_registry_lock);
	return ctx;
}

/* The caller's target has no I/O in flight. */
void bdr_context_detach(struct bdr_context *ctx,
			struct bdr_attachment *attachment)
{
	mutex_lock(&bdr_registry_lock);
	list_del(&attachment->list);
	spin_lock_irq(&ctx->lock);
	if (ctx->live == attachment)
		ctx->live = NULL;
	ctx->dead = list_empty(&ctx->targets);
	spin_unlock_irq(&ctx->lock);
	if (ctx->dead) {
		list_del(&ctx->registered);
		wake_up_all(&ctx->poll_wait);
		wake_up_all(&ctx->drain_wait);
		flush_work(&ctx->deferred_work);
		bdr_chardev_deregister(ctx);
	}
	mutex_unlock(&bdr_registry_lock);
	bdr_context_put(ctx);
}

/*----------------------------------------------------------------
 * Reload
 *--------------------------------------------------------------
 */

/* Fills `spare` for a device of so many sectors: what is known, and what is new. */
static void bdr_context_resize(const struct bdr_context *ctx,
			       struct bdr_bitmaps *spare, u64 device_sectors)
{
	const struct bdr_gate *gate = &ctx->gate;
	u64 regions = bdr_regions(device_sectors, gate->region_sectors);
	u64 common = min(regions, bdr_gate_regions(gate));

	memcpy(spare->active, gate->active, bdr_bitmap_words(common) * sizeof(u64));
	memcpy(spare->resync, gate->resync, bdr_bitmap_words(common) * sizeof(u64));
	/* The tail of the last word that was copied. */
	bdr_bitmap_clear(spare->active, common, round_up(common, BDR_WORD_REGIONS));
	bdr_bitmap_clear(spare->resync, common, round_up(common, BDR_WORD_REGIONS));
	if (device_sectors > gate->device_sectors)
		bdr_bitmap_mark(spare->active,
				gate->device_sectors / gate->region_sectors, regions);
}

/*
 * Gives the context the size and the underlying device of the table that is
 * about to resume.  `spare` was allocated for that size when the table was
 * loaded, and gets the bitmaps that are no longer needed.
 *
 * Regions that are new are dirty: nobody knows what the replica has there.  So
 * is everything if another stream begins; see bdr_context.h.  They are
 * marked `active`: a scan under way knows nothing of that, and clears `resync`.
 *
 * No I/O is in flight: completions could otherwise mark the old bitmaps.
 */
void bdr_context_adopt(struct bdr_context *ctx,
		       const struct bdr_attachment *attachment,
		       struct bdr_bitmaps *spare, u64 device_sectors,
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
	/* Before the lock: there may be millions of them. */
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
	}
	if (is_other) {
		bdr_gate_overflow_locked(gate);
		get_random_bytes(ctx->stream_id, sizeof(ctx->stream_id));
		bdr_context_set_bdev_locked(ctx, bdev);
	}
	if (is_resized || is_other) {
		ctx->news++;
		bdr_context_wake(ctx);
	}
	spin_unlock_irq(&ctx->lock);
	mutex_unlock(&ctx->bitmap_lock);
}

/*----------------------------------------------------------------
 * Status and wake-up
 *--------------------------------------------------------------
 */

/* What poll() reports.  Without the lock: see bdr_context_wake(). */
bool bdr_context_is_readable(const struct bdr_context *ctx)
{
	return READ_ONCE(ctx->news) != READ_ONCE(ctx->news_seen) ||
	       bdr_ring_is_published(&ctx->gate.ring, READ_ONCE(ctx->cursor));
}

/*
 * Wakes the consumer if there is something for it.  Any context, with or without
 * the lock: a stale cursor is no harm, since who moves it looks at the ring
 * itself before it sleeps.
 */
void bdr_context_wake(struct bdr_context *ctx)
{
	/*
	 * Has a full barrier: the header is stored before the queue is read.
	 * Pairs with the one in bdr_chardev_poll().
	 */
	if (wq_has_sleeper(&ctx->poll_wait) && bdr_context_is_readable(ctx))
		wake_up_interruptible(&ctx->poll_wait);
}

/*
 * Moves ctx->scanned over what has been published since.  Published slots stay
 * so until they are released, and slot numbers are never reused, so the scan
 * needs no lock and its result is a lower bound for ever.
 */
static u64 bdr_context_scan(struct bdr_context *ctx)
{
	struct bdr_ring *ring = &ctx->gate.ring;
	u64 head, slot;

	spin_lock_irq(&ctx->lock);
	head = ring->head;
	slot = max(ctx->scanned, ring->tail);
	spin_unlock_irq(&ctx->lock);

	while (slot < head && bdr_ring_is_published(ring, slot))
		slot++;

	spin_lock_irq(&ctx->lock);
	slot = max3(slot, ctx->scanned, ring->tail);
	ctx->scanned = slot;
	spin_unlock_irq(&ctx->lock);
	return slot;
}

/* Returns the count of news that the snapshot is as of. */
u64 bdr_context_status(struct bdr_context *ctx, struct bdr_status *status)
{
	struct bdr_gate *gate = &ctx->gate;
	u64 unpublished = bdr_context_scan(ctx);
	u64 regions, news;

	memset(status, 0, sizeof(*status));
	spin_lock_irq(&ctx->lock);
	status->head = gate->ring.head;
	status->tail = gate->ring.tail;
	status->unpublished = max(unpublished, gate->ring.tail);
	status->gap = gate->gap;
	status->last_gap = gate->last_gap;
	memcpy(status->stream_id, ctx->stream_id, sizeof(status->stream_id));
	status->mode = gate->mode;
	status->unlogged = gate->unlogged[0] + gate->unlogged[1];
	status->overflows = gate->overflows;
	status->missed_writes = gate->missed;
	status->failed_writes = ctx->failed;
	status->device_sectors = gate->device_sectors;
	news = ctx->news;
	spin_unlock_irq(&ctx->lock);

	/* After the slots: who learns of a failed write's NOP learns of its bits too. */
	mutex_lock(&ctx->bitmap_lock);
	regions = bdr_gate_regions(gate);
	status->active_regions = bdr_bitmap_count(gate->active, regions);
	status->resync_regions = bdr_bitmap_count(gate->resync, regions);
	mutex_unlock(&ctx->bitmap_lock);
	return news;
}
