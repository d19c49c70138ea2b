// SPDX-License-Identifier: GPL-2.0-only
/* Prints what the headers say, one `name value` a line, for the Python mirror. */
#include <stddef.h>
#include <stdio.h>

#include "bdr_gate.h"
#include "bdr_uapi.h"

#define VALUE(name)	printf("%s %llu\n", #name, (unsigned long long)(name))
#define SIZE(type)	printf("%s %zu\n", #type, sizeof(struct type))
#define FIELD(type, field)						\
	printf("%s.%s %zu:%zu\n", #type, #field,			\
	       offsetof(struct type, field), sizeof(((struct type *)0)->field))

int main(void)
{
	VALUE(BDR_SECTOR_BYTES);
	VALUE(BDR_PAYLOAD_BYTES);
	VALUE(BDR_HEADER_BYTES);
	VALUE(BDR_SLOT_BYTES);
	VALUE(BDR_SLOT_SECTORS);
	VALUE(BDR_WRITE_SLOTS_MAX);
	VALUE(BDR_CAPACITY_MIN);
	VALUE(BDR_CAPACITY_MAX);
	VALUE(BDR_SECTOR_BITS);
	VALUE(BDR_SECTOR_MASK);
	VALUE(BDR_COUNT_SHIFT);
	VALUE(BDR_COUNT_MASK);
	VALUE(BDR_OP_SHIFT);
	VALUE(BDR_OP_MASK);
	VALUE(BDR_FUA_SHIFT);
	VALUE(BDR_LAST_SHIFT);
	VALUE(BDR_PHASE_SHIFT);
	VALUE(BDR_OP_NOP);
	VALUE(BDR_OP_WRITE);
	VALUE(BDR_OP_DISCARD);
	VALUE(BDR_OP_WRITE_ZEROES);
	VALUE(BDR_OP_FLUSH);
	VALUE(BDR_REGION_SECTORS_DEFAULT);
	VALUE(BDR_REGION_SECTORS_MIN);
	VALUE(BDR_REGION_SECTORS_MAX);
	VALUE(BDR_MODE_STREAM);
	VALUE(BDR_MODE_OVERFLOW);
	VALUE(BDR_GAP_NONE);
	VALUE(BDR_ABI_VERSION);
	VALUE(BDR_STREAM_ID_BYTES);
	VALUE(BDR_BITMAP_ACTIVE);
	VALUE(BDR_BITMAP_RESYNC);
	VALUE(BDR_BITMAP_CHUNK_REGIONS);
	VALUE(BDR_ROLE_OBSERVER);
	VALUE(BDR_ROLE_CONSUMER);
	VALUE(BDR_IOC_INFO);
	VALUE(BDR_IOC_STATUS);
	VALUE(BDR_IOC_RELEASE);
	VALUE(BDR_IOC_RESUME);
	VALUE(BDR_IOC_BITMAP_READ);
	VALUE(BDR_IOC_BITMAP_CLEAR);
	VALUE(BDR_IOC_BITMAP_MARK);
	VALUE(BDR_IOC_OPEN);
	VALUE(BDR_IOC_MARKS_READ);
	VALUE(BDR_MARKS_MAX);
	VALUE(BDR_MARKS_INTERVAL_NS);
	VALUE(BDR_MISSED_NOTHING);
	VALUE(BDR_MISSED_UNKNOWN);

	SIZE(bdr_info);
	FIELD(bdr_info, abi_version);
	FIELD(bdr_info, reserved0);
	FIELD(bdr_info, stream_id);
	FIELD(bdr_info, device_sectors);
	FIELD(bdr_info, capacity);
	FIELD(bdr_info, region_sectors);
	FIELD(bdr_info, regions);
	FIELD(bdr_info, payload_offset);
	FIELD(bdr_info, payload_bytes);
	FIELD(bdr_info, map_bytes);
	FIELD(bdr_info, underlying);
	FIELD(bdr_info, reserved);

	SIZE(bdr_status);
	FIELD(bdr_status, head);
	FIELD(bdr_status, tail);
	FIELD(bdr_status, unpublished);
	FIELD(bdr_status, gap);
	FIELD(bdr_status, mode);
	FIELD(bdr_status, reserved0);
	FIELD(bdr_status, active_regions);
	FIELD(bdr_status, resync_regions);
	FIELD(bdr_status, unlogged);
	FIELD(bdr_status, overflows);
	FIELD(bdr_status, missed_writes);
	FIELD(bdr_status, failed_writes);
	FIELD(bdr_status, device_sectors);
	FIELD(bdr_status, last_gap);
	FIELD(bdr_status, stream_id);
	FIELD(bdr_status, acknowledged);
	FIELD(bdr_status, counted);
	FIELD(bdr_status, clock_ns);
	FIELD(bdr_status, marks);
	FIELD(bdr_status, missed_since_ns);
	FIELD(bdr_status, reserved);

	SIZE(bdr_release);
	FIELD(bdr_release, tail);
	FIELD(bdr_release, cursor);
	FIELD(bdr_release, acknowledged);
	FIELD(bdr_release, counted);
	SIZE(bdr_resume);
	FIELD(bdr_resume, slot);
	SIZE(bdr_bitmap_range);
	FIELD(bdr_bitmap_range, first);
	FIELD(bdr_bitmap_range, count);
	FIELD(bdr_bitmap_range, bitmap);
	FIELD(bdr_bitmap_range, reserved);
	FIELD(bdr_bitmap_range, buffer);
	SIZE(bdr_mark);
	FIELD(bdr_mark, slot);
	FIELD(bdr_mark, clock_ns);
	SIZE(bdr_marks_read);
	FIELD(bdr_marks_read, buffer);
	FIELD(bdr_marks_read, count);
	FIELD(bdr_marks_read, reserved);
	SIZE(bdr_open);
	FIELD(bdr_open, abi_version);
	FIELD(bdr_open, role);
	SIZE(bdr_request);
	FIELD(bdr_request, code);
	FIELD(bdr_request, reserved);
	SIZE(bdr_reply);
	FIELD(bdr_reply, error);
	FIELD(bdr_reply, reserved);
	return 0;
}
