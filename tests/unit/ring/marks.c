// SPDX-License-Identifier: GPL-2.0-only
/*
 * Marks of the clock, under ASan and UBSan: for any sequence of reservations and
 * releases, what the marks say of a slot contains the clock at its reservation.
 */
#include <string.h>

#include "bdr_marks.h"
#include "rig.h"

#define SLOTS_MAX	200000
#define INTERVAL	BDR_MARKS_INTERVAL_NS

static struct bdr_marks marks;
static __u64 now, head, tail;
static __u64 reserved_at[SLOTS_MAX];

static void begin(void)
{
	free(marks.table);
	marks.table = malloc(BDR_MARKS_MAX * sizeof(struct bdr_mark));
	CHECK(marks.table);
	memset(marks.table, 0xff, BDR_MARKS_MAX * sizeof(struct bdr_mark));
	bdr_marks_init(&marks);
	now = 1 + random_below(1ULL << 40);
	head = 0;
	tail = 0;
}

static void reserve(__u64 slots)
{
	bdr_marks_reserve_locked(&marks, head, now);
	while (slots--)
		reserved_at[head++] = now;
}

static void release(__u64 to)
{
	tail = to;
	bdr_marks_release_locked(&marks, tail);
}

/* The rule that bdr_uapi.h gives a reader, on a copy such as it gets. */
static void check_every_slot(void)
{
	static struct bdr_mark table[BDR_MARKS_MAX];
	__u32 count = bdr_marks_copy_locked(&marks, table), at = 0;
	__u64 slot;

	CHECK(count <= BDR_MARKS_MAX && (count || !head));
	CHECK(!count || table[0].slot <= tail);
	/* One that is made at the tail leaves its predecessor for the next release. */
	CHECK(count < 2 || table[1].slot >= tail);
	CHECK(count < 3 || table[2].slot > tail);
	for (slot = tail; slot < head; slot++) {
		while (at + 1 < count && table[at + 1].slot <= slot)
			at++;
		CHECK(table[at].slot <= slot);
		CHECK(table[at].clock_ns <= reserved_at[slot]);
		CHECK(at + 1 == count || reserved_at[slot] <= table[at + 1].clock_ns);
		CHECK(reserved_at[slot] <= now);
	}
}

static void test_marks_are_an_interval_apart(void)
{
	begin();
	reserve(2);
	CHECK(marks.next == 1 && marks.count == 1);
	now += INTERVAL - 1;
	reserve(1);
	CHECK(marks.next == 1);
	now += 1;
	reserve(1);
	CHECK(marks.next == 2 && bdr_marks_at(&marks, 1)->slot == 3);
	now += 100 * INTERVAL;
	reserve(1);
	CHECK(marks.next == 3 && bdr_marks_at(&marks, 2)->slot == 4);
	check_every_slot();
}

static void test_last_mark_at_or_below_the_tail_stays(void)
{
	int i;

	begin();
	for (i = 0; i < 5; i++) {
		reserve(4);
		now += INTERVAL;
	}
	release(7);
	CHECK(marks.count == 4 && bdr_marks_at(&marks, 0)->slot == 4);
	release(8);
	CHECK(marks.count == 3 && bdr_marks_at(&marks, 0)->slot == 8);
	release(20);
	CHECK(marks.count == 1 && bdr_marks_at(&marks, 0)->slot == 16);
	CHECK(marks.next == 5);
	check_every_slot();
}

static void test_full_table_is_thinned_until_it_is_left_behind(void)
{
	unsigned int i;

	begin();
	for (i = 0; i < BDR_MARKS_MAX; i++) {
		reserve(1);
		now += INTERVAL;
	}
	CHECK(marks.count == BDR_MARKS_MAX && marks.interval_ns == INTERVAL);
	check_every_slot();
	reserve(1);
	CHECK(marks.count == BDR_MARKS_MAX / 2 + 1);
	CHECK(marks.interval_ns == 2 * INTERVAL);
	check_every_slot();
	/* Every second one stays, the oldest among them. */
	for (i = 0; i < BDR_MARKS_MAX / 2; i++)
		CHECK(bdr_marks_at(&marks, i)->slot == 2 * i);
	now += INTERVAL;
	reserve(1);
	CHECK(marks.count == BDR_MARKS_MAX / 2 + 1);
	now += INTERVAL;
	reserve(1);
	CHECK(marks.count == BDR_MARKS_MAX / 2 + 2);
	release(head - 3);
	CHECK(marks.count == 2 && marks.interval_ns == 2 * INTERVAL);
	release(head);
	CHECK(marks.count == 1 && marks.interval_ns == INTERVAL);
	check_every_slot();
}

/* Bursts, idle times and backlogs, in the scale of the interval and far from it. */
static void test_any_sequence_contains_the_clock(void)
{
	__u64 numbers = 0, thinned = 0, steps = 0;
	unsigned int round;

	for (round = 0; round < 60; round++) {
		__u64 pause = 1 + (INTERVAL >> 10 << random_below(24));
		__u64 releases = 1ULL << random_below(14);
		bool is_thinned = false;

		begin();
		for (steps = 0; head + 300 < SLOTS_MAX && steps < 30000; steps++) {
			__u64 before = marks.next;

			reserve(1 + random_below(random_below(8) ? 4 : 256));
			CHECK(marks.next - before <= 1);
			/* Until a mark is lost, an interval is the error. */
			is_thinned |= marks.interval_ns > INTERVAL;
			if (!is_thinned && marks.count) {
				__u64 mark = bdr_marks_at(&marks,
							  marks.count - 1)->clock_ns;

				CHECK(now - mark < INTERVAL);
			}
			now += random_below(pause);
			if (!random_below(500))
				now += random_below(1000 * INTERVAL);
			if (!random_below(releases))
				release(tail + random_below(head - tail + 1));
			if (!random_below(2000))
				check_every_slot();
		}
		check_every_slot();
		thinned += is_thinned;
		numbers += marks.next;
		release(head);
		CHECK(marks.count == 1 && marks.interval_ns == INTERVAL);
	}
	/* The run has met what it is for. */
	CHECK(thinned > 3 && thinned < 55 && numbers > 10000);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	random_state = strtoull(argv[1], NULL, 10) | 1;

	test_marks_are_an_interval_apart();
	test_last_mark_at_or_below_the_tail_stays();
	test_full_table_is_thinned_until_it_is_left_behind();
	test_any_sequence_contains_the_clock();
	free(marks.table);
	puts("ok");
	return 0;
}
