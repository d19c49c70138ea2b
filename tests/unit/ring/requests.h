/* SPDX-License-Identifier: GPL-2.0-only */
/* The requests, with sizes and roles as the tests expect them. */
#ifndef REQUESTS_H
#define REQUESTS_H

#include "bdr_request.h"
#include "rig.h"

static const __u32 codes[] = {
	BDR_IOC_OPEN, BDR_IOC_INFO, BDR_IOC_STATUS, BDR_IOC_RELEASE, BDR_IOC_RESUME,
	BDR_IOC_BITMAP_READ, BDR_IOC_BITMAP_CLEAR, BDR_IOC_BITMAP_MARK,
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

#endif /* REQUESTS_H */
