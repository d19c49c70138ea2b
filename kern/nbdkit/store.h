/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The store: the regular file or block device that the writes go to, independent of
 * the ring.  Every function may run in several threads at once, and returns 0 or a
 * positive errno.
 */
#ifndef BDR_STORE_H
#define BDR_STORE_H

#include <stdbool.h>
#include <stdint.h>

struct bdr_store {
	int fd;
	bool is_block;
	uint64_t bytes;
	/* Cleared when the file turns out not to support it. */
	bool can_punch;
	bool can_zero_range;
};

/* How bdr_store_zero() may zero. */
#define BDR_ZERO_MAY_TRIM	(1U << 0)	/* may deallocate the space */
#define BDR_ZERO_FAST		(1U << 1)	/* fails rather than write zeros */

/* Reports its own failures; returns 0 or -1. */
int bdr_store_open(struct bdr_store *store, const char *path);
void bdr_store_close(struct bdr_store *store);

int bdr_store_read(const struct bdr_store *store, void *data, uint64_t bytes,
		   uint64_t offset);
int bdr_store_write(const struct bdr_store *store, const void *data,
		    uint64_t bytes, uint64_t offset);
int bdr_store_sync(const struct bdr_store *store);

/* Afterwards the range reads as zeros.  EOPNOTSUPP: the file is unchanged. */
int bdr_store_zero(struct bdr_store *store, uint64_t bytes, uint64_t offset,
		   unsigned int how);

/* Whether bdr_store_zero() with BDR_ZERO_FAST may succeed. */
bool bdr_store_can_zero_fast(const struct bdr_store *store, unsigned int how);

#endif /* BDR_STORE_H */
