// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is submitted to the underlying device in place of a captured bio.
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
 * Why a discard is submitted as write-zeroes (discard zero, the default): the
 * content of a discarded block depends on the device, which may also ignore the
 * part that is not aligned to its blocks.  The replica has zeros there.
 * Write-zeroes without NOUNMAP also lets the device deallocate the space, and
 * guarantees zeros.  The slot has the op DISCARD either way.
 *
 * With discard pass discards are submitted as they are, for devices that are known to
 * read as zeros in every block (of discard_granularity) that was discarded as a
 * whole, as dm-thin does.  Such devices may ignore the rest of a discard, so it is
 * not submitted and takes no slot: source and replica both keep their content.
 * Marking the regions of all discards for a scan is no alternative: to a scan in
 * progress the slot is a write of zeros, and it leaves the range to that write.
 *
 * Why rejected write-zeroes are replaced by writes of zeros (bdr_lower_zero()): a
 * device may reject write-zeroes only when it receives one.  Whether it has executed
 * a part, as a device of several may, is then unknown, which would cost a scan; and
 * the zeros that a file system writes instead would take a slot for each 4096 bytes.
 * A discard is replaced once: after that the target rejects them.
 *
 * Contexts: process context, GFP_NOIO from a mempool of the context, at most one bio
 * per bio mapped.  The completion of write-zeroes may be a hard interrupt; the worker
 * that writes zeros waits for the underlying device only.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>

#include "bdr_lower.h"

/*----------------------------------------------------------------
 * Data, from the slots' pages
 *--------------------------------------------------------------
 */

/* Whether the slots' pages are one segment.  If so, io->vec describes it. */
static bool bdr_lower_gather(struct bdr_io *io)
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
static bool bdr_lower_fill(struct bdr_io *io, struct bio *bio)
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

	gathered = bdr_lower_gather(io);
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
static void bdr_lower_redirect(struct bdr_io *io, struct bio *bio)
{
	bio->bi_io_vec = &io->vec;
	/* From the start: index and offset, whose names differ by kernel, are 0. */
	bio->bi_iter = (struct bvec_iter) {
		.bi_sector = bio->bi_iter.bi_sector,
		.bi_size = bio->bi_iter.bi_size,
	};
}

/* A bio of the same range, still without data.  Cannot fail: from a mempool. */
static struct bio *bdr_copy_alloc(const struct bdr_io *io, struct bio *bio,
				  unsigned short vectors, blk_opf_t opf)
{
	struct bio *copy;

	copy = bio_alloc_bioset(bio->bi_bdev, vectors, opf, GFP_NOIO,
				&io->target->ctx->bios);
	copy->bi_iter.bi_sector = bio->bi_iter.bi_sector;
	copy->bi_ioprio = bio->bi_ioprio;
	/* The cgroup of the submitter, not of the worker. */
	bio_clone_blkg_association(copy, bio);
	copy->bi_private = bio;
	copy->bi_end_io = bdr_copy_endio;
	return copy;
}

/* A bio with the data of `bio` in the ring. */
static struct bio *bdr_lower_copy(const struct bdr_io *io, struct bio *bio)
{
	struct bdr_context *ctx = io->target->ctx;
	struct page **pages = ctx->memory.pages + ctx->memory.header_pages;
	u64 left = io->write.sectors << SECTOR_SHIFT;
	struct bio *copy = bdr_copy_alloc(io, bio, io->pass.slots, bio->bi_opf);
	u64 slot;

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
 * Discards and write-zeroes
 *--------------------------------------------------------------
 */

/* Whether it is submitted as write-zeroes. */
static bool bdr_lower_is_zeroing(const struct bdr_io *io)
{
	return io->write.op == BDR_OP_WRITE_ZEROES ||
	       (io->write.op == BDR_OP_DISCARD &&
		io->target->discard == BDR_DISCARD_ZERO);
}

/* As a driver says that it does not take write-zeroes at all. */
static bool bdr_zeroes_are_rejected(blk_status_t status, struct block_device *bdev)
{
	/* SCSI: the same status as of a hardware error, and the limit becomes 0. */
	return status == BLK_STS_NOTSUPP ||
	       (status == BLK_STS_TARGET && !bdev_write_zeroes_sectors(bdev));
}

static void bdr_zeroes_endio(struct bio *copy)
{
	struct bio *bio = copy->bi_private;
	struct bdr_io *io = dm_per_bio_data(bio, sizeof(*io));
	struct bdr_target *target = io->target;
	struct bdr_context *ctx = target->ctx;
	unsigned long flags;

	if (!bdr_zeroes_are_rejected(copy->bi_status, target->dev->bdev)) {
		bdr_copy_endio(copy);
		return;
	}
	bio_put(copy);
	if (io->write.op == BDR_OP_DISCARD)
		WRITE_ONCE(target->discard_rejected, true);
	spin_lock_irqsave(&ctx->lock, flags);
	bio_list_add(&ctx->zero, bio);
	queue_work(ctx->workqueue, &ctx->zero_work);
	spin_unlock_irqrestore(&ctx->lock, flags);
}

static struct bio *bdr_zeroes_bio(const struct bdr_io *io, struct bio *bio)
{
	struct bio *copy = bdr_copy_alloc(io, bio, 0, REQ_OP_WRITE_ZEROES |
					  (bio->bi_opf & ~REQ_OP_MASK));

