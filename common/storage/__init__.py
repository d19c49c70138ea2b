# SPDX-License-Identifier: GPL-2.0-only
"""Files and devices of a host, locked and synced."""
