/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The interface of a capture besides the ring: requests and their structures.
 *
 * The kernel module takes them as ioctls on /dev/CHARDEV_NAME, the nbdkit plugin
 * as packets on a Unix SOCK_SEQPACKET socket.  The structures are the same.
 *
 * Fixed-width fields only, explicit padding, no pointer except `buffer`.
 * Reserved fields must be zero, else EINVAL, so that they can be defined later.
 * The checks of a request, and their order, are in bdr_request.h.
 */
#ifndef BDR_UAPI_H
#define BDR_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define BDR_ABI_VERSION		3
#define BDR_STREAM_ID_BYTES	16

/*
 * The mapping: headers at 0, payload at `payload_offset`, payload once more at
 * `payload_offset` + `payload_bytes`.  Read-only for everyone.
 */
struct bdr_info {
	__u32 abi_version;
	__u32 reserved0;
	/* Random; new with each target, and with each underlying device. */
	__u8  stream_id[BDR_STREAM_ID_BYTES];
	__u64 device_sectors;
	__u64 capacity;				/* slots */
	__u64 region_sectors;
	__u64 regions;
	__u64 payload_offset;			/* bytes, page aligned */
	__u64 payload_bytes;			/* of one copy */
	__u64 map_bytes;			/* of the whole mapping */
	char  underlying[256];			/* path of the underlying device */
	__u64 reserved[4];
};

#define BDR_MISSED_NOTHING	0
#define BDR_MISSED_UNKNOWN	(~0ULL)

/*
 * A consistent snapshot, except for the counts of bits, which are taken after it:
 * they include the regions of every failed write that was published before.
 *
 * `missed_since_ns` is of what the bitmaps stand for: BDR_MISSED_NOTHING if both are
 * empty and no unlogged write is in flight; the clock at the oldest write that
 * was missed since a STATUS found that; or BDR_MISSED_UNKNOWN if a region was also
 * marked otherwise, by a failed write, BITMAP_MARK, another size or stream.
 *
 * Clocks are CLOCK_BOOTTIME of the host in nanoseconds, that of the kernel module
 * with the resolution of a tick.  Compare them with `clock_ns` only: a process in
 * a time namespace has another CLOCK_BOOTTIME.
 */
struct bdr_status {
	__u64 head;			/* next slot to be reserved */
	__u64 tail;			/* oldest slot not released */
	__u64 unpublished;		/* oldest slot not published, or head */
	__u64 gap;			/* see bdr_gate.h; ~0 if none */
	__u32 mode;			/* enum bdr_mode */
	__u32 reserved0;
	__u64 active_regions;		/* bits set in each bitmap */
	__u64 resync_regions;
	__u64 unlogged;			/* writes in flight that took no slot */
	__u64 overflows;		/* total */
	__u64 missed_writes;		/* total; took no slot */
	__u64 failed_writes;		/* total; published as NOP */
	__u64 device_sectors;		/* grows when the target is resized */
	__u64 last_gap;			/* see bdr_gate.h; ~0 if none */
	__u8  stream_id[BDR_STREAM_ID_BYTES];	/* the present one; see bdr_info */
	__u64 acknowledged;		/* of the last RELEASE; see bdr_release */
	__u64 counted;
	__u64 clock_ns;			/* of the snapshot */
	__u64 marks;			/* number of the next mark; see bdr_mark */
	__u64 missed_since_ns;
	__u64 reserved[5];
};

/*
 * Frees every slot below `tail`, and sets the slot that the consumer waits for:
 * poll() reports readable when slot `cursor` is published, or when the mode has
 * changed since the consumer's last STATUS.
 *
 * `acknowledged` and `counted` are two counters of the stream that the capture
 * keeps for the consumer, so that one that is started again finds them in STATUS.
 * Both are 0 when a stream begins, neither decreases, and `acknowledged` is never
 * above `counted` (EINVAL).  They count changes of the replica that no slot stands
 * for: the markers and resync batches of this stream that the target has accepted.
 *
 *	counted		an upper bound of them, set before such a batch is sent
 *	acknowledged	how many of them the target has made durable, set before a
 *			bit is cleared because of them
 *
 * After the stream has changed, RELEASE gets ESTALE until the consumer has asked for
 * STATUS: it would set the counters of the new stream to those of the old one.
 */
