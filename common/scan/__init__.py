# SPDX-License-Identifier: GPL-2.0-only
"""Comparing both sides, and building repairs."""
