/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Differences between kernels, as named helpers.
 *
 * This is the only file with kernel-dependent #if.  It tests for features, not for
 * version numbers, since vendors backport.
 */
#ifndef BDR_COMPAT_H
#define BDR_COMPAT_H

#include <linux/blkdev.h>
#include <linux/device-mapper.h>

#if !defined(CONFIG_64BIT) || defined(CONFIG_CPU_BIG_ENDIAN)
#error "bdr needs a 64-bit, little-endian kernel: the ring's words are of that kind"
#endif

/*
 * Stable writes: upper layers do not change pages under write.  Since 6.11 it is a
 * feature of the queue limits; before that, a flag of the queue, which dm clears
 * when it computes the limits of a table, so it is set again before each resume.
 */
#ifdef BLK_FEAT_STABLE_WRITES
static inline void bdr_compat_limits_stable_writes(struct queue_limits *limits)
{
	limits->features |= BLK_FEAT_STABLE_WRITES;
}

static inline void bdr_compat_resume_stable_writes(struct dm_target *ti)
{
}
#else
static inline void bdr_compat_limits_stable_writes(struct queue_limits *limits)
{
}

static inline void bdr_compat_resume_stable_writes(struct dm_target *ti)
{
	blk_queue_flag_set(QUEUE_FLAG_STABLE_WRITES,
			   dm_disk(dm_table_get_md(ti->table))->queue);
}
#endif

#endif /* BDR_COMPAT_H */
