// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes that no order and no copy protects:
 *
 *	hammer scribble DEVICE COUNT	O_DIRECT writes from a buffer that another
 *					thread keeps changing
 *	hammer collide DEVICE COUNT	four threads write overlapping ranges of a
 *					few blocks at the same time
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK		4096
#define BUFFER_BLOCKS	32
#define SPAN_BLOCKS	4096	/* scribble: 16 MiB */
#define HOT_BLOCKS	8	/* collide */
#define WRITERS		4

static int disk;
static long count;
static unsigned char *shared;
static atomic_bool done;

static uint64_t draw(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void *scribble(void *unused)
{
	uint64_t state = 88172645463325252ULL;

	(void)unused;
	while (!done) {
		uint64_t word = draw(&state);

		memcpy(shared + word % (BUFFER_BLOCKS * BLOCK - 8), &word, 8);
	}
	return NULL;
}

static void write_blocks(const void *from, uint64_t blocks, uint64_t at)
{
	ssize_t length = blocks * BLOCK;

	if (pwrite(disk, from, length, at * BLOCK) != length)
		err(1, "pwrite");
}

static void *collide(void *argument)
{
	uint64_t state = 1 + (uintptr_t)argument * 7919;
	unsigned char *data = aligned_alloc(BLOCK, HOT_BLOCKS * BLOCK);
	long i;

	if (!data)
		err(1, "aligned_alloc");
	for (i = 0; i < count; i++) {
		uint64_t first = draw(&state) % HOT_BLOCKS;
		uint64_t blocks = 1 + draw(&state) % (HOT_BLOCKS - first);
		uint64_t word = draw(&state);

		memset(data, (int)word, HOT_BLOCKS * BLOCK);
		memcpy(data, &word, 8);
		write_blocks(data, blocks, first);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[WRITERS];
	uint64_t state = 4242;
	uintptr_t i;

	if (argc != 4)
		errx(2, "usage: hammer scribble|collide DEVICE COUNT");
	disk = open(argv[2], O_RDWR | O_DIRECT);
	if (disk < 0)
		err(1, "%s", argv[2]);
	count = atol(argv[3]);
	shared = aligned_alloc(BLOCK, BUFFER_BLOCKS * BLOCK);
	if (!shared)
		err(1, "aligned_alloc");
	memset(shared, 0x5a, BUFFER_BLOCKS * BLOCK);

	if (!strcmp(argv[1], "collide")) {
		for (i = 0; i < WRITERS; i++)
			pthread_create(&threads[i], NULL, collide, (void *)i);
		for (i = 0; i < WRITERS; i++)
			pthread_join(threads[i], NULL);
		return 0;
	}
	pthread_create(&threads[0], NULL, scribble, NULL);
	while (count--) {
		uint64_t blocks = 1 + draw(&state) % BUFFER_BLOCKS;

		write_blocks(shared, blocks, draw(&state) % (SPAN_BLOCKS - blocks));
	}
	done = true;
	pthread_join(threads[0], NULL);
	return 0;
}
