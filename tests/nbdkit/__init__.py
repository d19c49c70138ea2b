# SPDX-License-Identifier: GPL-2.0-only
"""The nbdkit plugin, driven over real sockets."""
