// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random packets, handled as a capture handles them, under ASan and UBSan: what is
 * granted does what a model does, and what is refused changes nothing.
 *
 * The model states the rules in its own way: sizes are those of the structures,
 * sums have 128 bits, bits are looked at one by one.  Packets and answers are
 * allocated to their size, so ASan reports what is read or written beyond it.
 */
#include <string.h>

#include "requests.h"

#define STEPS		400000
#define INFLIGHT_MAX	20

union argument {
	struct bdr_open open;
	struct bdr_release release;
	struct bdr_bitmap_range range;
	struct bdr_marks_read marks;
	__u64 words[sizeof(struct bdr_bitmap_range) / sizeof(__u64)];
};

struct io {
	struct bdr_write write;
	struct bdr_pass pass;
};

static struct bdr_gate *gate;
static struct io inflight[INFLIGHT_MAX];
static unsigned int inflight_count;
static bool is_open, is_consumer;

/* The model.  A slot that is in the ring has its place in `published`. */
static __u64 model_head, model_tail;
static __u64 model_acknowledged, model_counted;
static __u64 model_missed_since, model_marks, model_mark_slot, model_mark_clock;
static bool published[CAPACITY];
static bool active[REGIONS], resync[REGIONS];

/* How often each code was granted, and refused with each errno. */
static unsigned int granted[CODES], refused[256];
/* STATUS that found both bitmaps empty. */
static unsigned int forgotten;

static void model_mark(const struct bdr_write *write)
{
	__u64 region;

	for (region = 0; region < REGIONS; region++)
		if (region * REGION_SECTORS < write->sector + write->sectors &&
		    (region + 1) * REGION_SECTORS > write->sector)
			active[region] = true;
}

static void step_submit(void)
{
	struct io *io = &inflight[inflight_count];
	__u64 slot;

	if (inflight_count == INFLIGHT_MAX)
		return;
	inflight_count++;
	clock_ns += random_below(BDR_MARKS_INTERVAL_NS / 2);
	io->write = write_of(random_below((REGIONS - 8) * REGION_SECTORS),
			     1 + random_below(3 * BDR_SLOT_SECTORS));
	admit(gate, &io->write, &io->pass);
	if (!io->pass.logged) {
		model_mark(&io->write);
		if (!model_missed_since)
			model_missed_since = clock_ns;
	} else if (!model_marks ||
		   clock_ns - model_mark_clock >= BDR_MARKS_INTERVAL_NS) {
		model_marks++;
		model_mark_slot = model_head;
		model_mark_clock = clock_ns;
	}
	for (slot = 0; io->pass.logged && slot < io->pass.slots; slot++)
		published[model_head++ % CAPACITY] = false;
}

static void step_complete(void)
{
	bool failed = random_below(10) == 0;
	unsigned int at;
	struct io io;
	__u64 slot;

	if (!inflight_count)
		return;
	at = random_below(inflight_count);
	io = inflight[at];
	inflight[at] = inflight[--inflight_count];
	if (!io.pass.logged) {
		bdr_gate_leave_locked(gate, &io.pass, &io.write);
		model_mark(&io.write);
		return;
	}
	complete(gate, &io.pass, &io.write, failed);
	if (failed) {
		model_mark(&io.write);
		model_missed_since = ~0ULL;
	}
	for (slot = 0; slot < io.pass.slots; slot++)
		published[(io.pass.first + slot) % CAPACITY] = true;
}

static void step_resume(void)
{
	unsigned int i;

	for (i = 0; i < inflight_count; i++)
		if (!inflight[i].pass.logged)
			return;
	CHECK(bdr_gate_resume_locked(gate) == model_head);
	CHECK(bdr_gate_drained_locked(gate));
	bdr_gate_merge(gate);
	for (i = 0; i < REGIONS; i++) {
		resync[i] |= active[i];
		active[i] = false;
	}
}

