# SPDX-License-Identifier: GPL-2.0-only
"""The command `bdr`, as `python -m bdr`."""

from bdr.services.cli.main import main

if __name__ == "__main__":
    main()
