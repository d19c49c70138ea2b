/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The requests of bdr_uapi.h, checked and carried out: the part that the control
 * device of the kernel module and the control socket of the nbdkit plugin share.
 *
 * A request is untrusted.  It is checked in this order, and a request that is wrong
 * in several ways gets the errno of the first check that it fails:
 *
 *	packet	size, reserved fields, code (socket only: ioctl codes include
 *		direction and size)
 *	role	whether this client may make it
 *	form	what no capture could grant, or counters that decrease: EINVAL.
 *		It limits what the capture may have to allocate for the answer
 *	range	what this ring or bitmap does not have: ERANGE, EBUSY.  Checked
 *		where it cannot become untrue before the request is carried out
 *
 * A request that fails a check changes nothing.
 *
 * Nothing here locks, allocates or sleeps.  Functions ending in _locked are called
 * under the lock of the capture.  The checks return 0 or a negative errno.
 */
#ifndef BDR_REQUEST_H
#define BDR_REQUEST_H

#include "bdr_gate.h"
#include "bdr_uapi.h"

/* ---- packet and role --------------------------------------------------- */

/* Bytes of the structure that follows `code` in a packet, or -ENOTTY. */
static inline int bdr_request_argument_bytes(__u32 code)
{
	switch (code) {
	case BDR_IOC_OPEN:
	case BDR_IOC_RELEASE:
	case BDR_IOC_BITMAP_READ:
	case BDR_IOC_BITMAP_CLEAR:
	case BDR_IOC_BITMAP_MARK:
	case BDR_IOC_MARKS_READ:
		return _IOC_SIZE(code);
	case BDR_IOC_INFO:
	case BDR_IOC_STATUS:
	case BDR_IOC_RESUME:
		return 0;
	default:
		return -ENOTTY;
	}
}

/* The requests that change the ring or a bitmap need the consumer role. */
static inline int bdr_request_check_role(__u32 code, bool is_consumer)
{
	switch (code) {
	case BDR_IOC_RELEASE:
	case BDR_IOC_RESUME:
	case BDR_IOC_BITMAP_CLEAR:
	case BDR_IOC_BITMAP_MARK:
		return is_consumer ? 0 : -EPERM;
	default:
		return 0;
	}
}

/* Checks a packet of `bytes` bytes; only those of them that exist are read. */
static inline int bdr_request_check_packet(const struct bdr_request *request,
					   __u64 bytes, bool is_open,
					   bool is_consumer)
{
	int wanted;

	if (bytes < sizeof(*request) || request->reserved)
		return -EINVAL;
	wanted = bdr_request_argument_bytes(request->code);
	if (wanted < 0)
		return wanted;
	if (bytes - sizeof(*request) != (__u64)wanted)
		return -EINVAL;
	if (!is_open && request->code != BDR_IOC_OPEN)
		return -ENOTCONN;
	return bdr_request_check_role(request->code, is_consumer);
}

/* ---- form and range ---------------------------------------------------- */

static inline int bdr_request_check_open(const struct bdr_open *open)
{
	if (open->abi_version != BDR_ABI_VERSION)
		return -EPROTONOSUPPORT;
	if (open->role != BDR_ROLE_OBSERVER && open->role != BDR_ROLE_CONSUMER)
		return -EINVAL;
	return 0;
}

/*
 * The counters of a RELEASE.  What is allowed stays so until the request is carried
 * out: there is one RELEASE at a time, and a new stream lowers them.
 */
static inline int bdr_request_check_counters_locked(const struct bdr_gate *gate,
						    const struct bdr_release *release)
{
	return release->acknowledged > release->counted ||
	       release->acknowledged < gate->acknowledged ||
	       release->counted < gate->counted ? -EINVAL : 0;
}

/*
 * Its slots.  Needs no lock, for the reason given at bdr_ring_check_release():
 * `head` is a snapshot taken under the lock.
 */
static inline int bdr_request_check_release(const struct bdr_ring *ring,
					    __u64 head,
					    const struct bdr_release *release)
{
	int r = bdr_ring_check_release(ring, head, release->tail);

	if (r)
		return r;
	if (release->cursor < release->tail || release->cursor > head)
		return -ERANGE;
	return 0;
}

/* The form of a BITMAP_ request. */
static inline int bdr_request_check_bitmap(__u32 code,
					   const struct bdr_bitmap_range *range)
{
	if (range->reserved)
		return -EINVAL;
	if (code != BDR_IOC_BITMAP_READ)
		return range->bitmap == BDR_BITMAP_RESYNC && !range->buffer ?
		       0 : -EINVAL;
	if (range->bitmap > BDR_BITMAP_RESYNC ||
	    range->first % BDR_WORD_REGIONS ||
	    range->count > BDR_BITMAP_CHUNK_REGIONS)
		return -EINVAL;
	return 0;
}

