# SPDX-License-Identifier: GPL-2.0-only
"""Databases and file systems on a replica whose source was lost: is it a prefix of the source?

A source host and a target host are two network namespaces. Real applications work on the
source's captured device, and note outside of it what was acknowledged to them. Then the source
is lost, or everything on the target killed, at some moment; the replica is promoted, recovered
by the application's own means, checked by its own tools, and compared with the notes.
"""
