// SPDX-License-Identifier: GPL-2.0-only
/*
 * Allocates the memory of a ring, when a table is loaded: process context, may
 * sleep.
 */
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "bdr_memory.h"
#include "bdr_ring.h"

#define BDR_CHUNK_ORDER		8	/* 1 MiB of contiguous payload, if possible */

void bdr_memory_free(struct bdr_memory *memory)
{
	unsigned long i, count = memory->header_pages + memory->payload_pages;

	vunmap(memory->address);
	if (memory->pages)
		for (i = 0; i < count && memory->pages[i]; i++)
			__free_page(memory->pages[i]);
	kvfree(memory->pages);
	memory->pages = NULL;
	memory->address = NULL;
}

/*
 * Pages are allocated in contiguous chunks as far as possible: a write of 1 MiB is
 * then one segment for the underlying device, not 256.
 */
static int bdr_memory_fill(struct page **pages, unsigned long count)
{
	unsigned int order = min(BDR_CHUNK_ORDER, MAX_PAGE_ORDER);
	unsigned long i = 0;

	while (i < count) {
		gfp_t gfp = GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN;
		struct page *page;
		unsigned long k;

		while (order && (1UL << order) > count - i)
			order--;
		if (order)
			gfp |= __GFP_NORETRY;
		else
			gfp |= __GFP_RETRY_MAYFAIL;
		page = alloc_pages(gfp, order);
		if (!page) {
			if (!order)
				return -ENOMEM;
			order--;
			continue;
		}
		if (order)
			split_page(page, order);
		for (k = 0; k < 1UL << order; k++)
			pages[i++] = page + k;
		cond_resched();
	}
	return 0;
}

int bdr_memory_alloc(struct bdr_memory *memory, u64 capacity)
{
	unsigned long count;

	memory->header_pages = PFN_UP(capacity * BDR_HEADER_BYTES);
	memory->payload_pages = PFN_DOWN(capacity * BDR_PAYLOAD_BYTES);
	count = memory->header_pages + memory->payload_pages;

	memory->pages = kvcalloc(count, sizeof(*memory->pages),
				 GFP_KERNEL | __GFP_NOWARN);
	if (!memory->pages)
		return -ENOMEM;
	/* In two calls, so that the payload also starts with a contiguous chunk. */
	if (bdr_memory_fill(memory->pages, memory->header_pages) ||
	    bdr_memory_fill(memory->pages + memory->header_pages,
			    memory->payload_pages))
		goto fail;
	memory->address = vmap(memory->pages, count, VM_MAP, PAGE_KERNEL);
	if (!memory->address)
		goto fail;
	return 0;
fail:
	bdr_memory_free(memory);
	return -ENOMEM;
}
