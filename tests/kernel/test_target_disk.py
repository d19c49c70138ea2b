# SPDX-License-Identifier: GPL-2.0-only
"""A target on a real disk: what it calls itself."""

from __future__ import annotations

from bdr.common.storage.target_device import TargetDevice


def test_disk_is_known_by_its_serial_number(disk: str) -> None:
    device = TargetDevice(disk)
    try:
        assert device.identity == "serial fast"
    finally:
        device.close()
