/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * Dirty bitmap: one bit a region of the device, in little-endian 64-bit words.
 *
 * Words are changed atomically, so completions set bits without a lock while the
 * consumer merges and clears.  Ranges are set a word at a time: a discard of
 * 4 GiB marks 65,536 regions of 64 KiB with 1,024 stores.
 */
#ifndef BDR_BITMAP_H
#define BDR_BITMAP_H

#ifdef __KERNEL__
#include <linux/types.h>
#include <linux/atomic.h>
#include <linux/compiler.h>
#define bdr_word_or(p, v)	atomic64_or((s64)(v), (atomic64_t *)(p))
#define bdr_word_andnot(p, v)	atomic64_andnot((s64)(v), (atomic64_t *)(p))
#define bdr_word_read(p)	((__u64)atomic64_read((const atomic64_t *)(p)))
#define bdr_word_ones(v)	hweight64(v)
#else
#include <stdbool.h>
#include <linux/types.h>
#define bdr_word_or(p, v)	((void)__atomic_fetch_or(p, v, __ATOMIC_ACQ_REL))
#define bdr_word_andnot(p, v)	((void)__atomic_fetch_and(p, ~(v), __ATOMIC_ACQ_REL))
#define bdr_word_read(p)	__atomic_load_n(p, __ATOMIC_ACQUIRE)
#define bdr_word_ones(v)	((unsigned int)__builtin_popcountll(v))
#endif

#define BDR_WORD_REGIONS	64

static inline __u64 bdr_bitmap_words(__u64 regions)
{
	return (regions + BDR_WORD_REGIONS - 1) / BDR_WORD_REGIONS;
}

/* The bits of word `word` that lie in regions [first, end). */
static inline __u64 bdr_bitmap_mask(__u64 word, __u64 first, __u64 end)
{
	__u64 base = word * BDR_WORD_REGIONS;
	__u64 mask = ~0ULL;

	if (first > base)
		mask &= ~0ULL << (first - base);
	if (end < base + BDR_WORD_REGIONS)
		mask &= ~0ULL >> (base + BDR_WORD_REGIONS - end);
	return mask;
}

/* Sets regions [first, end). */
static inline void bdr_bitmap_mark(__u64 *bitmap, __u64 first, __u64 end)
{
	__u64 word;

	if (first >= end)
		return;
	for (word = first / BDR_WORD_REGIONS;
	     word <= (end - 1) / BDR_WORD_REGIONS; word++) {
		__u64 mask = bdr_bitmap_mask(word, first, end);

		/* Most marks of a hot region are repeats: avoids a store and
		 * cache-line bouncing. */
		if ((bdr_word_read(&bitmap[word]) & mask) != mask)
			bdr_word_or(&bitmap[word], mask);
	}
}

/* Clears regions [first, end). */
static inline void bdr_bitmap_clear(__u64 *bitmap, __u64 first, __u64 end)
{
	__u64 word;

	if (first >= end)
		return;
	for (word = first / BDR_WORD_REGIONS;
	     word <= (end - 1) / BDR_WORD_REGIONS; word++)
		bdr_word_andnot(&bitmap[word], bdr_bitmap_mask(word, first, end));
}

/*
 * Moves every bit of `from` into `to`.  A bit is set in `to` before it is cleared
 * in `from`, so that it is at any time set in at least one of them.  A bit that is
 * set in `from` meanwhile is moved or stays.
 */
static inline void bdr_bitmap_merge(__u64 *to, __u64 *from, __u64 regions)
{
	__u64 word;

	for (word = 0; word < bdr_bitmap_words(regions); word++) {
		__u64 bits = bdr_word_read(&from[word]);

		if (bits) {
			bdr_word_or(&to[word], bits);
			bdr_word_andnot(&from[word], bits);
		}
	}
}

/* Copies word by word: not a consistent snapshot of concurrent changes. */
static inline void bdr_bitmap_copy(__u64 *to, const __u64 *from, __u64 words)
{
	__u64 word;

	for (word = 0; word < words; word++)
		to[word] = bdr_word_read(&from[word]);
}

static inline __u64 bdr_bitmap_count(const __u64 *bitmap, __u64 regions)
{
	__u64 word, count = 0;

	for (word = 0; word < bdr_bitmap_words(regions); word++)
		count += bdr_word_ones(bdr_word_read(&bitmap[word]));
	return count;
}

#endif /* BDR_BITMAP_H */
