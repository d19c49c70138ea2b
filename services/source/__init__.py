# SPDX-License-Identifier: GPL-2.0-only
"""The scanner's connections and threads, which `bdr verify` has too."""
