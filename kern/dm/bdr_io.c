// SPDX-License-Identifier: GPL-2.0-only
/*
 * The path of a write: map, deferral, completion.
 *
 *	map		admit: slots, or marks and an unlogged reference
 *			copy the data into the slots
 *			submit it from the slots' pages
 *	completion	publish the slots, or mark and drop the reference
 *			resubmit the bios that this one blocked
 *
 * Why from the slots' pages (stable copy, the default): the pages of a write may
 * change while it is in flight (O_DIRECT buffers, guests, mmap), and then the data
 * that was copied and the data that the disk fetched differ.  The bio for the
 * underlying device therefore uses that copy, without another one.  The slots do
 * not change before they are released, which is after the disk has completed.
 * Slots that are contiguous in memory, which is the rule, are one segment: dm's
 * clone is pointed at it.  Others, as at the wrap of the ring, need a bio of
 * their own.  With stable hint the application's pages are submitted, and the
 * page cache is asked to keep them stable; that does not bind O_DIRECT.
 *
 * Why overlapping writes are serialised: two writes of the same sectors in flight
 * at once have no order on disk, so slot order would be a guess.  A logged write
 * that overlaps one in flight, or one deferred before it, takes its slots only when
 * that one, its blocker, has completed; since deferred bios are admitted in FIFO
 * order, none starves.  The blocker's completion does not depend on user space, and
 * the submitter does not sleep: the bio is deferred, on the list of its blocker.
 * Unlogged writes are not deferred themselves, since the resync reads their regions
 * again, but they block logged ones: the scan may have read such a region before
 * an overlapping slot beside it is published.
 *
 *	W1 admitted (slots 5,6)   W2 overlaps: deferred, W1 is its blocker
 *	W1 completes: publish 5,6   W2 admitted (slot 7)
 *
 * Why captured writes are not polled I/O (REQ_POLLED is cleared): a polled bio
 * completes only when its submitter polls for it.  A stopped submitter would hold
 * up its slots, hence all later ones, and every bio that it blocks.
 *
 * Why a discard is submitted as write-zeroes (discard zero, the default): the
 * content of a discarded block depends on the device, which may also ignore the
 * part that is not aligned to its blocks.  The replica has zeros there.
 * Write-zeroes without NOUNMAP also lets the device deallocate the space, and
 * guarantees zeros.  With discard pass discards are submitted as they are, which
 * is right for devices known to zero them.  The slot has the op DISCARD either
 * way.
 *
 * Contexts: map runs in process context, allocates with GFP_NOIO from a mempool of
 * the context and submits at most one bio per bio mapped; the worker does the same.
 * Completion may be a hard interrupt: it uses saved values only, since the bio's
 * iterator is consumed by then.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/interval_tree_generic.h>

#include "bdr_io.h"

/*----------------------------------------------------------------
 * Captured writes in flight, by sector
 *--------------------------------------------------------------
 */

static inline u64 bdr_io_first(const struct bdr_io *io)
{
	return io->write.sector;
}

static inline u64 bdr_io_last(const struct bdr_io *io)
{
	return io->write.sector + io->write.sectors - 1;
}

INTERVAL_TREE_DEFINE(struct bdr_io, node, u64, subtree_last, bdr_io_first,
		     bdr_io_last, static inline __maybe_unused, bdr_inflight)

/*
 * A flush has no sectors, hence it is not in the tree and has no blocker.  Of several
 * candidates the blocker is the youngest: overlapping writes then form a chain, and
 * each completion resubmits one.
 */
static struct bdr_io *bdr_inflight_blocker_locked(struct bdr_context *ctx,
						  struct bdr_io *io)
{
	u64 first = bdr_io_first(io), last = bdr_io_last(io);
	struct bdr_io *other, *blocker = NULL;

	if (!io->write.sectors || ctx->gate.mode != BDR_MODE_STREAM)
		return NULL;
	for (other = bdr_inflight_iter_first(&ctx->inflight, first, last); other;
	     other = bdr_inflight_iter_next(other, first, last)) {
		if (other == io)
			continue;
		/* Deferred bios are admitted in FIFO order. */
		if (other->kind == BDR_IO_DEFERRED && other->arrival > io->arrival)
			continue;
		if (!blocker || other->arrival > blocker->arrival)
			blocker = other;
	}
	return blocker;
}

