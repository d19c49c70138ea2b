# SPDX-License-Identifier: GPL-2.0-only
"""supervisord: its files, its processes, its extension."""