/* Numbers at which code breaks: near a limit, within the device, anything. */
static __u64 random_number(void)
{
	const __u64 edges[] = {
		0, 1, 63, 64, 65, 128, 192, REGIONS - 1, REGIONS, REGIONS + 1, 256,
		BDR_BITMAP_CHUNK_REGIONS, BDR_BITMAP_CHUNK_REGIONS + 64, 1ULL << 32,
		1ULL << 63, ~0ULL, ~0ULL - 63, model_tail, model_head, model_head + 1,
		BDR_ABI_VERSION,
	};

	switch (random_below(4)) {
	case 0:
		return edges[random_below(sizeof(edges) / sizeof(edges[0]))];
	case 1:
		return random_below(REGIONS + 10);
	case 2:
		return model_tail + random_below(CAPACITY + 2);
	default:
		return random_word() >> random_below(64);
	}
}

/* A range that may be right. */
static void random_range(struct bdr_bitmap_range *range, __u32 code)
{
	if (code == BDR_IOC_BITMAP_READ) {
		range->first = random_below(5) * 64;
		range->count = random_below(2) ? random_below(5) * 64 :
						 REGIONS - range->first;
	} else if (code == BDR_IOC_BITMAP_CLEAR && random_below(2)) {
		range->first = 0;	/* all of them, or no bitmap would ever be empty */
		range->count = REGIONS;
	} else {
		range->first = random_below(REGIONS + 2);
		range->count = random_below(REGIONS);
	}
}

static void random_argument(union argument *argument, __u32 code)
{
	/* Mostly what may be right, or nothing would ever be granted. */
	bool form_is_good = random_below(8), range_is_good = random_below(2);
	size_t i;

	for (i = 0; i < sizeof(argument->words) / sizeof(__u64); i++)
		argument->words[i] = random_number();
	switch (code) {
	case BDR_IOC_OPEN:
		if (form_is_good) {
			argument->open.abi_version = BDR_ABI_VERSION;
			argument->open.role = random_below(3);
		}
		break;
	case BDR_IOC_RELEASE:
		if (range_is_good) {
			argument->release.tail = model_tail + random_below(6);
			argument->release.cursor = argument->release.tail +
						   random_below(3);
		}
		if (form_is_good) {
			/* Once at their maximum they stay there. */
			argument->release.acknowledged = model_acknowledged +
				(~model_acknowledged ? random_below(2) : 0);
			argument->release.counted = model_counted +
				(~model_counted ? random_below(2) : 0);
		}
		break;
	case BDR_IOC_MARKS_READ:
		if (form_is_good)
			argument->marks = (struct bdr_marks_read){ .buffer = 1 };
		break;
	case BDR_IOC_BITMAP_READ:
	case BDR_IOC_BITMAP_CLEAR:
	case BDR_IOC_BITMAP_MARK:
		if (form_is_good) {
			argument->range.bitmap = random_below(3);
			argument->range.reserved = 0;
			argument->range.buffer = 0;
		}
		if (range_is_good)
			random_range(&argument->range, code);
		break;
	}
}

static int model_check_packet(__u32 code, __u32 reserved, size_t bytes)
{
	bool known = false;
	size_t i;

	for (i = 0; i < CODES; i++)
		known |= codes[i] == code;
	if (bytes < 8 || reserved)
		return -EINVAL;
	if (!known)
		return -ENOTTY;
	if (bytes != 8 + argument_bytes(code))
		return -EINVAL;
	if (code != BDR_IOC_OPEN && !is_open)
		return -ENOTCONN;
	return changes(code) && !is_consumer ? -EPERM : 0;
}

static int model_check_release(const struct bdr_release *release)
{
	__u64 slot;

	if (release->acknowledged < model_acknowledged ||
	    release->counted < model_counted ||
	    release->counted < release->acknowledged)
		return -EINVAL;
	if (release->tail < model_tail || release->tail > model_head)
		return -ERANGE;
	for (slot = model_tail; slot < release->tail; slot++)
		if (!published[slot % CAPACITY])
			return -EBUSY;
	return release->cursor < release->tail || release->cursor > model_head ?
	       -ERANGE : 0;
}

