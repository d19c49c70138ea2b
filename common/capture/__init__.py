# SPDX-License-Identifier: GPL-2.0-only
"""Captures: the producers of the ring, behind one interface."""
