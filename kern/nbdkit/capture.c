// SPDX-License-Identifier: GPL-2.0-only
/*
 * Why no wake-up is lost:
 *
 *	publisher                          RELEASE
 *	  store the header                   store cursor, then armed
 *	  full barrier                       full barrier
 *	  load armed, then cursor            load the header at cursor
 *
 * At least one of the two observes the stores of the other.  The one that finds the
 * cursor published while `armed` is set takes the mutex, checks again, and signals.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bdr_request.h"
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
	/* EAGAIN: the count is at its maximum, so it is readable. */
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

/* Sets the state of the eventfd for `cursor`, and arms it if need be. */
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

/* ---- the clock --------------------------------------------------------- */

/* Under the lock, so that its readings do not decrease from holder to holder. */
static __u64 bdr_clock_read_locked(void)
{
	struct timespec now;

	/* Fails for an unknown clock only; the vDSO answers. */
	clock_gettime(CLOCK_BOOTTIME, &now);
	return (__u64)now.tv_sec * 1000000000 + (__u64)now.tv_nsec;
}

/* ---- life -------------------------------------------------------------- */

/* Stream id and path. */
static int bdr_info_identify(struct bdr_info *info, const char *underlying)
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
	return 0;
}

int bdr_capture_create(struct bdr_capture *capture, const char *underlying,
		       __u64 device_bytes, __u64 capacity, __u64 region_bytes)
{
	struct bdr_gate *gate = &capture->gate;
	size_t words;

	memset(capture, 0, sizeof(*capture));
	capture->memory.shared_fd = -1;
	capture->wake.eventfd = -1;
	pthread_mutex_init(&capture->lock, NULL);
	pthread_cond_init(&capture->drained, NULL);
	pthread_mutex_init(&capture->wake.mutex, NULL);
	bdr_range_lock_init(&capture->ranges);

	if (bdr_info_identify(&capture->info, underlying) < 0)
		goto fail;
	if (bdr_ring_memory_create(&capture->memory, capacity) < 0)
		goto fail;

	gate->ring.headers = (__u64 *)capture->memory.map;
	gate->ring.payload = capture->memory.map + capture->memory.payload_offset;
	gate->ring.capacity = capacity;
	gate->device_sectors = device_bytes / BDR_SECTOR_BYTES;
	gate->region_sectors = region_bytes / BDR_SECTOR_BYTES;
	words = bdr_bitmap_words(bdr_gate_regions(gate));
	gate->active = calloc(words, sizeof(__u64));
	gate->resync = calloc(words, sizeof(__u64));
	if (!gate->active || !gate->resync) {
		nbdkit_error("region=%llu: cannot allocate two bitmaps of %zu KiB",
			     region_bytes, words * sizeof(__u64) / 1024);
		goto fail;
	}
	gate->marks.table = calloc(BDR_MARKS_MAX, sizeof(struct bdr_mark));
	if (!gate->marks.table) {
		nbdkit_error("cannot allocate marks of the clock: %m");
		goto fail;
	}
	bdr_gate_init(gate);
	bdr_request_fill_info_locked(&capture->info, gate,
				     capture->memory.payload_offset);
	return 0;

fail:
	bdr_capture_destroy(capture);
	return -1;
}

