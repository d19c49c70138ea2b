// SPDX-License-Identifier: GPL-2.0-only
/*
 * One thread accepts, and each client has a thread of its own, so that neither a
 * RESUME that waits for the disk nor a client that does not read its answers blocks
 * other clients.  The number of clients is limited.
 *
 * Packets are untrusted: bdr_request.h checks them.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bdr_request.h"
#include "control.h"

#define BDR_BACKLOG		16
#define BDR_ACCEPT_PAUSE_MS	100
#define BDR_BITMAP_BYTES_MAX	(BDR_BITMAP_CHUNK_REGIONS / 8)

/* ---- answers ----------------------------------------------------------- */

struct bdr_answer {
	int error;
	const void *data;
	size_t bytes;
	int fds[2];
	bool with_fds;
};

/* False if the connection is closed. */
static bool bdr_client_answer(const struct bdr_client *client,
			      const struct bdr_answer *answer)
{
	struct bdr_reply reply = { .error = answer->error };
	struct iovec iov[2] = {
		{ .iov_base = &reply, .iov_len = sizeof(reply) },
		{ .iov_base = (void *)answer->data,
		  .iov_len = answer->error ? 0 : answer->bytes },
	};
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(answer->fds))];
	} ancillary;
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
	ssize_t n;

	if (answer->with_fds && !answer->error) {
		struct cmsghdr *cmsg;

		memset(&ancillary, 0, sizeof(ancillary));
		msg.msg_control = ancillary.bytes;
		msg.msg_controllen = sizeof(ancillary.bytes);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(answer->fds));
		memcpy(CMSG_DATA(cmsg), answer->fds, sizeof(answer->fds));
	}
	do {
		n = sendmsg(client->fd, &msg, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n >= 0;
}

/* ---- requests ---------------------------------------------------------- */

/* A request's structure begins 8 bytes into the packet, so it is aligned. */
union bdr_argument {
	struct bdr_open open;
	struct bdr_release release;
	struct bdr_bitmap_range range;
	struct bdr_marks_read marks;
};

struct bdr_packet {
	struct bdr_request request;
	union bdr_argument argument;
};

static bool bdr_client_is_hung_up(const struct bdr_client *client)
{
	struct pollfd poll_fd = { .fd = client->fd };

	return poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & POLLHUP);
}

/*
 * If the consumer has disconnected, but its thread has not handled that yet,
 * waits for the thread to release the role: a restarted reader must not get
 * EBUSY because of its predecessor.
 */
static int bdr_client_take_role(struct bdr_client *client)
{
	struct bdr_control *control = client->control;
	int err = 0;

	pthread_mutex_lock(&control->lock);
	while (control->consumer && bdr_client_is_hung_up(control->consumer))
		pthread_cond_wait(&control->role_freed, &control->lock);
	if (control->consumer)
		err = EBUSY;
	else
		control->consumer = client;
	pthread_mutex_unlock(&control->lock);
	return err;
}

static int bdr_client_open(struct bdr_client *client,
			   const struct bdr_open *open,
			   struct bdr_answer *answer)
{
	struct bdr_capture *capture = client->control->capture;

	int err = -bdr_request_check_open(open);

	if (err)
		return err;
	if (client->open)
		return EISCONN;

	if (open->role == BDR_ROLE_CONSUMER) {
		err = bdr_client_take_role(client);
		if (err)
			return err;
		client->consumer = true;
		bdr_capture_attach(capture, client->eventfd);
	}
	client->open = true;
	answer->with_fds = true;
	answer->fds[0] = capture->memory.shared_fd;
	answer->fds[1] = client->eventfd;
	return 0;
}

static int bdr_client_bitmap(const struct bdr_client *client, __u32 code,
			     const struct bdr_bitmap_range *range, __u64 *words,
			     struct bdr_answer *answer)
{
	struct bdr_capture *capture = client->control->capture;
	int err = -bdr_request_check_bitmap(code, range);

	if (!err && range->buffer)
		err = EINVAL;
	if (!err)
		err = -bdr_request_check_range(code, range, capture->info.regions);
	if (err)
		return err;

