/* SPDX-License-Identifier: GPL-2.0-only */
/* The memory of a ring: pages for mappings and bios, one virtual range for the CPU. */
#ifndef BDR_MEMORY_H
#define BDR_MEMORY_H

#include <linux/mm_types.h>
#include <linux/pfn.h>
#include <linux/types.h>

struct bdr_memory {
	struct page **pages;	/* headers, then payload */
	unsigned long header_pages;
	unsigned long payload_pages;
	void *address;		/* vmap of all of them */
};

int bdr_memory_alloc(struct bdr_memory *memory, u64 capacity);
void bdr_memory_free(struct bdr_memory *memory);

static inline u64 bdr_memory_header_bytes(const struct bdr_memory *memory)
{
	return PFN_PHYS(memory->header_pages);
}

/* The payload is mapped twice. */
static inline u64 bdr_memory_map_bytes(const struct bdr_memory *memory)
{
	return PFN_PHYS(memory->header_pages + 2 * memory->payload_pages);
}

#endif /* BDR_MEMORY_H */
