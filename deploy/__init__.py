# SPDX-License-Identifier: GPL-2.0-only
"""Installation, captured devices, a private supervisord, and the demonstrations."""
