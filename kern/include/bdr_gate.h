/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The gate: decides, under the lock of its capture, whether a write is recorded in
 * the ring or only marked in the dirty bitmap.  The application never waits.
 *
 *	STREAM    a write takes slots.  The first that finds no room changes the
 *	          mode to OVERFLOW, for the whole write, and marks its regions in
 *	          the same critical section: every write is in the ring or in the
 *	          bitmap.
 *	OVERFLOW  writes take no slots; their regions are marked in `active`
 *	          before they go to the disk (*unlogged* writes).
 *
 * RESUME has three steps, because an unlogged write may still be in flight when
 * the mode changes, and the scan that repairs its region must read the disk
 * after it:
 *
 *	bdr_gate_resume_locked()   mode STREAM, new unlogged epoch, returns S
 *	bdr_gate_drained_locked()  wait: the old epoch's writes have completed
 *	bdr_gate_merge()           `active` into `resync`
 *
 * No slot is reserved in OVERFLOW, so S is both the first slot after the gap
 * and the number from which on the replica is no prefix of the source.  The lowest
 * such number that has not been released is kept as `gap`, and the newest as
 * `last_gap`: a reader that restarts, or that has missed the last of several
 * overflows, declares the resync there.
 *
 * Two bitmaps: the scan clears bits of `resync` when the target has acknowledged
 * their regions; a write that misses the ring meanwhile marks `active`, which
 * the scan never clears.
 *
 * A write that fails is published as NOP, and its regions are marked `active`:
 * what the disk then holds there is unknown.
 *
 * Since when something is missing (`missed_since_ns`) is known of unlogged writes
 * only.  It is forgotten when both bitmaps were found empty; bits are counted without
 * the lock, so `marked` shows whether any was set meanwhile:
 *
 *	marking		set the bits; under the lock: since = ..., marked++
 *	STATUS		under the lock: no unlogged writes, take `marked`
 *			count the bits: none
 *			under the lock: if `marked` is the same, since = nothing
 */
#ifndef BDR_GATE_H
#define BDR_GATE_H

#include "bdr_ring.h"
#include "bdr_bitmap.h"
#include "bdr_marks.h"

#define BDR_REGION_SECTORS_DEFAULT	128	/* 64 KiB */
#define BDR_REGION_SECTORS_MIN		8
#define BDR_REGION_SECTORS_MAX		(1U << 20)

enum bdr_mode {
	BDR_MODE_STREAM = 0,
	BDR_MODE_OVERFLOW = 1,
};

#define BDR_GAP_NONE	(~0ULL)

struct bdr_gate {
	struct bdr_ring ring;
	enum bdr_mode mode;
	__u32 epoch;		/* its parity is the index of the current count */
	__u64 unlogged[2];	/* writes in flight that took no slot */
	__u64 *active;		/* regions missed by the ring */
	__u64 *resync;		/* regions to be repaired by a scan */
	__u64 device_sectors;
	__u64 region_sectors;	/* a power of two */
	/*
	 * Unreleased slots before which writes were missed: none is below `gap`,
	 * and `last_gap` is the highest.  BDR_GAP_NONE: there is none.
	 */
	__u64 gap;
	__u64 last_gap;
	__u64 overflows;	/* changes of mode to OVERFLOW, total */
	__u64 missed;		/* writes that took no slot, total */
	__u64 missed_since_ns;	/* see struct bdr_status */
	__u64 marked;		/* times that regions were marked, total */
	struct bdr_marks marks;
	/* The consumer's counters of this stream; see struct bdr_release. */
	__u64 acknowledged;
	__u64 counted;
};

/* What a write has been admitted with: slots, or an unlogged reference. */
struct bdr_pass {
	bool logged;
	__u32 epoch;		/* of the reference, if not logged */
	__u64 first;		/* slot, if logged */
	__u64 slots;
};

/*
 * The caller has set ring.headers, payload, capacity, both bitmaps, sizes and
 * marks.table.
 */
static inline void bdr_gate_init(struct bdr_gate *gate)
{
	gate->ring.head = 0;
	gate->ring.tail = 0;
	gate->mode = BDR_MODE_STREAM;
	gate->epoch = 0;
	gate->unlogged[0] = 0;
	gate->unlogged[1] = 0;
	gate->gap = BDR_GAP_NONE;
	gate->last_gap = BDR_GAP_NONE;
	gate->overflows = 0;
	gate->missed = 0;
	gate->missed_since_ns = BDR_MISSED_NOTHING;
	gate->marked = 0;
	bdr_marks_init(&gate->marks);
	gate->acknowledged = 0;
	gate->counted = 0;
}

static inline __u64 bdr_gate_regions(const struct bdr_gate *gate)
{
	return (gate->device_sectors + gate->region_sectors - 1) /
	       gate->region_sectors;
}

/* Marks the regions that sectors [sector, sector + sectors) touch. */
static inline void bdr_gate_mark(const struct bdr_gate *gate, __u64 sector,
				 __u64 sectors)
{
	if (sectors)
		bdr_bitmap_mark(gate->active, sector / gate->region_sectors,
				(sector + sectors - 1) / gate->region_sectors + 1);
}

/*
 * Regions were marked, in either bitmap, and since when their replica lacks something
 * is not known.
 */
static inline void bdr_gate_marked_locked(struct bdr_gate *gate)
{
	gate->marked++;
	gate->missed_since_ns = BDR_MISSED_UNKNOWN;
}

/*
 * Both bitmaps were empty, without unlogged writes in flight, at some time after
 * `marked` was taken.  True if they still are.
 */
static inline bool bdr_gate_forget_missed_locked(struct bdr_gate *gate, __u64 marked)
{
	if (gate->marked != marked)
		return false;
	gate->missed_since_ns = BDR_MISSED_NOTHING;
	return true;
}