/* Its range, in a bitmap of `regions` bits.  No sum here can overflow. */
static inline int bdr_request_check_range(__u32 code,
					  const struct bdr_bitmap_range *range,
					  __u64 regions)
{
	if (range->first > regions || range->count > regions - range->first)
		return -ERANGE;
	/* The bits of other regions are not in the answer: whole words only. */
	if (code == BDR_IOC_BITMAP_READ && range->count % BDR_WORD_REGIONS &&
	    range->first + range->count != regions)
		return -EINVAL;
	return 0;
}

static inline int bdr_request_check_marks(const struct bdr_marks_read *read)
{
	return read->count || read->reserved ? -EINVAL : 0;
}

/* ---- what a checked request does --------------------------------------- */

static inline void bdr_request_release_locked(struct bdr_gate *gate,
					      const struct bdr_release *release)
{
	bdr_gate_release_locked(gate, release->tail);
	gate->acknowledged = release->acknowledged;
	gate->counted = release->counted;
}

/* READ: `words` has room for bdr_bitmap_words(range->count). */
static inline void bdr_request_read_bitmap(const struct bdr_gate *gate,
					   const struct bdr_bitmap_range *range,
					   __u64 *words)
{
	const __u64 *bitmap = range->bitmap == BDR_BITMAP_ACTIVE ?
			      gate->active : gate->resync;

	bdr_bitmap_copy(words, &bitmap[range->first / BDR_WORD_REGIONS],
			bdr_bitmap_words(range->count));
}

/* CLEAR or MARK. */
static inline void bdr_request_change_bitmap(const struct bdr_gate *gate,
					     __u32 code,
					     const struct bdr_bitmap_range *range)
{
	__u64 end = range->first + range->count;

	if (code == BDR_IOC_BITMAP_MARK)
		bdr_bitmap_mark(gate->resync, range->first, end);
	else
		bdr_bitmap_clear(gate->resync, range->first, end);
}

/* INFO, except for the stream id and the path of the underlying device. */
static inline void bdr_request_fill_info_locked(struct bdr_info *info,
						const struct bdr_gate *gate,
						__u64 payload_offset)
{
	info->abi_version = BDR_ABI_VERSION;
	info->device_sectors = gate->device_sectors;
	info->capacity = gate->ring.capacity;
	info->region_sectors = gate->region_sectors;
	info->regions = bdr_gate_regions(gate);
	info->payload_offset = payload_offset;
	info->payload_bytes = gate->ring.capacity * BDR_PAYLOAD_BYTES;
	info->map_bytes = payload_offset + 2 * info->payload_bytes;
}

/*
 * STATUS, except for the count of failed writes and the stream id, which are the
 * caller's, and for the bits, which come last.  Every slot below `published` is
 * published.
 */
static inline void bdr_request_fill_status_locked(struct bdr_status *status,
						  const struct bdr_gate *gate,
						  __u64 published, __u64 clock_ns)
{
	const struct bdr_ring *ring = &gate->ring;

	*status = (struct bdr_status){
		.head = ring->head,
		.tail = ring->tail,
		.unpublished = published > ring->tail ? published : ring->tail,
		.gap = gate->gap,
		.last_gap = gate->last_gap,
		.mode = gate->mode,
		.unlogged = gate->unlogged[0] + gate->unlogged[1],
		.overflows = gate->overflows,
		.missed_writes = gate->missed,
		.device_sectors = gate->device_sectors,
		.acknowledged = gate->acknowledged,
		.counted = gate->counted,
		.clock_ns = clock_ns,
		.marks = gate->marks.next,
		.missed_since_ns = gate->missed_since_ns,
	};
}

/*
 * Counts the bits of a STATUS, after its other fields: a status that covers the
 * NOP of a failed write then covers the bits of that write.  `active` comes
 * first: a merge sets a bit in `resync` before it clears it in `active`, so a bit
 * that moves meanwhile is counted at least once.
 */
static inline void bdr_request_count_bits(struct bdr_status *status,
					  const struct bdr_gate *gate)
{
	__u64 regions = bdr_gate_regions(gate);

	status->active_regions = bdr_bitmap_count(gate->active, regions);
	status->resync_regions = bdr_bitmap_count(gate->resync, regions);
}

/*
 * Ends a STATUS whose bits were counted.  `marked` is the gate's as of the snapshot:
 * see bdr_gate.h.
 */
static inline void bdr_request_finish_status_locked(struct bdr_status *status,
						    struct bdr_gate *gate,
						    __u64 marked)
{
	if (!status->active_regions && !status->resync_regions) {
		if (!status->unlogged &&
		    bdr_gate_forget_missed_locked(gate, marked))
			status->missed_since_ns = BDR_MISSED_NOTHING;
	} else if (status->missed_since_ns == BDR_MISSED_NOTHING) {
		/* The first bits, set since the snapshot.  Of unlogged writes? */
		if (gate->missed_since_ns == BDR_MISSED_NOTHING ||
		    gate->missed_since_ns == BDR_MISSED_UNKNOWN)
			status->missed_since_ns = BDR_MISSED_UNKNOWN;
		else
			status->missed_since_ns = status->clock_ns;
	}
}

#endif /* BDR_REQUEST_H */
