/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * Marks of the clock: when slots were reserved, to within an interval.
 *
 * A mark is a slot and the clock at its reservation.  The first reservation makes
 * one, and each that comes at least `interval` after the last mark.  Numbers of slots
 * and the clock both increase under the lock of the capture, hence for each mark:
 *
 *	slots from mark.slot on		were reserved at mark.clock or later
 *	slots below mark.slot		were reserved at mark.clock or earlier
 *
 * So a slot was reserved not before the last mark at or below it, and not after the
 * first mark above it; if there is none, not after the clock is read next under the
 * lock.  Every slot at or above the tail has a mark at or below it.
 *
 *	reserve slots 0,1 at 1000	mark (0, 1000)
 *	reserve slot  2   at 1040
 *	reserve slot  3   at 1130	mark (3, 1130)
 *	slot 2: not before 1000, not after 1130
 *
 * A release drops the marks that the tail leaves behind: all but the last at or below it.
 * A table that is full loses every second mark, and the interval doubles: it covers
 * a backlog of any age with an error in proportion.  It is the first interval again
 * when one mark is left.
 *
 * Nothing here locks, allocates or sleeps, and everything is called under the lock of
 * the capture.
 */
#ifndef BDR_MARKS_H
#define BDR_MARKS_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdbool.h>
#include <linux/types.h>
#endif

#include "bdr_uapi.h"

#define BDR_MARKS_INTERVAL_NS	100000000ULL

struct bdr_marks {
	struct bdr_mark *table;	/* [BDR_MARKS_MAX], a circle */
	__u32 oldest;		/* its index */
	__u32 count;
	__u64 next;		/* number of the next mark, total */
	__u64 interval_ns;
};

/* The caller has set `table`. */
static inline void bdr_marks_init(struct bdr_marks *marks)
{
	marks->oldest = 0;
	marks->count = 0;
	marks->next = 0;
	marks->interval_ns = BDR_MARKS_INTERVAL_NS;
}

/* The mark that `i` others precede. */
static inline struct bdr_mark *bdr_marks_at(const struct bdr_marks *marks, __u32 i)
{
	return &marks->table[(marks->oldest + i) % BDR_MARKS_MAX];
}

/* Drops every second mark; the oldest stays. */
static inline void bdr_marks_thin_locked(struct bdr_marks *marks)
{
	__u32 i;

	for (i = 1; 2 * i < marks->count; i++)
		*bdr_marks_at(marks, i) = *bdr_marks_at(marks, 2 * i);
	marks->count = i;
	marks->interval_ns *= 2;
}

/* Slots from `slot` on are being reserved, at `clock_ns`. */
static inline void bdr_marks_reserve_locked(struct bdr_marks *marks, __u64 slot,
					    __u64 clock_ns)
{
	if (marks->count &&
	    clock_ns < bdr_marks_at(marks, marks->count - 1)->clock_ns +
		       marks->interval_ns)
		return;
	if (marks->count == BDR_MARKS_MAX)
		bdr_marks_thin_locked(marks);
	*bdr_marks_at(marks, marks->count++) = (struct bdr_mark){
		.slot = slot, .clock_ns = clock_ns,
	};
	marks->next++;
}

static inline void bdr_marks_release_locked(struct bdr_marks *marks, __u64 tail)
{
	while (marks->count > 1 && bdr_marks_at(marks, 1)->slot <= tail) {
		marks->oldest = (marks->oldest + 1) % BDR_MARKS_MAX;
		marks->count--;
	}
	if (marks->count <= 1)
		marks->interval_ns = BDR_MARKS_INTERVAL_NS;
}

/* Oldest first.  `to` has room for BDR_MARKS_MAX.  Returns how many there are. */
static inline __u32 bdr_marks_copy_locked(const struct bdr_marks *marks,
					  struct bdr_mark *to)
{
	__u32 i;

	for (i = 0; i < marks->count; i++)
		to[i] = *bdr_marks_at(marks, i);
	return marks->count;
}

#endif /* BDR_MARKS_H */
