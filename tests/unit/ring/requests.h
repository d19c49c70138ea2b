/* SPDX-License-Identifier: GPL-2.0-only */
/* The requests, with sizes and roles as the tests expect them. */
#ifndef REQUESTS_H
#define REQUESTS_H

#include "bdr_request.h"
#include "rig.h"

static const __u32 codes[] = {
	BDR_IOC_OPEN, BDR_IOC_INFO, BDR_IOC_STATUS, BDR_IOC_RELEASE, BDR_IOC_RESUME,
	BDR_IOC_BITMAP_READ, BDR_IOC_BITMAP_CLEAR, BDR_IOC_BITMAP_MARK,
	BDR_IOC_MARKS_READ,
};

#define CODES	(sizeof(codes) / sizeof(codes[0]))

static inline size_t argument_bytes(__u32 code)
{
	switch (code) {
	case BDR_IOC_OPEN:
		return sizeof(struct bdr_open);
	case BDR_IOC_RELEASE:
		return sizeof(struct bdr_release);
	case BDR_IOC_BITMAP_READ:
	case BDR_IOC_BITMAP_CLEAR:
	case BDR_IOC_BITMAP_MARK:
		return sizeof(struct bdr_bitmap_range);
	case BDR_IOC_MARKS_READ:
		return sizeof(struct bdr_marks_read);
	default:
		return 0;
	}
}

static inline bool changes(__u32 code)
{
	return code == BDR_IOC_RELEASE || code == BDR_IOC_RESUME ||
	       code == BDR_IOC_BITMAP_CLEAR || code == BDR_IOC_BITMAP_MARK;
}

/* As a capture checks: one after the other. */
static inline int check_bitmap(__u32 code, const struct bdr_bitmap_range *range)
{
	int r = bdr_request_check_bitmap(code, range);

	return r ? r : bdr_request_check_range(code, range, REGIONS);
}

static inline int check_release(const struct bdr_gate *gate,
				const struct bdr_release *release)
{
	int r = bdr_request_check_counters_locked(gate, release);

	return r ? r : bdr_request_check_release(&gate->ring, gate->ring.head, release);
}

/* As a capture carries it out. */
static inline void change_bitmap(struct bdr_gate *gate, __u32 code,
				 const struct bdr_bitmap_range *range)
{
	bdr_request_change_bitmap(gate, code, range);
	if (code == BDR_IOC_BITMAP_MARK)
		bdr_gate_marked_locked(gate);
}

/* As a capture answers STATUS, if nothing happens meanwhile. */
static inline void ask_status(struct bdr_gate *gate, struct bdr_status *status)
{
	const struct bdr_ring *ring = &gate->ring;

	bdr_request_fill_status_locked(status, gate,
				       bdr_ring_find_unpublished(ring, ring->tail,
								 ring->head),
				       clock_ns);
	bdr_request_count_bits(status, gate);
	bdr_request_finish_status_locked(status, gate, gate->marked);
}

#endif /* REQUESTS_H */
