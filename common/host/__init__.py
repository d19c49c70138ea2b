# SPDX-License-Identifier: GPL-2.0-only
"""What a host runs: configuration, programs, attaching a device."""
