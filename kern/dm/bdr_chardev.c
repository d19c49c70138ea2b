// SPDX-License-Identifier: GPL-2.0-only
/*
 * The control device /dev/CHARDEV_NAME, the interface of bdr_uapi.h.
 *
 * A file has a reference to its context, and a mapping has one to its file, so the
 * memory outlives the dm device as long as it is open or mapped.  Requests to a
 * context that is dead get ENODEV.
 *
 * open() runs under misc_mtx, which misc_deregister() takes as well: a context
 * whose control device can be opened has a target, hence a reference to copy.
 * While no table of it is live, writes are not captured: a scan could miss a
 * difference that a later write causes, so open() fails with EAGAIN.
 *
 * All of this is process context.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "bdr_chardev.h"
#include "bdr_request.h"

/* Pages that one fault maps: senders read batches from end to end. */
#define BDR_FAULT_PAGES		64UL

static bool bdr_context_is_dead(const struct bdr_context *ctx)
{
	return READ_ONCE(ctx->dead);
}

/*----------------------------------------------------------------
 * Open and release
 *--------------------------------------------------------------
 */

static int bdr_chardev_open(struct inode *inode, struct file *file)
{
	struct bdr_context *ctx = container_of(file->private_data,
					       struct bdr_context, misc);
	int r = 0;

	/* The ring has data of the disk: the mode of the node is not enough. */
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;

	spin_lock_irq(&ctx->lock);
	if (ctx->dead) {
		r = -ENODEV;
	} else if (!ctx->live) {
		r = -EAGAIN;
	} else if (file->f_mode & FMODE_WRITE) {
		if (ctx->consumer) {
			r = -EBUSY;
		} else {
			ctx->consumer = file;
			ctx->cursor = ctx->gate.ring.tail;
			ctx->events++;
			ctx->stream_seen = true;
		}
	}
	spin_unlock_irq(&ctx->lock);
	if (r)
		return r;

	bdr_context_get(ctx);
	file->private_data = ctx;
	return nonseekable_open(inode, file);
}

static int bdr_chardev_release(struct inode *inode, struct file *file)
{
	struct bdr_context *ctx = file->private_data;

	spin_lock_irq(&ctx->lock);
	if (ctx->consumer == file)
		ctx->consumer = NULL;
	spin_unlock_irq(&ctx->lock);
	bdr_context_put(ctx);
	return 0;
}

/*----------------------------------------------------------------
 * Mapping
 *--------------------------------------------------------------
 */

/*
 * Maps pages on first access, a run at a time.  The resident set of a process thus
 * has the pages that it has read, and MADV_DONTNEED removes them again.
 */
static vm_fault_t bdr_vma_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct bdr_context *ctx = vma->vm_private_data;
	const struct bdr_memory *memory = &ctx->memory;
	unsigned long once = memory->header_pages + memory->payload_pages;
	unsigned long page = vmf->pgoff, count;
	unsigned long address = vmf->address & PAGE_MASK;
	int r;

	if (page >= once + memory->payload_pages)
		return VM_FAULT_SIGBUS;
	/* The second copy of the payload. */
	if (page >= once)
		page -= memory->payload_pages;

	count = min3(BDR_FAULT_PAGES, once - page, (vma->vm_end - address) >> PAGE_SHIFT);
	r = vm_insert_pages(vma, address, memory->pages + page, &count);
	/* EBUSY: a page of the run is mapped already, hence also those before. */
	if (!r || r == -EBUSY)
		return VM_FAULT_NOPAGE;
	return r == -ENOMEM ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
}

static const struct vm_operations_struct bdr_vma_ops = {
	.fault = bdr_vma_fault,
};

static int bdr_chardev_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct bdr_context *ctx = file->private_data;
	unsigned long bytes = vma->vm_end - vma->vm_start;

	if (bdr_context_is_dead(ctx))
		return -ENODEV;
	if (vma->vm_pgoff || bytes != bdr_memory_map_bytes(&ctx->memory))
		return -EINVAL;
	if (vma->vm_flags & (VM_WRITE | VM_EXEC))
		return -EPERM;

	/* MIXEDMAP is set here, since a fault must not change flags. */
	vm_flags_mod(vma, VM_MIXEDMAP | VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY,
		     VM_MAYWRITE | VM_MAYEXEC);
	vma->vm_private_data = ctx;
	vma->vm_ops = &bdr_vma_ops;
	return 0;
}

/*----------------------------------------------------------------
 * Poll
 *--------------------------------------------------------------
 */

static __poll_t bdr_chardev_poll(struct file *file, poll_table *table)
{
	struct bdr_context *ctx = file->private_data;

	poll_wait(file, &ctx->poll_wait, table);
	/*
	 * Queued first, then the ring is read: pairs with the barrier of
	 * wq_has_sleeper() in bdr_context_wake().
	 */
	smp_mb();
	if (bdr_context_is_dead(ctx))
		return EPOLLHUP | EPOLLERR;
	return bdr_context_is_readable(ctx) ? EPOLLIN | EPOLLRDNORM : 0;
}

