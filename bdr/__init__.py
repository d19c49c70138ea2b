# SPDX-License-Identifier: GPL-2.0-only
"""BDR, the Block Device Replicator.

The package that is installed. Its parts are the folders `common` and `services` at the top
of the checkout, which appear here by symbolic links, so that an installation claims no
other name in site-packages than `bdr`.
"""
