# SPDX-License-Identifier: GPL-2.0-only
"""The target's write-ahead journal, from the lowest file up.

| | |
|---|---|
| `disk`, `errors` | what it needs, and how it refuses |
| `layout` | blocks, positions, the arithmetic of the circle |
| `superblock`, `entry` | the bytes of each |
| `superblock_choice`, `entry_reader`, `torn_tail` | what is valid: the decision tables |
| `recovery`, `replay` | what of a journal counts, and its jobs once more |
| `ownership` | whether state file or journal has the replica's record |
| `run`, `engine` | what is written when |
"""
