# SPDX-License-Identifier: GPL-2.0-only
"""Protocol, formats and access to devices, shared by every process of BDR."""