	if (code == BDR_IOC_BITMAP_READ) {
		bdr_request_read_bitmap(&capture->gate, range, words);
		answer->data = words;
		answer->bytes = bdr_bitmap_words(range->count) * sizeof(*words);
	} else {
		bdr_capture_change_bitmap(capture, code, range);
	}
	return 0;
}

static int bdr_client_marks(const struct bdr_client *client,
			    const struct bdr_marks_read *read,
			    struct bdr_mark *marks, struct bdr_answer *answer)
{
	int err = -bdr_request_check_marks(read);

	if (!err && read->buffer)
		err = EINVAL;
	if (err)
		return err;
	answer->data = marks;
	answer->bytes = bdr_capture_read_marks(client->control->capture, marks) *
			sizeof(*marks);
	return 0;
}

/* Memory for the data of an answer. */
union bdr_scratch {
	struct bdr_status status;
	struct bdr_resume resume;
	__u64 words[BDR_BITMAP_BYTES_MAX / sizeof(__u64)];
	struct bdr_mark marks[BDR_MARKS_MAX];
};

static int bdr_client_handle(struct bdr_client *client,
			     const struct bdr_packet *packet,
			     union bdr_scratch *scratch,
			     struct bdr_answer *answer)
{
	struct bdr_capture *capture = client->control->capture;

	switch (packet->request.code) {
	case BDR_IOC_OPEN:
		return bdr_client_open(client, &packet->argument.open, answer);
	case BDR_IOC_INFO:
		answer->data = &capture->info;
		answer->bytes = sizeof(capture->info);
		return 0;
	case BDR_IOC_STATUS:
		/* First, so that a change after the answer was filled wakes again. */
		if (client->consumer)
			bdr_capture_status_seen(capture);
		bdr_capture_status(capture, &scratch->status);
		answer->data = &scratch->status;
		answer->bytes = sizeof(scratch->status);
		return 0;
	case BDR_IOC_RELEASE:
		return bdr_capture_release(capture, &packet->argument.release);
	case BDR_IOC_RESUME:
		bdr_capture_resume(capture, &scratch->resume);
		answer->data = &scratch->resume;
		answer->bytes = sizeof(scratch->resume);
		return 0;
	case BDR_IOC_MARKS_READ:
		return bdr_client_marks(client, &packet->argument.marks,
					scratch->marks, answer);
	default:
		return bdr_client_bitmap(client, packet->request.code,
					 &packet->argument.range,
					 scratch->words, answer);
	}
}

/* ---- clients ----------------------------------------------------------- */

static void bdr_client_serve(struct bdr_client *client,
			     union bdr_scratch *scratch)
{
	for (;;) {
		struct bdr_answer answer = { 0 };
		struct bdr_packet packet;
		ssize_t n;

		memset(&packet, 0, sizeof(packet));
		/* MSG_TRUNC: the true length, also of a packet that was cut. */
		n = recv(client->fd, &packet, sizeof(packet), MSG_TRUNC);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		answer.error = -bdr_request_check_packet(&packet.request, (__u64)n,
							 client->open,
							 client->consumer);
		if (!answer.error)
			answer.error = bdr_client_handle(client, &packet,
							 scratch, &answer);
		if (!bdr_client_answer(client, &answer))
			return;
	}
}

static void *bdr_client_run(void *arg)
{
	struct bdr_client *client = arg;
	struct bdr_control *control = client->control;
	union bdr_scratch *scratch = malloc(sizeof(*scratch));

	if (scratch)
		bdr_client_serve(client, scratch);
	free(scratch);

	if (client->consumer)
		bdr_capture_detach(control->capture);
	pthread_mutex_lock(&control->lock);
	/* Releases the role before the client can observe the end. */
	if (client->consumer) {
		control->consumer = NULL;
		pthread_cond_broadcast(&control->role_freed);
	}
	close(client->eventfd);
	close(client->fd);
	client->fd = -1;
	client->state = BDR_CLIENT_ENDED;
	pthread_mutex_unlock(&control->lock);
	return NULL;
}

/* A free entry of `clients`, or NULL.  Only the acceptor fills entries. */
static struct bdr_client *bdr_control_find_free_locked(struct bdr_control *control)
{
	int i;

