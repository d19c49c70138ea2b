/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ring's memory: an anonymous file with the headers and one copy of the payload.
 * It is sealed against changes of size and against further writable mappings: a
 * client that is passed the descriptor can only read it.
 */
#ifndef BDR_RING_MEMORY_H
#define BDR_RING_MEMORY_H

#include <linux/types.h>

struct bdr_ring_memory {
	int shared_fd;		/* read-only: what clients get */
	unsigned char *map;	/* headers at 0, payload at payload_offset */
	__u64 payload_offset;
	__u64 payload_bytes;
};

/* Reports its own failures; returns 0 or -1. */
int bdr_ring_memory_create(struct bdr_ring_memory *memory, __u64 capacity);
void bdr_ring_memory_destroy(struct bdr_ring_memory *memory);

#endif /* BDR_RING_MEMORY_H */