/*----------------------------------------------------------------
 * Requests
 *--------------------------------------------------------------
 */

static long bdr_ioctl_info(struct bdr_context *ctx, void __user *arg)
{
	struct bdr_info *info;
	long r = 0;

	info = kzalloc(sizeof(*info), GFP_KERNEL);
	if (!info)
		return -ENOMEM;
	spin_lock_irq(&ctx->lock);
	bdr_request_fill_info_locked(info, &ctx->gate,
				     bdr_memory_header_bytes(&ctx->memory));
	memcpy(info->stream_id, ctx->stream_id, sizeof(info->stream_id));
	memcpy(info->underlying, ctx->underlying, sizeof(ctx->underlying));
	spin_unlock_irq(&ctx->lock);

	if (copy_to_user(arg, info, sizeof(*info)))
		r = -EFAULT;
	kfree(info);
	return r;
}

static long bdr_ioctl_status(struct bdr_context *ctx, const struct file *file,
			     void __user *arg)
{
	struct bdr_status status;
	u64 events = bdr_context_status(ctx, &status);

	if (copy_to_user(arg, &status, sizeof(status)))
		return -EFAULT;
	/* After the copy: an event that was not reported stays unseen. */
	if (READ_ONCE(ctx->consumer) != file)
		return 0;
	WRITE_ONCE(ctx->events_seen, events);
	spin_lock_irq(&ctx->lock);
	if (!memcmp(status.stream_id, ctx->stream_id, sizeof(ctx->stream_id)))
		ctx->stream_seen = true;
	spin_unlock_irq(&ctx->lock);
	return 0;
}

static long bdr_ioctl_release(struct bdr_context *ctx, void __user *arg)
{
	struct bdr_ring *ring = &ctx->gate.ring;
	struct bdr_release release;
	u64 head;
	int r;

	if (copy_from_user(&release, arg, sizeof(release)))
		return -EFAULT;
	if (mutex_lock_killable(&ctx->release_lock))
		return -EINTR;

	spin_lock_irq(&ctx->lock);
	head = ring->head;
	r = bdr_request_check_counters_locked(&ctx->gate, &release);
	spin_unlock_irq(&ctx->lock);
	if (!r)
		r = bdr_request_check_release(ring, head, &release);
	if (r)
		goto unlock;

	spin_lock_irq(&ctx->lock);
	if (ctx->stream_seen) {
		bdr_request_release_locked(&ctx->gate, &release);
		ctx->cursor = release.cursor;
	} else {
		r = -ESTALE;
	}
	spin_unlock_irq(&ctx->lock);
unlock:
	mutex_unlock(&ctx->release_lock);
	return r;
}

static bool bdr_resume_is_drained(struct bdr_context *ctx)
{
	bool drained;

	spin_lock_irq(&ctx->lock);
	drained = bdr_gate_drained_locked(&ctx->gate);
	spin_unlock_irq(&ctx->lock);
	return drained;
}

/* Waits until the unlogged writes of the previous epoch have completed. */
static long bdr_resume_drain(struct bdr_context *ctx)
{
	if (wait_event_killable(ctx->drain_wait,
				bdr_resume_is_drained(ctx) || bdr_context_is_dead(ctx)))
		return -EINTR;
	return bdr_context_is_dead(ctx) ? -ENODEV : 0;
}

static long bdr_ioctl_resume(struct bdr_context *ctx, void __user *arg)
{
	struct bdr_resume resume = { };
	long r;

	/* A bad pointer fails before anything has changed. */
	if (copy_to_user(arg, &resume, sizeof(resume)))
		return -EFAULT;
	if (mutex_lock_killable(&ctx->resume_lock))
		return -EINTR;

	/* A RESUME that was killed may have left its epoch undrained. */
	r = bdr_resume_drain(ctx);
	if (r)
		goto unlock;

	spin_lock_irq(&ctx->lock);
	if (ctx->gate.mode != BDR_MODE_STREAM)
		ctx->events++;
	resume.slot = bdr_gate_resume_locked(&ctx->gate);
	bdr_context_wake(ctx);
	spin_unlock_irq(&ctx->lock);

	r = bdr_resume_drain(ctx);
	if (r)
		goto unlock;

	mutex_lock(&ctx->bitmap_lock);
	bdr_gate_merge(&ctx->gate);
	mutex_unlock(&ctx->bitmap_lock);
unlock:
	mutex_unlock(&ctx->resume_lock);
	if (!r && copy_to_user(arg, &resume, sizeof(resume)))
		r = -EFAULT;
	return r;
}

