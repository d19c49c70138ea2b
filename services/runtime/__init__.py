# SPDX-License-Identifier: GPL-2.0-only
"""What every process has: loop, sockets, log, options, reports."""