/*----------------------------------------------------------------
 * From bio to slots
 *--------------------------------------------------------------
 */

/* Saves what completion needs.  False if the bio does not change the device. */
static bool bdr_io_describe(struct bdr_io *io, const struct bio *bio)
{
	struct bdr_write *write = &io->write;

	write->sector = bio->bi_iter.bi_sector;
	write->sectors = bio_sectors(bio);
	write->fua = bio->bi_opf & REQ_FUA;

	switch (bio_op(bio)) {
	case REQ_OP_WRITE:
		if (write->sectors) {
			write->op = BDR_OP_WRITE;
			return true;
		}
		write->op = BDR_OP_FLUSH;
		return bio->bi_opf & REQ_PREFLUSH;
	case REQ_OP_DISCARD:
		write->op = BDR_OP_DISCARD;
		return write->sectors;
	case REQ_OP_WRITE_ZEROES:
		write->op = BDR_OP_WRITE_ZEROES;
		return write->sectors;
	default:
		return false;
	}
}

/* Whether the slots' pages are one segment.  If so, io->vec describes it. */
static bool bdr_io_gather(struct bdr_io *io)
{
	const struct bdr_context *ctx = io->target->ctx;
	struct page **pages = ctx->memory.pages + ctx->memory.header_pages;
	u64 bytes = io->write.sectors << SECTOR_SHIFT;
	u64 at = bdr_ring_index(&ctx->gate.ring, io->pass.first) *
		 BDR_PAYLOAD_BYTES;
	unsigned long first = at >> PAGE_SHIFT;
	unsigned long last = (at + bytes - 1) >> PAGE_SHIFT;
	const void *start = page_address(pages[first]);
	unsigned long i;

	if (last >= ctx->memory.payload_pages)
		return false;
	/* Adjacent by address (which may have a tag), and by page structure. */
	for (i = first + 1; i <= last; i++)
		if (page_address(pages[i]) != start + ((i - first) << PAGE_SHIFT) ||
		    pages[i] != pages[first] + (i - first))
			return false;
	bvec_set_page(&io->vec, pages[first], bytes, offset_in_page(at));
	return true;
}

/*
 * Fills the payload of the slots.  True if it is data, in one segment.
 * A segment is filled through the kernel's direct map, which has every page on
 * 64 bit, in large pages: an underlying driver that reads it there has its
 * translation in the TLB.
 */
static bool bdr_io_fill(struct bdr_io *io, struct bio *bio)
{
	const struct bdr_ring *ring = &io->target->ctx->gate.ring;
	struct bvec_iter iter;
	struct bio_vec segment;
	bool gathered;
	u64 offset = 0;

	if (io->write.op == BDR_OP_DISCARD || io->write.op == BDR_OP_WRITE_ZEROES)
		bdr_ring_fill_length(ring, io->pass.first, io->write.sectors);
	if (io->write.op != BDR_OP_WRITE)
		return false;

	gathered = bdr_io_gather(io);
	bio_for_each_bvec(segment, bio, iter) {
		const void *data = bvec_virt(&segment);

		if (gathered)
			bdr_copy(bvec_virt(&io->vec) + offset, data, segment.bv_len);
		else
			bdr_ring_fill(ring, io->pass.first, offset, data,
				      segment.bv_len);
		offset += segment.bv_len;
	}
	return gathered;
}

/* Completes the original; dm then calls bdr_io_end() for it. */
static void bdr_copy_endio(struct bio *copy)
{
	struct bio *bio = copy->bi_private;

	bio->bi_status = copy->bi_status;
	bio_put(copy);
	bio_endio(bio);
}

/*
 * Points the clone at the ring.  The vector that it had is the original's, which is
 * not changed: a clone has its own pointer and frees no vector.
 */
