// SPDX-License-Identifier: GPL-2.0-only
/*
 *	fuzz CONTROL_DEVICE BLOCK_DEVICE SECONDS
 *
 * Sends random requests from a consumer and two observers at once, maps and
 * unmaps, polls, opens and closes, while a fourth thread writes and discards.
 * Whatever a request returns is fine; the kernel's log is the judge.  The seed
 * is printed.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bdr_uapi.h"

#define CAPACITY	256
#define REGIONS		1024
#define MAP_BYTES	(4096 + 2 * CAPACITY * 4096UL)

static const char *control, *block;
static atomic_bool done;
static atomic_long requests;
static _Atomic uint64_t seed;

static const unsigned long codes[] = {
	BDR_IOC_INFO, BDR_IOC_STATUS, BDR_IOC_RELEASE, BDR_IOC_RESUME,
	BDR_IOC_BITMAP_READ, BDR_IOC_BITMAP_CLEAR, BDR_IOC_BITMAP_MARK, BDR_IOC_OPEN,
	BDR_IOC_MARKS_READ,
};

static uint64_t draw(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Numbers at which code breaks: small, near a limit, huge. */
static uint64_t number(uint64_t *state)
{
	static const uint64_t edges[] = {
		0, 1, 63, 64, 65, CAPACITY - 1, CAPACITY, CAPACITY + 1, REGIONS - 64,
		REGIONS - 1, REGIONS, REGIONS + 1, 524288, 1ULL << 32, 1ULL << 63,
		~0ULL, ~0ULL - 63, BDR_BITMAP_CHUNK_REGIONS, BDR_BITMAP_CHUNK_REGIONS + 64,
	};
	uint64_t kind = draw(state) % 4;

	if (kind == 0)
		return edges[draw(state) % (sizeof(edges) / sizeof(edges[0]))];
	if (kind == 1)
		return draw(state) % (2 * REGIONS);
	if (kind == 2)
		return draw(state) % REGIONS / 64 * 64;
	return draw(state);
}

static void *pointer(uint64_t *state, void *good)
{
	switch (draw(state) % 8) {
	case 0:
		return (void *)(uintptr_t)draw(state);
	case 1:
		return NULL;
	default:
		return good;
	}
}

static void request(int fd, uint64_t *state, void *memory)
{
	unsigned long code = codes[draw(state) % (sizeof(codes) / sizeof(codes[0]))];
	uint64_t *words = memory;
	struct bdr_status status;
	int i;

	for (i = 0; i < 8; i++)
		words[i] = number(state);
	if ((code == BDR_IOC_BITMAP_READ || code == BDR_IOC_BITMAP_CLEAR ||
	     code == BDR_IOC_BITMAP_MARK) && draw(state) % 4) {
		struct bdr_bitmap_range *bitmap = memory;

		bitmap->bitmap = draw(state) % 3;
		bitmap->reserved = 0;
		bitmap->buffer = code == BDR_IOC_BITMAP_READ ?
				 (uintptr_t)pointer(state, memory) : 0;
	}
	if (code == BDR_IOC_MARKS_READ && draw(state) % 4) {
		words[0] = (uintptr_t)pointer(state, memory);
		words[1] = draw(state) % 16 == 0;
	}
	/* Sensible releases, or nothing would ever move. */
	if (code == BDR_IOC_RELEASE && draw(state) % 2 &&
	    !ioctl(fd, BDR_IOC_STATUS, &status)) {
		words[0] = status.unpublished - draw(state) % 3 % (status.unpublished + 1);
		words[1] = words[0] + draw(state) % 3;
		/* Counters at their end would refuse every later release. */
		words[2] = status.acknowledged + draw(state) % 2;
		words[3] = status.counted + 1;
	}
	if (draw(state) % 16 == 0)
		code = draw(state);
	ioctl(fd, code, pointer(state, memory));
	requests++;
}

static void look(int fd, uint64_t *state)
{
	volatile unsigned char *map;
	size_t length = draw(state) % 4 ? MAP_BYTES : draw(state) % (2 * MAP_BYTES);
	int protection = PROT_READ | (draw(state) % 4 ? 0 : (int)(draw(state) % 8));
	struct pollfd poller = { .fd = fd, .events = POLLIN };
	int i;

	poll(&poller, 1, draw(state) % 3);
	map = mmap(NULL, length, protection, draw(state) % 2 ? MAP_SHARED : MAP_PRIVATE, fd,
		   draw(state) % 4 ? 0 : (off_t)(draw(state) % 512 * 4096));
	if (map == MAP_FAILED)
		return;
	for (i = 0; i < 16; i++)
		(void)map[draw(state) % length];
	madvise((void *)map, length, draw(state) % 2 ? MADV_DONTNEED : MADV_WILLNEED);
	mprotect((void *)map, 4096, PROT_READ | PROT_WRITE);
	(void)map[draw(state) % length];
	/* In two pieces at times; never twice, the address may be another thread's by then. */
	if (draw(state) % 2 && length > 4096) {
		munmap((void *)map, 4096);
		map += 4096;
		length -= 4096;
	}
	munmap((void *)map, length);
}

static void *abuse(void *argument)
{
	int access = argument ? O_RDONLY : O_RDWR;
	uint64_t state = seed + (uintptr_t)argument * 1000003;
	void *memory = calloc(1, 1 << 17);

	if (!memory)
		err(1, "calloc");
	while (!done) {
		int fd = open(control, access), i;

		if (fd < 0)
			err(1, "%s", control);
		for (i = draw(&state) % 400; i && !done; i--) {
			request(fd, &state, memory);
			if (draw(&state) % 32 == 0)
				look(fd, &state);
		}
		if (access == O_RDWR && open(control, O_RDWR) >= 0)
			errx(1, "a second consumer was let in");
		close(fd);
	}
	return NULL;
}

static void *write_on(void *unused)
{
	uint64_t state = seed ^ 0x5deece66d;
	unsigned char *data = aligned_alloc(4096, 1 << 20);
	int fd = open(block, O_RDWR | O_DIRECT);

	(void)unused;
	if (fd < 0 || !data)
		err(1, "%s", block);
	memset(data, 0x33, 1 << 20);
	while (!done) {
		uint64_t range[2] = { draw(&state) % 8192 * 4096, 4096 };
		size_t length = 4096 << draw(&state) % 6;
		struct timespec pause = { 0, 200000 };

		if (draw(&state) % 16 == 0)
			ioctl(fd, BLKDISCARD, range);
		else if (draw(&state) % 64 == 0)
			fsync(fd);
		else if (pwrite(fd, data, length, range[0]) != (ssize_t)length)
			err(1, "pwrite");
		nanosleep(&pause, NULL);
	}
	close(fd);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[4];
	uintptr_t i;

	if (argc != 4)
		errx(2, "usage: fuzz CONTROL_DEVICE BLOCK_DEVICE SECONDS");
	control = argv[1];
	block = argv[2];
	seed = (uint64_t)time(NULL) * 6364136223846793005ULL | 1;
	printf("seed %llx\n", (unsigned long long)seed);
	for (i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, abuse, (void *)i);
	pthread_create(&threads[3], NULL, write_on, NULL);
	sleep(atoi(argv[3]));
	done = true;
	for (i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	printf("%ld requests\n", (long)requests);
	return 0;
}