	copy->bi_iter.bi_size = bio->bi_iter.bi_size;
	copy->bi_end_io = bdr_zeroes_endio;
	return copy;
}

/* Does what a rejected write-zeroes was to do. */
static int bdr_zero_one(const struct bdr_io *io, const struct bio *bio)
{
	struct block_device *bdev = io->target->dev->bdev;
	int r;

	r = blkdev_issue_zeroout(bdev, io->write.sector, io->write.sectors, GFP_NOIO,
				 bio->bi_opf & REQ_NOUNMAP ? BLKDEV_ZERO_NOUNMAP : 0);
	if (!r && io->write.fua)
		r = blkdev_issue_flush(bdev);
	return r;
}

/* They are in flight as before, so nothing that overlaps them is. */
void bdr_lower_zero(struct work_struct *work)
{
	struct bdr_context *ctx = container_of(work, struct bdr_context, zero_work);
	struct bio_list bios;
	struct bio *bio;

	spin_lock_irq(&ctx->lock);
	bios = ctx->zero;
	bio_list_init(&ctx->zero);
	spin_unlock_irq(&ctx->lock);

	while ((bio = bio_list_pop(&bios))) {
		const struct bdr_io *io = dm_per_bio_data(bio, sizeof(*io));

		bio->bi_status = errno_to_blk_status(bdr_zero_one(io, bio));
		bio_endio(bio);
	}
}

/*
 * Cuts a discard to a part that is whole blocks of the device, which is then true, or
 * that has none.  dm submits the remainder anew.
 */
static bool bdr_discard_cut(struct bdr_io *io, struct bio *bio)
{
	struct block_device *bdev = io->target->dev->bdev;
	u64 block = max(bdev_discard_granularity(bdev) >> SECTOR_SHIFT, 1U);
	u64 first = bdev_discard_alignment(bdev) >> SECTOR_SHIFT;
	u64 sectors = io->write.sectors;
	/* From the start of the block that it begins in. */
	u64 within = (io->write.sector + block - first % block) % block;
	bool is_whole = !within && sectors >= block;

	if (is_whole)
		sectors -= sectors % block;
	else if (within)
		sectors = min(sectors, block - within);
	if (sectors < io->write.sectors)
		dm_accept_partial_bio(bio, sectors);
	io->write.sectors = sectors;
	return is_whole;
}

/* Whether a discard is passed on; if not, it has been completed. */
bool bdr_lower_accept_discard(struct bdr_io *io, struct bio *bio)
{
	const struct bdr_target *target = io->target;

	if (target->discard == BDR_DISCARD_PASS) {
		if (bdr_discard_cut(io, bio))
			return true;
	} else if (!READ_ONCE(target->discard_rejected)) {
		return true;
	} else {
		bio->bi_status = BLK_STS_NOTSUPP;
	}
	bio_endio(bio);
	return false;
}

/*----------------------------------------------------------------
 * Submission
 *--------------------------------------------------------------
 */

/* Fills the slots of a logged bio, and returns what dm is to do with an admitted one. */
int bdr_lower_submit(struct bdr_io *io, struct bio *bio)
{
	bool gathered = io->pass.logged && bdr_lower_fill(io, bio);

	if (bdr_lower_is_zeroing(io)) {
		dm_submit_bio_remap(bio, bdr_zeroes_bio(io, bio));
		return DM_MAPIO_SUBMITTED;
	}
	if (!io->pass.logged)
		return DM_MAPIO_REMAPPED;
	if (io->write.op != BDR_OP_WRITE || io->target->stable != BDR_STABLE_COPY)
		return DM_MAPIO_REMAPPED;
	if (gathered) {
		bdr_lower_redirect(io, bio);
		return DM_MAPIO_REMAPPED;
	}
	dm_submit_bio_remap(bio, bdr_lower_copy(io, bio));
	return DM_MAPIO_SUBMITTED;
}
