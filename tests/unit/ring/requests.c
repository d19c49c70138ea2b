// SPDX-License-Identifier: GPL-2.0-only
/* Each rule of bdr_request.h by an example, under ASan and UBSan. */
#include <string.h>

#include "requests.h"

static void test_packet_of_another_size_is_invalid(void)
{
	size_t i, bytes;

	for (i = 0; i < CODES; i++) {
		for (bytes = 0; bytes < 100; bytes++) {
			struct bdr_request request = { .code = codes[i] };
			size_t wanted = sizeof(request) + argument_bytes(codes[i]);

			CHECK(bdr_request_check_packet(&request, bytes, true, true) ==
			      (bytes == wanted ? 0 : -EINVAL));
		}
	}
}

static void test_packet_with_reserved_bits_is_invalid(void)
{
	struct bdr_request request = { .code = BDR_IOC_STATUS, .reserved = 1U << 31 };

	CHECK(bdr_request_check_packet(&request, sizeof(request), true, true) == -EINVAL);
}

static void test_unknown_code_is_enotty_before_its_size_or_role_matters(void)
{
	static const __u32 unknown[] = {
		0, 1, ~0U, BDR_IOC_STATUS + 1, BDR_IOC_STATUS ^ 1U << 30,
		BDR_IOC_RELEASE ^ 1U << 16, _IOW(BDR_IOC_MAGIC, 9, struct bdr_open),
	};
	size_t i;

	for (i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
		struct bdr_request request = { .code = unknown[i] };

		CHECK(bdr_request_argument_bytes(unknown[i]) == -ENOTTY);
		CHECK(bdr_request_check_packet(&request, 8, true, true) == -ENOTTY);
		CHECK(bdr_request_check_packet(&request, 99, false, false) == -ENOTTY);
	}
}

static void test_client_does_what_its_role_allows(void)
{
	size_t i;

	for (i = 0; i < CODES; i++) {
		struct bdr_request request = { .code = codes[i] };
		size_t bytes = sizeof(request) + argument_bytes(codes[i]);

		CHECK(bdr_request_check_role(codes[i], true) == 0);
		CHECK(bdr_request_check_role(codes[i], false) ==
		      (changes(codes[i]) ? -EPERM : 0));
		CHECK(bdr_request_check_packet(&request, bytes, true, true) == 0);
		CHECK(bdr_request_check_packet(&request, bytes, true, false) ==
		      (changes(codes[i]) ? -EPERM : 0));
		CHECK(bdr_request_check_packet(&request, bytes, false, false) ==
		      (codes[i] == BDR_IOC_OPEN ? 0 : -ENOTCONN));
	}
}

static void test_open_takes_this_version_and_a_known_role(void)
{
	struct bdr_open open = { BDR_ABI_VERSION, BDR_ROLE_OBSERVER };

	CHECK(bdr_request_check_open(&open) == 0);
	open.role = BDR_ROLE_CONSUMER;
	CHECK(bdr_request_check_open(&open) == 0);
	open.role = 2;
	CHECK(bdr_request_check_open(&open) == -EINVAL);
	open.abi_version = BDR_ABI_VERSION + 1;
	CHECK(bdr_request_check_open(&open) == -EPROTONOSUPPORT);
	open = (struct bdr_open){ BDR_ABI_VERSION - 1, BDR_ROLE_OBSERVER };
	CHECK(bdr_request_check_open(&open) == -EPROTONOSUPPORT);
}

static int check_slots(const struct bdr_gate *gate, __u64 tail, __u64 cursor)
{
	struct bdr_release release = { .tail = tail, .cursor = cursor };

	return check_release(gate, &release);
}

static void test_release_takes_a_published_tail_and_a_cursor_in_the_ring(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write write = write_of(0, 8);
	struct bdr_pass first, second;

	admit(gate, &write, &first);
	admit(gate, &write, &second);
	complete(gate, &first, &write, false);

	CHECK(check_slots(gate, 0, 0) == 0);
	CHECK(check_slots(gate, 0, 2) == 0);
	CHECK(check_slots(gate, 1, 1) == 0);
	CHECK(check_slots(gate, 2, 2) == -EBUSY);
	CHECK(check_slots(gate, 3, 3) == -ERANGE);
	CHECK(check_slots(gate, 1, 0) == -ERANGE);
	CHECK(check_slots(gate, 0, 3) == -ERANGE);
	CHECK(check_slots(gate, 0, ~0ULL) == -ERANGE);
	CHECK(check_slots(gate, ~0ULL, ~0ULL) == -ERANGE);
	gate_destroy(gate);
}

