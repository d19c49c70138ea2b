# SPDX-License-Identifier: GPL-2.0-only
"""Health and lag of a volume, judged from facts."""
