// SPDX-License-Identifier: GPL-2.0-only
/*
 * The registry: contexts by the name of their control device.  The load of a table
 * attaches to the context of its device and name, or creates it; the destruction
 * of the last target makes the context dead.
 *
 * Process context, may sleep.
 */
#include <linux/err.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/string.h>

#include "bdr_chardev.h"
#include "bdr_io.h"
#include "bdr_registry.h"

static LIST_HEAD(bdr_registry);
static DEFINE_MUTEX(bdr_registry_lock);

static int bdr_registry_check_reload(const struct bdr_context *ctx,
				     const struct bdr_settings *settings,
				     char **error)
{
	const struct bdr_attachment *other;
	int r = -EINVAL;

	list_for_each_entry(other, &ctx->targets, list) {
		if (other->table == settings->attachment->table) {
			*error = "Control device name is in this table already";
			return -EEXIST;
		}
	}
	if (ctx->md != settings->md) {
		*error = "Control device name is in use by another device";
		r = -EEXIST;
	} else if (ctx->gate.ring.capacity != settings->capacity) {
		*error = "A reload cannot change the buffer size";
	} else if (ctx->gate.region_sectors != settings->region_sectors) {
		*error = "A reload cannot change region_sectors";
	} else {
		r = 0;
	}
	return r;
}

/* Creates a context with its worker and its control device. */
static struct bdr_context *bdr_registry_create(const struct bdr_settings *settings,
					       char **error)
{
	struct bdr_context *ctx = bdr_context_create(settings, error);
	int r;

	if (IS_ERR(ctx))
		return ctx;
	INIT_WORK(&ctx->resubmit_work, bdr_io_resubmit);
	INIT_WORK(&ctx->zero_work, bdr_lower_zero);
	*error = "Cannot register the control device";
	r = bdr_chardev_register(ctx);
	if (r) {
		bdr_context_put(ctx);
		return ERR_PTR(r);
	}
	list_add(&ctx->registered, &bdr_registry);
	return ctx;
}

/* Finds the context of this device and name, or creates it. */
struct bdr_context *bdr_registry_attach(const struct bdr_settings *settings,
					char **error)
{
	struct bdr_context *ctx;
	int r;

	mutex_lock(&bdr_registry_lock);
	list_for_each_entry(ctx, &bdr_registry, registered) {
		if (strcmp(ctx->name, settings->name))
			continue;
		r = bdr_registry_check_reload(ctx, settings, error);
		if (r)
			ctx = ERR_PTR(r);
		else
			bdr_context_get(ctx);
		goto attach;
	}
	ctx = bdr_registry_create(settings, error);
attach:
	if (!IS_ERR(ctx))
		list_add(&settings->attachment->list, &ctx->targets);
	mutex_unlock(&bdr_registry_lock);
	return ctx;
}

/* The caller's target has no I/O in flight. */
void bdr_registry_detach(struct bdr_context *ctx,
			 struct bdr_attachment *attachment)
{
	mutex_lock(&bdr_registry_lock);
	list_del(&attachment->list);
	spin_lock_irq(&ctx->lock);
	if (ctx->live == attachment)
		ctx->live = NULL;
	ctx->dead = list_empty(&ctx->targets);
	spin_unlock_irq(&ctx->lock);
	if (ctx->dead) {
		list_del(&ctx->registered);
		wake_up_all(&ctx->poll_wait);
		wake_up_all(&ctx->drain_wait);
		flush_work(&ctx->resubmit_work);
		flush_work(&ctx->zero_work);
		bdr_chardev_deregister(ctx);
	}
	mutex_unlock(&bdr_registry_lock);
	bdr_context_put(ctx);
}
