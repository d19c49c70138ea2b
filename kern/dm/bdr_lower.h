/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A target is one table line: it maps bios onto its device and captures writes in
 * its context.  During a reload two of them share a context.
 */
#ifndef BDR_LOWER_H
#define BDR_LOWER_H

#include <linux/bio.h>
#include <linux/device-mapper.h>
#include <linux/rbtree.h>
#include <linux/workqueue.h>

#include "bdr_context.h"

/* How ring and disk are kept equal; see bdr_lower.c. */
enum bdr_stable {
	BDR_STABLE_COPY,
	BDR_STABLE_HINT,
};

/* How a discard is passed to the underlying device; see bdr_lower.c. */
enum bdr_discard {
	BDR_DISCARD_ZERO,
	BDR_DISCARD_PASS,
};

struct bdr_target {
	struct dm_target *ti;
	struct dm_dev *dev;
	struct bdr_context *ctx;
	struct bdr_attachment attachment;
	struct bdr_bitmap_pair spare;	/* in case resume changes the size */
	enum bdr_stable stable;
	enum bdr_discard discard;
	bool discard_rejected;		/* by the device, as write-zeroes */
	u32 write_sectors_max;		/* a longer write is split */
	unsigned int inflight;		/* captured bios; under ctx->lock */
};

enum bdr_io_kind {
	BDR_IO_PLAIN,			/* not captured: reads */
	BDR_IO_DEFERRED,		/* until one that it overlaps has completed */
	BDR_IO_LOGGED,			/* has slots */
	BDR_IO_UNLOGGED,		/* has an unlogged reference */
};

/* Per-bio data.  dm does not zero it. */
struct bdr_io {
	enum bdr_io_kind kind;
	struct bdr_target *target;
	struct bdr_write write;
	struct bdr_pass pass;

	/* A node of ctx->inflight, if it has sectors. */
	u64 arrival;
	struct rb_node node;
	u64 subtree_last;
	struct bio_list deferred;	/* bios that this one blocks */

	struct bio_vec vec;		/* the slots' pages, if contiguous */
};

int bdr_lower_submit(struct bdr_io *io, struct bio *bio);
bool bdr_lower_accept_discard(struct bdr_io *io, struct bio *bio);
void bdr_lower_zero(struct work_struct *work);

#endif /* BDR_LOWER_H */
