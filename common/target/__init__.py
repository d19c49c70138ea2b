# SPDX-License-Identifier: GPL-2.0-only
"""The target's decisions: the replica, its record, its jobs."""
