// SPDX-License-Identifier: GPL-2.0-only
/*
 * The store is opened once for all connections.  A block device is opened
 * exclusively, which fails while it is mounted or claimed otherwise; a regular file
 * is locked against a second capture.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/fs.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bdr_ring.h"
#include "store.h"

#define BDR_ZERO_BUFFER_BYTES	(256 * 1024)

static const char bdr_zeros[BDR_ZERO_BUFFER_BYTES];

static int bdr_store_measure(struct bdr_store *store, const char *path)
{
	struct stat st;

	if (fstat(store->fd, &st) < 0) {
		nbdkit_error("file=%s: %m", path);
		return -1;
	}
	store->is_block = S_ISBLK(st.st_mode);
	if (!store->is_block) {
		store->bytes = (uint64_t)st.st_size;
		if (flock(store->fd, LOCK_EX | LOCK_NB) < 0) {
			nbdkit_error("file=%s: another process has locked it; is it served already?",
				     path);
			return -1;
		}
	} else if (ioctl(store->fd, BLKGETSIZE64, &store->bytes) < 0) {
		nbdkit_error("file=%s: cannot read the size of the device: %m",
			     path);
		return -1;
	}

	if (!store->bytes || store->bytes % BDR_SECTOR_BYTES) {
		nbdkit_error("file=%s: has %llu bytes; wanted a multiple of %d, and not 0",
			     path, (unsigned long long)store->bytes,
			     BDR_SECTOR_BYTES);
		return -1;
	}
	return 0;
}

int bdr_store_open(struct bdr_store *store, const char *path)
{
	struct stat st;
	int flags = O_RDWR | O_CLOEXEC;

	if (stat(path, &st) < 0) {
		nbdkit_error("file=%s: %m", path);
		return -1;
	}
	/* Before the open, which would block on a FIFO. */
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
		nbdkit_error("file=%s: wanted a regular file or a block device",
			     path);
		return -1;
	}
	/* O_EXCL without O_CREAT is defined for block devices only. */
	if (S_ISBLK(st.st_mode))
		flags |= O_EXCL;

	store->fd = open(path, flags);
	if (store->fd < 0) {
		if (errno == EBUSY)
			nbdkit_error("file=%s: the device is in use (mounted, or opened exclusively)",
				     path);
		else
			nbdkit_error("file=%s: cannot open for reading and writing: %m",
				     path);
		return -1;
	}
	store->can_punch = true;
	store->can_zero_range = true;
	if (bdr_store_measure(store, path) < 0) {
		bdr_store_close(store);
		return -1;
	}
	return 0;
}

void bdr_store_close(struct bdr_store *store)
{
	if (store->fd >= 0)
		close(store->fd);
	store->fd = -1;
}

int bdr_store_read(const struct bdr_store *store, void *data, uint64_t bytes,
		   uint64_t offset)
{
	char *to = data;

	while (bytes) {
		ssize_t n = pread(store->fd, to, bytes, (off_t)offset);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			return errno;
		}
		if (!n)		/* another process has truncated the file */
			return EIO;
		to += n;
		offset += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

int bdr_store_write(const struct bdr_store *store, const void *data,
		    uint64_t bytes, uint64_t offset)
{
	const char *from = data;

	while (bytes) {
		ssize_t n = pwrite(store->fd, from, bytes, (off_t)offset);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			return errno;
		}
		if (!n)
			return EIO;
		from += n;
		offset += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

int bdr_store_sync(const struct bdr_store *store)
{
	return fdatasync(store->fd) < 0 ? errno : 0;
}

static bool bdr_flag_read(const bool *flag)
{
	return __atomic_load_n(flag, __ATOMIC_RELAXED);
}

/* Sets `*done` if the range now reads as zeros; clears `*can` if unsupported. */
static int bdr_store_fallocate(const struct bdr_store *store, bool *can,
			       int mode, uint64_t bytes, uint64_t offset,
			       bool *done)
{
	int ret;

	*done = false;
	if (!bdr_flag_read(can))
		return 0;
	do {
		ret = fallocate(store->fd, mode | FALLOC_FL_KEEP_SIZE,
				(off_t)offset, (off_t)bytes);
	} while (ret < 0 && errno == EINTR);
	if (!ret) {
		*done = true;
		return 0;
	}
	switch (errno) {
	case EOPNOTSUPP:
	case ENOSYS:
	case ENODEV:
		__atomic_store_n(can, false, __ATOMIC_RELAXED);
		return 0;
	case EINVAL:	/* this range is not aligned to the device's blocks */
		return 0;
	default:
		return errno;
	}
}

static int bdr_store_write_zeros(const struct bdr_store *store, uint64_t bytes,
				 uint64_t offset)
{
	while (bytes) {
		uint64_t n = bytes < sizeof(bdr_zeros) ? bytes : sizeof(bdr_zeros);
		int err = bdr_store_write(store, bdr_zeros, n, offset);

		if (err)
			return err;
		bytes -= n;
		offset += n;
	}
	return 0;
}

/*
 * On a block device ZERO_RANGE may fall back to writing zeros inside the kernel,
 * which a fast zero must not do.
 */
static bool bdr_store_may_zero_range(const struct bdr_store *store,
				     unsigned int how)
{
	return !(store->is_block && (how & BDR_ZERO_FAST));
}

bool bdr_store_can_zero_fast(const struct bdr_store *store, unsigned int how)
{
	if ((how & BDR_ZERO_MAY_TRIM) && bdr_flag_read(&store->can_punch))
		return true;
	return bdr_store_may_zero_range(store, how | BDR_ZERO_FAST) &&
	       bdr_flag_read(&store->can_zero_range);
}

int bdr_store_zero(struct bdr_store *store, uint64_t bytes, uint64_t offset,
		   unsigned int how)
{
	bool done = false;
	int err;

	if (how & BDR_ZERO_MAY_TRIM) {
		err = bdr_store_fallocate(store, &store->can_punch,
					  FALLOC_FL_PUNCH_HOLE, bytes, offset,
					  &done);
		if (err || done)
			return err;
	}
	if (bdr_store_may_zero_range(store, how)) {
		err = bdr_store_fallocate(store, &store->can_zero_range,
					  FALLOC_FL_ZERO_RANGE, bytes, offset,
					  &done);
		if (err || done)
			return err;
	}
	if (how & BDR_ZERO_FAST)
		return EOPNOTSUPP;
	return bdr_store_write_zeros(store, bytes, offset);
}