/* Changes the mode to OVERFLOW.  True if it was STREAM: wake the consumer. */
static inline bool bdr_gate_overflow_locked(struct bdr_gate *gate)
{
	if (gate->mode == BDR_MODE_OVERFLOW)
		return false;
	gate->mode = BDR_MODE_OVERFLOW;
	gate->overflows++;
	if (gate->gap == BDR_GAP_NONE)
		gate->gap = gate->ring.head;
	gate->last_gap = gate->ring.head;
	return true;
}

/*
 * Begins another stream, of which the ring has no slot yet and of whose regions
 * none is known to be on the replica: the caller marks all of them in `active`.
 * Slot numbers go on.
 */
static inline void bdr_gate_begin_stream_locked(struct bdr_gate *gate)
{
	bdr_gate_overflow_locked(gate);
	bdr_gate_marked_locked(gate);
	gate->acknowledged = 0;
	gate->counted = 0;
}

/*
 * True if this write changed the mode to OVERFLOW: wake the consumer.  `clock_ns` was
 * read under this lock, so it does not decrease.
 */
static inline bool bdr_gate_admit_locked(struct bdr_gate *gate,
					 const struct bdr_write *write,
					 struct bdr_pass *pass, __u64 clock_ns)
{
	bool turned;

	pass->slots = bdr_write_slots(write);
	pass->epoch = gate->epoch;
	pass->logged = gate->mode == BDR_MODE_STREAM &&
		       bdr_ring_reserve_locked(&gate->ring, pass->slots,
					       &pass->first);
	if (pass->logged) {
		bdr_marks_reserve_locked(&gate->marks, pass->first, clock_ns);
		return false;
	}
	gate->missed++;
	gate->unlogged[pass->epoch & 1]++;
	/* A flush without room is left out: it changes no region. */
	if (!write->sectors)
		return false;
	turned = bdr_gate_overflow_locked(gate);
	bdr_gate_mark(gate, write->sector, write->sectors);
	gate->marked++;
	if (gate->missed_since_ns == BDR_MISSED_NOTHING)
		gate->missed_since_ns = clock_ns;
	return turned;
}

/*
 * A logged write has failed.  Comes before its publication as NOP, so a reader of the
 * NOP finds the bits set.
 */
static inline void bdr_gate_fail_locked(struct bdr_gate *gate,
					const struct bdr_write *write)
{
	if (!write->sectors)
		return;
	bdr_gate_mark(gate, write->sector, write->sectors);
	bdr_gate_marked_locked(gate);
}

/* Ends the pass of a logged write.  Needs no lock. */
static inline void bdr_gate_publish(const struct bdr_gate *gate,
				    const struct bdr_pass *pass,
				    const struct bdr_write *write)
{
	bdr_ring_publish(&gate->ring, pass->first, pass->slots, write);
}

/* The same as NOP: the write has failed, or was refused and has changed nothing. */
static inline void bdr_gate_publish_nop(const struct bdr_gate *gate,
					const struct bdr_pass *pass,
					const struct bdr_write *write)
{
	struct bdr_write nop = *write;

	nop.op = BDR_OP_NOP;
	bdr_ring_publish(&gate->ring, pass->first, pass->slots, &nop);
}

/*
 * Ends the pass of an unlogged write.  True when its epoch has drained.
 *
 * The regions are marked a second time: the merge at the end of a RESUME takes
 * every bit, also those of writes that missed the ring after the mode had changed
 * again.  A scan might read such a region before this write reached the disk, and
 * then clear its only bit.  The second mark stays for the next RESUME.
 */
static inline bool bdr_gate_leave_locked(struct bdr_gate *gate,
					 const struct bdr_pass *pass,
					 const struct bdr_write *write)
{
	bdr_gate_mark(gate, write->sector, write->sectors);
	return --gate->unlogged[pass->epoch & 1] == 0 &&
	       pass->epoch != gate->epoch;
}

/*
 * Releases every slot below `tail`, which bdr_ring_check_release() has allowed.
 * A gap is dropped when a slot after it is released: that slot was
 * acknowledged, hence so was the declaration of the resync that precedes it.
 * Gaps between the first and the last are not recorded, so `tail` is the lowest
 * bound that remains.
 */
static inline void bdr_gate_release_locked(struct bdr_gate *gate, __u64 tail)
{
	bdr_ring_release_locked(&gate->ring, tail);
	bdr_marks_release_locked(&gate->marks, tail);
	if (gate->gap == BDR_GAP_NONE || gate->gap >= tail)
		return;
	if (gate->last_gap >= tail) {
		gate->gap = tail;
	} else {
		gate->gap = BDR_GAP_NONE;
		gate->last_gap = BDR_GAP_NONE;
	}
}

/*
 * Begins a RESUME and returns S.  The caller runs one RESUME at a time, and the
 * previous one has drained, else two epochs would share a counter.  In mode STREAM
 * it only prepares a merge, for the bits of failed writes.
 */
static inline __u64 bdr_gate_resume_locked(struct bdr_gate *gate)
{
	gate->mode = BDR_MODE_STREAM;
	gate->epoch++;
	return gate->ring.head;
}

/* Whether the unlogged writes of the previous epoch have completed. */
static inline bool bdr_gate_drained_locked(const struct bdr_gate *gate)
{
	return gate->unlogged[(gate->epoch & 1) ^ 1] == 0;
}

static inline void bdr_gate_merge(const struct bdr_gate *gate)
{
	bdr_bitmap_merge(gate->resync, gate->active, bdr_gate_regions(gate));
}

#endif /* BDR_GATE_H */