	for (i = 0; i < BDR_CLIENTS_MAX; i++) {
		struct bdr_client *client = &control->clients[i];

		if (client->state == BDR_CLIENT_ENDED) {
			/* It has released the lock, or is about to. */
			pthread_join(client->thread, NULL);
			client->state = BDR_CLIENT_FREE;
		}
		if (client->state == BDR_CLIENT_FREE)
			return client;
	}
	return NULL;
}

/* Returns 0 or an errno; then the caller still owns `fd`. */
static int bdr_client_start(struct bdr_control *control, int fd)
{
	struct bdr_client *client;
	int err = 0;

	pthread_mutex_lock(&control->lock);
	client = bdr_control_find_free_locked(control);
	if (!client) {
		err = EUSERS;
		goto out;
	}
	client->control = control;
	client->fd = fd;
	client->open = false;
	client->consumer = false;
	client->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (client->eventfd < 0) {
		err = errno;
		goto out;
	}
	err = pthread_create(&client->thread, NULL, bdr_client_run, client);
	if (err) {
		close(client->eventfd);
		goto out;
	}
	client->state = BDR_CLIENT_RUNNING;
out:
	pthread_mutex_unlock(&control->lock);
	return err;
}

/*
 * Receives the first packet before it answers: a close with an unread packet would
 * reset the connection, and the client would not get the reason.
 */
static void bdr_client_refuse(int fd, int error)
{
	struct timeval patience = { .tv_usec = BDR_ACCEPT_PAUSE_MS * 1000 };
	struct bdr_reply reply = { .error = error };
	struct bdr_packet packet;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (recv(fd, &packet, sizeof(packet), 0) < 0 ||
	    send(fd, &reply, sizeof(reply), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		nbdkit_debug("bdr: cannot send the reason to a refused client: %m");
	close(fd);
}

static void *bdr_control_accept(void *arg)
{
	struct bdr_control *control = arg;
	struct pollfd fds[] = {
		{ .fd = control->stop_fd, .events = POLLIN },
		{ .fd = control->listen_fd, .events = POLLIN },
	};

	for (;;) {
		int fd, err;

		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[0].revents)
			return NULL;
		fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0) {
			/* Out of descriptors or memory: no busy loop. */
			if (errno != EAGAIN && errno != EINTR &&
			    errno != ECONNABORTED)
				poll(fds, 1, BDR_ACCEPT_PAUSE_MS);
			continue;
		}
		err = bdr_client_start(control, fd);
		if (err)
			bdr_client_refuse(fd, err);
	}
}

/* ---- life -------------------------------------------------------------- */

