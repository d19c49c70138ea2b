// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pure headers in one thread, under ASan and UBSan.  Random parts compare
 * with a model that is too simple to be wrong; the seed is printed on failure
 * by being an argument.
 */
#include <stdint.h>
#include <string.h>

#include "rig.h"

/* Everything published is released, as by a consumer that keeps up. */
static void drain(struct bdr_gate *gate)
{
	uint64_t head = gate->ring.head;

	CHECK(bdr_ring_check_release(&gate->ring, head, head) == 0);
	bdr_gate_release_locked(gate, head);
}

/* ---- slots ------------------------------------------------------------- */

static void test_header_fields(void)
{
	uint64_t most = (1ULL << 48) - 1;
	uint64_t header = bdr_header(most, 8, BDR_OP_FLUSH, true, true, 1);

	CHECK((header & BDR_SECTOR_MASK) == most);
	CHECK((header >> BDR_COUNT_SHIFT & BDR_COUNT_MASK) == 7);
	CHECK((header >> BDR_OP_SHIFT & BDR_OP_MASK) == BDR_OP_FLUSH);
	CHECK(header >> BDR_FUA_SHIFT & 1);
	CHECK(header >> BDR_LAST_SHIFT & 1);
	CHECK(header >> BDR_PHASE_SHIFT == 1);
	CHECK(bdr_header(0, 1, BDR_OP_NOP, false, false, 0) == 0);
	/* A sector beyond 48 bits does not leak into the other fields. */
	CHECK(bdr_header(~0ULL, 1, BDR_OP_NOP, false, false, 0) == most);
}

static void test_write_slots(void)
{
	struct bdr_write write = write_of(0, 1);

	CHECK(bdr_write_slots(&write) == 1);
	write.sectors = 8;
	CHECK(bdr_write_slots(&write) == 1);
	write.sectors = 9;
	CHECK(bdr_write_slots(&write) == 2);
	write.sectors = BDR_WRITE_SLOTS_MAX * BDR_SLOT_SECTORS;
	CHECK(bdr_write_slots(&write) == BDR_WRITE_SLOTS_MAX);
	write.op = BDR_OP_DISCARD;
	CHECK(bdr_write_slots(&write) == 1);
	write = (struct bdr_write){ .op = BDR_OP_FLUSH };
	CHECK(bdr_write_slots(&write) == 1);
}

static void test_reserve_all_or_nothing(void)
{
	struct bdr_gate *gate = gate_create();
	__u64 first = 99;

	CHECK(!bdr_ring_reserve_locked(&gate->ring, CAPACITY + 1, &first));
	CHECK(first == 99 && gate->ring.head == 0);
	CHECK(bdr_ring_reserve_locked(&gate->ring, CAPACITY, &first));
	CHECK(first == 0 && gate->ring.head == CAPACITY);
	CHECK(!bdr_ring_reserve_locked(&gate->ring, 1, &first));
	CHECK(bdr_ring_used(&gate->ring) == CAPACITY);
	gate_destroy(gate);
}

static void test_publish_splits_a_write_into_slots(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write write = write_of(100, 18);	/* 8 + 8 + 2 */
	static const uint64_t sectors[] = { 8, 8, 2 };
	uint64_t i;

	write.fua = true;
	bdr_ring_publish(&gate->ring, 0, 3, &write);
	for (i = 0; i < 3; i++) {
		uint64_t header = gate->ring.headers[i];

		CHECK(bdr_ring_is_published(&gate->ring, i));
		CHECK((header & BDR_SECTOR_MASK) == 100 + 8 * i);
		CHECK((header >> BDR_COUNT_SHIFT & BDR_COUNT_MASK) + 1 == sectors[i]);
		CHECK((header >> BDR_OP_SHIFT & BDR_OP_MASK) == BDR_OP_WRITE);
		CHECK(header >> BDR_FUA_SHIFT & 1);
		CHECK((header >> BDR_LAST_SHIFT & 1) == (i == 2));
	}
	CHECK(!bdr_ring_is_published(&gate->ring, 3));
	gate_destroy(gate);
}

static void test_discard_keeps_its_length_in_the_payload(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write write = {
		.sector = 5, .sectors = 1ULL << 40, .op = BDR_OP_DISCARD,
	};
	__u64 sectors;

	bdr_ring_fill_length(&gate->ring, 1, write.sectors);
	bdr_ring_publish(&gate->ring, 1, 1, &write);
	memcpy(&sectors, gate->ring.payload + BDR_PAYLOAD_BYTES, sizeof(sectors));
	CHECK(sectors == 1ULL << 40);
	CHECK((gate->ring.headers[1] >> BDR_OP_SHIFT & BDR_OP_MASK) == BDR_OP_DISCARD);
	gate_destroy(gate);
}

