# SPDX-License-Identifier: GPL-2.0-only
"""Facts of an event, by name, for the log and for hooks."""

from __future__ import annotations

Facts = dict[str, int | str]