static void test_release_keeps_counters_that_do_not_decrease(void)
{
	static const struct {
		__u64 acknowledged, counted;
		int r;
	} rows[] = {
		{ 3, 5, 0 },
		{ 5, 5, 0 },
		{ 3, ~0ULL, 0 },
		{ ~0ULL, ~0ULL, 0 },
		{ 2, 5, -EINVAL },
		{ 3, 4, -EINVAL },
		{ 6, 5, -EINVAL },
		{ ~0ULL, 5, -EINVAL },
		{ 0, 0, -EINVAL },
	};
	struct bdr_gate *gate = gate_create();
	struct bdr_release release = { .acknowledged = 3, .counted = 5 };
	struct bdr_status status;
	size_t i;

	ask_status(gate, &status);
	CHECK(status.acknowledged == 0 && status.counted == 0);
	CHECK(check_release(gate, &release) == 0);
	bdr_request_release_locked(gate, &release);
	ask_status(gate, &status);
	CHECK(status.acknowledged == 3 && status.counted == 5);
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		release.acknowledged = rows[i].acknowledged;
		release.counted = rows[i].counted;
		CHECK(check_release(gate, &release) == rows[i].r);
	}
	/* Wrong in both ways. */
	release.tail = 1;
	CHECK(check_release(gate, &release) == -EINVAL);

	/* Another stream has other changes; slots go on. */
	bdr_gate_begin_stream_locked(gate);
	ask_status(gate, &status);
	CHECK(status.acknowledged == 0 && status.counted == 0);
	CHECK(status.mode == BDR_MODE_OVERFLOW && status.gap == 0);
	gate_destroy(gate);
}

static void test_bitmap_request_is_checked_by_form_then_by_range(void)
{
	enum { A = BDR_BITMAP_ACTIVE, R = BDR_BITMAP_RESYNC };
	static const __u32 READ = BDR_IOC_BITMAP_READ, MARK = BDR_IOC_BITMAP_MARK;
	static const struct {
		bool read;
		struct bdr_bitmap_range range;
		int r;
	} rows[] = {
		{ true, { 0, REGIONS, A, 0, 0 }, 0 },
		{ true, { 0, REGIONS, R, 0, 7 }, 0 },
		{ true, { 64, 64, R, 0, 0 }, 0 },
		{ true, { 192, REGIONS - 192, R, 0, 0 }, 0 },
		{ true, { 64, 0, R, 0, 0 }, 0 },
		{ true, { 0, 64, 2, 0, 0 }, -EINVAL },
		{ true, { 0, 64, ~0U, 0, 0 }, -EINVAL },
		{ true, { 0, 64, R, 1, 0 }, -EINVAL },
		{ true, { 1, 64, R, 0, 0 }, -EINVAL },
		{ true, { 0, 63, R, 0, 0 }, -EINVAL },
		{ true, { 64, 72, R, 0, 0 }, -EINVAL },
		{ true, { 0, BDR_BITMAP_CHUNK_REGIONS, R, 0, 0 }, -ERANGE },
		{ true, { 0, BDR_BITMAP_CHUNK_REGIONS + 64, R, 0, 0 }, -EINVAL },
		{ true, { 64, ~0ULL - 63, R, 0, 0 }, -EINVAL },
		{ true, { ~0ULL - 63, 64, R, 0, 0 }, -ERANGE },
		{ true, { 256, 0, R, 0, 0 }, -ERANGE },
		{ false, { 0, REGIONS, R, 0, 0 }, 0 },
		{ false, { 3, 130, R, 0, 0 }, 0 },
		{ false, { REGIONS, 0, R, 0, 0 }, 0 },
		{ false, { 0, 1, A, 0, 0 }, -EINVAL },
		{ false, { 0, 1, 2, 0, 0 }, -EINVAL },
		{ false, { 0, 1, R, 7, 0 }, -EINVAL },
		{ false, { 0, 1, R, 0, 1 }, -EINVAL },
		{ false, { REGIONS, 1, R, 0, 0 }, -ERANGE },
		{ false, { REGIONS + 1, 0, R, 0, 0 }, -ERANGE },
		{ false, { 1, REGIONS, R, 0, 0 }, -ERANGE },
		{ false, { 1, ~0ULL, R, 0, 0 }, -ERANGE },
		{ false, { ~0ULL, 2, R, 0, 0 }, -ERANGE },
		/* Wrong in both ways. */
		{ false, { 1, ~0ULL, A, 0, 0 }, -EINVAL },
	};
	size_t i;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int r = check_bitmap(rows[i].read ? READ : MARK, &rows[i].range);

		if (r != rows[i].r)
			fprintf(stderr, "row %zu: %d\n", i, r);
		CHECK(r == rows[i].r);
		if (!rows[i].read)
			CHECK(check_bitmap(BDR_IOC_BITMAP_CLEAR, &rows[i].range) == r);
	}
}

