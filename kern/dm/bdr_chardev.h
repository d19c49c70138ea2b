/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef BDR_CHARDEV_H
#define BDR_CHARDEV_H

#include "bdr_context.h"

int bdr_chardev_register(struct bdr_context *ctx);
void bdr_chardev_deregister(struct bdr_context *ctx);

#endif /* BDR_CHARDEV_H */
