/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The control socket, the counterpart of the module's control device.  The packets
 * are in bdr_uapi.h.
 */
#ifndef BDR_CONTROL_H
#define BDR_CONTROL_H

#include <pthread.h>
#include <stdbool.h>

#include "capture.h"

#define BDR_CLIENTS_MAX	64

struct bdr_control;

struct bdr_client {
	struct bdr_control *control;
	enum {
		BDR_CLIENT_FREE,
		BDR_CLIENT_RUNNING,
		BDR_CLIENT_ENDED,	/* its thread is to be joined */
	} state;
	pthread_t thread;
	int fd;			/* -1 once closed */
	int eventfd;
	bool open;		/* BDR_IOC_OPEN was granted */
	bool consumer;
};

struct bdr_control {
	struct bdr_capture *capture;
	char *path;
	char *lock_path;
	int lock_fd;
	int listen_fd;
	int stop_fd;		/* eventfd that ends the acceptor */
	bool bound;		/* this server created `path` */
	bool accepting;		/* the acceptor runs */
	pthread_t acceptor;

	pthread_mutex_t lock;	/* of the fields below; the outermost lock */
	pthread_cond_t role_freed;
	struct bdr_client *consumer;
	struct bdr_client clients[BDR_CLIENTS_MAX];
};

/* Locks and binds the path.  Reports its own failures; returns 0 or -1. */
int bdr_control_create(struct bdr_control *control, struct bdr_capture *capture,
		       const char *path);
/* Starts the acceptor, after the last fork. */
int bdr_control_start(struct bdr_control *control);
/* Ends every thread.  No write may be in flight, which a RESUME would wait for. */
void bdr_control_destroy(struct bdr_control *control);

#endif /* BDR_CONTROL_H */