/* Random writes over many laps: data, order and phases against a model. */
static void test_laps_against_a_model(void)
{
	struct bdr_gate *gate = gate_create();
	unsigned char *data = malloc(CAPACITY * BDR_PAYLOAD_BYTES);
	int round;

	CHECK(data);
	for (round = 0; round < 5000; round++) {
		uint64_t bytes = BDR_SECTOR_BYTES *
				 (1 + random_below(CAPACITY * BDR_SLOT_SECTORS));
		struct bdr_write write = write_of(random_below(1000),
						  bytes / BDR_SECTOR_BYTES);
		struct bdr_pass pass;
		uint64_t i, split = random_below(bytes);

		for (i = 0; i < bytes; i++)
			data[i] = (unsigned char)(round * 7 + i / 256 + i);
		CHECK(!admit(gate, &write, &pass));
		CHECK(pass.logged);
		CHECK(!bdr_ring_is_published(&gate->ring, pass.first));
		/* In two pieces, as from two pages of a bio. */
		bdr_ring_fill(&gate->ring, pass.first, 0, data, split);
		bdr_ring_fill(&gate->ring, pass.first, split, data + split,
			      bytes - split);
		CHECK(bdr_ring_check_release(&gate->ring, gate->ring.head,
					     gate->ring.head) == -EBUSY);
		complete(gate, &pass, &write, false);
		for (i = 0; i < bytes; i++) {
			uint64_t slot = pass.first + i / BDR_PAYLOAD_BYTES;

			CHECK(gate->ring.payload[slot % CAPACITY * BDR_PAYLOAD_BYTES +
						 i % BDR_PAYLOAD_BYTES] == data[i]);
		}
		for (i = 0; i < pass.slots; i++)
			CHECK(bdr_ring_is_published(&gate->ring, pass.first + i));
		/* Free slots of this lap and of the next are not. */
		for (i = pass.slots; i < CAPACITY; i++)
			CHECK(!bdr_ring_is_published(&gate->ring, pass.first + i));
		CHECK(!bdr_ring_is_published(&gate->ring, pass.first + CAPACITY));
		drain(gate);
	}
	CHECK(gate->ring.head > 100 * CAPACITY);
	free(data);
	gate_destroy(gate);
}

static void test_release_checks_every_slot(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write write = write_of(0, 8);
	struct bdr_pass a, b, c;
	struct bdr_ring *ring = &gate->ring;

	admit(gate, &write, &a);
	admit(gate, &write, &b);
	admit(gate, &write, &c);
	complete(gate, &a, &write, false);
	complete(gate, &c, &write, false);	/* b is in flight */

	CHECK(bdr_ring_check_release(ring, ring->head, 0) == 0);
	CHECK(bdr_ring_check_release(ring, ring->head, 1) == 0);
	CHECK(bdr_ring_check_release(ring, ring->head, 2) == -EBUSY);
	CHECK(bdr_ring_check_release(ring, ring->head, 3) == -EBUSY);
	CHECK(bdr_ring_check_release(ring, ring->head, 4) == -ERANGE);
	CHECK(bdr_ring_check_release(ring, ring->head, ~0ULL) == -ERANGE);
	bdr_gate_release_locked(gate, 1);
	CHECK(bdr_ring_check_release(ring, ring->head, 0) == -ERANGE);
	complete(gate, &b, &write, false);
	CHECK(bdr_ring_check_release(ring, ring->head, 3) == 0);
	gate_destroy(gate);
}

/* ---- the gate ---------------------------------------------------------- */

static void test_write_that_overflows_is_marked_whole(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write small = write_of(0, 8);
	struct bdr_write big = write_of(12, CAPACITY * 8);
	struct bdr_pass first, second, third;
	uint64_t region;

	CHECK(!admit(gate, &small, &first));
	CHECK(admit(gate, &big, &second));	/* turned */
	CHECK(!second.logged && gate->mode == BDR_MODE_OVERFLOW);
	CHECK(gate->gap == 1 && gate->overflows == 1 && gate->missed == 1);
	/* There is room for this one, but the order of writes has a hole. */
	CHECK(!admit(gate, &small, &third));
	CHECK(!third.logged && gate->missed == 2 && gate->overflows == 1);
	CHECK(gate->unlogged[0] == 2);
	for (region = 0; region < REGIONS; region++)
		CHECK(bit(gate->active, region) ==
		      (region == 0 || (region >= 1 && region <= 14)));
	gate_destroy(gate);
}

