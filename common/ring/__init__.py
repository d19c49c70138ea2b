# SPDX-License-Identifier: GPL-2.0-only
"""The ring: its numbers, its slots, its mapping."""
