/* SPDX-License-Identifier: GPL-2.0-only */
/* A gate with memory of exactly its size, and numbers that a seed repeats. */
#ifndef RIG_H
#define RIG_H

#include <stdint.h>

#include "bdr_gate.h"
#include "check.h"

#define CAPACITY	13	/* no power of two: laps end anywhere */
#define REGIONS		200	/* the last word is short */
#define REGION_SECTORS	8ULL

static uint64_t random_state;

static inline uint64_t random_word(void)
{
	/* xorshift64* */
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * 2685821657736338717ULL;
}

static inline uint64_t random_below(uint64_t end)
{
	return random_word() % end;
}

static uint64_t clock_ns = 1000;

static inline struct bdr_gate *gate_create(void)
{
	struct bdr_gate *gate = calloc(1, sizeof(*gate));

	CHECK(gate);
	gate->ring.capacity = CAPACITY;
	gate->ring.headers = calloc(CAPACITY, sizeof(__u64));
	gate->ring.payload = calloc(CAPACITY, BDR_PAYLOAD_BYTES);
	gate->device_sectors = REGIONS * REGION_SECTORS - 3;
	gate->region_sectors = REGION_SECTORS;
	gate->active = calloc(bdr_bitmap_words(REGIONS), sizeof(__u64));
	gate->resync = calloc(bdr_bitmap_words(REGIONS), sizeof(__u64));
	CHECK(gate->ring.headers && gate->ring.payload);
	gate->marks.table = calloc(BDR_MARKS_MAX, sizeof(struct bdr_mark));
	CHECK(gate->active && gate->resync && gate->marks.table);
	bdr_gate_init(gate);
	CHECK(bdr_gate_regions(gate) == REGIONS);
	return gate;
}

static inline void gate_destroy(struct bdr_gate *gate)
{
	free(gate->marks.table);
	free(gate->resync);
	free(gate->active);
	free(gate->ring.payload);
	free(gate->ring.headers);
	free(gate);
}

static inline bool admit(struct bdr_gate *gate, const struct bdr_write *write,
			 struct bdr_pass *pass)
{
	return bdr_gate_admit_locked(gate, write, pass, clock_ns);
}

/* As a capture ends a logged write. */
static inline void complete(struct bdr_gate *gate, const struct bdr_pass *pass,
			    const struct bdr_write *write, bool failed)
{
	if (!failed) {
		bdr_gate_publish(gate, pass, write);
		return;
	}
	bdr_gate_fail_locked(gate, write);
	bdr_gate_publish_nop(gate, pass, write);
}

static inline bool bit(const __u64 *bitmap, uint64_t region)
{
	return bitmap[region / 64] >> (region % 64) & 1;
}

static inline struct bdr_write write_of(uint64_t sector, uint64_t sectors)
{
	return (struct bdr_write){
		.sector = sector, .sectors = sectors, .op = BDR_OP_WRITE,
	};
}

#endif /* RIG_H */
