# SPDX-License-Identifier: GPL-2.0-only
"""The applier's workers: stores, journal, checksums."""