/* Whether the locked file is still the one at `lock_path`. */
static bool bdr_lock_is_current(const struct bdr_control *control)
{
	struct stat held, named;

	return !fstat(control->lock_fd, &held) &&
	       !stat(control->lock_path, &named) &&
	       held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

/*
 * The owner of the path is the holder of the lock: the socket file of a server
 * that was killed is not removed, but its lock is released.
 */
static int bdr_control_lock(struct bdr_control *control)
{
	for (;;) {
		control->lock_fd = open(control->lock_path,
					O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW,
					0600);
		if (control->lock_fd < 0) {
			nbdkit_error("ring=%s: cannot create the lock %s: %m",
				     control->path, control->lock_path);
			return -1;
		}
		if (flock(control->lock_fd, LOCK_EX | LOCK_NB) < 0) {
			if (errno == EWOULDBLOCK)
				nbdkit_error("ring=%s: in use by another process (it holds %s)",
					     control->path, control->lock_path);
			else
				nbdkit_error("ring=%s: cannot lock %s: %m",
					     control->path, control->lock_path);
			close(control->lock_fd);
			control->lock_fd = -1;
			return -1;
		}
		if (bdr_lock_is_current(control))
			return 0;
		/* The last owner removed it between open and flock. */
		close(control->lock_fd);
	}
}

/* Under the lock: a socket at `path` is that of a server that has ended. */
static int bdr_control_remove_stale(const char *path)
{
	struct stat st;

	if (lstat(path, &st) < 0) {
		if (errno == ENOENT)
			return 0;
		nbdkit_error("ring=%s: %m", path);
		return -1;
	}
	if (!S_ISSOCK(st.st_mode)) {
		nbdkit_error("ring=%s: exists and is no socket; choose another path or remove it",
			     path);
		return -1;
	}
	if (unlink(path) < 0) {
		nbdkit_error("ring=%s: cannot remove the socket of an ended server: %m",
			     path);
		return -1;
	}
	return 0;
}

static int bdr_control_bind(struct bdr_control *control)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (strlen(control->path) >= sizeof(address.sun_path)) {
		nbdkit_error("ring=%s: the path of a socket has at most %zu bytes",
			     control->path, sizeof(address.sun_path) - 1);
		return -1;
	}
	strcpy(address.sun_path, control->path);

	control->listen_fd = socket(AF_UNIX,
				    SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (control->listen_fd < 0) {
		nbdkit_error("ring=%s: socket: %m", control->path);
		return -1;
	}
	/* The file gets the socket's mode: there is no moment with another one. */
	if (fchmod(control->listen_fd, 0600) < 0 ||
	    bind(control->listen_fd, (struct sockaddr *)&address,
		 sizeof(address)) < 0) {
		nbdkit_error("ring=%s: cannot create the socket: %m",
			     control->path);
		return -1;
	}
	control->bound = true;
	if (listen(control->listen_fd, BDR_BACKLOG) < 0) {
		nbdkit_error("ring=%s: listen: %m", control->path);
		return -1;
	}
	return 0;
}

int bdr_control_create(struct bdr_control *control, struct bdr_capture *capture,
		       const char *path)
{
	memset(control, 0, sizeof(*control));
	control->capture = capture;
	control->lock_fd = -1;
	control->listen_fd = -1;
	control->stop_fd = -1;
	pthread_mutex_init(&control->lock, NULL);
	pthread_cond_init(&control->role_freed, NULL);

	control->path = strdup(path);
	if (!control->path ||
	    asprintf(&control->lock_path, "%s.lock", path) < 0) {
		control->lock_path = NULL;
		nbdkit_error("ring=%s: out of memory", path);
		goto fail;
	}
	control->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (control->stop_fd < 0) {
		nbdkit_error("ring=%s: eventfd: %m", path);
		goto fail;
	}
	if (bdr_control_lock(control) < 0 ||
	    bdr_control_remove_stale(path) < 0 ||
	    bdr_control_bind(control) < 0)
		goto fail;
	return 0;

fail:
	bdr_control_destroy(control);
	return -1;
}

int bdr_control_start(struct bdr_control *control)
{
	sigset_t all, old;
	int err;

	/* nbdkit handles signals: this thread, and those that it starts, block them. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&control->acceptor, NULL, bdr_control_accept,
			     control);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err) {
		errno = err;
		nbdkit_error("ring=%s: cannot start a thread: %m", control->path);
		return -1;
	}
	control->accepting = true;
	return 0;
}

static void bdr_control_stop(struct bdr_control *control)
{
	static const __u64 one = 1;
	int i;

	if (!control->accepting)
		return;
	if (write(control->stop_fd, &one, sizeof(one)) < 0)
		nbdkit_error("ring=%s: cannot stop: %m", control->path);
	pthread_join(control->acceptor, NULL);
	control->accepting = false;

	/* No client is started any more. */
	for (i = 0; i < BDR_CLIENTS_MAX; i++) {
		struct bdr_client *client = &control->clients[i];
		bool started;

		pthread_mutex_lock(&control->lock);
		started = client->state != BDR_CLIENT_FREE;
		if (client->state == BDR_CLIENT_RUNNING)
			shutdown(client->fd, SHUT_RDWR);
		pthread_mutex_unlock(&control->lock);
		if (started)
			pthread_join(client->thread, NULL);
	}
}

void bdr_control_destroy(struct bdr_control *control)
{
	bdr_control_stop(control);
	if (control->listen_fd >= 0)
		close(control->listen_fd);
	if (control->bound)
		unlink(control->path);
	if (control->lock_fd >= 0) {
		unlink(control->lock_path);
		close(control->lock_fd);
	}
	if (control->stop_fd >= 0)
		close(control->stop_fd);
	free(control->lock_path);
	free(control->path);
	pthread_cond_destroy(&control->role_freed);
	pthread_mutex_destroy(&control->lock);
}
