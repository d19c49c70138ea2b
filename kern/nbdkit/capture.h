/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The capture: gate, ring memory, and the wake-ups of the consumer.
 *
 * Lock order: range lock, then `lock` or `wake.mutex`; the last two never nest.
 */
#ifndef BDR_CAPTURE_H
#define BDR_CAPTURE_H

#include <pthread.h>
#include <stdbool.h>

#include "bdr_gate.h"
#include "bdr_uapi.h"

#include "range_lock.h"
#include "ring_memory.h"

/*
 * The wake-up of the consumer.  The eventfd is readable exactly when the poll() of
 * a control device would be: slot `cursor` is published, or the mode has changed
 * since the consumer's last STATUS.
 *
 * `armed` is true while the publication of `cursor` has to be signalled.  A
 * publisher reads nothing else, so it makes no system call if it need not.
 */
struct bdr_wake {
	pthread_mutex_t mutex;
	int eventfd;		/* the consumer's, -1 if there is none */
	bool armed;		/* atomic; set and cleared under the mutex */
	__u64 cursor;		/* atomic; changed under the mutex */
	bool mode_changed;
	bool signalled;		/* written, and not reset by the server */
};

struct bdr_capture {
	pthread_mutex_t lock;	/* of the gate, and of the two counts after it */
	pthread_cond_t drained;
	struct bdr_gate gate;
	__u64 published;	/* every slot below it has been published */
	__u64 failed_writes;

	struct bdr_ring_memory memory;
	struct bdr_range_lock ranges;
	struct bdr_wake wake;
	struct bdr_info info;
};

/* A captured write in flight. */
struct bdr_io {
	struct bdr_write write;
	struct bdr_pass pass;
};

enum bdr_outcome {
	BDR_DONE,	/* on the disk */
	BDR_FAILED,	/* the content of the disk is unknown */
	BDR_REFUSED,	/* the disk is unchanged */
};

/* Reports its own failures; returns 0 or -1. */
int bdr_capture_create(struct bdr_capture *capture, const char *underlying,
		       __u64 device_bytes, __u64 capacity, __u64 region_bytes);
void bdr_capture_destroy(struct bdr_capture *capture);

/* Most sectors of one captured write. */
__u64 bdr_capture_write_sectors_max(const struct bdr_capture *capture);

/* Before and after each write; `data` is that of a WRITE.  Neither waits. */
void bdr_capture_begin(struct bdr_capture *capture, struct bdr_io *io,
		       const void *data);
void bdr_capture_end(struct bdr_capture *capture,
		     const struct bdr_io *io, enum bdr_outcome outcome);

/* For the consumer, which is at most one thread at a time. */
void bdr_capture_attach(struct bdr_capture *capture, int eventfd);
void bdr_capture_detach(struct bdr_capture *capture);
int bdr_capture_release(struct bdr_capture *capture,
			const struct bdr_release *release);
void bdr_capture_resume(struct bdr_capture *capture, struct bdr_resume *resume);
void bdr_capture_status_seen(struct bdr_capture *capture);
/* CLEAR or MARK, checked. */
void bdr_capture_change_bitmap(struct bdr_capture *capture, __u32 code,
			       const struct bdr_bitmap_range *range);

/* For every client. */
void bdr_capture_status(struct bdr_capture *capture, struct bdr_status *status);
/* `marks` has room for BDR_MARKS_MAX.  Returns how many there are. */
__u32 bdr_capture_read_marks(struct bdr_capture *capture, struct bdr_mark *marks);

#endif /* BDR_CAPTURE_H */
