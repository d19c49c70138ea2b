// SPDX-License-Identifier: GPL-2.0-only
/*
 * Several producers, one consumer and one observer, under TSan.
 *
 * Every write has a region of its own, so at the end each is accounted for: the
 * consumer has seen its slots, with its data, or its bit is in a bitmap.  The
 * consumer stalls now and then, so the ring overflows and is resumed under load;
 * some writes fail.  What one producer submits appears in its order.  The observer
 * asks for the status and for the bitmaps meanwhile, which must agree.
 */
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "bdr_request.h"
#include "check.h"

#define PRODUCERS	4
#define WRITES		4000	/* of each producer */
#define CAPACITY	61
#define SLOTS_MAX	4
#define REGION_SECTORS	(SLOTS_MAX * BDR_SLOT_SECTORS)
#define REGIONS		(PRODUCERS * WRITES)
#define STALL_EVERY	2000	/* slots */

static struct bdr_gate gate;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t drained = PTHREAD_COND_INITIALIZER;
static unsigned int producers_left = PRODUCERS;

static bool seen[REGIONS];	/* the consumer's */
static bool failed[REGIONS];	/* each written by one producer */

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 31) * 0x9e3779b97f4a7c15ULL;
	return x ^ x >> 29;
}

/* Every word of a write's data says whose it is. */
static uint64_t word_of(uint64_t region, uint64_t offset)
{
	return mix(region * 1000003 + offset);
}

static uint64_t slots_of(uint64_t region)
{
	return 1 + mix(region) % SLOTS_MAX;
}

static __u64 read_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (__u64)now.tv_sec * 1000000000 + (__u64)now.tv_nsec;
}

static void produce(uint64_t region)
{
	uint64_t slots = slots_of(region);
	static __thread uint64_t data[SLOTS_MAX * BDR_PAYLOAD_BYTES / 8];
	struct bdr_write write = {
		.sector = region * REGION_SECTORS,
		.sectors = slots * BDR_SLOT_SECTORS,
		.op = BDR_OP_WRITE,
	};
	struct bdr_pass pass;
	uint64_t i;

	for (i = 0; i < slots * BDR_PAYLOAD_BYTES / 8; i++)
		data[i] = word_of(region, i);

	pthread_mutex_lock(&lock);
	bdr_gate_admit_locked(&gate, &write, &pass, read_clock());
	pthread_mutex_unlock(&lock);

	if (pass.logged)
		bdr_ring_fill(&gate.ring, pass.first, 0, data,
			      slots * BDR_PAYLOAD_BYTES);
	if (mix(region + 7) % 4 == 0)
		sched_yield();		/* the disk takes its time */

	if (pass.logged) {
		failed[region] = mix(region + 3) % 50 == 0;
		if (!failed[region]) {
			bdr_gate_publish(&gate, &pass, &write);
			return;
		}
		pthread_mutex_lock(&lock);
		bdr_gate_fail_locked(&gate, &write);
		pthread_mutex_unlock(&lock);
		bdr_gate_publish_nop(&gate, &pass, &write);
		return;
	}
	pthread_mutex_lock(&lock);
	if (bdr_gate_leave_locked(&gate, &pass, &write))
		pthread_cond_signal(&drained);
	pthread_mutex_unlock(&lock);
}