struct bdr_release {
	__u64 tail;
	__u64 cursor;
	__u64 acknowledged;
	__u64 counted;
};

struct bdr_resume {
	__u64 slot;			/* out: S, the first slot after the gap */
};

enum bdr_bitmap_name {
	BDR_BITMAP_ACTIVE = 0,
	BDR_BITMAP_RESYNC = 1,
};

#define BDR_BITMAP_CHUNK_REGIONS	(8ULL * 65536)	/* one READ, 64 KiB of bits */

/*
 * READ copies the bits of regions [first, first + count) to `buffer`, bit 0 of
 * byte 0 first; `first` and `count` are multiples of 64, except that the last
 * word of the bitmap may be short.  CLEAR and MARK change `resync` only, any
 * range within the bitmap.  Over the socket the bits follow the reply.
 */
struct bdr_bitmap_range {
	__u64 first;			/* region */
	__u64 count;			/* regions */
	__u32 bitmap;			/* enum bdr_bitmap_name */
	__u32 reserved;
	__u64 buffer;			/* user pointer; zero over the socket */
};

/*
 * Slots from `slot` on were reserved at `clock_ns` or later, those below it at
 * `clock_ns` or earlier.  See bdr_marks.h.
 */
struct bdr_mark {
	__u64 slot;
	__u64 clock_ns;
};

#define BDR_MARKS_MAX	4096

/*
 * Copies the marks that there are, oldest first.  Their numbers are not returned:
 * old ones are dropped and thinned out, so a reader takes all of them whenever the
 * status has another `marks`.  Over the socket the marks follow the reply.
 */
struct bdr_marks_read {
	__u64 buffer;			/* user pointer to room for BDR_MARKS_MAX;
					 * zero over the socket
					 */
	__u32 count;			/* out: marks copied; in: zero */
	__u32 reserved;
};

#define BDR_IOC_MAGIC		0xB7
#define BDR_IOC_INFO		_IOR(BDR_IOC_MAGIC, 0, struct bdr_info)
#define BDR_IOC_STATUS		_IOR(BDR_IOC_MAGIC, 1, struct bdr_status)
#define BDR_IOC_RELEASE		_IOW(BDR_IOC_MAGIC, 2, struct bdr_release)
#define BDR_IOC_RESUME		_IOR(BDR_IOC_MAGIC, 3, struct bdr_resume)
#define BDR_IOC_BITMAP_READ	_IOW(BDR_IOC_MAGIC, 4, struct bdr_bitmap_range)
#define BDR_IOC_BITMAP_CLEAR	_IOW(BDR_IOC_MAGIC, 5, struct bdr_bitmap_range)
#define BDR_IOC_BITMAP_MARK	_IOW(BDR_IOC_MAGIC, 6, struct bdr_bitmap_range)
#define BDR_IOC_MARKS_READ	_IOWR(BDR_IOC_MAGIC, 8, struct bdr_marks_read)

/*
 * The same over a socket.  A packet is struct bdr_request followed by the
 * request's structure (if it is an _IOW or _IOWR one); the answer is struct
 * bdr_reply followed by the structure (if _IOR), the bits (BITMAP_READ) or the
 * marks (MARKS_READ).
 *
 * The first request of a connection is BDR_IOC_OPEN; its answer passes two
 * descriptors (SCM_RIGHTS): the ring's memory, headers and one copy of the
 * payload, sealed and read-only; and an eventfd, readable when the device's
 * poll() would be (an observer's never is).  Only a consumer may RELEASE, RESUME,
 * CLEAR and MARK, else EPERM; one connection is the consumer at a time (EBUSY).
 * A request before OPEN gets ENOTCONN, a second OPEN EISCONN, one of another ABI
 * version EPROTONOSUPPORT, an unknown code ENOTTY, a client too many EUSERS.
 */
#define BDR_ROLE_OBSERVER	0
#define BDR_ROLE_CONSUMER	1

struct bdr_open {
	__u32 abi_version;
	__u32 role;
};

#define BDR_IOC_OPEN		_IOW(BDR_IOC_MAGIC, 7, struct bdr_open)

struct bdr_request {
	__u32 code;			/* BDR_IOC_* */
	__u32 reserved;
};

struct bdr_reply {
	__s32 error;			/* 0 or a positive errno */
	__u32 reserved;
};

#endif /* BDR_UAPI_H */
