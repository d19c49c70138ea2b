# SPDX-License-Identifier: GPL-2.0-only
"""Events, hooks, exporter, and the client of a monitor."""
