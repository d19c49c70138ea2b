// SPDX-License-Identifier: GPL-2.0-only
/*
 * The control device /dev/CHARDEV_NAME: what bdr_uapi.h promises.
 *
 * A file holds a reference of its context, and a mapping holds its file, so the
 * memory outlives the dm device for as long as anyone looks at it.  What the
 * device can no longer do gets ENODEV.
 *
 * open() runs under misc_mtx, which misc_deregister() takes as well: a context
 * whose control device can be opened has a target, hence a reference to take.
 * While no table of it is live, writes go by: who would begin to scan then would
 * call equal what is written a moment later, so open() fails with EAGAIN.
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

#include "bdr_context.h"

/* Pages that one fault maps: senders read batches from end to end. */
#define BDR_FAULT_PAGES		64UL

static bool bdr_context_is_dead(const struct bdr_context *ctx)
{
	return READ_ONCE(ctx->dead);
}

static u64 bdr_memory_header_bytes(const struct bdr_memory *memory)
{
	return (u64)memory->header_pages << PAGE_SHIFT;
}

static u64 bdr_memory_payload_bytes(const struct bdr_memory *memory)
{
	return (u64)memory->payload_pages << PAGE_SHIFT;
}

static u64 bdr_memory_map_bytes(const struct bdr_memory *memory)
{
	return bdr_memory_header_bytes(memory) +
	       2 * bdr_memory_payload_bytes(memory);
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

	/* The ring shows what is on the disk, whoever may read the node. */
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
			ctx->news++;
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
 * Maps pages on first touch, a run at a time.  A mapping is thereby as big in a
 * process's resident set as what the process looked at, and MADV_DONTNEED takes
 * pages out of it again.
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
	/* The payload's second appearance. */
	if (page >= once)
		page -= memory->payload_pages;

	count = min3(BDR_FAULT_PAGES, once - page, (vma->vm_end - address) >> PAGE_SHIFT);
	r = vm_insert_pages(vma, address, memory->pages + page, &count);
	/* EBUSY: a page of the run is mapped already, and so are those before. */
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

	/* MIXEDMAP now: a fault must not change flags. */
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
	 * On the queue first, then look: pairs with the barrier in
	 * wq_has_sleeper() of bdr_context_wake().
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
	info->abi_version = BDR_ABI_VERSION;
	info->capacity = ctx->gate.ring.capacity;
	info->region_sectors = ctx->gate.region_sectors;
	info->payload_offset = bdr_memory_header_bytes(&ctx->memory);
	info->payload_bytes = bdr_memory_payload_bytes(&ctx->memory);
	info->map_bytes = bdr_memory_map_bytes(&ctx->memory);
	spin_lock_irq(&ctx->lock);
	memcpy(info->stream_id, ctx->stream_id, sizeof(info->stream_id));
	info->device_sectors = ctx->gate.device_sectors;
	info->regions = bdr_gate_regions(&ctx->gate);
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
	u64 news = bdr_context_status(ctx, &status);

	if (copy_to_user(arg, &status, sizeof(status)))
		return -EFAULT;
	/* Only what the consumer has got is no news any more. */
	if (READ_ONCE(ctx->consumer) == file)
		WRITE_ONCE(ctx->news_seen, news);
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
	spin_unlock_irq(&ctx->lock);

	r = bdr_ring_check_release(ring, head, release.tail);
	if (!r && (release.cursor < release.tail || release.cursor > head))
		r = -ERANGE;
	if (!r) {
		spin_lock_irq(&ctx->lock);
		bdr_gate_release_locked(&ctx->gate, release.tail);
		ctx->cursor = release.cursor;
		spin_unlock_irq(&ctx->lock);
	}
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

/* Waits until no write without a slot remains of the epoch before this one. */
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

	/* Find out about a bad pointer before anything has changed. */
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
		ctx->news++;
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

/* The range lies in the bitmap, without overflow.  Under bitmap_lock. */
static bool bdr_bitmap_range_is_valid(const struct bdr_context *ctx,
				      const struct bdr_bitmap *request)
{
	u64 regions = bdr_gate_regions(&ctx->gate);

	return request->first <= regions &&
	       request->count <= regions - request->first;
}

static long bdr_ioctl_bitmap_read(struct bdr_context *ctx,
				  const struct bdr_bitmap *request)
{
	u64 bytes = DIV_ROUND_UP(request->count, BITS_PER_BYTE);
	u64 words = bdr_bitmap_words(request->count);
	u64 regions, i;
	u64 *copy;
	long r = 0;

	if (request->bitmap > BDR_BITMAP_RESYNC ||
	    request->first % BDR_WORD_REGIONS ||
	    request->count > BDR_BITMAP_CHUNK_REGIONS)
		return -EINVAL;
	if (!words)
		return 0;
	copy = kvmalloc_array(words, sizeof(*copy), GFP_KERNEL);
	if (!copy)
		return -ENOMEM;

	mutex_lock(&ctx->bitmap_lock);
	regions = bdr_gate_regions(&ctx->gate);
	if (!bdr_bitmap_range_is_valid(ctx, request)) {
		r = -ERANGE;
	} else if (request->count % BDR_WORD_REGIONS &&
		   request->first + request->count != regions) {
		r = -EINVAL;
	} else {
		const u64 *bitmap = request->bitmap == BDR_BITMAP_ACTIVE ?
				    ctx->gate.active : ctx->gate.resync;

		for (i = 0; i < words; i++)
			copy[i] = bdr_word_read(&bitmap[request->first /
							BDR_WORD_REGIONS + i]);
	}
	mutex_unlock(&ctx->bitmap_lock);

	if (!r && copy_to_user(u64_to_user_ptr(request->buffer), copy, bytes))
		r = -EFAULT;
	kvfree(copy);
	return r;
}

static long bdr_ioctl_bitmap_change(struct bdr_context *ctx,
				    const struct bdr_bitmap *request, bool set)
{
	u64 end = request->first + request->count;
	long r = 0;

	if (request->bitmap != BDR_BITMAP_RESYNC || request->buffer)
		return -EINVAL;

	mutex_lock(&ctx->bitmap_lock);
	if (!bdr_bitmap_range_is_valid(ctx, request))
		r = -ERANGE;
	else if (set)
		bdr_bitmap_mark(ctx->gate.resync, request->first, end);
	else
		bdr_bitmap_clear(ctx->gate.resync, request->first, end);
	mutex_unlock(&ctx->bitmap_lock);
	return r;
}

static long bdr_ioctl_bitmap(struct bdr_context *ctx, unsigned int command,
			     void __user *arg)
{
	struct bdr_bitmap request;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.reserved)
		return -EINVAL;
	if (command == BDR_IOC_BITMAP_READ)
		return bdr_ioctl_bitmap_read(ctx, &request);
	return bdr_ioctl_bitmap_change(ctx, &request,
				       command == BDR_IOC_BITMAP_MARK);
}

static bool bdr_ioctl_needs_consumer(unsigned int command)
{
	return command == BDR_IOC_RELEASE || command == BDR_IOC_RESUME ||
	       command == BDR_IOC_BITMAP_CLEAR || command == BDR_IOC_BITMAP_MARK;
}

static long bdr_chardev_ioctl(struct file *file, unsigned int command,
			      unsigned long argument)
{
	struct bdr_context *ctx = file->private_data;
	void __user *arg = (void __user *)argument;

	if (bdr_context_is_dead(ctx))
		return -ENODEV;
	/* Only this file's release takes the role away: no lock. */
	if (bdr_ioctl_needs_consumer(command) && READ_ONCE(ctx->consumer) != file)
		return -EPERM;

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

/* When this returns no open() is running and none will begin. */
void bdr_chardev_deregister(struct bdr_context *ctx)
{
	misc_deregister(&ctx->misc);
}
