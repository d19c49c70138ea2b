/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The ring: the ABI between a capture (kernel module or nbdkit plugin) and its
 * reader, and the arithmetic that both captures share.
 *
 * The ring records writes in the order of their submission, and makes each of them
 * visible when the disk has completed it:
 *
 *	reserve   at submission: take consecutive slots, in one critical section
 *	fill      copy the data into them, outside any lock
 *	publish   at completion: store the headers, last slot first, with release
 *	release   when the replica has made the write durable: free the slots
 *
 * A slot is one write of at most 4096 bytes: 8 bytes of header and 4096 of
 * payload, 4104 bytes in all.  Headers and payloads are separate arrays, so a
 * batch of slots is one run of headers and one run of payload, whatever is in
 * it.  Slots are numbered from 0 in 64 bits, and no number is reused; slot N is at
 * index N mod capacity.
 *
 * A header contains the parity of its lap (N div capacity), its phase, as the
 * entries of an NVMe completion queue do.  The memory is zeroed first and lap 0 has
 * phase 1, so a slot is published exactly when its header has the phase of its
 * lap.  There is no separate "published up to" word that could disagree.
 *
 * Why last slot first: the reader takes the contiguous published prefix.  The
 * first slot of a write is stored last, so the prefix grows by whole writes.
 *
 * Trace of two writes A (2 slots) and B (1 slot), B completing first:
 *
 *	reserve A -> 7,8   reserve B -> 9   publish 9      prefix ends at 7
 *	publish 8, then 7                                  prefix ends at 10
 *
 * Slot order respects "completed before submitted": if A completes before B is
 * submitted, A has the lower slots.
 *
 * Nothing here locks, allocates or sleeps.  Functions ending in _locked are
 * called under the lock of the capture; the others may run at any time.
 */
#ifndef BDR_RING_H
#define BDR_RING_H

#ifdef __KERNEL__
#include <linux/types.h>
#include <linux/string.h>
#include <linux/errno.h>
#include <asm/barrier.h>
#define bdr_load_acquire(p)	smp_load_acquire(p)
#define bdr_store_release(p, v)	smp_store_release(p, v)
#else
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <linux/types.h>
#define bdr_load_acquire(p)	__atomic_load_n(p, __ATOMIC_ACQUIRE)
#define bdr_store_release(p, v)	__atomic_store_n(p, v, __ATOMIC_RELEASE)
#endif

#define BDR_SECTOR_BYTES	512
#define BDR_PAYLOAD_BYTES	4096
#define BDR_HEADER_BYTES	8
#define BDR_SLOT_BYTES		(BDR_HEADER_BYTES + BDR_PAYLOAD_BYTES)
#define BDR_SLOT_SECTORS	(BDR_PAYLOAD_BYTES / BDR_SECTOR_BYTES)

/* A larger write is recorded as several, so that batches stay small. */
#define BDR_WRITE_SLOTS_MAX	256

#define BDR_CAPACITY_MIN	8
#define BDR_CAPACITY_MAX	(1ULL << 28)

/* Header: one little-endian 64-bit word. */
#define BDR_SECTOR_BITS		48
#define BDR_SECTOR_MASK		((1ULL << BDR_SECTOR_BITS) - 1)
#define BDR_COUNT_SHIFT		48	/* number of sectors, less 1 */
#define BDR_COUNT_MASK		7ULL
#define BDR_OP_SHIFT		51
#define BDR_OP_MASK		7ULL
#define BDR_FUA_SHIFT		54
#define BDR_LAST_SHIFT		55	/* last slot of its write */
#define BDR_PHASE_SHIFT		63

enum bdr_op {
	BDR_OP_NOP = 0,			/* a write that failed: ignored */
	BDR_OP_WRITE = 1,
	/* Zeros; the space may be deallocated.  The payload is a u64, the sectors. */
	BDR_OP_DISCARD = 2,
	BDR_OP_WRITE_ZEROES = 3,	/* the payload likewise */
	BDR_OP_FLUSH = 4,
};

struct bdr_ring {
	__u64 *headers;		/* [capacity], zeroed at creation */
	unsigned char *payload;	/* [capacity][BDR_PAYLOAD_BYTES] */
	__u64 capacity;		/* in slots */
	__u64 head;		/* next slot to reserve */
	__u64 tail;		/* oldest slot not released */
};

/* One write as the ring records it. */
struct bdr_write {
	__u64 sector;
	__u64 sectors;
	enum bdr_op op;
	bool fua;
};

static inline __u64 bdr_ring_index(const struct bdr_ring *ring, __u64 slot)
{
	return slot % ring->capacity;
}

static inline __u64 bdr_ring_phase(const struct bdr_ring *ring, __u64 slot)
{
	return ((slot / ring->capacity) & 1) ^ 1;
}

static inline __u64 bdr_ring_used(const struct bdr_ring *ring)
{
	return ring->head - ring->tail;
}

/* Slots that a write takes: its data in pieces of 4096 bytes, else one. */
static inline __u64 bdr_write_slots(const struct bdr_write *write)
{
	if (write->op != BDR_OP_WRITE || !write->sectors)
		return 1;
	return (write->sectors + BDR_SLOT_SECTORS - 1) / BDR_SLOT_SECTORS;
}

/* Reserves all or nothing.  Free space comes from a tail that no client can write. */
static inline bool bdr_ring_reserve_locked(struct bdr_ring *ring, __u64 slots,
					   __u64 *first)
{
	if (slots > ring->capacity - bdr_ring_used(ring))
		return false;
	*first = ring->head;
	ring->head += slots;
	return true;
}

