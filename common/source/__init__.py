# SPDX-License-Identifier: GPL-2.0-only
"""The source's decisions: order, resync, exclusions."""
