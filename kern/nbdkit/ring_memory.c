// SPDX-License-Identifier: GPL-2.0-only
/*
 * All of it is allocated at the start, so that a ring that does not fit is an error
 * then, and no out-of-memory kill during a write.  It is also mapped at once, so
 * that the first lap has no page faults (after a fork into the background it has).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bdr_ring.h"
#include "ring_memory.h"

/* Linux 5.1; Debian 12's headers have it, older ones may not. */
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* Bytes that may be allocated without swapping; ~0 if unknown. */
static __u64 bdr_memory_available(void)
{
	__u64 kib = ~0ULL;
	char line[128];
	FILE *info = fopen("/proc/meminfo", "re");

	if (!info)
		return ~0ULL;
	while (fgets(line, sizeof(line), info))
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			break;
	fclose(info);
	return kib == ~0ULL ? kib : kib * 1024;
}

static int bdr_ring_memory_allocate(int fd, __u64 bytes, __u64 capacity)
{
	__u64 available = bdr_memory_available();
	int err;

	if (bytes > available) {
		nbdkit_error("writes=%llu: needs %llu MiB of memory, %llu MiB are available",
			     capacity, bytes >> 20, available >> 20);
		return -1;
	}
	do {
		err = posix_fallocate(fd, 0, (off_t)bytes);
	} while (err == EINTR);
	if (err) {
		errno = err;
		nbdkit_error("writes=%llu: cannot allocate %llu MiB of memory: %m",
			     capacity, bytes >> 20);
		return -1;
	}
	return 0;
}

int bdr_ring_memory_create(struct bdr_ring_memory *memory, __u64 capacity)
{
	__u64 page = (__u64)sysconf(_SC_PAGESIZE);
	char path[64];
	__u64 bytes;
	int fd;

	memory->payload_offset =
		(capacity * BDR_HEADER_BYTES + page - 1) / page * page;
	memory->payload_bytes = capacity * BDR_PAYLOAD_BYTES;
	bytes = memory->payload_offset + memory->payload_bytes;

	fd = memfd_create("bdr-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0) {
		nbdkit_error("cannot create the ring's memory: memfd_create: %m");
		return -1;
	}
	if (bdr_ring_memory_allocate(fd, bytes, capacity) < 0)
		goto fail_fd;

	memory->map = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_POPULATE, fd, 0);
	if (memory->map == MAP_FAILED) {
		memory->map = NULL;
		nbdkit_error("cannot map %llu MiB of ring memory: %m", bytes >> 20);
		goto fail_fd;
	}
	/* This mapping stays writable; later ones cannot be. */
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW |
				   F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0) {
		nbdkit_error("cannot seal the ring's memory (wanted Linux 5.1 or newer): %m");
		goto fail_fd;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	memory->shared_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (memory->shared_fd < 0) {
		nbdkit_error("cannot open %s (is /proc mounted?): %m", path);
		goto fail_fd;
	}
	close(fd);
	return 0;

fail_fd:
	close(fd);
	bdr_ring_memory_destroy(memory);
	return -1;
}

void bdr_ring_memory_destroy(struct bdr_ring_memory *memory)
{
	if (memory->shared_fd >= 0)
		close(memory->shared_fd);
	memory->shared_fd = -1;
	if (memory->map)
		munmap(memory->map, memory->payload_offset + memory->payload_bytes);
	memory->map = NULL;
}