static int model_check_bitmap(__u32 code, const struct bdr_bitmap_range *range)
{
	unsigned __int128 end = (unsigned __int128)range->first + range->count;
	bool is_read = code == BDR_IOC_BITMAP_READ;

	if (range->reserved)
		return -EINVAL;
	if (is_read && (range->bitmap > 1 || range->first % 64 ||
			range->count > 8 * 65536))
		return -EINVAL;
	if (!is_read && (range->bitmap != 1 || range->buffer))
		return -EINVAL;
	if (end > REGIONS)
		return -ERANGE;
	return is_read && range->count % 64 && end != REGIONS ? -EINVAL : 0;
}

/* The answer is allocated to its size: what is written beyond it, ASan reports. */
static void read_bitmap(const struct bdr_bitmap_range *range)
{
	const bool *model = range->bitmap ? resync : active;
	__u64 *words = malloc(bdr_bitmap_words(range->count) * sizeof(*words));
	__u64 i;

	CHECK(words || !range->count);
	bdr_request_read_bitmap(gate, range, words);
	for (i = 0; i < range->count; i++)
		CHECK(bit(words, i) == model[range->first + i]);
	free(words);
}

static int handle_bitmap(__u32 code, const struct bdr_bitmap_range *range)
{
	int r = check_bitmap(code, range);
	__u64 i;

	CHECK(r == model_check_bitmap(code, range));
	if (r)
		return r;
	if (code == BDR_IOC_BITMAP_READ) {
		read_bitmap(range);
		return 0;
	}
	change_bitmap(gate, code, range);
	if (code == BDR_IOC_BITMAP_MARK)
		model_missed_since = ~0ULL;
	for (i = 0; i < range->count; i++)
		resync[range->first + i] = code == BDR_IOC_BITMAP_MARK;
	return 0;
}

static int handle_release(const struct bdr_release *release)
{
	int r = check_release(gate, release);

	CHECK(r == model_check_release(release));
	if (!r) {
		bdr_request_release_locked(gate, release);
		model_tail = release->tail;
		model_acknowledged = release->acknowledged;
		model_counted = release->counted;
	}
	return r;
}

static void handle_status(void)
{
	__u64 unpublished = model_tail, region, bits = 0;
	unsigned int i, unlogged = 0;
	struct bdr_status status;

	ask_status(gate, &status);
	while (unpublished < model_head && published[unpublished % CAPACITY])
		unpublished++;
	for (region = 0; region < REGIONS; region++)
		bits += active[region] + resync[region];
	for (i = 0; i < inflight_count; i++)
		unlogged += !inflight[i].pass.logged;
	if (!bits && !unlogged)
		model_missed_since = 0;
	CHECK(status.head == model_head && status.tail == model_tail);
	CHECK(status.unpublished == unpublished);
	CHECK(status.acknowledged == model_acknowledged);
	CHECK(status.counted == model_counted);
	CHECK(status.active_regions + status.resync_regions == bits);
	CHECK(status.unlogged == unlogged);
	CHECK(status.missed_since_ns == model_missed_since);
	CHECK(status.marks == model_marks && status.clock_ns == clock_ns);
	forgotten += !bits && !unlogged;
}

static int handle_marks(const struct bdr_marks_read *read)
{
	struct bdr_mark *marks;
	__u32 count, i;
	int r = bdr_request_check_marks(read);

	CHECK(r == (read->count || read->reserved ? -EINVAL : 0));
	if (r)
		return r;
	marks = malloc(BDR_MARKS_MAX * sizeof(*marks));
	CHECK(marks);
	count = bdr_marks_copy_locked(&gate->marks, marks);
	CHECK(count <= CAPACITY + 1);
	/* Every slot of the ring has one at or below it, and no two have the same. */
	CHECK(count < 2 || marks[1].slot >= model_tail);
	CHECK(!count || marks[0].slot <= model_tail);
	for (i = 1; i < count; i++)
		CHECK(marks[i].slot > marks[i - 1].slot);
	if (count) {
		CHECK(marks[count - 1].slot == model_mark_slot);
		CHECK(marks[count - 1].clock_ns == model_mark_clock);
	}
	free(marks);
	return 0;
}