static void bdr_io_redirect(struct bdr_io *io, struct bio *bio)
{
	bio->bi_io_vec = &io->vec;
	/* From the start: index and offset, whose names differ by kernel, are 0. */
	bio->bi_iter = (struct bvec_iter) {
		.bi_sector = bio->bi_iter.bi_sector,
		.bi_size = bio->bi_iter.bi_size,
	};
}

/* A bio with the data of `bio` in the ring.  Cannot fail: from a mempool. */
static struct bio *bdr_io_copy(const struct bdr_io *io, struct bio *bio)
{
	struct bdr_context *ctx = io->target->ctx;
	struct page **pages = ctx->memory.pages + ctx->memory.header_pages;
	u64 left = io->write.sectors << SECTOR_SHIFT;
	struct bio *copy;
	u64 slot;

	copy = bio_alloc_bioset(bio->bi_bdev, io->pass.slots,
				bio->bi_opf, GFP_NOIO, &ctx->bios);
	copy->bi_iter.bi_sector = bio->bi_iter.bi_sector;
	copy->bi_ioprio = bio->bi_ioprio;
	/* The cgroup of the submitter, not of the worker. */
	bio_clone_blkg_association(copy, bio);
	copy->bi_private = bio;
	copy->bi_end_io = bdr_copy_endio;

	for (slot = io->pass.first; left; slot++) {
		u64 at = bdr_ring_index(&ctx->gate.ring, slot) * BDR_PAYLOAD_BYTES;
		unsigned int bytes = min_t(u64, left, BDR_PAYLOAD_BYTES);

		/* Merges adjacent pages; there is a vector for each slot. */
		if (WARN_ON_ONCE(bio_add_page(copy, pages[at >> PAGE_SHIFT], bytes,
					      offset_in_page(at)) != bytes))
			break;
		left -= bytes;
	}
	return copy;
}

/*----------------------------------------------------------------
 * Submission
 *--------------------------------------------------------------
 */

/* Admits or defers a captured bio.  Returns what dm is to do with it. */
static int bdr_io_start(struct bdr_io *io, struct bio *bio)
{
	struct bdr_target *target = io->target;
	struct bdr_context *ctx = target->ctx;
	struct bdr_io *blocker;
	unsigned long flags;
	bool gathered;

	spin_lock_irqsave(&ctx->lock, flags);
	if (io->kind == BDR_IO_PLAIN) {
		io->arrival = ctx->arrivals++;
		target->inflight++;
		if (io->write.sectors)
			bdr_inflight_insert(io, &ctx->inflight);
	}
	blocker = bdr_inflight_blocker_locked(ctx, io);
	if (blocker) {
		ctx->serialised += io->kind == BDR_IO_PLAIN;
		io->kind = BDR_IO_DEFERRED;
		bio_list_add(&blocker->deferred, bio);
		spin_unlock_irqrestore(&ctx->lock, flags);
		return DM_MAPIO_SUBMITTED;
	}
	if (bdr_gate_admit_locked(&ctx->gate, &io->write, &io->pass,
				  bdr_clock_read_locked())) {
		ctx->events++;
		bdr_context_wake(ctx);
	}
	io->kind = io->pass.logged ? BDR_IO_LOGGED : BDR_IO_UNLOGGED;
	spin_unlock_irqrestore(&ctx->lock, flags);

	if (!io->pass.logged)
		return DM_MAPIO_REMAPPED;
	gathered = bdr_io_fill(io, bio);
	if (io->write.op != BDR_OP_WRITE || target->stable != BDR_STABLE_COPY)
		return DM_MAPIO_REMAPPED;
	if (gathered) {
		bdr_io_redirect(io, bio);
		return DM_MAPIO_REMAPPED;
	}
	dm_submit_bio_remap(bio, bdr_io_copy(io, bio));
	return DM_MAPIO_SUBMITTED;
}

