# SPDX-License-Identifier: GPL-2.0-only
"""What a node tells of an event: facts by their names, for the log and for hooks."""

from __future__ import annotations

Facts = dict[str, int | str]