/*
 * The address of byte `offset` of the write that begins at slot `first`, and how
 * many bytes follow it before the array wraps.
 */
static inline unsigned char *bdr_ring_span(const struct bdr_ring *ring,
					   __u64 first, __u64 offset,
					   __u64 *bytes)
{
	__u64 index = bdr_ring_index(ring, first + offset / BDR_PAYLOAD_BYTES);
	__u64 within = offset % BDR_PAYLOAD_BYTES;

	*bytes = (ring->capacity - index) * BDR_PAYLOAD_BYTES - within;
	return ring->payload + index * BDR_PAYLOAD_BYTES + within;
}

/* Copies a slot at a time: a known length becomes the processor's own block copy. */
static inline void bdr_copy(unsigned char *to, const unsigned char *from,
			    __u64 bytes)
{
	for (; bytes >= BDR_PAYLOAD_BYTES; bytes -= BDR_PAYLOAD_BYTES) {
		memcpy(to, from, BDR_PAYLOAD_BYTES);
		to += BDR_PAYLOAD_BYTES;
		from += BDR_PAYLOAD_BYTES;
	}
	memcpy(to, from, bytes);
}

static inline void bdr_ring_fill(const struct bdr_ring *ring, __u64 first,
				 __u64 offset, const void *data, __u64 bytes)
{
	const unsigned char *from = data;

	while (bytes) {
		__u64 span;
		unsigned char *to = bdr_ring_span(ring, first, offset, &span);

		if (span > bytes)
			span = bytes;
		bdr_copy(to, from, span);
		from += span;
		offset += span;
		bytes -= span;
	}
}

/* DISCARD and WRITE_ZEROES have their length in the payload. */
static inline void bdr_ring_fill_length(const struct bdr_ring *ring,
					__u64 slot, __u64 sectors)
{
	bdr_ring_fill(ring, slot, 0, &sectors, sizeof(sectors));
}

static inline __u64 bdr_header(__u64 sector, __u64 sectors, enum bdr_op op,
			       bool fua, bool last, __u64 phase)
{
	return (sector & BDR_SECTOR_MASK) |
	       (((sectors - 1) & BDR_COUNT_MASK) << BDR_COUNT_SHIFT) |
	       (((__u64)op & BDR_OP_MASK) << BDR_OP_SHIFT) |
	       ((__u64)fua << BDR_FUA_SHIFT) |
	       ((__u64)last << BDR_LAST_SHIFT) |
	       (phase << BDR_PHASE_SHIFT);
}

/*
 * Publishes the slots of one write.  A failed write is published with op NOP
 * over the same slots: `slots` is what was reserved, not what `write` implies.
 */
static inline void bdr_ring_publish(const struct bdr_ring *ring, __u64 first,
				    __u64 slots, const struct bdr_write *write)
{
	__u64 i = slots, last = first + slots - 1;
	__u64 index = bdr_ring_index(ring, last);
	__u64 phase = bdr_ring_phase(ring, last);

	while (i--) {
		__u64 done = i * BDR_SLOT_SECTORS;
		__u64 sectors = 1;

		if (write->sectors > done)
			sectors = write->sectors - done;
		if (sectors > BDR_SLOT_SECTORS)
			sectors = BDR_SLOT_SECTORS;
		/*
		 * Pairs with the acquire in bdr_ring_is_published(): a reader
		 * that observes this header observes the payload that
		 * bdr_ring_fill() stored, and the headers of the later slots
		 * of the same write.
		 */
		bdr_store_release(&ring->headers[index],
				  bdr_header(write->sector + done, sectors,
					     write->op, write->fua,
					     i == slots - 1, phase));
		/* Down by one slot, across the end of a lap, without dividing. */
		if (!index--) {
			index = ring->capacity - 1;
			phase ^= 1;
		}
	}
}

static inline bool bdr_ring_is_published(const struct bdr_ring *ring, __u64 slot)
{
	__u64 header = bdr_load_acquire(&ring->headers[bdr_ring_index(ring, slot)]);

	return header >> BDR_PHASE_SHIFT == bdr_ring_phase(ring, slot);
}

/*
 * The first slot of [slot, end) that is not published, or `end`.  Needs no lock if
 * [slot, end) is reserved: a published slot stays so until it is released, and
 * slot numbers are never reused.
 */
static inline __u64 bdr_ring_find_unpublished(const struct bdr_ring *ring,
					      __u64 slot, __u64 end)
{
	while (slot < end && bdr_ring_is_published(ring, slot))
		slot++;
	return slot;
}

/*
 * Whether the consumer may release every slot below `tail`.  A slot that is
 * reserved and not published belongs to a write in flight: if it were released,
 * the completion of that write would overwrite the header of a later one.
 *
 * Needs no lock: published slots stay so until released, and the only consumer
 * has one RELEASE at a time.  `head` is a snapshot taken under the lock.
 *
 * Returns 0, -ERANGE (not in [tail, head]) or -EBUSY (a slot is unpublished).
 */
static inline int bdr_ring_check_release(const struct bdr_ring *ring,
					 __u64 head, __u64 tail)
{
	if (tail < ring->tail || tail > head)
		return -ERANGE;
	return bdr_ring_find_unpublished(ring, ring->tail, tail) == tail ?
	       0 : -EBUSY;
}

static inline void bdr_ring_release_locked(struct bdr_ring *ring, __u64 tail)
{
	ring->tail = tail;
}

#endif /* BDR_RING_H */