static void test_resume_waits_for_the_old_unlogged_writes_only(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write big = write_of(0, (CAPACITY + 1) * 8);
	struct bdr_write small = write_of(8 * 50, 8);
	struct bdr_pass old, logged, fresh;

	admit(gate, &big, &old);
	CHECK(bdr_gate_resume_locked(gate) == 0);
	CHECK(gate->mode == BDR_MODE_STREAM);
	CHECK(!bdr_gate_drained_locked(gate));

	admit(gate, &small, &logged);
	CHECK(logged.logged && logged.first == 0);
	/* The mode turns again while the RESUME waits. */
	CHECK(admit(gate, &big, &fresh));
	CHECK(!fresh.logged && gate->gap == 0);
	CHECK(!bdr_gate_drained_locked(gate));

	CHECK(bdr_gate_leave_locked(gate, &old, &big));
	CHECK(bdr_gate_drained_locked(gate));
	CHECK(!bdr_gate_leave_locked(gate, &fresh, &big));
	gate_destroy(gate);
}

static void test_merge_during_a_new_overflow_loses_no_region(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write old_write = write_of(0, (CAPACITY + 1) * 8);
	struct bdr_write write = write_of(8 * 100, (CAPACITY + 1) * 8);
	struct bdr_pass old, fresh;
	uint64_t region;

	admit(gate, &old_write, &old);
	bdr_gate_resume_locked(gate);
	admit(gate, &write, &fresh);	/* not on the disk yet */
	CHECK(bdr_gate_leave_locked(gate, &old, &old_write));
	bdr_gate_merge(gate);
	CHECK(bit(gate->resync, 100) && !bit(gate->active, 100));
	/* A scan repairs the region, from a disk that lacks the write. */
	bdr_bitmap_clear(gate->resync, 0, REGIONS);
	/* It completes: its regions must be known to the next RESUME. */
	bdr_gate_leave_locked(gate, &fresh, &write);
	bdr_gate_resume_locked(gate);
	CHECK(bdr_gate_drained_locked(gate));
	bdr_gate_merge(gate);
	for (region = 100; region <= 100 + CAPACITY; region++)
		CHECK(bit(gate->resync, region));
	CHECK(bdr_bitmap_count(gate->active, REGIONS) == 0);
	gate_destroy(gate);
}

static void test_gap_stays_until_a_slot_behind_it_is_released(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write small = write_of(0, 8);
	struct bdr_write big = write_of(0, (CAPACITY + 1) * 8);
	struct bdr_pass pass;

	admit(gate, &small, &pass);
	complete(gate, &pass, &small, false);
	admit(gate, &big, &pass);
	CHECK(gate->gap == 1);
	bdr_gate_leave_locked(gate, &pass, &big);
	CHECK(bdr_gate_resume_locked(gate) == 1);
	admit(gate, &small, &pass);
	complete(gate, &pass, &small, false);
	bdr_gate_release_locked(gate, 1);
	CHECK(gate->gap == 1);
	/* A second overflow before that: both are known. */
	admit(gate, &big, &pass);
	CHECK(gate->gap == 1 && gate->last_gap == 2 && gate->overflows == 2);
	/* Slot 1 is released, with it the first gap, and not the second. */
	bdr_gate_release_locked(gate, 2);
	CHECK(gate->gap == 2 && gate->last_gap == 2);
	bdr_gate_leave_locked(gate, &pass, &big);
	CHECK(bdr_gate_resume_locked(gate) == 2);
	admit(gate, &small, &pass);
	complete(gate, &pass, &small, false);
	bdr_gate_release_locked(gate, 3);
	CHECK(gate->gap == BDR_GAP_NONE && gate->last_gap == BDR_GAP_NONE);
	gate_destroy(gate);
}

static void test_gap_between_the_first_and_the_last_is_no_lower_than_said(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write small = write_of(0, 8);
	struct bdr_pass pass;
	__u64 slot;

	for (slot = 0; slot < 4; slot++) {
		bdr_gate_overflow_locked(gate);
		bdr_gate_resume_locked(gate);
		admit(gate, &small, &pass);
		complete(gate, &pass, &small, false);
	}
	CHECK(gate->gap == 0 && gate->last_gap == 3);
	bdr_gate_release_locked(gate, 1);
	CHECK(gate->gap == 1 && gate->last_gap == 3);
	bdr_gate_release_locked(gate, 3);
	CHECK(gate->gap == 3 && gate->last_gap == 3);
	bdr_gate_release_locked(gate, 4);
	CHECK(gate->gap == BDR_GAP_NONE && gate->last_gap == BDR_GAP_NONE);
	gate_destroy(gate);
}

