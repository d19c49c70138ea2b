// SPDX-License-Identifier: GPL-2.0-only
#include <stdbool.h>
#include <stddef.h>

#include "range_lock.h"

void bdr_range_lock_init(struct bdr_range_lock *lock)
{
	pthread_mutex_init(&lock->mutex, NULL);
	pthread_cond_init(&lock->unlocked, NULL);
	lock->waiting = 0;
	lock->first = NULL;
	lock->last = NULL;
}

void bdr_range_lock_destroy(struct bdr_range_lock *lock)
{
	pthread_cond_destroy(&lock->unlocked);
	pthread_mutex_destroy(&lock->mutex);
}

static bool bdr_range_is_blocked_locked(const struct bdr_range *range)
{
	const struct bdr_range *earlier;

	for (earlier = range->prev; earlier; earlier = earlier->prev)
		if (earlier->begin < range->end && range->begin < earlier->end)
			return true;
	return false;
}

void bdr_range_acquire(struct bdr_range_lock *lock, struct bdr_range *range,
		       uint64_t begin, uint64_t end)
{
	range->begin = begin;
	range->end = end;
	range->next = NULL;

	pthread_mutex_lock(&lock->mutex);
	range->prev = lock->last;
	if (lock->last)
		lock->last->next = range;
	else
		lock->first = range;
	lock->last = range;

	while (bdr_range_is_blocked_locked(range)) {
		lock->waiting++;
		pthread_cond_wait(&lock->unlocked, &lock->mutex);
		lock->waiting--;
	}
	pthread_mutex_unlock(&lock->mutex);
}

void bdr_range_release(struct bdr_range_lock *lock, struct bdr_range *range)
{
	bool wake;

	pthread_mutex_lock(&lock->mutex);
	if (range->prev)
		range->prev->next = range->next;
	else
		lock->first = range->next;
	if (range->next)
		range->next->prev = range->prev;
	else
		lock->last = range->prev;
	wake = lock->waiting > 0;
	pthread_mutex_unlock(&lock->mutex);

	if (wake)
		pthread_cond_broadcast(&lock->unlocked);
}