static long bdr_ioctl_bitmap_read(struct bdr_context *ctx,
				  const struct bdr_bitmap_range *range)
{
	const struct bdr_gate *gate = &ctx->gate;
	u64 bytes = DIV_ROUND_UP(range->count, BITS_PER_BYTE);
	u64 *copy;
	int r;

	/* A count of 0 is valid, and so is an allocation of that size. */
	copy = kvmalloc_array(bdr_bitmap_words(range->count), sizeof(*copy),
			      GFP_KERNEL);
	if (!copy)
		return -ENOMEM;

	mutex_lock(&ctx->bitmap_lock);
	r = bdr_request_check_range(BDR_IOC_BITMAP_READ, range,
				    bdr_gate_regions(gate));
	if (!r)
		bdr_request_read_bitmap(gate, range, copy);
	mutex_unlock(&ctx->bitmap_lock);

	if (!r && copy_to_user(u64_to_user_ptr(range->buffer), copy, bytes))
		r = -EFAULT;
	kvfree(copy);
	return r;
}

static long bdr_ioctl_bitmap_change(struct bdr_context *ctx, unsigned int command,
				    const struct bdr_bitmap_range *range)
{
	struct bdr_gate *gate = &ctx->gate;
	int r;

	mutex_lock(&ctx->bitmap_lock);
	r = bdr_request_check_range(command, range, bdr_gate_regions(gate));
	if (!r)
		bdr_request_change_bitmap(gate, command, range);
	if (!r && command == BDR_IOC_BITMAP_MARK) {
		spin_lock_irq(&ctx->lock);
		bdr_gate_marked_locked(gate);
		spin_unlock_irq(&ctx->lock);
	}
	mutex_unlock(&ctx->bitmap_lock);
	return r;
}

static long bdr_ioctl_bitmap(struct bdr_context *ctx, unsigned int command,
			     void __user *arg)
{
	struct bdr_bitmap_range range;
	int r;

	if (copy_from_user(&range, arg, sizeof(range)))
		return -EFAULT;
	r = bdr_request_check_bitmap(command, &range);
	if (r)
		return r;
	if (command == BDR_IOC_BITMAP_READ)
		return bdr_ioctl_bitmap_read(ctx, &range);
	return bdr_ioctl_bitmap_change(ctx, command, &range);
}

static long bdr_ioctl_marks_read(struct bdr_context *ctx, void __user *arg)
{
	struct bdr_marks_read read;
	struct bdr_mark *copy;
	int r;

	if (copy_from_user(&read, arg, sizeof(read)))
		return -EFAULT;
	r = bdr_request_check_marks(&read);
	if (r)
		return r;
	copy = kvmalloc_array(BDR_MARKS_MAX, sizeof(*copy), GFP_KERNEL);
	if (!copy)
		return -ENOMEM;

	spin_lock_irq(&ctx->lock);
	read.count = bdr_marks_copy_locked(&ctx->gate.marks, copy);
	spin_unlock_irq(&ctx->lock);

	if (copy_to_user(u64_to_user_ptr(read.buffer), copy,
			 read.count * sizeof(*copy)) ||
	    copy_to_user(arg, &read, sizeof(read)))
		r = -EFAULT;
	kvfree(copy);
	return r;
}

static long bdr_chardev_ioctl(struct file *file, unsigned int command,
			      unsigned long argument)
{
	struct bdr_context *ctx = file->private_data;
	void __user *arg = (void __user *)argument;
	int r;

	if (bdr_context_is_dead(ctx))
		return -ENODEV;
	/* Without the lock: only the release of this file ends its role. */
	r = bdr_request_check_role(command, READ_ONCE(ctx->consumer) == file);
	if (r)
		return r;

	switch (command) {
	case BDR_IOC_INFO:
		return bdr_ioctl_info(ctx, arg);
	case BDR_IOC_STATUS:
		return bdr_ioctl_status(ctx, file, arg);
	case BDR_IOC_RELEASE:
		return bdr_ioctl_release(ctx, arg);
	case BDR_IOC_RESUME:
		return bdr_ioctl_resume(ctx, arg);
	case BDR_IOC_BITMAP_READ:
	case BDR_IOC_BITMAP_CLEAR:
	case BDR_IOC_BITMAP_MARK:
		return bdr_ioctl_bitmap(ctx, command, arg);
	case BDR_IOC_MARKS_READ:
		return bdr_ioctl_marks_read(ctx, arg);
	default:
		return -ENOTTY;
	}
}

/*----------------------------------------------------------------
 * Registration
 *--------------------------------------------------------------
 */

static const struct file_operations bdr_chardev_fops = {
	.owner = THIS_MODULE,
	.open = bdr_chardev_open,
	.release = bdr_chardev_release,
	.mmap = bdr_chardev_mmap,
	.poll = bdr_chardev_poll,
	.unlocked_ioctl = bdr_chardev_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

int bdr_chardev_register(struct bdr_context *ctx)
{
	ctx->misc.minor = MISC_DYNAMIC_MINOR;
	ctx->misc.name = ctx->sysfs_name;
	ctx->misc.nodename = ctx->name;
	ctx->misc.mode = 0600;
	ctx->misc.fops = &bdr_chardev_fops;
	return misc_register(&ctx->misc);
}

/* On return, no open() is running and none will begin. */
void bdr_chardev_deregister(struct bdr_context *ctx)
{
	misc_deregister(&ctx->misc);
}