static void test_failed_write_becomes_nop_and_dirty(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write write = write_of(8 * 70 + 4, 9);
	struct bdr_pass pass;
	uint64_t i;

	admit(gate, &write, &pass);
	CHECK(pass.slots == 2);
	complete(gate, &pass, &write, true);
	for (i = 0; i < 2; i++) {
		CHECK(bdr_ring_is_published(&gate->ring, i));
		CHECK((gate->ring.headers[i] >> BDR_OP_SHIFT & BDR_OP_MASK) ==
		      BDR_OP_NOP);
	}
	CHECK(bit(gate->active, 70) && bit(gate->active, 71));
	CHECK(bdr_bitmap_count(gate->active, REGIONS) == 2);
	drain(gate);
	gate_destroy(gate);
}

static void test_flush_marks_nothing(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write flush = { .op = BDR_OP_FLUSH };
	struct bdr_pass pass;

	admit(gate, &flush, &pass);
	CHECK(pass.logged && pass.slots == 1);
	complete(gate, &pass, &flush, true);
	CHECK(bdr_bitmap_count(gate->active, REGIONS) == 0);
	gate_destroy(gate);
}

static void test_flush_without_room_is_no_overflow(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write flush = { .op = BDR_OP_FLUSH };
	struct bdr_pass pass;

	gate->ring.head = gate->ring.tail + gate->ring.capacity;
	CHECK(!admit(gate, &flush, &pass));
	CHECK(!pass.logged && gate->mode == BDR_MODE_STREAM);
	CHECK(gate->gap == BDR_GAP_NONE && gate->overflows == 0);
	bdr_gate_leave_locked(gate, &pass, &flush);
	CHECK(bdr_bitmap_count(gate->active, REGIONS) == 0);
	gate_destroy(gate);
}

/* ---- the bitmap -------------------------------------------------------- */

static void model_check(const __u64 *bitmap, const bool *model)
{
	uint64_t region, count = 0;

	for (region = 0; region < REGIONS; region++) {
		CHECK(bit(bitmap, region) == model[region]);
		count += model[region];
	}
	CHECK(bdr_bitmap_count(bitmap, REGIONS) == count);
	/* Bits behind the end stay clear. */
	CHECK(bitmap[REGIONS / 64] >> (REGIONS % 64) == 0);
}

static void test_bitmap_against_a_model(void)
{
	size_t words = bdr_bitmap_words(REGIONS);
	__u64 *from = calloc(words, sizeof(__u64));
	__u64 *to = calloc(words, sizeof(__u64));
	bool from_model[REGIONS] = { false }, to_model[REGIONS] = { false };
	int round;

	CHECK(from && to);
	CHECK(words == 4);
	for (round = 0; round < 20000; round++) {
		uint64_t first = random_below(REGIONS + 1);
		uint64_t end = first + random_below(REGIONS - first + 1);
		uint64_t region;

		switch (random_below(8)) {
		case 0:
			bdr_bitmap_merge(to, from, REGIONS);
			for (region = 0; region < REGIONS; region++) {
				to_model[region] |= from_model[region];
				from_model[region] = false;
			}
			break;
		case 1: case 2: case 3:
			bdr_bitmap_clear(to, first, end);
			for (region = first; region < end; region++)
				to_model[region] = false;
			break;
		default:
			bdr_bitmap_mark(from, first, end);
			for (region = first; region < end; region++)
				from_model[region] = true;
		}
		model_check(from, from_model);
		model_check(to, to_model);
	}
	free(to);
	free(from);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	random_state = strtoull(argv[1], NULL, 10) | 1;

	test_header_fields();
	test_write_slots();
	test_reserve_all_or_nothing();
	test_publish_splits_a_write_into_slots();
	test_discard_keeps_its_length_in_the_payload();
	test_laps_against_a_model();
	test_release_checks_every_slot();
	test_write_that_overflows_is_marked_whole();
	test_resume_waits_for_the_old_unlogged_writes_only();
	test_merge_during_a_new_overflow_loses_no_region();
	test_gap_stays_until_a_slot_behind_it_is_released();
	test_gap_between_the_first_and_the_last_is_no_lower_than_said();
	test_failed_write_becomes_nop_and_dirty();
	test_flush_marks_nothing();
	test_flush_without_room_is_no_overflow();
	test_bitmap_against_a_model();
	puts("ok");
	return 0;
}
