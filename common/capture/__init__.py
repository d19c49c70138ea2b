# SPDX-License-Identifier: GPL-2.0-only
"""Captures: what fills the ring, behind one protocol."""
