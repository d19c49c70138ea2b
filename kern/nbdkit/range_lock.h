/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Range lock: two writes that overlap are never in flight together, so their
 * order is the same on the disk and in the ring.
 *
 * Fair: a write waits for every earlier one that it overlaps, including those
 * that are waiting.  The list has the writes in flight, whose number is limited
 * by the server's threads, so the search is linear.
 *
 * Outermost lock: no other lock is held while waiting for a range.
 */
#ifndef BDR_RANGE_LOCK_H
#define BDR_RANGE_LOCK_H

#include <pthread.h>
#include <stdint.h>

struct bdr_range {
	uint64_t begin;
	uint64_t end;
	struct bdr_range *prev;
	struct bdr_range *next;
};

struct bdr_range_lock {
	pthread_mutex_t mutex;
	pthread_cond_t unlocked;
	unsigned int waiting;
	struct bdr_range *first;	/* in order of arrival */
	struct bdr_range *last;
};

void bdr_range_lock_init(struct bdr_range_lock *lock);
void bdr_range_lock_destroy(struct bdr_range_lock *lock);

/* Waits until no earlier range overlaps [begin, end).  The caller owns `range`. */
void bdr_range_acquire(struct bdr_range_lock *lock, struct bdr_range *range,
		       uint64_t begin, uint64_t end);
void bdr_range_release(struct bdr_range_lock *lock, struct bdr_range *range);

#endif /* BDR_RANGE_LOCK_H */