static void *producer(void *arg)
{
	uint64_t number = (uintptr_t)arg;
	uint64_t i;

	for (i = 0; i < WRITES; i++)
		produce(number * WRITES + i);
	__atomic_fetch_sub(&producers_left, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* ---- the consumer ------------------------------------------------------ */

static int64_t latest[PRODUCERS] = { -1, -1, -1, -1 };

/* One slot of the prefix; returns whether it is the last of its write. */
static bool consume(uint64_t slot)
{
	uint64_t index = slot % CAPACITY;
	uint64_t header = gate.ring.headers[index];
	uint64_t sector = header & BDR_SECTOR_MASK;
	uint64_t region = sector / REGION_SECTORS;
	uint64_t part = sector % REGION_SECTORS / BDR_SLOT_SECTORS;
	const uint64_t *data =
		(uint64_t *)(gate.ring.payload + index * BDR_PAYLOAD_BYTES);
	uint64_t i;

	CHECK(region < REGIONS);
	if ((header >> BDR_OP_SHIFT & BDR_OP_MASK) == BDR_OP_NOP) {
		/* Who sees the NOP finds the bit. */
		CHECK(bdr_word_read(&gate.active[region / 64]) >> region % 64 & 1 ||
		      bdr_word_read(&gate.resync[region / 64]) >> region % 64 & 1);
		return header >> BDR_LAST_SHIFT & 1;
	}
	for (i = 0; i < BDR_PAYLOAD_BYTES / 8; i++)
		CHECK(data[i] == word_of(region,
					 part * BDR_PAYLOAD_BYTES / 8 + i));
	if (part == 0) {
		int64_t number = region / WRITES, sequence = region % WRITES;

		CHECK(!seen[region]);
		CHECK(latest[number] < sequence);
		latest[number] = sequence;
	}
	seen[region] = true;
	return header >> BDR_LAST_SHIFT & 1;
}

/* Whether a write begins to be published at `slot`; looks often, to see it happen. */
static bool appears(uint64_t slot)
{
	int look;

	for (look = 0; look < 100; look++)
		if (bdr_ring_is_published(&gate.ring, slot))
			return true;
	return false;
}

/* Consumes whole writes; returns the new cursor. */
static uint64_t consume_prefix(uint64_t cursor)
{
	while (appears(cursor)) {
		uint64_t header = gate.ring.headers[cursor % CAPACITY];
		uint64_t region = (header & BDR_SECTOR_MASK) / REGION_SECTORS;
		uint64_t slots = slots_of(region);

		/* The first slot is shown last: at once, the rest is there. */
		CHECK(bdr_ring_is_published(&gate.ring, cursor + slots - 1));
		while (--slots)
			CHECK(!consume(cursor++));
		CHECK(consume(cursor++));
	}
	return cursor;
}

static void release(uint64_t tail)
{
	struct bdr_release request = { .tail = tail, .cursor = tail };
	uint64_t head;

	pthread_mutex_lock(&lock);
	head = gate.ring.head;
	pthread_mutex_unlock(&lock);
	CHECK(bdr_request_check_release(&gate.ring, head, &request) == 0);
	pthread_mutex_lock(&lock);
	bdr_gate_release_locked(&gate, tail);
	pthread_mutex_unlock(&lock);
}

static bool resume_if_overflowed(void)
{
	bool overflowed;

	pthread_mutex_lock(&lock);
	overflowed = gate.mode == BDR_MODE_OVERFLOW;
	if (overflowed) {
		bdr_gate_resume_locked(&gate);
		while (!bdr_gate_drained_locked(&gate))
			pthread_cond_wait(&drained, &lock);
	}
	pthread_mutex_unlock(&lock);
	if (overflowed)
		bdr_gate_merge(&gate);
	return overflowed;
}

static bool is_overflowed(void)
{
	bool overflowed;

	pthread_mutex_lock(&lock);
	overflowed = gate.mode == BDR_MODE_OVERFLOW;
	pthread_mutex_unlock(&lock);
	return overflowed;
}

static bool producers_run(void)
{
	return __atomic_load_n(&producers_left, __ATOMIC_ACQUIRE) > 0;
}

static void *consumer(void *arg)
{
	uint64_t cursor = 0, stalled = 0;

	(void)arg;
	for (;;) {
		bool running = producers_run();

		cursor = consume_prefix(cursor);
		if (cursor - stalled > STALL_EVERY) {
			while (producers_run() && !is_overflowed())
				sched_yield();
			stalled = cursor;
			continue;
		}
		release(cursor);
		if (!resume_if_overflowed() && !running)
			return NULL;
		sched_yield();
	}
}

/* ---- the observer ------------------------------------------------------ */

static void read_bitmap(__u32 bitmap, __u64 *words)
{
	struct bdr_bitmap_range range = { .count = REGIONS, .bitmap = bitmap };

	CHECK(bdr_request_check_bitmap(BDR_IOC_BITMAP_READ, &range) == 0);
	CHECK(bdr_request_check_range(BDR_IOC_BITMAP_READ, &range, REGIONS) == 0);
	bdr_request_read_bitmap(&gate, &range, words);
}

/* Regions that are marked in either bitmap. */
static uint64_t count_marked(void)
{
	static __u64 active[(REGIONS + 63) / 64], resync[(REGIONS + 63) / 64];
	uint64_t word, count = 0;

	read_bitmap(BDR_BITMAP_ACTIVE, active);
	read_bitmap(BDR_BITMAP_RESYNC, resync);
	for (word = 0; word < bdr_bitmap_words(REGIONS); word++)
		count += __builtin_popcountll(active[word] | resync[word]);
	return count;
}

static void look(struct bdr_status *status, __u64 published)
{
	__u64 gate_marked;

	pthread_mutex_lock(&lock);
	if (published < gate.ring.tail)
		published = gate.ring.tail;
	published = bdr_ring_find_unpublished(&gate.ring, published, gate.ring.head);
	bdr_request_fill_status_locked(status, &gate, published, read_clock());
	gate_marked = gate.marked;
	pthread_mutex_unlock(&lock);
	bdr_request_count_bits(status, &gate);
	pthread_mutex_lock(&lock);
	bdr_request_finish_status_locked(status, &gate, gate_marked);
	pthread_mutex_unlock(&lock);
}

/* Of a copy that is younger than the status. */
static void check_marks(const struct bdr_status *status)
{
	static struct bdr_mark marks[BDR_MARKS_MAX];
	__u32 count, i;
	__u64 now;

	pthread_mutex_lock(&lock);
	count = bdr_marks_copy_locked(&gate.marks, marks);
	now = read_clock();
	pthread_mutex_unlock(&lock);
	CHECK(count >= (status->marks ? 1 : 0));
	for (i = 0; i < count; i++) {
		CHECK(!i || marks[i].slot > marks[i - 1].slot);
		CHECK(!i || marks[i].clock_ns > marks[i - 1].clock_ns);
		CHECK(marks[i].clock_ns <= now);
	}
}

static void *observer(void *arg)
{
	struct bdr_status before = { 0 }, status;
	uint64_t marked = 0;

	(void)arg;
	while (producers_run()) {
		look(&status, before.unpublished);
		CHECK(status.tail <= status.unpublished);
		CHECK(status.unpublished <= status.head);
		CHECK(status.head <= status.tail + CAPACITY);
		CHECK(status.tail >= before.tail);
		CHECK(status.unpublished >= before.unpublished);
		CHECK(status.overflows >= before.overflows);
		/* Who sees bits is told that something is missing. */
		CHECK(status.missed_since_ns != BDR_MISSED_NOTHING ||
		      !(status.active_regions || status.resync_regions));
		CHECK(status.missed_since_ns == BDR_MISSED_UNKNOWN ||
		      status.missed_since_ns <= status.clock_ns);
		/* Failed writes are never forgotten: nothing is cleared here. */
		CHECK(before.missed_since_ns != BDR_MISSED_UNKNOWN ||
		      status.missed_since_ns == BDR_MISSED_UNKNOWN);
		CHECK(status.clock_ns >= before.clock_ns);
		check_marks(&status);
		/* No bit is cleared here; one that moves is counted at least once. */
		CHECK(status.active_regions + status.resync_regions >= marked);
		CHECK(count_marked() >= marked);
		marked = count_marked();
		before = status;
		sched_yield();
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[PRODUCERS], reader, watcher;
	uint64_t region, missed = 0, failures = 0;
	uintptr_t i;

	gate.ring.capacity = CAPACITY;
	gate.ring.headers = calloc(CAPACITY, sizeof(__u64));
	gate.ring.payload = calloc(CAPACITY, BDR_PAYLOAD_BYTES);
	gate.device_sectors = (uint64_t)REGIONS * REGION_SECTORS;
	gate.region_sectors = REGION_SECTORS;
	gate.active = calloc(bdr_bitmap_words(REGIONS), sizeof(__u64));
	gate.resync = calloc(bdr_bitmap_words(REGIONS), sizeof(__u64));
	gate.marks.table = calloc(BDR_MARKS_MAX, sizeof(struct bdr_mark));
	CHECK(gate.ring.headers && gate.ring.payload);
	CHECK(gate.active && gate.resync && gate.marks.table);
	bdr_gate_init(&gate);

	CHECK(!pthread_create(&reader, NULL, consumer, NULL));
	CHECK(!pthread_create(&watcher, NULL, observer, NULL));
	for (i = 0; i < PRODUCERS; i++)
		CHECK(!pthread_create(&threads[i], NULL, producer, (void *)i));
	for (i = 0; i < PRODUCERS; i++)
		CHECK(!pthread_join(threads[i], NULL));
	CHECK(!pthread_join(reader, NULL));
	CHECK(!pthread_join(watcher, NULL));

	CHECK(gate.unlogged[0] == 0 && gate.unlogged[1] == 0);
	CHECK(bdr_ring_used(&gate.ring) == 0);
	for (region = 0; region < REGIONS; region++) {
		bool dirty = ((gate.active[region / 64] | gate.resync[region / 64]) >>
			      region % 64) & 1;

		/* In the ring, or in a bitmap: one of them, and never neither. */
		CHECK(seen[region] != dirty);
		missed += dirty && !failed[region];
		failures += failed[region];
	}
	CHECK(missed == gate.missed);
	CHECK(gate.missed_since_ns == BDR_MISSED_UNKNOWN && gate.marks.next);
	/* The run has met what it is for. */
	CHECK(gate.overflows > 1 && missed && failures);
	CHECK(gate.ring.head > 10 * CAPACITY);
	printf("ok: %llu slots, %llu overflows, %llu missed, %llu failed\n",
	       gate.ring.head, gate.overflows, gate.missed,
	       (unsigned long long)failures);
	free(gate.marks.table);
	free(gate.resync);
	free(gate.active);
	free(gate.ring.payload);
	free(gate.ring.headers);
	return 0;
}
