# SPDX-License-Identifier: GPL-2.0-only
"""The ring: its layout, its slots, its mapping."""
