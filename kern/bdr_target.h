/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A target is one table line: it maps bios onto its device and hands them to
 * its context.  Two of them share a context for the length of a reload.
 */
#ifndef BDR_TARGET_H
#define BDR_TARGET_H

#include <linux/device-mapper.h>

#include "bdr_context.h"

/* How ring and disk are kept the same; see bdr_io.c. */
enum bdr_stable {
	BDR_STABLE_COPY,
	BDR_STABLE_HINT,
};

/* What a discard becomes on its way down; see bdr_io.c. */
enum bdr_discard {
	BDR_DISCARD_ZERO,
	BDR_DISCARD_PASS,
};

struct bdr_target {
	struct dm_target *ti;
	struct dm_dev *dev;
	struct bdr_context *ctx;
	struct bdr_attachment attachment;
	struct bdr_bitmaps spare;	/* for the resize that a resume may be */
	enum bdr_stable stable;
	enum bdr_discard discard;
	u32 write_sectors_max;		/* a longer write is taken in pieces */
	unsigned int inflight;		/* captured bios; under ctx->lock */
};

enum bdr_io_kind {
	BDR_IO_PLAIN,			/* not captured: reads */
	BDR_IO_PARKED,			/* waits for one that it overlaps */
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
	struct bio_list waiters;	/* bios that overlap this one */

	struct bio_vec vec;		/* the slots' pages, if they lie together */
};

int bdr_io_map(struct dm_target *ti, struct bio *bio);
int bdr_io_end(struct dm_target *ti, struct bio *bio, blk_status_t *error);

#endif /* BDR_TARGET_H */