static void test_status_and_info_say_what_the_gate_has(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write small = write_of(0, 8), big = write_of(0, (CAPACITY + 1) * 8);
	struct bdr_status status;
	struct bdr_info info;
	struct bdr_pass pass, missed;

	admit(gate, &small, &pass);
	complete(gate, &pass, &small, false);
	admit(gate, &small, &pass);
	admit(gate, &big, &missed);
	bdr_bitmap_mark(gate->resync, 0, 3);

	memset(&status, 0xff, sizeof(status));
	ask_status(gate, &status);
	CHECK(status.head == 2 && status.tail == 0 && status.unpublished == 1);
	CHECK(status.mode == BDR_MODE_OVERFLOW && status.overflows == 1);
	CHECK(status.gap == 2 && status.last_gap == 2);
	CHECK(status.unlogged == 1 && status.missed_writes == 1);
	CHECK(status.active_regions == CAPACITY + 1 && status.resync_regions == 3);
	CHECK(status.device_sectors == gate->device_sectors);
	/* What the caller adds is zero, and so is what is reserved. */
	CHECK(!status.failed_writes && !status.reserved0 && !status.reserved[0]);
	CHECK(!status.acknowledged && !status.counted && !status.reserved[4]);
	CHECK(!status.stream_id[0] && !status.stream_id[BDR_STREAM_ID_BYTES - 1]);

	/* Both epochs count, and a hint that is older than the tail is no less. */
	bdr_gate_resume_locked(gate);
	bdr_gate_overflow_locked(gate);
	admit(gate, &big, &missed);
	complete(gate, &pass, &small, false);
	bdr_gate_release_locked(gate, 2);
	bdr_request_fill_status_locked(&status, gate, 1, clock_ns);
	CHECK(status.unlogged == 2 && status.tail == 2 && status.unpublished == 2);

	memset(&info, 0, sizeof(info));
	bdr_request_fill_info_locked(&info, gate, 4096);
	CHECK(info.abi_version == BDR_ABI_VERSION && info.capacity == CAPACITY);
	CHECK(info.device_sectors == gate->device_sectors && info.regions == REGIONS);
	CHECK(info.region_sectors == REGION_SECTORS);
	CHECK(info.payload_offset == 4096 && info.payload_bytes == CAPACITY * 4096);
	CHECK(info.map_bytes == 4096 + 2 * CAPACITY * 4096);
	gate_destroy(gate);
}

static __u64 missed_since(struct bdr_gate *gate)
{
	struct bdr_status status;

	ask_status(gate, &status);
	CHECK(status.clock_ns == clock_ns);
	return status.missed_since_ns;
}

static void test_missed_since_is_the_clock_of_the_oldest_missed_write(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write big = write_of(0, (CAPACITY + 1) * 8);
	struct bdr_write flush = { .op = BDR_OP_FLUSH };
	struct bdr_pass first, second, third;

	clock_ns = 1000;
	CHECK(missed_since(gate) == BDR_MISSED_NOTHING);
	admit(gate, &big, &first);
	clock_ns = 1010;
	admit(gate, &big, &second);
	CHECK(missed_since(gate) == 1000);
	bdr_gate_leave_locked(gate, &first, &big);
	bdr_gate_resume_locked(gate);
	/* In flight: its regions are marked again when it ends. */
	bdr_gate_merge(gate);
	bdr_bitmap_clear(gate->resync, 0, REGIONS);
	CHECK(missed_since(gate) == 1000);
	bdr_gate_leave_locked(gate, &second, &big);
	CHECK(missed_since(gate) == 1000);
	bdr_gate_merge(gate);
	bdr_bitmap_clear(gate->resync, 0, CAPACITY);
	CHECK(missed_since(gate) == 1000);
	bdr_bitmap_clear(gate->resync, 0, REGIONS);
	CHECK(missed_since(gate) == BDR_MISSED_NOTHING);

	/* A flush without room leaves nothing out. */
	gate->ring.head = gate->ring.tail + gate->ring.capacity;
	admit(gate, &flush, &third);
	CHECK(!third.logged && missed_since(gate) == BDR_MISSED_NOTHING);
	bdr_gate_leave_locked(gate, &third, &flush);
	clock_ns = 1020;
	admit(gate, &big, &first);
	CHECK(missed_since(gate) == 1020);
	gate_destroy(gate);
}

