/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef BDR_REGISTRY_H
#define BDR_REGISTRY_H

#include "bdr_context.h"

struct bdr_context *bdr_registry_attach(const struct bdr_settings *settings,
					char **error);
void bdr_registry_detach(struct bdr_context *ctx,
			 struct bdr_attachment *attachment);

#endif /* BDR_REGISTRY_H */
