// SPDX-License-Identifier: GPL-2.0-only
/*
 * The path of a write: map, deferral, completion.
 *
 *	map		admit: slots, or marks and an unlogged reference
 *			fill the slots and submit (bdr_lower.c)
 *	completion	publish the slots, or mark and drop the reference
 *			resubmit the bios that this one blocked
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
 * From bio to write
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

	return bdr_lower_submit(io, bio);
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
	if (io->write.op == BDR_OP_DISCARD && !bdr_lower_accept_discard(io, bio))
		return DM_MAPIO_SUBMITTED;
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
