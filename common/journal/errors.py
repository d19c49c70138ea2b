# SPDX-License-Identifier: GPL-2.0-only
"""The error of a journal that is refused."""

from __future__ import annotations

from bdr.common.errors import StateError

WHAT_TO_DO = (
    "if the disk can be mended or the right journal named, do that and start the applier again; "
    "otherwise delete the journal and the state file, and let the source scan: "
    "`bdr adopt` allows it"
)


class JournalRefusedError(StateError):
    """The journal is not to be believed; nothing of it was applied."""

    def __init__(self, where: str, found: str, wanted: str, to_do: str = WHAT_TO_DO) -> None:
        super().__init__(f"journal {where}: found {found}; wanted {wanted}; {to_do}")
