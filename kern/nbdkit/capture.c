// SPDX-License-Identifier: GPL-2.0-only
/*
 * How a wake-up is never lost:
 *
 *	publisher                          RELEASE
 *	  store the header                   store cursor, then armed
 *	  full barrier                       full barrier
 *	  load armed, then cursor            load the header at cursor
 *
 * One of the two sees the other.  Who sees that the cursor is published while
 * `armed` is set takes the mutex, looks again, and signals.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "capture.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "headers and bitmaps are little-endian"
#endif

/* ---- wake-ups ---------------------------------------------------------- */

static void bdr_wake_signal_locked(struct bdr_wake *wake)
{
	static const __u64 one = 1;

	if (wake->signalled || wake->eventfd < 0)
		return;
	/* EAGAIN: somebody else made it readable already. */
	if (write(wake->eventfd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		nbdkit_error("cannot wake the consumer: %m");
	wake->signalled = true;
}

static void bdr_wake_clear_locked(struct bdr_wake *wake)
{
	__u64 count;

	if (!wake->signalled || wake->eventfd < 0)
		return;
	/* EAGAIN: the client has read it itself. */
	if (read(wake->eventfd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		nbdkit_error("cannot reset the consumer's wake-up: %m");
	wake->signalled = false;
}

static bool bdr_wake_is_due(const struct bdr_capture *capture)
{
	const struct bdr_wake *wake = &capture->wake;

	return __atomic_load_n(&wake->armed, __ATOMIC_ACQUIRE) &&
	       bdr_ring_is_published(&capture->gate.ring,
				     __atomic_load_n(&wake->cursor,
						     __ATOMIC_RELAXED));
}

/* After headers were stored. */
static void bdr_wake_published(struct bdr_capture *capture)
{
	struct bdr_wake *wake = &capture->wake;

	/* Pairs with the barrier in bdr_wake_arm(). */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!bdr_wake_is_due(capture))
		return;

	pthread_mutex_lock(&wake->mutex);
	if (bdr_wake_is_due(capture)) {
		__atomic_store_n(&wake->armed, false, __ATOMIC_RELAXED);
		bdr_wake_signal_locked(wake);
	}
	pthread_mutex_unlock(&wake->mutex);
}

static void bdr_wake_mode_changed(struct bdr_wake *wake)
{
	pthread_mutex_lock(&wake->mutex);
	wake->mode_changed = true;
	bdr_wake_signal_locked(wake);
	pthread_mutex_unlock(&wake->mutex);
}

/* Makes the eventfd say what is true now, and keep doing so. */
static void bdr_wake_arm_locked(struct bdr_capture *capture, __u64 cursor)
{
	struct bdr_wake *wake = &capture->wake;

	bdr_wake_clear_locked(wake);
	__atomic_store_n(&wake->cursor, cursor, __ATOMIC_RELAXED);
	__atomic_store_n(&wake->armed, true, __ATOMIC_RELEASE);
	/* Pairs with the barrier in bdr_wake_published(). */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (bdr_wake_is_due(capture)) {
		__atomic_store_n(&wake->armed, false, __ATOMIC_RELAXED);
		bdr_wake_signal_locked(wake);
	}
	if (wake->mode_changed)
		bdr_wake_signal_locked(wake);
}

/* ---- life -------------------------------------------------------------- */

static int bdr_info_fill(struct bdr_info *info, const char *underlying,
			 __u64 device_bytes, __u64 capacity, __u64 region_bytes)
{
	if (strlen(underlying) >= sizeof(info->underlying)) {
		nbdkit_error("file=%s: the path is longer than %zu bytes",
			     underlying, sizeof(info->underlying) - 1);
		return -1;
	}
	strcpy(info->underlying, underlying);
	if (getrandom(info->stream_id, sizeof(info->stream_id), 0) !=
	    sizeof(info->stream_id)) {
		nbdkit_error("cannot make a stream id: getrandom: %m");
		return -1;
	}
	info->abi_version = BDR_ABI_VERSION;
	info->device_sectors = device_bytes / BDR_SECTOR_BYTES;
	info->capacity = capacity;
	info->region_sectors = region_bytes / BDR_SECTOR_BYTES;
	return 0;
}

int bdr_capture_create(struct bdr_capture *capture, const char *underlying,
		       __u64 device_bytes, __u64 capacity, __u64 region_bytes)
{
	struct bdr_gate *gate = &capture->gate;
	struct bdr_info *info = &capture->info;
	size_t words;

	memset(capture, 0, sizeof(*capture));
	capture->memory.shared_fd = -1;
	capture->wake.eventfd = -1;
	pthread_mutex_init(&capture->lock, NULL);
	pthread_cond_init(&capture->drained, NULL);
	pthread_mutex_init(&capture->wake.mutex, NULL);
	bdr_range_lock_init(&capture->ranges);

	if (bdr_info_fill(info, underlying, device_bytes, capacity,
			  region_bytes) < 0)
		goto fail;
	if (bdr_ring_memory_create(&capture->memory, capacity) < 0)
		goto fail;

	gate->ring.headers = (__u64 *)capture->memory.map;
	gate->ring.payload = capture->memory.map + capture->memory.payload_offset;
	gate->ring.capacity = capacity;
	gate->device_sectors = info->device_sectors;
	gate->region_sectors = info->region_sectors;
	words = bdr_bitmap_words(bdr_gate_regions(gate));
	gate->active = calloc(words, sizeof(__u64));
	gate->resync = calloc(words, sizeof(__u64));
	if (!gate->active || !gate->resync) {
		nbdkit_error("region=%llu: cannot allocate two bitmaps of %zu KiB",
			     region_bytes, words * sizeof(__u64) / 1024);
		goto fail;
	}
	bdr_gate_init(gate);

	info->regions = bdr_gate_regions(gate);
	info->payload_offset = capture->memory.payload_offset;
	info->payload_bytes = capture->memory.payload_bytes;
	info->map_bytes = info->payload_offset + 2 * info->payload_bytes;
	return 0;

fail:
	bdr_capture_destroy(capture);
	return -1;
}

void bdr_capture_destroy(struct bdr_capture *capture)
{
	free(capture->gate.resync);
	free(capture->gate.active);
	bdr_ring_memory_destroy(&capture->memory);
	bdr_range_lock_destroy(&capture->ranges);
	pthread_mutex_destroy(&capture->wake.mutex);
	pthread_cond_destroy(&capture->drained);
	pthread_mutex_destroy(&capture->lock);
}

/* ---- writes ------------------------------------------------------------ */

__u64 bdr_capture_write_sectors_max(const struct bdr_capture *capture)
{
	__u64 slots = capture->gate.ring.capacity;

	if (slots > BDR_WRITE_SLOTS_MAX)
		slots = BDR_WRITE_SLOTS_MAX;
	return slots * BDR_SLOT_SECTORS;
}

void bdr_capture_begin(struct bdr_capture *capture, struct bdr_ticket *ticket,
		       const void *data)
{
	const struct bdr_write *write = &ticket->write;
	bool turned;

	pthread_mutex_lock(&capture->lock);
	turned = bdr_gate_admit_locked(&capture->gate, write, &ticket->pass);
	pthread_mutex_unlock(&capture->lock);

	if (turned)
		bdr_wake_mode_changed(&capture->wake);
	if (!ticket->pass.logged)
		return;
	if (write->op == BDR_OP_WRITE)
		bdr_ring_fill(&capture->gate.ring, ticket->pass.first, 0, data,
			      write->sectors * BDR_SECTOR_BYTES);
	else
		bdr_ring_fill_length(&capture->gate.ring, ticket->pass.first,
				     write->sectors);
}

/* A write that changed nothing leaves its slots empty, and no region dirty. */
static void bdr_capture_withdraw(struct bdr_capture *capture,
				 const struct bdr_ticket *ticket)
{
	struct bdr_write nop = ticket->write;

	nop.op = BDR_OP_NOP;
	bdr_ring_publish(&capture->gate.ring, ticket->pass.first,
			 ticket->pass.slots, &nop);
}

void bdr_capture_end(struct bdr_capture *capture,
		     const struct bdr_ticket *ticket, enum bdr_outcome outcome)
{
	if (!ticket->pass.logged) {
		bool drained;

		pthread_mutex_lock(&capture->lock);
		drained = bdr_gate_leave_locked(&capture->gate, &ticket->pass,
						&ticket->write);
		if (drained)
			pthread_cond_signal(&capture->drained);
		pthread_mutex_unlock(&capture->lock);
		return;
	}

	if (outcome == BDR_REFUSED) {
		bdr_capture_withdraw(capture, ticket);
	} else {
		if (outcome == BDR_FAILED)
			__atomic_fetch_add(&capture->failed_writes, 1,
					   __ATOMIC_RELAXED);
		bdr_gate_publish(&capture->gate, &ticket->pass, &ticket->write,
				 outcome == BDR_FAILED);
	}
	bdr_wake_published(capture);
}

/* ---- the consumer ------------------------------------------------------ */

void bdr_capture_attach(struct bdr_capture *capture, int eventfd)
{
	struct bdr_wake *wake = &capture->wake;
	bool overflow;
	__u64 tail;

	pthread_mutex_lock(&capture->lock);
	overflow = capture->gate.mode == BDR_MODE_OVERFLOW;
	tail = capture->gate.ring.tail;
	pthread_mutex_unlock(&capture->lock);

	pthread_mutex_lock(&wake->mutex);
	wake->eventfd = eventfd;
	wake->signalled = false;
	/* Bits set while nobody was here are news to the new consumer. */
	wake->mode_changed |= overflow;
	bdr_wake_arm_locked(capture, tail);
	pthread_mutex_unlock(&wake->mutex);
}

void bdr_capture_detach(struct bdr_capture *capture)
{
	struct bdr_wake *wake = &capture->wake;

	pthread_mutex_lock(&wake->mutex);
	__atomic_store_n(&wake->armed, false, __ATOMIC_RELAXED);
	wake->eventfd = -1;
	wake->signalled = false;
	pthread_mutex_unlock(&wake->mutex);
}

int bdr_capture_release(struct bdr_capture *capture,
			const struct bdr_release *release)
{
	struct bdr_ring *ring = &capture->gate.ring;
	__u64 head;
	int err;

	pthread_mutex_lock(&capture->lock);
	head = ring->head;
	pthread_mutex_unlock(&capture->lock);

	err = bdr_ring_check_release(ring, head, release->tail);
	if (err)
		return -err;
	if (release->cursor < release->tail || release->cursor > head)
		return ERANGE;

	pthread_mutex_lock(&capture->lock);
	bdr_gate_release_locked(&capture->gate, release->tail);
	pthread_mutex_unlock(&capture->lock);

	pthread_mutex_lock(&capture->wake.mutex);
	bdr_wake_arm_locked(capture, release->cursor);
	pthread_mutex_unlock(&capture->wake.mutex);
	return 0;
}

void bdr_capture_resume(struct bdr_capture *capture, struct bdr_resume *resume)
{
	pthread_mutex_lock(&capture->lock);
	resume->slot = bdr_gate_resume_locked(&capture->gate);
	/* The lock is free while this waits: new writes take slots already. */
	while (!bdr_gate_drained_locked(&capture->gate))
		pthread_cond_wait(&capture->drained, &capture->lock);
	pthread_mutex_unlock(&capture->lock);

	bdr_gate_merge(&capture->gate);
}

void bdr_capture_status_seen(struct bdr_capture *capture)
{
	struct bdr_wake *wake = &capture->wake;

	pthread_mutex_lock(&wake->mutex);
	if (wake->mode_changed) {
		wake->mode_changed = false;
		bdr_wake_arm_locked(capture, wake->cursor);
	}
	pthread_mutex_unlock(&wake->mutex);
}

/* Walks only over what was published since the last call. */
static __u64 bdr_capture_unpublished_locked(struct bdr_capture *capture)
{
	const struct bdr_ring *ring = &capture->gate.ring;
	__u64 slot = capture->unpublished_hint;

	if (slot < ring->tail)
		slot = ring->tail;
	while (slot < ring->head && bdr_ring_is_published(ring, slot))
		slot++;
	capture->unpublished_hint = slot;
	return slot;
}

void bdr_capture_status(struct bdr_capture *capture, struct bdr_status *status)
{
	const struct bdr_gate *gate = &capture->gate;
	__u64 regions = capture->info.regions;

	memset(status, 0, sizeof(*status));
	pthread_mutex_lock(&capture->lock);
	status->head = gate->ring.head;
	status->tail = gate->ring.tail;
	status->unpublished = bdr_capture_unpublished_locked(capture);
	status->gap = gate->gap;
	status->last_gap = gate->last_gap;
	status->mode = gate->mode;
	status->unlogged = gate->unlogged[0] + gate->unlogged[1];
	status->overflows = gate->overflows;
	status->missed_writes = gate->missed;
	pthread_mutex_unlock(&capture->lock);

	status->failed_writes = __atomic_load_n(&capture->failed_writes,
						__ATOMIC_RELAXED);
	status->device_sectors = capture->info.device_sectors;
	memcpy(status->stream_id, capture->info.stream_id,
	       sizeof(status->stream_id));
	/*
	 * After the slots: who learns here of a failed write's NOP learns of
	 * its bits too.  `active` first: a merge sets a bit in `resync` before
	 * it clears it here, so none is counted in neither.
	 */
	status->active_regions = bdr_bitmap_count(gate->active, regions);
	status->resync_regions = bdr_bitmap_count(gate->resync, regions);
}