/* As a capture handles a packet. */
static int handle(const void *packet, size_t bytes)
{
	struct bdr_request request = { 0 };
	union argument argument;
	int r;

	/* From memory of exactly `bytes` bytes. */
	r = bdr_request_check_packet(packet, bytes, is_open, is_consumer);
	memcpy(&request, packet, bytes < sizeof(request) ? bytes : sizeof(request));
	CHECK(r == model_check_packet(request.code, request.reserved, bytes));
	if (r)
		return r;
	memcpy(&argument, (const char *)packet + sizeof(request),
	       bytes - sizeof(request));
	switch (request.code) {
	case BDR_IOC_OPEN:
		r = bdr_request_check_open(&argument.open);
		if (!r) {
			CHECK(argument.open.abi_version == BDR_ABI_VERSION);
			CHECK(argument.open.role <= 1);
			is_open = true;
			is_consumer = argument.open.role == 1;
		}
		return r;
	case BDR_IOC_RELEASE:
		return handle_release(&argument.release);
	case BDR_IOC_STATUS:
		handle_status();
		return 0;
	case BDR_IOC_MARKS_READ:
		return handle_marks(&argument.marks);
	case BDR_IOC_INFO:
	case BDR_IOC_RESUME:
		return 0;
	default:
		return handle_bitmap(request.code, &argument.range);
	}
}

static void step_packet(void)
{
	size_t which = random_below(CODES);
	struct bdr_request request = { .code = codes[which] };
	size_t bytes = sizeof(request) + argument_bytes(request.code);
	union argument argument;
	char *packet;
	int r;

	random_argument(&argument, request.code);
	switch (random_below(20)) {
	case 0:
		request.code ^= 1U << random_below(32);
		break;
	case 1:
		request.reserved = random_below(2) << random_below(32);
		break;
	case 2:
		bytes = random_below(sizeof(request) + sizeof(argument) + 1);
		break;
	case 3:		/* another client's */
		is_open = random_below(4);
		is_consumer = is_open && random_below(3);
		break;
	}
	packet = malloc(bytes + !bytes);
	CHECK(packet);
	memcpy(packet, &request, bytes < sizeof(request) ? bytes : sizeof(request));
	if (bytes > sizeof(request))
		memcpy(packet + sizeof(request), &argument, bytes - sizeof(request));
	r = handle(packet, bytes);
	free(packet);

	CHECK(r <= 0 && -r < 256);
	if (r)
		refused[-r]++;
	else
		granted[which]++;
}

/* Nothing but what the model did has happened. */
static void check_state(void)
{
	__u64 region, slot;

	CHECK(gate->ring.head == model_head && gate->ring.tail == model_tail);
	CHECK(gate->acknowledged == model_acknowledged);
	CHECK(gate->counted == model_counted);
	for (region = 0; region < REGIONS; region++) {
		CHECK(bit(gate->active, region) == active[region]);
		CHECK(bit(gate->resync, region) == resync[region]);
	}
	CHECK(gate->resync[REGIONS / 64] >> (REGIONS % 64) == 0);
	for (slot = model_tail; slot < model_head; slot++)
		CHECK(bdr_ring_is_published(&gate->ring, slot) ==
		      published[slot % CAPACITY]);
}

int main(int argc, char **argv)
{
	static const int errnos[] = {
		EINVAL, ENOTTY, ENOTCONN, EPERM, ERANGE, EBUSY, EPROTONOSUPPORT,
	};
	unsigned int step;
	size_t i;

	CHECK(argc == 2);
	random_state = strtoull(argv[1], NULL, 10) | 1;
	gate = gate_create();
	for (step = 0; step < STEPS; step++) {
		switch (random_below(8)) {
		case 0:
			step_submit();
			break;
		case 1:
			step_complete();
			break;
		case 2:
			if (!random_below(8))
				step_resume();
			break;
		default:
			step_packet();
		}
		check_state();
	}
	/* The run has met what it is for. */
	for (i = 0; i < CODES; i++)
		CHECK(granted[i] > 100);
	for (i = 0; i < sizeof(errnos) / sizeof(errnos[0]); i++)
		CHECK(refused[errnos[i]] > 10);
	CHECK(gate->overflows > 10 && model_tail > 10 * CAPACITY);
	CHECK(forgotten > 10 && model_marks > 100);
	gate_destroy(gate);
	puts("ok");
	return 0;
}

