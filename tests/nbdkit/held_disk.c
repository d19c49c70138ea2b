// SPDX-License-Identifier: GPL-2.0-only
/*
 * Preloaded into nbdkit: a disk that is as slow, or as broken, as a test wants.
 *
 * In the directory HELD_DISK, a file named N holds every write that begins in
 * the N-th mebibyte for as long as the test has it locked (flock), and a file
 * named `broken` makes fdatasync() fail.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

static int held_open(const char *name)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", getenv("HELD_DISK"), name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
	ssize_t (*next)(int, const void *, size_t, off_t) =
		dlsym(RTLD_NEXT, "pwrite");
	char name[32];
	int gate;

	snprintf(name, sizeof(name), "%lld", (long long)offset >> 20);
	gate = held_open(name);
	if (gate >= 0) {
		flock(gate, LOCK_SH);
		close(gate);
	}
	return next(fd, data, bytes, offset);
}

int fdatasync(int fd)
{
	int (*next)(int) = dlsym(RTLD_NEXT, "fdatasync");
	int broken = held_open("broken");

	if (broken < 0)
		return next(fd);
	close(broken);
	errno = EIO;
	return -1;
}
