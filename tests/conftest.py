# SPDX-License-Identifier: GPL-2.0-only
"""For every test.

Where pytest finds that it runs on a CI system, it explains a failed comparison of two
devices' contents by a line-by-line difference, which takes it hours: a test that fails
hangs until its time limit instead, and a planted bug that is noticed seems to hang.

An example's run time is no property of the code on a busy machine: Hypothesis sets no deadline.
"""

import os

from hypothesis import settings

NOTHING_IS_SKIPPED = "BDR_TESTS_SKIP_NOTHING"
"""Set on a CI system, also for the processes that pytest starts."""

for _name in ("CI", "BUILD_NUMBER"):
    if os.environ.pop(_name, None):
        os.environ[NOTHING_IS_SKIPPED] = "1"

settings.register_profile("bdr", deadline=None)
settings.load_profile("bdr")