static void test_missed_since_is_unknown_once_regions_are_marked_otherwise(void)
{
	struct bdr_bitmap_range range = { .count = 1, .bitmap = BDR_BITMAP_RESYNC };
	struct bdr_gate *gate = gate_create();
	struct bdr_write big = write_of(0, (CAPACITY + 1) * 8);
	struct bdr_write small = write_of(0, 8), flush = { .op = BDR_OP_FLUSH };
	struct bdr_pass pass;

	admit(gate, &flush, &pass);
	complete(gate, &pass, &flush, true);
	CHECK(missed_since(gate) == BDR_MISSED_NOTHING);
	admit(gate, &small, &pass);
	complete(gate, &pass, &small, true);
	CHECK(missed_since(gate) == BDR_MISSED_UNKNOWN);
	admit(gate, &big, &pass);
	bdr_gate_leave_locked(gate, &pass, &big);
	CHECK(missed_since(gate) == BDR_MISSED_UNKNOWN);
	bdr_gate_resume_locked(gate);
	bdr_gate_merge(gate);
	bdr_bitmap_clear(gate->resync, 0, REGIONS);
	CHECK(missed_since(gate) == BDR_MISSED_NOTHING);

	change_bitmap(gate, BDR_IOC_BITMAP_MARK, &range);
	CHECK(missed_since(gate) == BDR_MISSED_UNKNOWN);
	change_bitmap(gate, BDR_IOC_BITMAP_CLEAR, &range);
	CHECK(missed_since(gate) == BDR_MISSED_NOTHING);
	/* A bit that is set, and of which the gate has not been told yet. */
	bdr_bitmap_mark(gate->active, 5, 6);
	CHECK(missed_since(gate) == BDR_MISSED_UNKNOWN);
	gate_destroy(gate);
}

static void test_region_marked_while_the_bits_are_counted_is_not_forgotten(void)
{
	struct bdr_gate *gate = gate_create();
	struct bdr_write big = write_of(0, (CAPACITY + 1) * 8);
	struct bdr_status status;
	struct bdr_pass pass;
	__u64 marked;

	gate->missed_since_ns = 7;	/* and every region has been repaired since */
	bdr_request_fill_status_locked(&status, gate, 0, clock_ns);
	marked = gate->marked;
	bdr_request_count_bits(&status, gate);
	admit(gate, &big, &pass);
	bdr_request_finish_status_locked(&status, gate, marked);
	CHECK(status.missed_since_ns == 7 && gate->missed_since_ns == 7);
	gate_destroy(gate);

	/* The first one: it is no older than the snapshot. */
	gate = gate_create();
	bdr_request_fill_status_locked(&status, gate, 0, clock_ns);
	marked = gate->marked;
	bdr_gate_admit_locked(gate, &big, &pass, clock_ns + 5);
	bdr_request_count_bits(&status, gate);
	bdr_request_finish_status_locked(&status, gate, marked);
	CHECK(status.missed_since_ns == clock_ns && status.active_regions);
	gate_destroy(gate);
}

static void test_marks_request_has_nothing_but_a_buffer(void)
{
	struct bdr_marks_read read = { .buffer = 7 };

	CHECK(bdr_request_check_marks(&read) == 0);
	read.count = 1;
	CHECK(bdr_request_check_marks(&read) == -EINVAL);
	read = (struct bdr_marks_read){ .reserved = 1 };
	CHECK(bdr_request_check_marks(&read) == -EINVAL);
}

int main(void)
{
	test_packet_of_another_size_is_invalid();
	test_packet_with_reserved_bits_is_invalid();
	test_unknown_code_is_enotty_before_its_size_or_role_matters();
	test_client_does_what_its_role_allows();
	test_open_takes_this_version_and_a_known_role();
	test_release_takes_a_published_tail_and_a_cursor_in_the_ring();
	test_release_keeps_counters_that_do_not_decrease();
	test_bitmap_request_is_checked_by_form_then_by_range();
	test_status_and_info_say_what_the_gate_has();
	test_missed_since_is_the_clock_of_the_oldest_missed_write();
	test_missed_since_is_unknown_once_regions_are_marked_otherwise();
	test_region_marked_while_the_bits_are_counted_is_not_forgotten();
	test_marks_request_has_nothing_but_a_buffer();
	puts("ok");
	return 0;
}
