# SPDX-License-Identifier: GPL-2.0-only
"""Setting up what BDR runs on: devices, supervisord, the demonstration."""