void bdr_capture_destroy(struct bdr_capture *capture)
{
	free(capture->gate.marks.table);
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

void bdr_capture_begin(struct bdr_capture *capture, struct bdr_io *io,
		       const void *data)
{
	const struct bdr_write *write = &io->write;
	bool turned;

	pthread_mutex_lock(&capture->lock);
	turned = bdr_gate_admit_locked(&capture->gate, write, &io->pass,
				       bdr_clock_read_locked());
	pthread_mutex_unlock(&capture->lock);

	if (turned)
		bdr_wake_mode_changed(&capture->wake);
	if (!io->pass.logged)
		return;
	if (write->op == BDR_OP_WRITE)
		bdr_ring_fill(&capture->gate.ring, io->pass.first, 0, data,
			      write->sectors * BDR_SECTOR_BYTES);
	else
		bdr_ring_fill_length(&capture->gate.ring, io->pass.first,
				     write->sectors);
}

void bdr_capture_end(struct bdr_capture *capture,
		     const struct bdr_io *io, enum bdr_outcome outcome)
{
	if (!io->pass.logged) {
		bool drained;

		pthread_mutex_lock(&capture->lock);
		drained = bdr_gate_leave_locked(&capture->gate, &io->pass,
						&io->write);
		if (drained)
			pthread_cond_signal(&capture->drained);
		pthread_mutex_unlock(&capture->lock);
		return;
	}

	if (outcome == BDR_FAILED) {
		pthread_mutex_lock(&capture->lock);
		capture->failed_writes++;
		bdr_gate_fail_locked(&capture->gate, &io->write);
		pthread_mutex_unlock(&capture->lock);
	}
	if (outcome == BDR_DONE)
		bdr_gate_publish(&capture->gate, &io->pass, &io->write);
	else
		bdr_gate_publish_nop(&capture->gate, &io->pass, &io->write);
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
	/* A change of mode without a consumer is an event for the next one. */
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
	err = -bdr_request_check_counters_locked(&capture->gate, release);
	pthread_mutex_unlock(&capture->lock);
	if (!err)
		err = -bdr_request_check_release(ring, head, release);
	if (err)
		return err;

	pthread_mutex_lock(&capture->lock);
	bdr_request_release_locked(&capture->gate, release);
	pthread_mutex_unlock(&capture->lock);

	pthread_mutex_lock(&capture->wake.mutex);
	bdr_wake_arm_locked(capture, release->cursor);
	pthread_mutex_unlock(&capture->wake.mutex);
	return 0;
}

void bdr_capture_resume(struct bdr_capture *capture, struct bdr_resume *resume)
{
	bool turned;

	pthread_mutex_lock(&capture->lock);
	turned = capture->gate.mode != BDR_MODE_STREAM;
	resume->slot = bdr_gate_resume_locked(&capture->gate);
	/* The wait drops the lock: new writes take slots already. */
	while (!bdr_gate_drained_locked(&capture->gate))
		pthread_cond_wait(&capture->drained, &capture->lock);
	pthread_mutex_unlock(&capture->lock);

	bdr_gate_merge(&capture->gate);
	if (turned)
		bdr_wake_mode_changed(&capture->wake);
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

/* Begins where the last call ended. */
static __u64 bdr_capture_unpublished_locked(struct bdr_capture *capture)
{
	const struct bdr_ring *ring = &capture->gate.ring;
	__u64 slot = capture->published;

	if (slot < ring->tail)
		slot = ring->tail;
	slot = bdr_ring_find_unpublished(ring, slot, ring->head);
	capture->published = slot;
	return slot;
}

void bdr_capture_status(struct bdr_capture *capture, struct bdr_status *status)
{
	struct bdr_gate *gate = &capture->gate;
	__u64 marked;

	pthread_mutex_lock(&capture->lock);
	bdr_request_fill_status_locked(status, gate,
				       bdr_capture_unpublished_locked(capture),
				       bdr_clock_read_locked());
	status->failed_writes = capture->failed_writes;
	marked = gate->marked;
	pthread_mutex_unlock(&capture->lock);

	memcpy(status->stream_id, capture->info.stream_id,
	       sizeof(status->stream_id));
	bdr_request_count_bits(status, gate);

	pthread_mutex_lock(&capture->lock);
	bdr_request_finish_status_locked(status, gate, marked);
	pthread_mutex_unlock(&capture->lock);
}

void bdr_capture_change_bitmap(struct bdr_capture *capture, __u32 code,
			       const struct bdr_bitmap_range *range)
{
	bdr_request_change_bitmap(&capture->gate, code, range);
	if (code == BDR_IOC_BITMAP_CLEAR)
		return;
	pthread_mutex_lock(&capture->lock);
	bdr_gate_marked_locked(&capture->gate);
	pthread_mutex_unlock(&capture->lock);
}

__u32 bdr_capture_read_marks(struct bdr_capture *capture, struct bdr_mark *marks)
{
	__u32 count;

	pthread_mutex_lock(&capture->lock);
	count = bdr_marks_copy_locked(&capture->gate.marks, marks);
	pthread_mutex_unlock(&capture->lock);
	return count;
}
