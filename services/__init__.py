# SPDX-License-Identifier: GPL-2.0-only
"""The processes of BDR: thin loops around the state machines of `common`."""