int bdr_io_map(struct dm_target *ti, struct bio *bio)
{
	struct bdr_io *io = dm_per_bio_data(bio, sizeof(*io));
	struct bdr_target *target = ti->private;

	io->kind = BDR_IO_PLAIN;
	io->target = target;
	bio_list_init(&io->deferred);

	bio_set_dev(bio, target->dev->bdev);
	if (bio_sectors(bio))
		bio->bi_iter.bi_sector = dm_target_offset(ti, bio->bi_iter.bi_sector);
	if (!bdr_io_describe(io, bio))
		return op_is_write(bio_op(bio)) && bio_sectors(bio) ?
		       DM_MAPIO_KILL : DM_MAPIO_REMAPPED;
	/*
	 * Not by dm_set_target_max_io_len(), which also splits at max_sectors of
	 * the underlying device: 255 sectors are not a whole number of slots.
	 */
	if (io->write.op == BDR_OP_WRITE &&
	    io->write.sectors > target->write_sectors_max) {
		dm_accept_partial_bio(bio, target->write_sectors_max);
		io->write.sectors = target->write_sectors_max;
	}
	if (bio_op(bio) == REQ_OP_DISCARD && target->discard == BDR_DISCARD_ZERO)
		bio->bi_opf = REQ_OP_WRITE_ZEROES | (bio->bi_opf & ~REQ_OP_MASK);
	bio->bi_opf &= ~REQ_POLLED;
	return bdr_io_start(io, bio);
}

/* Admits the bios whose blocker has completed; each may find another one. */
void bdr_io_resubmit(struct work_struct *work)
{
	struct bdr_context *ctx = container_of(work, struct bdr_context,
					       resubmit_work);
	struct bio_list bios;
	struct bio *bio;

	spin_lock_irq(&ctx->lock);
	bios = ctx->resubmit;
	bio_list_init(&ctx->resubmit);
	spin_unlock_irq(&ctx->lock);

	while ((bio = bio_list_pop(&bios))) {
		struct bdr_io *io = dm_per_bio_data(bio, sizeof(*io));

		if (bdr_io_start(io, bio) == DM_MAPIO_REMAPPED)
			dm_submit_bio_remap(bio, NULL);
	}
}

/*----------------------------------------------------------------
 * Completion
 *--------------------------------------------------------------
 */

int bdr_io_end(struct dm_target *ti, struct bio *bio, blk_status_t *error)
{
	struct bdr_io *io = dm_per_bio_data(bio, sizeof(*io));
	struct bdr_target *target = io->target;
	bool logged = io->kind == BDR_IO_LOGGED;
	struct bdr_context *ctx;
	unsigned long flags;

	/* Not counted as in flight, so the target may be destroyed already. */
	if (io->kind == BDR_IO_PLAIN)
		return DM_ENDIO_DONE;

	ctx = target->ctx;
	if (logged && *error) {
		spin_lock_irqsave(&ctx->lock, flags);
		ctx->failed++;
		bdr_gate_fail_locked(&ctx->gate, &io->write);
		spin_unlock_irqrestore(&ctx->lock, flags);
		bdr_gate_publish_nop(&ctx->gate, &io->pass, &io->write);
		bdr_context_wake(ctx);
	} else if (logged) {
		bdr_gate_publish(&ctx->gate, &io->pass, &io->write);
		bdr_context_wake(ctx);
	}

	spin_lock_irqsave(&ctx->lock, flags);
	if (!logged && bdr_gate_leave_locked(&ctx->gate, &io->pass, &io->write))
		wake_up_all(&ctx->drain_wait);
	if (io->write.sectors)
		bdr_inflight_remove(io, &ctx->inflight);
	if (!bio_list_empty(&io->deferred)) {
		bio_list_merge(&ctx->resubmit, &io->deferred);
		queue_work(ctx->workqueue, &ctx->resubmit_work);
	}
	/*
	 * The last access to target and context.  Their destruction waits for
	 * this count under the lock, so it cannot miss the wake-up, and
	 * waitqueue_active() needs no barrier.
	 */
	if (!--target->inflight && waitqueue_active(&ctx->drain_wait))
		wake_up_all(&ctx->drain_wait);
	spin_unlock_irqrestore(&ctx->lock, flags);
	return DM_ENDIO_DONE;
}
