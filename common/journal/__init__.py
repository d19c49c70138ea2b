# SPDX-License-Identifier: GPL-2.0-only
"""The target's write-ahead journal: format, recovery, engine."""
