/* SPDX-License-Identifier: GPL-2.0-only */
/* The path of a write; see bdr_io.c. */
#ifndef BDR_IO_H
#define BDR_IO_H

#include "bdr_lower.h"

int bdr_io_map(struct dm_target *ti, struct bio *bio);
int bdr_io_end(struct dm_target *ti, struct bio *bio, blk_status_t *error);
void bdr_io_resubmit(struct work_struct *work);

#endif /* BDR_IO_H */
